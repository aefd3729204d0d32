/** What an entry of a RevocableCache says of itself. */
export interface Remembered {
  /** What it depends on besides its key, always the same: when one of them is forgotten, so is the entry. */
  readonly tags: readonly string[]
  /** Milliseconds since the epoch. */
  readonly usableUntilMs: number
}

export interface RevocableCacheOptions {
  readonly entriesMax: number
  /** How many forgotten keys and tags are remembered, so that an answer from before is known to be one. */
  readonly forgottenMax: number
  /** Called for each entry that goes because the cache is full. */
  readonly evicted: () => void
}

interface Forgotten {
  readonly order: number
  readonly atMs: number
}

const NEVER: Forgotten = { order: 0, atMs: Number.NEGATIVE_INFINITY }

/**
 * Answers of somebody who knows, kept until they are over or something that they depend on is revoked. Bounded: a new entry
 * pushes out the oldest. An answer that was asked for before its key or one of its tags was forgotten may be older than that,
 * and is not taken.
 */
export class RevocableCache<E extends Remembered> {
  readonly #options: RevocableCacheOptions
  readonly #entries = new Map<string, E>()
  /** Most tags are those of one entry, for which a set would be much. */
  readonly #keysOfTag = new Map<string, string | Set<string>>()
  /** Keys and tags, in the order in which they were forgotten last. */
  readonly #forgotten = new Map<string, Forgotten>()
  /** The newest of those that are not remembered any more: anything may have been forgotten then. */
  #horizon = NEVER
  #order = 0

  constructor(options: RevocableCacheOptions) {
    this.#options = options
  }

  get size(): number {
    return this.#entries.size
  }

  /** The entry, if it is there and not over. */
  get(key: string, nowMs: number): E | undefined {
    const entry = this.#entries.get(key)
    if (!entry) return undefined
    if (entry.usableUntilMs > nowMs) return entry
    this.delete(key)
    return undefined
  }

  /** Where in the order of what is forgotten a question begins that is asked now. */
  begin(): number {
    return this.#order
  }

  /** Whether an answer may be older than something that it depends on. */
  isOutdated(begun: number, key: string, tags: readonly string[]): boolean {
    if (begun < this.#horizon.order || begun < this.#forgottenAt(key).order) return true
    return tags.some((tag) => begun < this.#forgottenAt(tag).order)
  }

  /** Takes the answer to a question. False: it is outdated, and must not be used. */
  finish(begun: number, key: string, entry: E): boolean {
    const { tags } = entry
    if (this.isOutdated(begun, key, tags)) return false
    this.delete(key)
    this.#entries.set(key, entry)
    for (const tag of tags) {
      const keys = this.#keysOfTag.get(tag)
      if (keys === undefined) this.#keysOfTag.set(tag, key)
      else if (typeof keys === 'string') this.#keysOfTag.set(tag, new Set([keys, key]))
      else keys.add(key)
    }
    if (this.#entries.size > this.#options.entriesMax) {
      const [oldest] = this.#entries.keys()
      if (oldest !== undefined) this.delete(oldest)
      this.#options.evicted()
    }
    return true
  }

  /**
   * Drops the entry with this key or every entry with this tag, and whatever answer about them is under way. Returns the keys of the
   * entries that were there.
   */
  forget(keyOrTag: string, nowMs: number): readonly string[] {
    const keys = this.#keysOfTag.get(keyOrTag) ?? []
    const dropped = typeof keys === 'string' ? [keys] : [...keys]
    if (this.#entries.has(keyOrTag)) dropped.push(keyOrTag)
    for (const key of dropped) this.delete(key)
    this.#order += 1
    this.#forgotten.delete(keyOrTag)
    this.#forgotten.set(keyOrTag, { order: this.#order, atMs: nowMs })
    const [oldest] = this.#forgotten
    if (oldest && this.#forgotten.size > this.#options.forgottenMax) {
      this.#forgotten.delete(oldest[0])
      this.#horizon = oldest[1]
    }
    return dropped
  }

  /** Whether it is remembered that this was forgotten. */
  wasForgotten(keyOrTag: string): boolean {
    return this.#forgotten.has(keyOrTag)
  }

  /** Whether one of them was, or may have been, forgotten since then. */
  wasForgottenSince(keysOrTags: readonly string[], sinceMs: number): boolean {
    if (this.#horizon.atMs >= sinceMs) return true
    return keysOrTags.some((keyOrTag) => this.#forgottenAt(keyOrTag).atMs >= sinceMs)
  }

  delete(key: string): void {
    const entry = this.#entries.get(key)
    if (!entry) return
    this.#entries.delete(key)
    for (const tag of entry.tags) {
      const keys = this.#keysOfTag.get(tag)
      if (keys instanceof Set) keys.delete(key)
      if (keys === key || (keys instanceof Set && keys.size === 0)) this.#keysOfTag.delete(tag)
    }
  }

  clear(): void {
    this.#entries.clear()
    this.#keysOfTag.clear()
  }

  #forgottenAt(keyOrTag: string): Forgotten {
    return this.#forgotten.get(keyOrTag) ?? NEVER
  }
}
