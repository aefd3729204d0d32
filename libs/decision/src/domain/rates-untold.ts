import type { Charge, Limit } from './rate.ts'

/** Requests of one key that the other replicas have not been told of. */
export interface Use {
  readonly key: string
  readonly limit: Limit
  readonly requests: number
  /** When all of them would have had to come at once to leave as little as they left, one after the other. */
  readonly sinceMs: number
}

/** `told`: nothing of it waits; it is there for the next time. */
type State = 'told' | 'waits' | 'urgent'

interface Entry {
  readonly key: string
  state: State
  /** It has a place in the queue of those that wait, though it may have become urgent since. */
  isQueued: boolean
  limit: Limit
  requests: number
  sinceMs: number
}

/** A twentieth of a limit, and at least one request, is told at once. */
const URGENT_SHARE = 1 / 20

/**
 * What this replica admitted and the others have not been told of, by key. What a key has of it stays below
 * max(1, requests / 20) until it is urgent, which `add` says: then it has to be told in the next turn of the event loop.
 *
 * Keys come back many times a second, so their entries stay when they were told. Entries that come and go leave tables behind that
 * hold each other, and what they held, until the next collection of everything.
 */
export class RatesUntold {
  #entries = new Map<string, Entry>()
  readonly #waiting: Entry[] = []
  readonly #urgent: Entry[] = []
  readonly #maxKeys: number
  #size = 0

  constructor(maxKeys: number) {
    this.#maxKeys = maxKeys
  }

  /** Keys that have to be told. */
  get size(): number {
    return this.#size
  }

  /** Keys of which something is kept, also those that were told. */
  get held(): number {
    return this.#entries.size
  }

  /** Keys that should have been told by now, once everything urgent was taken as far as it may. */
  get urgent(): number {
    return this.#urgent.length
  }

  /** Adds a charge. 'lost': there are too many keys already; the others will never hear of this one. */
  add({ key, limit, hits = 1 }: Charge, nowMs: number): 'urgent' | 'waits' | 'lost' {
    const entry = this.#entries.get(key) ?? this.#begin(key, limit)
    if (entry.state === 'told') {
      if (this.#size >= this.#maxKeys) return 'lost'
      this.#size += 1
      entry.state = 'waits'
      entry.requests = 0
      entry.sinceMs = nowMs
    }
    // Where what came before was used up meanwhile, the time in between is no longer there for others to use.
    entry.sinceMs = Math.max(entry.sinceMs, nowMs - ((limit.perSeconds * 1000) / limit.requests) * entry.requests)
    entry.limit = limit
    entry.requests += hits
    if (entry.state === 'urgent') return 'urgent'
    if (entry.requests >= Math.max(1, limit.requests * URGENT_SHARE)) {
      entry.state = 'urgent'
      this.#urgent.push(entry)
      return 'urgent'
    }
    if (!entry.isQueued) this.#waiting.push(entry)
    entry.isQueued = true
    return 'waits'
  }

  /** Takes out up to `max`: what is urgent first, then the rest if asked for, the oldest first. */
  take(max: number, which: 'urgent' | 'all'): Use[] {
    const uses: Use[] = []
    this.#takeFrom(this.#urgent, 'urgent', max, uses)
    if (which === 'all') this.#takeFrom(this.#waiting, 'waits', max, uses)
    return uses
  }

  #takeFrom(queue: Entry[], state: State, max: number, uses: Use[]): void {
    let looked = 0
    for (const entry of queue) {
      if (uses.length >= max) break
      looked += 1
      if (state === 'waits') entry.isQueued = false
      if (entry.state !== state) continue
      entry.state = 'told'
      this.#size -= 1
      const { key, limit, requests, sinceMs } = entry
      uses.push({ key, limit, requests, sinceMs })
    }
    queue.splice(0, looked)
  }

  /** An entry for a new key. Where there are too many, those that were told make room at once: half of all, at least. */
  #begin(key: string, limit: Limit): Entry {
    if (this.#entries.size >= 2 * this.#maxKeys) {
      this.#entries = new Map([...this.#entries].filter(([, { state }]) => state !== 'told'))
    }
    const entry: Entry = { key, state: 'told', isQueued: false, limit, requests: 0, sinceMs: 0 }
    this.#entries.set(key, entry)
    return entry
  }
}
