/**
 * A map of at most `limit` entries. When it is full, the entry that was used longest ago goes, and is counted: memory stays
 * bounded whatever sources send, and what was forgotten shows.
 */
export class BoundedTable<V> {
  readonly limit: number
  #evictions = 0
  // A Map iterates in order of insertion, so its first entry is the one used longest ago.
  readonly #entries = new Map<string, V>()

  constructor(limit: number) {
    this.limit = limit
  }

  get size(): number {
    return this.#entries.size
  }

  /** Entries that had to go for others, so far. */
  get evictions(): number {
    return this.#evictions
  }

  /** The value of a key, which counts as used. */
  get(key: string): V | undefined {
    const value = this.#entries.get(key)
    if (value !== undefined) {
      this.#entries.delete(key)
      this.#entries.set(key, value)
    }
    return value
  }

  /** Returns the value that had to go, if one had. */
  set(key: string, value: V): V | undefined {
    this.#entries.delete(key)
    this.#entries.set(key, value)
    if (this.#entries.size <= this.limit) return undefined
    for (const [oldest, evicted] of this.#entries) {
      this.#entries.delete(oldest)
      this.#evictions += 1
      return evicted
    }
    return undefined
  }

  /** Whether the key was there. */
  delete(key: string): boolean {
    return this.#entries.delete(key)
  }
}
