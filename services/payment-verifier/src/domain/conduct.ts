import { create } from '@bufbuild/protobuf'
import { timestampFromMs, timestampMs } from '@bufbuild/protobuf/wkt'
import { type CalledFrom, CalledFromSchema, type Conduct, ConductSchema } from '@tollward/contracts/payment'
import { type CallObserved, Outcome } from '@tollward/contracts/sensor'
import { ADMISSION_SAMPLE, type Reason } from '@tollward/decision'
import type { Invoice } from './invoice.ts'
import type { Customer } from './price.ts'

const DAY_MS = 24 * 60 * 60_000
const FORMAT = 1

/** After this time what was done counts half. */
export const HALF_LIFE_MS = 14 * DAY_MS
/** Whoever called from an address longer ago than this says nothing any more about who uses it. */
export const LATELY_MS = DAY_MS
/** Addresses remembered of one client, the latest: those that move more are let off. */
export const ADDRESSES_MAX = 8

/** How a score comes about. Points are out of SCORE_MAX. */
export const SCORE_MAX = 1000
/** For whoever did nothing wrong. */
const BASE_POINTS = 400
/** For being known so long; in proportion before. */
const AGE_POINTS = 300
const AGE_FULL_MS = 90 * DAY_MS
/** For so many admitted requests; by their logarithm before. */
const VOLUME_POINTS = 300
const VOLUME_FULL_REQUESTS = 10_000
/** With less history than this nobody has more than BASE_POINTS, however old or busy. */
const HISTORY_MIN_MS = DAY_MS
const HISTORY_MIN_REQUESTS = 100

/** Mistakes happen: so many violations cost nothing. */
const VIOLATIONS_FREE = 5
/** For the part of the requests that are violations: a quarter of them costs everything. */
const VIOLATION_SHARE_POINTS = 4000
/** A txid is easily mistaken; who goes on using others' is not mistaken. */
const FOREIGN_TXIDS_FREE = 3
const FOREIGN_TXID_POINTS = 100
const ALERT_POINTS = 60
const FAILED_LOGINS_FREE = 10
const FAILED_LOGIN_POINTS = 10
/** Somebody else may use the same address: what was only seen there costs at most so much. */
const ADDRESS_POINTS_MAX = 300

/** What was refused for what no payment cures, and limits overrun. Another's transaction is counted where it is presented. */
const VIOLATIONS: ReadonlySet<string> = new Set<Reason>([
  'no-rule',
  'rule-denied',
  'self-registered',
  'scope-missing',
  'audience-mismatch',
  'client-limit',
])

/** What a client did since it was last counted. */
export interface Deeds {
  readonly admitted?: number
  readonly violations?: number
  readonly foreignTxids?: number
  readonly alerts?: number
  readonly failedLogins?: number
  readonly calledFrom?: readonly CalledFrom[]
}

/** A client's score now, and why, in sentences. */
export interface Score {
  readonly score: number
  readonly reasons: readonly string[]
}

/** The deeds in one, as if they had been done at once. */
export function together(one: Deeds, other: Deeds): Deeds {
  const sum = (count: 'admitted' | 'violations' | 'foreignTxids' | 'alerts' | 'failedLogins') =>
    (one[count] ?? 0) + (other[count] ?? 0)
  return {
    admitted: sum('admitted'),
    violations: sum('violations'),
    foreignTxids: sum('foreignTxids'),
    alerts: sum('alerts'),
    failedLogins: sum('failedLogins'),
    calledFrom: latest([...(one.calledFrom ?? []), ...(other.calledFrom ?? [])]),
  }
}

