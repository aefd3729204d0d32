/** A map that never holds more than `maxEntries`: a new entry pushes out the one that was put in first. */
export class BoundedMap<K, V> {
  readonly #entries = new Map<K, V>()
  readonly #maxEntries: number
  readonly #onEvicted: () => void

  constructor(maxEntries: number, onEvicted: () => void) {
    this.#maxEntries = maxEntries
    this.#onEvicted = onEvicted
  }

  get size(): number {
    return this.#entries.size
  }

  get(key: K): V | undefined {
    return this.#entries.get(key)
  }

  set(key: K, value: V): void {
    if (this.#entries.size >= this.#maxEntries && !this.#entries.has(key)) {
      const oldest = this.#entries.keys().next()
      if (!oldest.done) this.#entries.delete(oldest.value)
      this.#onEvicted()
    }
    this.#entries.set(key, value)
  }

  delete(key: K): boolean {
    return this.#entries.delete(key)
  }

  entries(): MapIterator<[K, V]> {
    return this.#entries.entries()
  }
}
