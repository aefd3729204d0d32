import { createHash } from 'node:crypto'
import { create } from '@bufbuild/protobuf'
import { timestampFromMs, timestampMs } from '@bufbuild/protobuf/wkt'
import { type Pass, type PassLease, PassLeaseSchema, PassSchema, PassState } from '@tollward/contracts/payment'
import { AppError } from '@tollward/errors'
import { type Invoice, passEndsAtMs } from './invoice.ts'

const PASS_FORMAT = 1
const PASS_ID_BYTES = 16

/** Of a quota, the part that a crashed decision point may cost: one in so many requests. */
const LOSS_SHARE = 100n
/** Of a large quota, what a decision point at full load serves while one record is under way. */
const LOSS_MAX = 1_000n

/** The ledger hears of a quota's use in so many steps: what has to be written for a pass, and what a lost bucket costs. */
const DRAWS = 10n

/** Requests that one decision point may hold unserved; the rest is for others. */
export const LEASE_REQUESTS_MAX = 20_000
/** Decision points that hold parts of one pass at once: its value in the bucket has to stay small. */
export const LEASES_MAX = 256
/** A lease is taken back this much later than its holder stops: the clocks of two replicas may differ by less. */
export const LEASE_MARGIN_MS = 2_000

/** The id of the pass that an invoice buys: always the same, so that redeeming again cannot make a second one. */
export function passIdOf(invoiceId: string): string {
  return createHash('sha256').update(`tollward pass ${invoiceId}`).digest().subarray(0, PASS_ID_BYTES).toString('hex')
}

/**
 * The loss bound, in requests: the most that one crashed decision point costs the owner of a pass. It is what the decision point may
 * have served without a record of it, and so counts as served. A hundredth of the quota, at least 1, at most 1000; 0 without quota.
 */
export function lossBound(quotaRequests: bigint): number {
  const part = ceilDivided(quotaRequests, LOSS_SHARE)
  return Number(part < LOSS_MAX ? part : LOSS_MAX)
}

/** The pass of a redeemed invoice, of whose quota the ledger says that so much was drawn: nobody knows what became of that. */
export function newPass(invoice: Invoice, drawnRequests: bigint): Pass {
  const endsAtMs = passEndsAtMs(invoice)
  const pass = create(PassSchema, {
    format: PASS_FORMAT,
    passId: invoice.redeemed?.passId ?? passIdOf(invoice.id),
    clientId: invoice.clientId,
    plan: invoice.plan,
    invoiceId: invoice.id,
    quotaRequests: invoice.quotaRequests,
    leasedRequests: drawnRequests,
    drawnRequests,
    unrecordedRequestsMax: lossBound(invoice.quotaRequests),
    activatedAt: timestampFromMs(invoice.redeemed?.atMs ?? 0),
    ...(endsAtMs === undefined ? {} : { expiresAt: timestampFromMs(endsAtMs) }),
    state: PassState.ACTIVE,
  })
  return isUsedUp(pass) ? withState(pass, PassState.EXHAUSTED) : pass
}

/** Who asks for a chunk of a quota. */
export interface LeaseWish {
  readonly holder: string
  /** Unserved requests that it wants to hold: asking again without having served gives nothing more. */
  readonly wantedRequests: number
  /** For a new lease. */
  readonly leaseId: string
}

/** A pass after a question of a decision point. */
export interface Leased {
  readonly after: Pass
  /** The asker's lease; absent: it has none. */
  readonly lease?: PassLease
}

/** Gives the holder a lease of the quota, or more of the one that it has; its lease lasts anew. AppError if there are too many. */
export function lease(pass: Pass, wish: LeaseWish, nowMs: number, lastsMs: number): Leased {
  const before = withoutLapsed(pass, nowMs)
  const held = before.leases.find(({ holder }) => holder === wish.holder)
  if (before.state !== PassState.ACTIVE) return { after: before }
  const left = before.quotaRequests - before.leasedRequests
  const wanted = BigInt(Math.min(wish.wantedRequests, LEASE_REQUESTS_MAX)) - (held === undefined ? 0n : restOf(held))
  const more = smaller(wanted > 0n ? wanted : 0n, left)
  if (held === undefined && more === 0n) return { after: before }
  if (held === undefined && before.leases.length >= LEASES_MAX)
    throw new AppError('resource_exhausted', 'Too many decision points hold parts of this pass; try again in a moment.')
  const first = create(PassLeaseSchema, { leaseId: wish.leaseId, holder: wish.holder })
  const { grantedRequests } = held ?? first
  const next = renewed({ ...(held ?? first), grantedRequests: grantedRequests + more }, nowMs, lastsMs)
  const leases = [...before.leases.filter((other) => other !== held), next]
  return { after: used({ ...before, leases, leasedRequests: before.leasedRequests + more }), lease: next }
}