/** A client's conduct after what it did; `before` undefined: nothing was known of it. */
export function afterDeeds(before: Conduct | undefined, clientId: string, deeds: Deeds, nowMs: number): Conduct {
  const known = before ?? newConduct(clientId, nowMs)
  // Another replica's clock may be ahead: what it counted then does not grow.
  const countedAtMs = Math.max(nowMs, timeOf(known.countedAt))
  const now = decayed(known, countedAtMs)
  const calledFrom = [...known.calledFrom, ...(deeds.calledFrom ?? [])]
  return {
    ...now,
    admitted: now.admitted + (deeds.admitted ?? 0),
    violations: now.violations + (deeds.violations ?? 0),
    foreignTxids: now.foreignTxids + (deeds.foreignTxids ?? 0),
    alerts: now.alerts + (deeds.alerts ?? 0),
    failedLogins: now.failedLogins + (deeds.failedLogins ?? 0),
    calledFrom: latest(calledFrom.filter(({ calledAt }) => timeOf(calledAt) > nowMs - LATELY_MS)),
  }
}

/** The same conduct with its counts at a later time. */
export function decayed(conduct: Conduct, nowMs: number): Conduct {
  const elapsedMs = Math.max(0, nowMs - timeOf(conduct.countedAt))
  const left = 0.5 ** (elapsedMs / HALF_LIFE_MS)
  return {
    ...conduct,
    countedAt: timestampFromMs(timeOf(conduct.countedAt) + elapsedMs),
    admitted: conduct.admitted * left,
    violations: conduct.violations * left,
    foreignTxids: conduct.foreignTxids * left,
    alerts: conduct.alerts * left,
    failedLogins: conduct.failedLogins * left,
  }
}

/**
 * What one recorded call says of its client; undefined: the record names none. Only calls whose token was good, with its key proved,
 * have a client. A refusal that stands for many calls counts once: it holds the first one's client, and the others may be anybody's at
 * the same address. An admission stands for the sample that it was taken from. What a policy only observes counts for nothing.
 */
export function deedsOfCall({ clientId, outcome, reason, limitedByAddress }: CallObserved): Deeds | undefined {
  if (clientId === '') return undefined
  if (outcome === Outcome.ADMITTED) return { admitted: ADMISSION_SAMPLE }
  const isViolation = outcome === Outcome.REFUSED && VIOLATIONS.has(reason) && !limitedByAddress
  return isViolation ? { violations: 1 } : {}
}

/**
 * The score of a client: for its history up to SCORE_MAX, less what it did wrong, or what an operator says in its place. More good
 * deeds never lower it, more bad ones never raise it, and what is bad about it fades by itself.
 */
export function scoreOf(conduct: Conduct, knownSinceMs: number, nowMs: number): Score {
  const { override } = conduct
  if (override !== undefined && (override.until === undefined || timeOf(override.until) > nowMs)) {
    const end = override.until === undefined ? '' : ` until ${new Date(timeOf(override.until)).toISOString()}`
    return {
      score: override.score,
      reasons: [`${override.operator} set it to ${override.score}${end}: ${override.reason}`],
    }
  }
  const counts = decayed(conduct, nowMs)
  const earned = earnedPoints(counts, nowMs - knownSinceMs)
  const lost = lostPoints(counts)
  const points = [...earned, ...lost].reduce((sum, part) => sum + part.points, 0)
  return {
    score: Math.floor(Math.min(SCORE_MAX, Math.max(0, points))),
    reasons: [...earned, ...lost].filter((part) => part.points !== 0).map(({ reason }) => reason),
  }
}

/** What decides about the price for a client. Money and, where it is longer, age are the ledger's word. */
export function customerOf(
  conduct: Conduct | undefined,
  invoices: readonly Invoice[],
  tipHeight: number,
  nowMs: number,
): Customer {
  const knownSinceMs = sinceOf(conduct, invoices, nowMs)
  return {
    score: scoreOf(conduct ?? newConduct('', nowMs), knownSinceMs, nowMs).score,
    ageMs: Math.max(0, nowMs - knownSinceMs),
    paidSats: settledSatsOf(invoices, tipHeight),
  }
}

/** Since when a client is known: from its first call that was recorded, or its first invoice. */
export function sinceOf(conduct: Conduct | undefined, invoices: readonly Invoice[], nowMs: number): number {
  const firstSeenAtMs = conduct?.firstSeenAt === undefined ? nowMs : timeOf(conduct.firstSeenAt)
  return Math.min(nowMs, firstSeenAtMs, ...invoices.slice(0, 1).map(({ openedAtMs }) => openedAtMs))
}

