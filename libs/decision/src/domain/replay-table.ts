export interface ReplayTableOptions {
  /** How long an id is remembered at least. */
  readonly windowMs: number
  readonly idsMax: number
}

/** Ids that were used, each good for once; two generations, so that forgetting costs nothing. */
export class ReplayTable {
  readonly #options: ReplayTableOptions
  #current = new Set<string>()
  #previous = new Set<string>()
  #begunAtMs = 0

  constructor(options: ReplayTableOptions) {
    this.#options = options
  }

  get size(): number {
    return this.#current.size + this.#previous.size
  }

  /** Uses an id. `used`: it was used before. `full`: there is no room to remember it, so it must not count. */
  take(id: string, nowMs: number): 'fresh' | 'used' | 'full' {
    this.#turn(nowMs)
    if (this.#current.has(id) || this.#previous.has(id)) return 'used'
    if (this.size >= this.#options.idsMax) return 'full'
    this.#current.add(id)
    return 'fresh'
  }

  #turn(nowMs: number): void {
    const agedMs = nowMs - this.#begunAtMs
    if (agedMs < this.#options.windowMs) return
    this.#previous = agedMs < 2 * this.#options.windowMs ? this.#current : new Set()
    this.#current = new Set()
    this.#begunAtMs = nowMs
  }
}
