import { durationMs, type Plan } from '@tollward/documents'

/** Whole and hundredths of a percent: 10,000 are all of it. */
const BASIS_POINTS = 10_000n
const SCORE_MAX = 1000

/** What is known of a client when a price is made for it. */
export interface Customer {
  /** 0 to 1000. */
  readonly score: number
  /** Since it was first seen. */
  readonly ageMs: number
  /** In settled payments. */
  readonly paidSats: bigint
}

/** A part of what is taken off the list price. */
export interface PriceCut {
  readonly kind: 'bitcoin' | 'conduct'
  readonly basisPoints: number
  readonly amountSats: bigint
  /** The score that decided; 0 where none did. */
  readonly score: number
}

/** What a plan costs somebody. */
export interface Price {
  readonly listSats: bigint
  /** The list price less every cut. */
  readonly sats: bigint
  readonly cuts: readonly PriceCut[]
}

/**
 * The price of a plan for a customer. Cuts are parts of the list price, in whole sats rounded down, so in the seller's favour; all of
 * them together keep within the plan's cap and lead no lower than its floor, and what goes beyond is taken from the last cut.
 */
export function priceOf({ spec }: Plan, customer: Customer): Price {
  const listSats = BigInt(spec.priceSats)
  const floorSats = BigInt(spec.discounts.floorSats)
  const byFloor = listSats > floorSats ? listSats - floorSats : 0n
  const byCap = partOf(listSats, spec.discounts.cap)
  let roomSats = byFloor < byCap ? byFloor : byCap
  const cuts: PriceCut[] = []
  for (const { kind, basisPoints, score } of asked(spec.discounts, customer)) {
    const wantedSats = partOf(listSats, basisPoints)
    const amountSats = wantedSats < roomSats ? wantedSats : roomSats
    if (amountSats === 0n) continue
    roomSats -= amountSats
    cuts.push({ kind, basisPoints, amountSats, score })
  }
  const sats = cuts.reduce((left, { amountSats }) => left - amountSats, listSats)
  return { listSats, sats, cuts }
}

/** How many confirmations a payment of this amount needs. */
export function confirmationsFor({ spec }: Plan, amountSats: bigint): number {
  const step = spec.moreConfirmations.findLast(({ fromSats }) => amountSats >= BigInt(fromSats))
  return step?.confirmations ?? spec.confirmations
}

function asked({ bitcoin, conduct }: Plan['spec']['discounts'], { score, ageMs, paidSats }: Customer) {
  const wanted: { kind: PriceCut['kind']; basisPoints: number; score: number }[] = []
  if (bitcoin > 0) wanted.push({ kind: 'bitcoin', basisPoints: bitcoin, score: 0 })
  if (conduct === undefined || score < conduct.minimumScore) return wanted
  if (ageMs < durationMs(conduct.minimumAge) || paidSats < BigInt(conduct.minimumPaidSats)) return wanted
  const share = (Math.min(score, SCORE_MAX) - conduct.minimumScore) / (SCORE_MAX - conduct.minimumScore)
  const basisPoints = Math.floor(conduct.basisPoints * share)
  if (basisPoints > 0) wanted.push({ kind: 'conduct', basisPoints, score })
  return wanted
}

function partOf(sats: bigint, basisPoints: number): bigint {
  return (sats * BigInt(basisPoints)) / BASIS_POINTS
}
