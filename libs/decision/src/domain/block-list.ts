import { ADDRESS_BYTES, type AddressRange, parseRangeKey } from '@tollward/contracts'
import { PrefixTable } from './prefix-table.ts'

/** One block as the list holds it. */
export interface BlockEntry {
  readonly range: AddressRange
  readonly expiresAtMs: number
}

/** Addresses that no block touches: refusing ourselves would end the means to lift it. */
export const GUARDED_ADDRESSES = ['127.0.0.1', '::1'] as const

/** Of an IPv4 address in the 128-bit form, the bits that are the same in all. */
const V4_MAPPED_BITS = 96
const V4_MAPPED_BYTES = V4_MAPPED_BITS / 8
const V4_MAPPED_WORD = 0xffff

/**
 * Which sources are blocked. Expiry is checked at look-up, so a block ends in time even if nobody says so. Looking up, adding
 * and removing take microseconds whatever the size.
 */
export class BlockList {
  readonly #guarded: readonly Uint8Array[]
  readonly #hashing = new Hashing()
  #blocks = new BlockTables(this.#hashing)

  constructor(guarded: readonly Uint8Array[]) {
    this.#guarded = guarded
  }

  get size(): number {
    return this.#blocks.size
  }

  /** Memory of the tables. */
  get bytes(): number {
    return this.#blocks.bytes
  }

  /** Takes the complete state in the place of all that was known. */
  replace(entries: Iterable<BlockEntry>): void {
    const draft = this.draft()
    for (const entry of entries) draft.set(entry)
    this.swap(draft)
  }

