/** How many connections each source has. A source that has none costs nothing. */
export class ConnectionCounts {
  readonly #counts = new Map<string, number>()
  readonly #perSourceMax: number

  constructor(perSourceMax: number) {
    this.#perSourceMax = perSourceMax
  }

  /** Counts one more. False: the source has as many as it may. */
  take(source: string): boolean {
    const count = this.#counts.get(source) ?? 0
    if (count >= this.#perSourceMax) return false
    this.#counts.set(source, count + 1)
    return true
  }

  /** One that was taken is over. */
  release(source: string): void {
    const count = this.#counts.get(source) ?? 0
    if (count <= 1) this.#counts.delete(source)
    else this.#counts.set(source, count - 1)
  }
}

/** Whether something happens more often than it may: at most so many in each window of time. */
export class FrameRate {
  readonly #framesMax: number
  readonly #windowMs: number
  #windowEndsMs = 0
  #frames = 0

  constructor(framesMax: number, windowMs: number) {
    this.#framesMax = framesMax
    this.#windowMs = windowMs
  }

  /** Counts one. False: that was one too many. */
  take(nowMs: number): boolean {
    if (nowMs >= this.#windowEndsMs) {
      this.#windowEndsMs = nowMs + this.#windowMs
      this.#frames = 0
    }
    this.#frames += 1
    return this.#frames <= this.#framesMax
  }
}
