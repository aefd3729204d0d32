import type { AddressRange } from '@tollward/contracts'

const FIRST_CAPACITY = 1024
/** Beyond this share, runs of taken places get long. */
const LOAD_MAX = 0.6
const ADDRESS_WORDS = 4
const ADDRESS_BYTES = 16

/** What is wanted of one range. */
export interface Wanted {
  readonly expiresAtMs: number
  /** The number by which the kernel knows the block. */
  readonly ruleId: number
}

/**
 * Ranges and what is wanted of each, in a few flat arrays: 40 bytes a range, where objects would take ten times that and give
 * the garbage collector a million things to follow. A range has a position, from 0 to size - 1; removing one gives its
 * position to the last.
 */
export class WantedBlocks {
  #size = 0
  #words = new Uint32Array(FIRST_CAPACITY * ADDRESS_WORDS)
  /** The same, as bytes. */
  #bytes = Buffer.from(this.#words.buffer)
  #prefixes = new Uint8Array(FIRST_CAPACITY)
  #expires = new Float64Array(FIRST_CAPACITY)
  #rules = new Uint32Array(FIRST_CAPACITY)
  #marks = new Uint8Array(FIRST_CAPACITY)
  /** Position + 1 at the place that the range's hash says, or at the next free one; 0: free. A power of two. */
  #index = new Int32Array(FIRST_CAPACITY * 2)
  /** The range that is looked for, as words. */
  readonly #asked = new Uint32Array(ADDRESS_WORDS)
  readonly #askedBytes = new Uint8Array(this.#asked.buffer)

  get size(): number {
    return this.#size
  }