  /** An empty state, to be filled while the one in force goes on. */
  draft(): BlockTables {
    return new BlockTables(this.#hashing)
  }

  /** Takes a draft of this list in the place of all that was known. */
  swap(draft: BlockTables): void {
    this.#blocks = draft
  }

  set(entry: BlockEntry): void {
    this.#blocks.set(entry)
  }

  /** Lifts a block by its key in the bucket. */
  remove(bucketKey: string): void {
    this.#blocks.remove(bucketKey)
  }

  /** Takes out some of what is over; all of it after as many calls as there are segments, of which each holds hundreds. */
  sweep(nowMs: number): void {
    this.#blocks.sweep(nowMs)
  }

  /** Whether a block that has not expired covers this address, and the address is not guarded. */
  isBlocked(address: Uint8Array, nowMs: number): boolean {
    return this.#blocks.covers(address, nowMs) && !this.isGuarded(address)
  }

  isGuarded(address: Uint8Array): boolean {
    for (const guarded of this.#guarded) if (isSame(guarded, address)) return true
    return false
  }
}

/** The ranges of one family and prefix length. */
interface Level {
  readonly prefixLength: number
  readonly masks: Int32Array
  /** The byte in which the prefix ends, and what of it counts; 0 where the prefix ends between bytes. */
  readonly lastByte: number
  readonly lastMask: number
  readonly table: PrefixTable
}

/** Blocks by family and prefix length: IPv4 apart, because it is most of what is blocked and needs a quarter of the key. */
export class BlockTables {
  readonly #hashing: Hashing
  /** Longest prefix first. */
  #v4: Level[] = []
  #v6: Level[] = []
  /** When ranges of IPv6 end that hold all of IPv4, by prefix length: they are in #v6 too, where no look-up of IPv4 goes. */
  readonly #aroundV4 = new Map<number, number>()
  #swept = { level: 0, segment: 0 }

  constructor(hashing: Hashing) {
    this.#hashing = hashing
  }

  get size(): number {
    return this.#levels().reduce((total, { table }) => total + table.size, 0)
  }

  get bytes(): number {
    return this.#levels().reduce((total, { table }) => total + table.bytes, 0)
  }

  set({ range: { address, prefixLength }, expiresAtMs }: BlockEntry): void {
    const words = this.#hashing.read(address)
    const isV4 = isMapped(words) && prefixLength >= V4_MAPPED_BITS
    const levels = isV4 ? this.#v4 : this.#v6
    const level = levels.find((one) => one.prefixLength === prefixLength) ?? this.#add(isV4, prefixLength)
    maskWords(words, level.masks)
    const hash = this.#hashing.ofKey(words, isV4 ? V4_MAPPED_BYTES : 0)
    level.table.set(hash, words, expiresAtMs)
    if (!isV4 && holdsV4(words, level.masks)) this.#aroundV4.set(prefixLength, expiresAtMs)
  }

  remove(bucketKey: string): void {
    const range = parseRangeKey(bucketKey)
    if (!range) return
    const words = this.#hashing.read(range.address)
    const isV4 = isMapped(words) && range.prefixLength >= V4_MAPPED_BITS
    const level = (isV4 ? this.#v4 : this.#v6).find(({ prefixLength }) => prefixLength === range.prefixLength)
    if (!level) return
    maskWords(words, level.masks)
    const hash = this.#hashing.ofKey(words, isV4 ? V4_MAPPED_BYTES : 0)
    level.table.remove(hash, words)
    if (!isV4 && holdsV4(words, level.masks)) this.#aroundV4.delete(range.prefixLength)
    if (level.table.size === 0) this.#drop(level)
  }

  /** Whether a block that has not expired covers this address. */
  covers(address: Uint8Array, nowMs: number): boolean {
    const words = this.#hashing.read(address)
    if (!isMapped(words)) return this.#anyCovers(this.#v6, words, nowMs)
    if (this.#anyCovers(this.#v4, words, nowMs)) return true
    return this.#aroundV4.size > 0 && this.#aroundV4.values().some((end) => end > nowMs)
  }

  /** Takes what is over out of one segment. */
  sweep(nowMs: number): void {
    for (const [prefixLength, end] of this.#aroundV4) if (end <= nowMs) this.#aroundV4.delete(prefixLength)
    const levels = this.#levels()
    const level = levels[this.#swept.level]
    if (!level) {
      this.#swept = { level: 0, segment: 0 }
      return
    }
    const swept = level.table.sweep(this.#swept.segment, nowMs)
    if (level.table.size === 0) this.#drop(level)
    else if (swept) this.#swept.segment += 1
    else this.#swept = { level: this.#swept.level + 1, segment: 0 }
  }

  #anyCovers(levels: readonly Level[], words: Int32Array, nowMs: number): boolean {
    const [a = 0, b = 0, c = 0, d = 0] = words
    for (const level of levels) {
      const { masks } = level
      const hash = this.#hashing.ofPrefix(level)
      const end = level.table.get(
        hash,
        a & (masks[0] ?? 0),
        b & (masks[1] ?? 0),
        c & (masks[2] ?? 0),
        d & (masks[3] ?? 0),
      )
      if (end > nowMs) return true
    }
    return false
  }

  #levels(): Level[] {
    return [...this.#v4, ...this.#v6]
  }

  #add(isV4: boolean, prefixLength: number): Level {
    const masks = Int32Array.from({ length: 4 }, (_, word) => wordMask(prefixLength - 32 * word))
    const rest = prefixLength & 7
    const level = {
      prefixLength,
      masks,
      lastByte: prefixLength >> 3,
      lastMask: rest === 0 ? 0 : (0xff << (8 - rest)) & 0xff,
      table: isV4
        ? new PrefixTable(1, (words) => this.#hashing.ofKey(words, V4_MAPPED_BYTES))
        : new PrefixTable(4, (words) => this.#hashing.ofKey(words, 0)),
    }
    const longestFirst = (levels: Level[]) => [...levels, level].sort((x, y) => y.prefixLength - x.prefixLength)
    if (isV4) this.#v4 = longestFirst(this.#v4)
    else this.#v6 = longestFirst(this.#v6)
    return level
  }

  #drop(level: Level): void {
    this.#v4 = this.#v4.filter((one) => one !== level)
    this.#v6 = this.#v6.filter((one) => one !== level)
  }
}

/**
 * Hashes of prefixes by simple tabulation: each byte of the address chooses a random word, and their exclusive or is the hash.
 * Whoever chooses addresses cannot choose hashes without knowing the words, and all prefixes of an address are hashed in one pass.
 */
class Hashing {
  readonly #tables = crypto.getRandomValues(new Int32Array(ADDRESS_BYTES * 256))
  readonly #words = new Int32Array(4)
  /** Of the first n bytes; those of IPv4 without the twelve that are the same in all. */
  readonly #hashes = new Int32Array(ADDRESS_BYTES + 1)
  #address: Uint8Array = new Uint8Array(ADDRESS_BYTES)

  constructor() {
    // What a prefix leaves out is 0, and adds nothing.
    for (let byte = 0; byte < ADDRESS_BYTES; byte++) this.#tables[byte * 256] = 0
  }

  /** Reads an address for `ofPrefix`. Returns its words, for the caller to use and change until the next call. */
  read(address: Uint8Array): Int32Array {
    const words = this.#words
    for (let word = 0; word < 4; word++) {
      const at = 4 * word
      words[word] =
        ((address[at] ?? 0) << 24) |
        ((address[at + 1] ?? 0) << 16) |
        ((address[at + 2] ?? 0) << 8) |
        (address[at + 3] ?? 0)
    }
    const first = isMapped(words) ? V4_MAPPED_BYTES : 0
    const hashes = this.#hashes
    let hash = 0
    for (let byte = 0; byte < ADDRESS_BYTES; byte++) {
      hashes[byte] = hash
      if (byte >= first) hash ^= this.#tables[byte * 256 + (address[byte] ?? 0)] ?? 0
    }
    hashes[ADDRESS_BYTES] = hash
    this.#address = address
    return words
  }

  /** The hash of the first bits of the address that was read. */
  ofPrefix({ lastByte, lastMask }: Level): number {
    const whole = this.#hashes[lastByte] ?? 0
    if (lastMask === 0) return whole
    return whole ^ (this.#tables[lastByte * 256 + ((this.#address[lastByte] ?? 0) & lastMask)] ?? 0)
  }

  /** The hash of a key that a table keeps, from this byte of the address on. */
  ofKey(words: Int32Array, firstByte: number): number {
    let hash = 0
    for (let byte = firstByte; byte < ADDRESS_BYTES; byte++) {
      const value = ((words[byte >> 2] ?? 0) >>> (24 - 8 * (byte & 3))) & 0xff
      hash ^= this.#tables[byte * 256 + value] ?? 0
    }
    return hash
  }
}

function isSame(one: Uint8Array, other: Uint8Array): boolean {
  for (let byte = ADDRESS_BYTES - 1; byte >= 0; byte--) if (one[byte] !== other[byte]) return false
  return true
}

function isMapped(words: Int32Array): boolean {
  return words[2] === V4_MAPPED_WORD && words[1] === 0 && words[0] === 0
}

function maskWords(words: Int32Array, masks: Int32Array): void {
  for (let word = 0; word < 4; word++) words[word] = (words[word] ?? 0) & (masks[word] ?? 0)
}

/** Whether the range of this key holds all of IPv4. */
function holdsV4(words: Int32Array, masks: Int32Array): boolean {
  return masks[3] === 0 && words[0] === 0 && words[1] === 0 && words[2] === (V4_MAPPED_WORD & (masks[2] ?? 0))
}

/** The first so many bits of a word, as a mask; none for less than 1. */
function wordMask(bits: number): number {
  if (bits <= 0) return 0
  return bits >= 32 ? -1 : -1 << (32 - bits)
}

/** The first bits of an address as a key: one character a byte. */
export function maskedKey(address: Uint8Array, prefixLength: number): string {
  const wholeBytes = prefixLength >> 3
  let key = ''
  for (let index = 0; index < wholeBytes; index++) key += String.fromCharCode(address[index] ?? 0)
  const rest = prefixLength & 7
  return rest === 0 ? key : key + String.fromCharCode((address[wholeBytes] ?? 0) & (0xff << (8 - rest)))
}
