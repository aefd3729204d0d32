/** Places at first: what most connections need. */
const PLACES_MIN = 64

/**
 * Streams of one connection by their number, in one array for all of its life. A Map makes a new table every few deletions; those left
 * behind hold the next one each, so that one of them in the old heap keeps all that follow until the next collection of everything.
 *
 * Open addressing with linear probing: numbers are odd and ascend, so that most streams are where they are looked for first.
 */
export class StreamTable<Stream extends { readonly id: number }> {
  #places = emptyPlaces<Stream>(PLACES_MIN)
  #size = 0

  /** Streams in the table. */
  get size(): number {
    return this.#size
  }

  get(id: number): Stream | undefined {
    return this.#places[this.#find(id)]
  }

  /** Adds a stream whose number is not in the table yet. */
  add(stream: Stream): void {
    if (this.#size >= this.#places.length / 2) this.#grow()
    this.#places[this.#find(stream.id)] = stream
    this.#size += 1
  }

  /** Whether it was there. */
  delete(id: number): boolean {
    let hole = this.#find(id)
    if (!this.#places[hole]) return false
    this.#size -= 1
    // Whoever had to go past the place that becomes free moves up, or nobody would find it any more.
    for (let at = this.#after(hole); ; at = this.#after(at)) {
      const stream = this.#places[at]
      if (!stream) break
      const mask = this.#places.length - 1
      const wayFromHome = (at - homeOf(stream.id, mask)) & mask
      if (wayFromHome < ((at - hole) & mask)) continue
      this.#places[hole] = stream
      hole = at
    }
    this.#places[hole] = undefined
    return true
  }

  /** All that are there when it is asked. */
  values(): Stream[] {
    return this.#places.filter((stream) => stream !== undefined)
  }

  /** The place of a stream, or the free one where it would be. */
  #find(id: number): number {
    const places = this.#places
    let at = homeOf(id, places.length - 1)
    for (;;) {
      const stream = places[at]
      if (!stream || stream.id === id) return at
      at = this.#after(at)
    }
  }

  #after(place: number): number {
    return (place + 1) & (this.#places.length - 1)
  }

  #grow(): void {
    const before = this.#places
    this.#places = emptyPlaces(before.length * 2)
    for (const [place, stream] of before.entries()) {
      if (stream) this.#places[this.#find(stream.id)] = stream
      before[place] = undefined
    }
  }
}

function emptyPlaces<Stream>(count: number): (Stream | undefined)[] {
  return new Array<Stream | undefined>(count).fill(undefined)
}

function homeOf(id: number, mask: number): number {
  return (id >>> 1) & mask
}