/** What a holder says of its lease. */
export interface UseRecord {
  readonly holder: string
  /** Empty: whichever it has. */
  readonly leaseId: string
  /** Since it was leased: a repeated or late record changes nothing. */
  readonly servedRequests: number
  /** It will serve no more of it. */
  readonly ends: boolean
}

/** Notes what was served of a lease, which lasts anew, or ends it and takes the rest back. */
export function record(pass: Pass, use: UseRecord, nowMs: number, lastsMs: number): Leased {
  const before = withoutLapsed(pass, nowMs)
  const held = before.leases.find(
    ({ holder, leaseId }) => holder === use.holder && (use.leaseId === '' || leaseId === use.leaseId),
  )
  if (held === undefined) return { after: before }
  const served = smaller(BigInt(use.servedRequests), held.grantedRequests)
  const isNews = served > held.recordedRequests
  const recorded = isNews ? served : held.recordedRequests
  const others = before.leases.filter((other) => other !== held)
  if (use.ends) {
    const leasedRequests = before.leasedRequests - (held.grantedRequests - recorded)
    return { after: used({ ...before, leases: others, leasedRequests }) }
  }
  const next = renewed({ ...held, recordedRequests: recorded }, nowMs, lastsMs)
  return { after: used({ ...before, leases: [...others, next] }), lease: next }
}

/**
 * The pass without leases whose holders were not heard in time. What one may have served beyond its last record counts as served; the
 * rest comes back.
 */
export function withoutLapsed(pass: Pass, nowMs: number): Pass {
  const lapsed = pass.leases.filter((each) => endsAtMs(each) <= nowMs)
  if (lapsed.length === 0) return pass
  const bound = BigInt(pass.unrecordedRequestsMax)
  const back = lapsed.reduce((sum, each) => sum + restOf(each) - smaller(restOf(each), bound), 0n)
  const leases = pass.leases.filter((each) => !lapsed.includes(each))
  return used({ ...pass, leases, leasedRequests: pass.leasedRequests - back })
}

/** What the ledger has to allow to be drawn before this pass may be what the bucket says. */
export function drawnFor({ quotaRequests, leasedRequests, drawnRequests }: Pass): bigint {
  if (leasedRequests <= drawnRequests) return drawnRequests
  const step = ceilDivided(quotaRequests, DRAWS)
  return smaller(quotaRequests, ceilDivided(leasedRequests, step) * step)
}

/** The pass after its payment left the best chain, or came back; undefined: nothing changes. */
export function suspend(pass: Pass, isSuspended: boolean): Pass | undefined {
  if (isSuspended === (pass.state === PassState.SUSPENDED)) return undefined
  if (isSuspended) return withState(pass, PassState.SUSPENDED)
  return withState(pass, isUsedUp(pass) ? PassState.EXHAUSTED : PassState.ACTIVE)
}

/** Of the quota, what was served as far as it was recorded. */
export function servedRequests({ leasedRequests, leases }: Pass): bigint {
  return leases.reduce((sum, each) => sum - restOf(each), leasedRequests)
}

/** When the pass ends by time. */
export function passExpiresAtMs({ expiresAt }: Pass): number | undefined {
  return expiresAt === undefined ? undefined : timestampMs(expiresAt)
}

/** Nothing is left to lease, and nothing that is leased is unserved. */
function isUsedUp(pass: Pass): boolean {
  return pass.quotaRequests > 0n && servedRequests(pass) >= pass.quotaRequests
}

function used(pass: Pass): Pass {
  return pass.state === PassState.ACTIVE && isUsedUp(pass) ? withState(pass, PassState.EXHAUSTED) : pass
}

function renewed(each: PassLease, nowMs: number, lastsMs: number): PassLease {
  return { ...each, endsAt: timestampFromMs(nowMs + lastsMs + LEASE_MARGIN_MS) }
}

function endsAtMs({ endsAt }: PassLease): number {
  return endsAt === undefined ? 0 : timestampMs(endsAt)
}

/** Leased and not recorded as served. */
function restOf({ grantedRequests, recordedRequests }: PassLease): bigint {
  return grantedRequests - recordedRequests
}

function withState(pass: Pass, state: PassState): Pass {
  return { ...pass, state, stateChanges: pass.stateChanges + 1 }
}

function smaller(one: bigint, other: bigint): bigint {
  return one < other ? one : other
}

function ceilDivided(dividend: bigint, divisor: bigint): bigint {
  return (dividend + divisor - 1n) / divisor
}
