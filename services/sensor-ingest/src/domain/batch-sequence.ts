import { BoundedTable } from './bounded-table.ts'

/** Sessions remembered: one a running sensor, and those that ended lately. About 100 bytes each. */
const SESSIONS_MAX = 4096

/** Missing batches remembered a session, so that a late one is told from a repeated one. A minute at ten a second. */
const MISSING_MAX = 600

interface Session {
  last: bigint
  readonly missing: Set<bigint>
}

/**
 * fresh: not seen before; `missing` batches before it have not come (yet). late: one of those. repeated: seen before.
 * `fresh` and `late` are to be counted in, `repeated` is not.
 */
export type Arrival = { readonly kind: 'fresh'; readonly missing: number } | { readonly kind: 'late' | 'repeated' }

/** Tells lost and repeated batches of each sensor by session and sequence. */
export class BatchSequences {
  readonly #sessions = new BoundedTable<Session>(SESSIONS_MAX)

  get evictions(): number {
    return this.#sessions.evictions
  }

  /** Notes a batch. The first that is seen of a session says nothing about those before it: they may be another process's. */
  note(node: string, sessionName: string, sequence: bigint): Arrival {
    const key = `${node}\n${sessionName}`
    const session = this.#sessions.get(key)
    if (session === undefined) {
      this.#sessions.set(key, { last: sequence, missing: new Set() })
      return { kind: 'fresh', missing: 0 }
    }
    if (sequence <= session.last) return { kind: session.missing.delete(sequence) ? 'late' : 'repeated' }
    const missing = Number(sequence - session.last - 1n)
    const from = sequence - BigInt(Math.min(missing, MISSING_MAX))
    for (let number = from; number < sequence; number++) session.missing.add(number)
    for (const oldest of session.missing) {
      if (session.missing.size <= MISSING_MAX) break
      session.missing.delete(oldest)
    }
    session.last = sequence
    return { kind: 'fresh', missing }
  }
}
