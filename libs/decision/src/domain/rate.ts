/** `requests` in `perSeconds`, all of which may come at once. */
export interface Limit {
  readonly requests: number
  readonly perSeconds: number
}

/** What one request costs under one limit. */
export interface Charge {
  /** The limit and whom it limits. Two limits never share a key, or one would count for the other. */
  readonly key: string
  readonly limit: Limit
  /** How many requests it counts as; absent: one. More than the limit's own `requests` never conform. */
  readonly hits?: number
}

/** Whether one more request conforms, and what a refused caller should know (seconds, whole and rounded up). */
export type Rate =
  | { readonly conforms: true }
  | { readonly conforms: false; readonly retryAfterSeconds: number; readonly charge: Charge }

const CONFORMS: Rate = { conforms: true }

/** Sums of times since 1970 are exact to some 0.0002 ms only; the last of a burst must not be refused for that. */
const ROUNDING_MS = 0.01

/** Entries looked at for a stale one before a live one is pushed out; keeps a full table cheap. */
const STALE_PROBES = 8

/**
 * Limits by the generic cell rate algorithm (ITU-T I.371): per key one number, the theoretical arrival time in milliseconds.
 * The table is bounded; when it is full of live keys the oldest is forgotten, which lets that key begin anew: it fails open,
 * and the eviction is counted.
 *
 * What other replicas admitted is added as they tell it. Each request counts once everywhere, so over N replicas, in any time no
 * longer than the limit's own, at most (N−1) × what one of them has admitted and the others have not heard of is admitted beyond
 * what this algorithm alone would admit (RatesUntold says how much that is).
 */
export class RateTable {
  readonly #arrivals = new Map<string, number>()
  readonly #maxKeys: number
  readonly #onEvicted: () => void
  readonly #onCounted: ((charge: Charge, nowMs: number) => void) | undefined

  /** `onCounted`: told of every charge that was counted here, for the other replicas. */
  constructor(maxKeys: number, onEvicted: () => void, onCounted?: (charge: Charge, nowMs: number) => void) {
    this.#maxKeys = maxKeys
    this.#onEvicted = onEvicted
    this.#onCounted = onCounted
  }

  get size(): number {
    return this.#arrivals.size
  }

  /** Counts one request of this key, unless it does not conform. `nowMs` must not run backwards by more than a little. */
  take(key: string, limit: Limit, nowMs: number): Rate {
    return this.takeAll([{ key, limit }], nowMs)
  }

  /** Counts a request under all of its limits, or, if it does not conform to one of them, under none. Keys must differ. */
  takeAll(charges: readonly Charge[], nowMs: number): Rate {
    const rate = this.check(charges, nowMs)
    if (rate.conforms) for (const charge of charges) this.#count(charge, nowMs)
    return rate
  }

  /** What takeAll would say, without counting. Of several limits that refuse, the one that refuses longest. */
  check(charges: readonly Charge[], nowMs: number): Rate {
    let longestMs = ROUNDING_MS
    let refusing: Charge | undefined
    for (const charge of charges) {
      const earlyMs = this.#earlyMs(charge, nowMs)
      if (earlyMs <= longestMs) continue
      longestMs = earlyMs
      refusing = charge
    }
    if (!refusing) return CONFORMS
    return { conforms: false, retryAfterSeconds: Math.ceil(longestMs / 1000), charge: refusing }
  }

  /** How much too early a request comes; 0 and less: it conforms. */
  #earlyMs({ key, limit: { requests, perSeconds }, hits = 1 }: Charge, nowMs: number): number {
    const arrivalMs = Math.max(this.#arrivals.get(key) ?? 0, nowMs)
    return arrivalMs - ((perSeconds * 1000) / requests) * (requests - hits) - nowMs
  }

  /**
   * Counts what another replica admitted, whether it conforms here or not: what was too much is paid back. But no longer than the
   * limit's own time is anybody refused for it, however much it was. They count as if all had come at once `ageMs` ago.
   */
  addOthers(charge: Charge, nowMs: number, ageMs = 0): void {
    const { requests, perSeconds } = charge.limit
    const intervalMs = (perSeconds * 1000) / requests
    const latestMs = nowMs + perSeconds * 1000 + intervalMs * (requests - 1)
    this.#set(charge.key, Math.min(this.#arrivalMs(charge, nowMs - ageMs), latestMs), nowMs)
  }

  /** How many requests of this limit still conform now, and in how many milliseconds all of them would. */
  left({ key, limit }: Charge, nowMs: number): { readonly requests: number; readonly fullInMs: number } {
    const fullInMs = Math.max(0, (this.#arrivals.get(key) ?? 0) - nowMs)
    const intervalMs = (limit.perSeconds * 1000) / limit.requests
    return { requests: Math.max(0, Math.floor(limit.requests - (fullInMs - ROUNDING_MS) / intervalMs)), fullInMs }
  }

  /** Takes back what takeAll counted, for a request that was not admitted after all. Other replicas go on counting it. */
  giveBack(charges: readonly Charge[], nowMs: number): void {
    for (const charge of charges) {
      const counted = this.#arrivals.has(charge.key)
      if (counted) this.#set(charge.key, this.#arrivalMs({ ...charge, hits: -(charge.hits ?? 1) }, nowMs), nowMs)
    }
  }

  #count(charge: Charge, nowMs: number): void {
    this.#set(charge.key, this.#arrivalMs(charge, nowMs), nowMs)
    this.#onCounted?.(charge, nowMs)
  }

  /** The theoretical arrival time after these requests. */
  #arrivalMs({ key, limit: { requests, perSeconds }, hits = 1 }: Charge, nowMs: number): number {
    return Math.max(this.#arrivals.get(key) ?? 0, nowMs) + ((perSeconds * 1000) / requests) * hits
  }

  #set(key: string, arrivalMs: number, nowMs: number): void {
    if (this.#arrivals.size >= this.#maxKeys && !this.#arrivals.has(key)) this.#makeRoom(nowMs)
    this.#arrivals.set(key, arrivalMs)
  }

  #makeRoom(nowMs: number): void {
    let probes = 0
    let oldest: string | undefined
    for (const [key, arrivalMs] of this.#arrivals) {
      oldest ??= key
      if (arrivalMs <= nowMs) {
        this.#arrivals.delete(key)
        return
      }
      if (++probes === STALE_PROBES) break
    }
    if (oldest !== undefined) this.#arrivals.delete(oldest)
    this.#onEvicted()
  }
}
