/** Slots of a segment: it grows to the larger number, then splits. What one call moves is never more than that. */
const SLOTS_MIN = 16
const SLOTS_MAX = 1024
/** Beyond, looking for what is not there takes too many steps (8 on average at this load). */
const LOAD_MAX = 0.75
/** Of the hash, the lower bits choose the segment and the upper ones the slot. No segment splits further than this. */
const DEPTH_MAX = 20
const EMPTY = 0
/** In the place of an end that would look like an empty slot. */
const LONG_OVER = -1

/** Part of a table: open addressing with linear probing, removal closes the gap. */
class Segment {
  readonly keys: Int32Array
  readonly expiries: Float64Array
  readonly slots: number
  /** What shifts a hash to a slot. */
  readonly shift: number
  /** So many lower bits of the hash are the same in all of it. */
  readonly depth: number
  count = 0

  constructor(slots: number, words: number, depth: number) {
    const buffer = new ArrayBuffer(slots * (8 + 4 * words))
    this.expiries = new Float64Array(buffer, 0, slots)
    this.keys = new Int32Array(buffer, 8 * slots, slots * words)
    this.slots = slots
    this.shift = 32 - Math.log2(slots)
    this.depth = depth
  }
}

/**
 * When each of many keys of one or four 32-bit words ends. In segments of typed arrays, by extendible hashing: growing copies
 * one segment and never the whole, so that nobody waits for it. A key of one word is the last of the four.
 *
 * Takes 16 to 33 bytes an entry for keys of one word, 32 to 65 for those of four.
 */
export class PrefixTable {
  readonly #words: 1 | 4
  readonly #hashOf: (words: Int32Array) => number
  readonly #moved = new Int32Array(4)
  #directory: Segment[]
  #count = 0

  /** `hashOf` gives 32 bits for the four words of a key; those that the table doesn't keep are 0. */
  constructor(words: 1 | 4, hashOf: (words: Int32Array) => number) {
    this.#words = words
    this.#hashOf = hashOf
    this.#directory = [new Segment(SLOTS_MIN, words, 0)]
  }

  get size(): number {
    return this.#count
  }

  /** Of all segments. */
  get bytes(): number {
    return this.#segments().reduce((total, { keys }) => total + keys.buffer.byteLength, 0)
  }

  /** When the entry ends; 0 or less: there is none, or it ended long ago. */
  get(hash: number, a: number, b: number, c: number, d: number): number {
    const segment = this.#segmentOf(hash)
    return segment.expiries[this.#slotOf(segment, hash, a, b, c, d)] ?? EMPTY
  }

  set(hash: number, words: Int32Array, expiresAtMs: number): void {
    const [a = 0, b = 0, c = 0, d = 0] = words
    let segment = this.#segmentOf(hash)
    let slot = this.#slotOf(segment, hash, a, b, c, d)
    if (segment.expiries[slot] === EMPTY) {
      while (segment.count + 1 > segment.slots * LOAD_MAX) {
        this.#grow(segment, hash)
        segment = this.#segmentOf(hash)
      }
      slot = this.#slotOf(segment, hash, a, b, c, d)
      this.#writeKey(segment, slot, words)
      segment.count += 1
      this.#count += 1
    }
    segment.expiries[slot] = expiresAtMs > 0 ? expiresAtMs : LONG_OVER
  }

  /** Returns whether there was one. */
  remove(hash: number, words: Int32Array): boolean {
    const [a = 0, b = 0, c = 0, d = 0] = words
    const segment = this.#segmentOf(hash)
    const slot = this.#slotOf(segment, hash, a, b, c, d)
    if (segment.expiries[slot] === EMPTY) return false
    this.#vacate(segment, slot)
    return true
  }

  /** Takes out what is over of one segment. Undefined: there is no such segment any more. */
  sweep(index: number, nowMs: number): boolean | undefined {
    const segment = this.#directory[index]
    if (!segment) return undefined
    // A segment that several places of the directory share counts at the first.
    if (index >= 2 ** segment.depth) return true
    for (let slot = 0; slot < segment.slots; ) {
      const expiresAtMs = segment.expiries[slot] ?? EMPTY
      if (expiresAtMs !== EMPTY && expiresAtMs <= nowMs) this.#vacate(segment, slot)
      else slot += 1
    }
    return true
  }

  #segments(): Segment[] {
    return this.#directory.filter((segment, index) => index < 2 ** segment.depth)
  }

