import { createHash } from 'node:crypto'
import { create } from '@bufbuild/protobuf'
import { timestampFromMs, timestampMs } from '@bufbuild/protobuf/wkt'
import { type Pass, PassSchema, PassState } from '@tollward/contracts/payment'
import { type Invoice, passEndsAtMs } from './invoice.ts'

const PASS_FORMAT = 1
const PASS_ID_BYTES = 16
/** Give-backs that a pass remembers: a call is repeated within seconds, not after so many others. */
const RECORDS_REMEMBERED = 64
const RECORD_HASH_BYTES = 16
/** One lease is at most this much: what a crashed holder can take with it. */
export const LEASE_REQUESTS_MAX = 10_000

/** The id of the pass that an invoice buys: always the same, so that redeeming again cannot make a second one. */
export function passIdOf(invoiceId: string): string {
  return createHash('sha256').update(`tollward pass ${invoiceId}`).digest().subarray(0, PASS_ID_BYTES).toString('hex')
}

/** The pass of a redeemed invoice, from which nothing was leased yet. */
export function newPass(invoice: Invoice): Pass {
  const endsAtMs = passEndsAtMs(invoice)
  return create(PassSchema, {
    format: PASS_FORMAT,
    passId: invoice.redeemed?.passId ?? passIdOf(invoice.id),
    clientId: invoice.clientId,
    plan: invoice.plan,
    invoiceId: invoice.id,
    quotaRequests: invoice.quotaRequests,
    activatedAt: timestampFromMs(invoice.redeemed?.atMs ?? 0),
    ...(endsAtMs === undefined ? {} : { expiresAt: timestampFromMs(endsAtMs) }),
    state: PassState.ACTIVE,
  })
}

/** Takes a chunk off the quota: how much, and the pass after it if it changed. All of it, if there is no quota to take from. */
export function lease(pass: Pass, wantedRequests: number): { granted: number; after?: Pass } {
  if (pass.state !== PassState.ACTIVE) return { granted: 0 }
  const wanted = BigInt(Math.min(wantedRequests, LEASE_REQUESTS_MAX))
  if (pass.quotaRequests === 0n) return { granted: Number(wanted) }
  const left = pass.quotaRequests - pass.leasedRequests
  if (left <= 0n) return { granted: 0, after: withState(pass, PassState.EXHAUSTED) }
  const granted = wanted < left ? wanted : left
  if (granted === 0n) return { granted: 0 }
  return { granted: Number(granted), after: changed(pass, { leasedRequests: pass.leasedRequests + granted }) }
}

/** Takes unused requests back, once for each record id; undefined: nothing changes. */
export function giveBack(pass: Pass, unusedRequests: number, recordId: string): Pass | undefined {
  const hash = createHash('sha256').update(recordId).digest().subarray(0, RECORD_HASH_BYTES)
  if (pass.quotaRequests === 0n || unusedRequests === 0) return undefined
  if (pass.recordHashes.some((known) => hash.equals(known))) return undefined
  const unused = BigInt(unusedRequests)
  const after = changed(pass, {
    leasedRequests: unused < pass.leasedRequests ? pass.leasedRequests - unused : 0n,
    recordHashes: [...pass.recordHashes, hash].slice(-RECORDS_REMEMBERED),
  })
  return after.state === PassState.EXHAUSTED ? withState(after, PassState.ACTIVE) : after
}

/** The pass after its payment left the best chain, or came back; undefined: nothing changes. */
export function suspend(pass: Pass, isSuspended: boolean): Pass | undefined {
  if (isSuspended === (pass.state === PassState.SUSPENDED)) return undefined
  // What was exhausted before shows again with the next lease.
  return withState(pass, isSuspended ? PassState.SUSPENDED : PassState.ACTIVE)
}

/** When the pass ends by time. */
export function passExpiresAtMs({ expiresAt }: Pass): number | undefined {
  return expiresAt === undefined ? undefined : timestampMs(expiresAt)
}

function withState(pass: Pass, state: PassState): Pass {
  return changed(pass, { state, stateChanges: pass.stateChanges + 1 })
}

function changed(pass: Pass, change: Partial<Omit<Pass, '$typeName' | '$unknown'>>): Pass {
  return { ...pass, ...change }
}