/** What a client paid that is as deep in the chain as its invoices ask for. */
export function settledSatsOf(invoices: readonly Invoice[], tipHeight: number): bigint {
  let sats = 0n
  for (const { payments, confirmationsNeeded } of invoices) {
    for (const { block, amountSats } of payments.values()) {
      if (block !== undefined && block.height + confirmationsNeeded - 1 <= tipHeight) sats += amountSats
    }
  }
  return sats
}

/** Nothing is known of a client but that it is there. */
export function newConduct(clientId: string, nowMs: number): Conduct {
  const now = timestampFromMs(nowMs)
  return create(ConductSchema, { format: FORMAT, clientId, firstSeenAt: now, countedAt: now })
}

interface Part {
  readonly points: number
  readonly reason: string
}

function earnedPoints({ admitted }: Conduct, knownForMs: number): Part[] {
  const days = Math.floor(knownForMs / DAY_MS)
  const requests = Math.floor(admitted)
  if (knownForMs < HISTORY_MIN_MS || admitted < HISTORY_MIN_REQUESTS) {
    const reason = `+${BASE_POINTS}: too little is known, ${days} days and ${requests} requests served`
    return [{ points: BASE_POINTS, reason }]
  }
  const age = AGE_POINTS * Math.min(1, knownForMs / AGE_FULL_MS)
  const volume = VOLUME_POINTS * Math.min(1, Math.log1p(admitted) / Math.log1p(VOLUME_FULL_REQUESTS))
  return [
    { points: BASE_POINTS, reason: `+${BASE_POINTS}: to begin with` },
    { points: age, reason: `+${Math.round(age)}: known for ${days} days` },
    { points: volume, reason: `+${Math.round(volume)}: ${requests} requests served lately` },
  ]
}

function lostPoints({ admitted, violations, foreignTxids, alerts, failedLogins }: Conduct): Part[] {
  const counted = Math.max(0, violations - VIOLATIONS_FREE)
  const share = counted === 0 ? 0 : counted / (counted + admitted)
  const byViolations = Math.min(SCORE_MAX, VIOLATION_SHARE_POINTS * share)
  const byTxids = FOREIGN_TXID_POINTS * Math.max(0, foreignTxids - FOREIGN_TXIDS_FREE)
  const byLogins = FAILED_LOGIN_POINTS * Math.max(0, failedLogins - FAILED_LOGINS_FREE)
  const byAddress = Math.min(ADDRESS_POINTS_MAX, ALERT_POINTS * alerts + byLogins)
  const lost = (points: number, reason: string) => ({ points: -points, reason: `-${Math.round(points)}: ${reason}` })
  return [
    lost(byViolations, `${Math.round(violations)} requests against policy or over a limit`),
    lost(byTxids, `${Math.round(foreignTxids)} uses of transactions that others paid`),
    lost(byAddress, `${Math.round(alerts)} alerts and ${Math.round(failedLogins)} failed logins where it calls from`),
  ]
}

/** One for each address, the latest last, and no more than are remembered. */
function latest(calledFrom: readonly CalledFrom[]): CalledFrom[] {
  const byAddress = new Map<string, CalledFrom>()
  for (const called of calledFrom.toSorted((one, other) => timeOf(one.calledAt) - timeOf(other.calledAt))) {
    const key = addressKey(called.address)
    byAddress.delete(key)
    byAddress.set(key, called)
  }
  return [...byAddress.values()].slice(-ADDRESSES_MAX)
}

/** That a client called from an address. */
export function calledFrom(address: Uint8Array, atMs: number): CalledFrom {
  return create(CalledFromSchema, { address, calledAt: timestampFromMs(atMs) })
}

export function addressKey(address: Uint8Array): string {
  return Buffer.from(address).toString('hex')
}

export function timeOf(timestamp: Parameters<typeof timestampMs>[0] | undefined): number {
  return timestamp === undefined ? 0 : timestampMs(timestamp)
}