  #segmentOf(hash: number): Segment {
    return this.#directory[hash & (this.#directory.length - 1)] as Segment
  }

  /** Where the key is, or would be. */
  #slotOf(segment: Segment, hash: number, a: number, b: number, c: number, d: number): number {
    const { keys, expiries, slots } = segment
    const last = slots - 1
    let slot = hash >>> segment.shift
    if (this.#words === 1) {
      while (expiries[slot] !== EMPTY && keys[slot] !== d) slot = (slot + 1) & last
      return slot
    }
    for (; expiries[slot] !== EMPTY; slot = (slot + 1) & last) {
      const at = 4 * slot
      if (keys[at + 3] === d && keys[at + 2] === c && keys[at + 1] === b && keys[at] === a) return slot
    }
    return slot
  }

  #writeKey({ keys }: Segment, slot: number, words: Int32Array): void {
    if (this.#words === 1) keys[slot] = words[3] ?? 0
    else keys.set(words, 4 * slot)
  }

  #readKey({ keys }: Segment, slot: number, words: Int32Array): void {
    if (this.#words === 1) words[3] = keys[slot] ?? 0
    else for (let word = 0; word < 4; word++) words[word] = keys[4 * slot + word] ?? 0
  }

  /** Empties a slot, and moves into the gap what probing would no longer find behind it. */
  #vacate(segment: Segment, slot: number): void {
    const { expiries, slots, shift } = segment
    const last = slots - 1
    const words = this.#moved
    let gap = slot
    for (let next = (gap + 1) & last; expiries[next] !== EMPTY; next = (next + 1) & last) {
      this.#readKey(segment, next, words)
      const home = this.#hashOf(words) >>> shift
      if (((next - home) & last) < ((next - gap) & last)) continue
      this.#writeKey(segment, gap, words)
      expiries[gap] = expiries[next] ?? EMPTY
      gap = next
    }
    expiries[gap] = EMPTY
    segment.count -= 1
    this.#count -= 1
  }

  /** Makes room in a full segment: twice the slots, or two segments in its place. */
  #grow(segment: Segment, hash: number): void {
    const { slots, depth } = segment
    if (slots < SLOTS_MAX || depth === DEPTH_MAX) {
      const larger = new Segment(slots * 2, this.#words, depth)
      this.#move(segment, () => larger)
      this.#place(hash, depth, larger)
      return
    }
    if (2 ** depth === this.#directory.length) this.#directory = [...this.#directory, ...this.#directory]
    const bit = 1 << depth
    const [without, having] = [new Segment(slots, this.#words, depth + 1), new Segment(slots, this.#words, depth + 1)]
    this.#move(segment, (of) => (of & bit ? having : without))
    this.#place(hash & ~bit, depth + 1, without)
    this.#place(hash | bit, depth + 1, having)
  }

  #move(from: Segment, to: (hash: number) => Segment): void {
    const words = this.#moved
    for (let slot = 0; slot < from.slots; slot++) {
      const expiresAtMs = from.expiries[slot] ?? EMPTY
      if (expiresAtMs === EMPTY) continue
      this.#readKey(from, slot, words)
      const hash = this.#hashOf(words)
      const segment = to(hash)
      const [a = 0, b = 0, c = 0, d = 0] = words
      const free = this.#slotOf(segment, hash, a, b, c, d)
      this.#writeKey(segment, free, words)
      segment.expiries[free] = expiresAtMs
      segment.count += 1
    }
  }

  /** Enters a segment wherever the lower bits of the hash are these. */
  #place(hash: number, depth: number, segment: Segment): void {
    const step = 2 ** depth
    for (let index = hash & (step - 1); index < this.#directory.length; index += step) this.#directory[index] = segment
  }
}
