import type { Charge, Limit } from './rate.ts'

/** Requests of one key that the other replicas have not been told of. */
export interface Use {
  readonly key: string
  readonly limit: Limit
  readonly requests: number
  /** When all of them would have had to come at once to leave as little as they left, one after the other. */
  readonly sinceMs: number
}

interface Waiting {
  limit: Limit
  requests: number
  sinceMs: number
}

/** A twentieth of a limit, and at least one request, is told at once. */
const URGENT_SHARE = 1 / 20

/**
 * What this replica admitted and the others have not been told of, by key. What a key has of it stays below
 * max(1, requests / 20) until it is urgent, which `add` says: then it has to be told in the next turn of the event loop.
 */
export class RatesUntold {
  readonly #waiting = new Map<string, Waiting>()
  readonly #urgent = new Map<string, Waiting>()
  readonly #maxKeys: number

  constructor(maxKeys: number) {
    this.#maxKeys = maxKeys
  }

  get size(): number {
    return this.#waiting.size + this.#urgent.size
  }

  /** Keys that should have been told by now, once everything urgent was taken as far as it may. */
  get urgent(): number {
    return this.#urgent.size
  }

  /** Adds a charge. 'lost': there are too many keys already; the others will never hear of this one. */
  add({ key, limit, hits = 1 }: Charge, nowMs: number): 'urgent' | 'waits' | 'lost' {
    const known = this.#urgent.get(key) ?? this.#waiting.get(key)
    if (!known && this.size >= this.#maxKeys) return 'lost'
    const use = known ?? { limit, requests: 0, sinceMs: nowMs }
    // Where what came before was used up meanwhile, the time in between is no longer there for others to use.
    use.sinceMs = Math.max(use.sinceMs, nowMs - ((limit.perSeconds * 1000) / limit.requests) * use.requests)
    use.limit = limit
    use.requests += hits
    if (use.requests < Math.max(1, limit.requests * URGENT_SHARE)) {
      if (!known) this.#waiting.set(key, use)
      return 'waits'
    }
    this.#waiting.delete(key)
    this.#urgent.set(key, use)
    return 'urgent'
  }

  /** Takes out up to `max`: what is urgent first, then the rest if asked for, the oldest first. */
  take(max: number, which: 'urgent' | 'all'): Use[] {
    const uses: Use[] = []
    for (const table of which === 'urgent' ? [this.#urgent] : [this.#urgent, this.#waiting]) {
      for (const [key, use] of table) {
        if (uses.length >= max) return uses
        table.delete(key)
        uses.push({ key, ...use })
      }
    }
    return uses
  }
}