  /** Position of a range, or -1. `address` holds 16 bytes from `at`. */
  find(address: Uint8Array, prefixLength: number, at = 0): number {
    for (let byte = 0; byte < ADDRESS_BYTES; byte++) this.#askedBytes[byte] = address[at + byte] ?? 0
    return (this.#index[this.#place(this.#asked, 0, prefixLength)] ?? 0) - 1
  }

  /** Sets what is wanted of a range. Returns its position and whether it is new. */
  set({ address, prefixLength }: AddressRange, { expiresAtMs, ruleId }: Wanted): { position: number; isNew: boolean } {
    let position = this.find(address, prefixLength)
    const isNew = position < 0
    if (isNew) {
      this.#grow()
      position = this.#size++
      this.#words.set(this.#asked, position * ADDRESS_WORDS)
      this.#prefixes[position] = prefixLength
      this.#marks[position] = 0
      this.#index[this.#place(this.#asked, 0, prefixLength)] = position + 1
    }
    this.#expires[position] = expiresAtMs
    this.#rules[position] = ruleId
    return { position, isNew }
  }

  range(position: number): AddressRange {
    // A small buffer of its own comes from Node's pool; cutting one out of an ArrayBuffer costs ten times that.
    const address = Buffer.allocUnsafe(ADDRESS_BYTES)
    const from = position * ADDRESS_BYTES
    this.#bytes.copy(address, 0, from, from + ADDRESS_BYTES)
    return { address, prefixLength: this.#prefixes[position] ?? 0 }
  }

  wanted(position: number): Wanted {
    return { expiresAtMs: this.#expires[position] ?? 0, ruleId: this.#rules[position] ?? 0 }
  }

  /** A mark of the caller's on a range, 0 at first; it goes where the range goes. */
  mark(position: number, mark: number): void {
    this.#marks[position] = mark
  }

  markOf(position: number): number {
    return this.#marks[position] ?? 0
  }

  clearMarks(): void {
    this.#marks.fill(0)
  }

  /** A position with that mark, from one on; -1: none. */
  marked(mark: number, from = 0): number {
    const found = this.#marks.indexOf(mark, from)
    return found < this.#size ? found : -1
  }

  /** The last position before `before` whose time is over; -1: none. Going down, removing is safe. */
  over(nowMs: number, before = this.#size): number {
    for (let position = before - 1; position >= 0; position--)
      if ((this.#expires[position] ?? 0) <= nowMs) return position
    return -1
  }

  remove(position: number): void {
    this.#forget(this.#place(this.#words, position * ADDRESS_WORDS, this.#prefixes[position] ?? 0))
    const last = --this.#size
    if (position === last) return
    const place = this.#place(this.#words, last * ADDRESS_WORDS, this.#prefixes[last] ?? 0)
    this.#index[place] = position + 1
    this.#words.copyWithin(position * ADDRESS_WORDS, last * ADDRESS_WORDS, (last + 1) * ADDRESS_WORDS)
    for (const column of [this.#prefixes, this.#expires, this.#rules, this.#marks]) column[position] = column[last] ?? 0
  }

  /** Place of a range in the index, or the free one where it would be. */
  #place(words: Uint32Array, at: number, prefixLength: number): number {
    const mask = this.#index.length - 1
    for (let place = hash(words, at, prefixLength) & mask; ; place = (place + 1) & mask) {
      const position = (this.#index[place] ?? 0) - 1
      if (position < 0 || this.#is(position, words, at, prefixLength)) return place
    }
  }

  #is(position: number, words: Uint32Array, at: number, prefixLength: number): boolean {
    const own = position * ADDRESS_WORDS
    return (
      this.#prefixes[position] === prefixLength &&
      this.#words[own + 3] === words[at + 3] &&
      this.#words[own + 2] === words[at + 2] &&
      this.#words[own + 1] === words[at + 1] &&
      this.#words[own] === words[at]
    )
  }

  /** Frees a place, and moves up those behind it that were pushed past it. */
  #forget(freed: number): void {
    const mask = this.#index.length - 1
    let free = freed
    for (let place = (free + 1) & mask; this.#index[place] !== 0; place = (place + 1) & mask) {
      const position = (this.#index[place] ?? 0) - 1
      const home = hash(this.#words, position * ADDRESS_WORDS, this.#prefixes[position] ?? 0) & mask
      // Not beyond its home, going round.
      if (((place - home) & mask) < ((place - free) & mask)) continue
      this.#index[free] = position + 1
      free = place
    }
    this.#index[free] = 0
  }

  #grow(): void {
    if (this.#size === this.#prefixes.length) {
      const capacity = 2 * this.#size
      this.#words = copyTo(new Uint32Array(capacity * ADDRESS_WORDS), this.#words)
      this.#bytes = Buffer.from(this.#words.buffer)
      this.#prefixes = copyTo(new Uint8Array(capacity), this.#prefixes)
      this.#expires = copyTo(new Float64Array(capacity), this.#expires)
      this.#rules = copyTo(new Uint32Array(capacity), this.#rules)
      this.#marks = copyTo(new Uint8Array(capacity), this.#marks)
    }
    if (this.#size < this.#index.length * LOAD_MAX) return
    this.#index = new Int32Array(this.#index.length * 2)
    for (let position = 0; position < this.#size; position++) {
      const place = this.#place(this.#words, position * ADDRESS_WORDS, this.#prefixes[position] ?? 0)
      this.#index[place] = position + 1
    }
  }
}

function copyTo<Column extends Uint8Array | Uint32Array | Float64Array>(to: Column, from: Column): Column {
  to.set(from)
  return to
}

/** Spreads what differs least, the last bytes of an address, over all bits. Who chooses addresses cannot choose many blocks. */
function hash(words: Uint32Array, at: number, prefixLength: number): number {
  let mixed = prefixLength
  for (let word = 0; word < ADDRESS_WORDS; word++) {
    mixed = Math.imul(mixed ^ (words[at + word] ?? 0), 0x9e3779b1)
    mixed ^= mixed >>> 15
  }
  mixed = Math.imul(mixed, 0x85ebca6b)
  return (mixed ^ (mixed >>> 13)) >>> 0
}
