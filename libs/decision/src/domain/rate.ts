/** `requests` in `perSeconds`, all of which may come at once. */
export interface Limit {
  readonly requests: number
  readonly perSeconds: number
}

/** Whether one more request conforms, and what a refused caller should know (seconds, whole and rounded up). */
export type Rate = { readonly conforms: true } | { readonly conforms: false; readonly retryAfterSeconds: number }

const CONFORMS: Rate = { conforms: true }

/** Sums of times since 1970 are exact to some 0.0002 ms only; the last of a burst must not be refused for that. */
const ROUNDING_MS = 0.01

/** Entries looked at for a stale one before a live one is pushed out; keeps a full table cheap. */
const STALE_PROBES = 8

/**
 * Limits by the generic cell rate algorithm (ITU-T I.371): per key one number, the theoretical arrival time in milliseconds.
 * The table is bounded; when it is full of live keys the oldest is forgotten, which lets that key begin anew: it fails open,
 * and the eviction is counted.
 */
export class RateTable {
  readonly #arrivals = new Map<string, number>()
  readonly #maxKeys: number
  readonly #onEvicted: () => void

  constructor(maxKeys: number, onEvicted: () => void) {
    this.#maxKeys = maxKeys
    this.#onEvicted = onEvicted
  }

  get size(): number {
    return this.#arrivals.size
  }

  /** Counts one request of this key, unless it does not conform. `nowMs` must not run backwards by more than a little. */
  take(key: string, { requests, perSeconds }: Limit, nowMs: number): Rate {
    const intervalMs = (perSeconds * 1000) / requests
    const arrivalMs = this.#arrivals.get(key)
    if (arrivalMs === undefined || arrivalMs <= nowMs) {
      if (arrivalMs === undefined && this.#arrivals.size >= this.#maxKeys) this.#makeRoom(nowMs)
      this.#arrivals.set(key, nowMs + intervalMs)
      return CONFORMS
    }
    const earlyMs = arrivalMs - intervalMs * (requests - 1) - nowMs
    if (earlyMs > ROUNDING_MS) return { conforms: false, retryAfterSeconds: Math.ceil(earlyMs / 1000) }
    this.#arrivals.set(key, arrivalMs + intervalMs)
    return CONFORMS
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
