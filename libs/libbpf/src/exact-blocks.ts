import { randomFillSync } from 'node:crypto'
import { constants } from 'node:os'
import { BLOCK, BLOCK_HASH, BLOCK_SLOT, HITS_TOLD, SLOT } from './layout.ts'
import { type Batch, type BpfMap, MAP_TYPE } from './map.ts'
import { BpfError, libc, viewOf } from './native.ts'
import type { MapOptions } from './object.ts'

const [PROT_READ_WRITE, MAP_SHARED] = [3, 1]
const MAP_FAILED = 0xffff_ffff_ffff_ffffn
const KEY_BYTES = 16
const KEY_WORDS = KEY_BYTES / 4
/** The first three words of an IPv4 address are these, its own is the last. */
const [MAPPED_WORDS, IPV4_WORD] = [[0, 0, 0xffff_0000 | 0], 3] as const
const SLOTS_OF_BUCKET = 2
const BUCKET_BYTES = SLOTS_OF_BUCKET * BLOCK_SLOT.bytes
const SLOT_WORDS = BLOCK_SLOT.bytes / 4
const HEAD_WORD = BLOCK_SLOT.head / 4
const RULE_WORD = BLOCK_SLOT.ruleId / 4
const WIDE_WORD = SLOT.wideAddress / 4
const SLOT_LONGS = BLOCK_SLOT.bytes / 8
const TERMS_LONG = BLOCK_SLOT.terms / 8
const HITS_LONG = BLOCK_SLOT.hits / 8
const REACH_BITS = SLOT.reachMask << SLOT.reachShift
const VERSION = 1 << SLOT.versionShift
/** One of IPv6 takes a bucket of its own. */
const BUCKETS_EACH = 2
const [MODE_BITS, RATE_BITS] = [0xffn, 0xffffn]
const EXPIRY_UNIT_NS = 1n << SLOT.expiryShift
/** 36 years after the start of the kernel. */
const EXPIRY_MAX = (1n << (64n - SLOT.timeShift)) - 1n
const EXACT_PREFIX = 128
/** As many as batches of the kernel's own maps have. */
const BATCH_ENTRIES = 4096
const ONLY_KEY = Buffer.alloc(4)

/** How large the table must be, that so many addresses find room. */
export function tableSizes(addresses: number): Record<'block_exact', MapOptions> {
  return { block_exact: { maxEntries: BUCKETS_EACH * addresses + SLOT.reachMax } }
}

/** Memory that is mapped as long as a view of it can be reached. */
const mappings = new FinalizationRegistry<{ address: bigint; length: number }>(({ address, length }) => {
  libc().munmap(address, length)
})

/**
 * The table of exact addresses (see bpf/include/layout.h) as if it were a hash from address to block. Slots are written in the
 * kernel's own memory, without a system call, each change in an order in which every packet is judged by what was there before
 * or what is there afterwards: a slot is filled before its head says so, an address is within its home's reach before it
 * counts as there, and no block ever moves. A block ends up to a millisecond after its expiry. One writer at a time; who has the maps of
 * another calls `takeOver` first.
 */
export class ExactBlocks {
  readonly name: string
  readonly keyBytes = KEY_BYTES
  readonly valueBytes = BLOCK.bytes
  readonly maxEntries: number
  /** To whoever copies entries, this is a hash of blocks. */
  readonly type = MAP_TYPE.hash
  readonly types: BpfMap['types']
  readonly #hashMap: BpfMap
  readonly #overflow: BpfMap
  /** Of each home, how many are in the overflow. */
  readonly #overflowing = new Map<number, number>()
  readonly #homes: number
  readonly #slots: number
  readonly #words: Int32Array
  readonly #longs: BigUint64Array
  /** Lower and upper half of each factor, then of the addend. */
  #hash = new Int32Array(0)
  #count = 0

  constructor({ map }: { readonly map: (name: string) => BpfMap }) {
    const buckets = map('block_exact')
    this.name = buckets.name
    this.#hashMap = map('block_hash')
    this.#overflow = map('block_overflow')
    this.types = this.#overflow.types
    this.#slots = SLOTS_OF_BUCKET * buckets.maxEntries
    this.#homes = buckets.maxEntries - SLOT.reachMax
    this.maxEntries = Math.floor(this.#homes / BUCKETS_EACH)
    if (buckets.valueBytes !== BUCKET_BYTES || this.maxEntries < 1)
      throw new TypeError(`${this.name} is no table of blocks with room for one`)
    const memory = memoryOf(buckets)
    this.#words = new Int32Array(memory)
    this.#longs = new BigUint64Array(memory)
    this.#readHash()
  }

  /** Sets right what an earlier writer left, whenever it ended, and draws the hash of a table that has none. */
  takeOver(): void {
    if (this.#readHash() !== this.#homes) this.#drawHash()
    this.#overflowing.clear()
    this.#count = 0
    for (const { count, keys } of this.#overflow.entries()) {
      this.#count += count
      for (let index = 0; index < count; index++) this.#changeOverflow(this.#homeOf(keys, index * KEY_BYTES), 1)
    }
    const reaches = new Uint8Array(this.#homes)
    for (let slot = 0; slot < this.#slots; slot++) {
      if (!this.#isLive(slot)) continue
      const home = this.#homeOfSlot(slot)
      reaches[home] = reachTo(home, slot)
      this.#count += 1
    }
    for (let home = 0; home < this.#homes; home++) this.#setReach(home, reaches[home] ?? 0)
  }

  lookup(key: Uint8Array): Buffer | undefined {
    const home = this.#homeOf(key, 0)
    const slot = this.#find(home, key, 0)
    if (slot < 0) return this.#overflows(home) ? this.#overflow.lookup(key) : undefined
    const value = Buffer.alloc(BLOCK.bytes)
    this.#readBlock(slot, value, 0)
    return value
  }

  /** As in BpfMap. Hits and times of a block that is there only go on: the kernel may have counted since they were read. */
  update(key: Uint8Array, value: Uint8Array, how: 'any' | 'create' | 'replace' = 'any'): void {
    if (key.length !== KEY_BYTES || value.length !== this.valueBytes)
      throw new TypeError(`an entry of ${this.name} has ${KEY_BYTES} and ${this.valueBytes} bytes`)
    this.#set(key, 0, value, 0, how)
  }

  /** As in BpfMap: the first that finds no room throws, and those before it are set. */
  updateBatch(keys: Uint8Array, values: Uint8Array): void {
    for (let index = 0; index < keys.length / KEY_BYTES; index++)
      this.#set(keys, index * KEY_BYTES, values, index * this.valueBytes, 'any')
  }

  delete(key: Uint8Array): boolean {
    return this.#delete(key, 0)
  }

  /** Returns how many were removed. */
  deleteBatch(keys: Uint8Array): number {
    let removed = 0
    for (let at = 0; at < keys.length; at += KEY_BYTES) if (this.#delete(keys, at)) removed += 1
    return removed
  }

  /** As in BpfMap: the buffers are reused. */
  *entries(): Generator<Batch> {
    yield* this.slots()
    yield* this.#overflow.entries()
  }

  /** The same, without what found no room among the slots. */
  *slots(): Generator<Batch> {
    const keys = Buffer.alloc(BATCH_ENTRIES * KEY_BYTES)
    const values = Buffer.alloc(BATCH_ENTRIES * BLOCK.bytes)
    let count = 0
    for (let slot = 0; slot < this.#slots; slot++) {
      if (!this.#isLive(slot)) continue
      for (let word = 0; word < KEY_WORDS; word++)
        keys.writeInt32LE(this.#addressWord(slot, word), count * KEY_BYTES + 4 * word)
      this.#readBlock(slot, values, count * BLOCK.bytes)
      count += 1
      if (count < BATCH_ENTRIES) continue
      yield { count, keys, values }
      count = 0
    }
    if (count > 0) yield { count, keys, values }
  }

  /** The bucket in which an address is looked for first. */
  homeOf(key: Uint8Array): number {
    return this.#homeOf(key, 0)
  }

  #set(keys: Uint8Array, keyAt: number, values: Uint8Array, valueAt: number, how: 'any' | 'create' | 'replace'): void {
    const home = this.#homeOf(keys, keyAt)
    const slot = this.#find(home, keys, keyAt)
    const key = keys.subarray(keyAt, keyAt + KEY_BYTES)
    const value = values.subarray(valueAt, valueAt + this.valueBytes)
    const isHeld = slot >= 0 || this.#isInOverflow(home, key)
    if (isHeld && how === 'create') throw new BpfError(`update of ${this.name}`, constants.errno.EEXIST, '')
    if (!isHeld && how === 'replace') throw new BpfError(`update of ${this.name}`, constants.errno.ENOENT, '')
    if (slot >= 0) this.#replace(slot, value)
    else if (isHeld) this.#overflow.update(key, value)
    else this.#insert(home, key, value)
  }

  #insert(home: number, key: Uint8Array, value: Uint8Array): void {
    if (this.#count >= this.maxEntries) throw new BpfError(`update of ${this.name}`, constants.errno.E2BIG, '')
    const isWide = !isIpv4(key, 0)
    const slot = this.#freeSlot(home, isWide)
    if (slot < 0) {
      this.#overflow.update(key, value)
      this.#changeOverflow(home, 1)
    } else {
      const block = Buffer.from(value.buffer, value.byteOffset, value.length)
      this.#writeAddress(slot, key, isWide)
      this.#writeTerms(slot, block)
      Atomics.store(this.#longs, slot * SLOT_LONGS + HITS_LONG, block.readBigUInt64LE(BLOCK.hits))
      this.#setHead(slot, (this.#head(slot) | SLOT.live | (isWide ? SLOT.wide : 0)) + VERSION)
      if (this.#reachOf(home) < reachTo(home, slot)) this.#setReach(home, reachTo(home, slot))
    }
    this.#count += 1
  }

  #delete(keys: Uint8Array, at: number): boolean {
    const home = this.#homeOf(keys, at)
    const slot = this.#find(home, keys, at)
    if (slot >= 0) {
      this.#setHead(slot, (this.#head(slot) & ~(SLOT.live | SLOT.wide)) + VERSION)
      if (this.#reachOf(home) === reachTo(home, slot)) this.#setReach(home, this.#reachWithout(home, slot))
    } else {
      if (!this.#overflows(home) || !this.#overflow.delete(keys.subarray(at, at + KEY_BYTES))) return false
      this.#changeOverflow(home, -1)
    }
    this.#count -= 1
    return true
  }

  /** A kernel that read a part of it before and another after sees another version, and reads again. */
  #replace(slot: number, value: Uint8Array): void {
    const next = Buffer.from(value.buffer, value.byteOffset, value.length)
    this.#goOn(slot, next)
    this.#writeTerms(slot, next)
    this.#setHead(slot, this.#head(slot) + VERSION)
  }

  /** A wide one lies where its bucket's second slot would have other things. */
  #writeAddress(slot: number, key: Uint8Array, isWide: boolean): void {
    const at = slot * SLOT_WORDS
    if (!isWide) Atomics.store(this.#words, at, wordAt(key, 4 * IPV4_WORD))
    else
      for (let word = 0; word < KEY_WORDS; word++)
        Atomics.store(this.#words, at + WIDE_WORD + word, wordAt(key, 4 * word))
  }

  /** Of the address that a slot holds, in the form that keys have. */
  #addressWord(slot: number, word: number): number {
    const at = slot * SLOT_WORDS
    if (this.#isWide(slot)) return this.#words[at + WIDE_WORD + word] ?? 0
    return (word === IPV4_WORD ? this.#words[at] : MAPPED_WORDS[word]) ?? 0
  }

  #writeTerms(slot: number, block: Buffer): void {
    const terms =
      (expiryUnits(block.readBigUInt64LE(BLOCK.expiresNs)) << SLOT.timeShift) |
      (BigInt(block.readUInt16LE(BLOCK.packetsPerSecond)) << SLOT.rateShift) |
      BigInt(block.readUInt8(BLOCK.mode))
    Atomics.store(this.#longs, slot * SLOT_LONGS + TERMS_LONG, terms)
    Atomics.store(this.#words, slot * SLOT_WORDS + RULE_WORD, block.readInt32LE(BLOCK.ruleId))
  }

  /** Writes the block of a slot as the other maps of blocks have it. */
  #readBlock(slot: number, to: Buffer, at: number): void {
    const terms = this.#longs[slot * SLOT_LONGS + TERMS_LONG] ?? 0n
    to.writeBigUInt64LE((terms >> SLOT.timeShift) << SLOT.expiryShift, at + BLOCK.expiresNs)
    to.writeInt32LE(this.#words[slot * SLOT_WORDS + RULE_WORD] ?? 0, at + BLOCK.ruleId)
    to.writeUInt8(Number(terms & MODE_BITS), at + BLOCK.mode)
    to.writeUInt8(EXACT_PREFIX, at + BLOCK.prefixLength)
    to.writeUInt16LE(Number((terms >> SLOT.rateShift) & RATE_BITS), at + BLOCK.packetsPerSecond)
    to.writeBigUInt64LE(Atomics.load(this.#longs, slot * SLOT_LONGS + HITS_LONG), at + BLOCK.hits)
  }

  /** A block that begins anew has none; else what the kernel counted meanwhile stays. */
  #goOn(slot: number, next: Buffer): void {
    const [index, wanted] = [slot * SLOT_LONGS + HITS_LONG, next.readBigUInt64LE(BLOCK.hits)]
    const held = Atomics.load(this.#longs, index)
    if (wanted === 0n || (held & ~HITS_TOLD) < (wanted & ~HITS_TOLD)) Atomics.store(this.#longs, index, wanted)
  }

  /** The slot that holds an address; -1: none. */
  #find(home: number, keys: Uint8Array, at: number): number {
    const end = SLOTS_OF_BUCKET * (home + this.#reachOf(home))
    for (let slot = SLOTS_OF_BUCKET * home; slot < end; slot++)
      if (this.#isLive(slot) && this.#holds(slot, keys, at)) return slot
    return -1
  }

  #holds(slot: number, keys: Uint8Array, at: number): boolean {
    // From the end: most addresses begin alike.
    for (let word = KEY_WORDS - 1; word >= 0; word--)
      if (this.#addressWord(slot, word) !== wordAt(keys, at + 4 * word)) return false
    return true
  }

  /** The first with room for an address of the family; -1: none is near. */
  #freeSlot(home: number, isWide: boolean): number {
    for (
      let first = SLOTS_OF_BUCKET * home;
      first < SLOTS_OF_BUCKET * (home + SLOT.reachMax);
      first += SLOTS_OF_BUCKET
    ) {
      const [isFirstFree, isSecondFree] = [!this.#isLive(first), !this.#isLive(first + 1)]
      if (isWide ? isFirstFree && isSecondFree : isFirstFree) return first
      if (!isWide && isSecondFree && !this.#isWide(first)) return first + 1
    }
    return -1
  }

  #isInOverflow(home: number, key: Uint8Array): boolean {
    return this.#overflows(home) && this.#overflow.lookup(key) !== undefined
  }

  /** How far those of a home reach now that one in the last bucket has gone. */
  #reachWithout(home: number, gone: number): number {
    for (let slot = gone | 1; slot >= SLOTS_OF_BUCKET * home; slot--)
      if (this.#isLive(slot) && this.#homeOfSlot(slot) === home) return reachTo(home, slot)
    return 0
  }

  /** Whether some of a home are in the overflow. */
  #overflows(home: number): boolean {
    return (this.#head(SLOTS_OF_BUCKET * home) & SLOT.overflow) !== 0
  }

  #changeOverflow(home: number, change: 1 | -1): void {
    const count = (this.#overflowing.get(home) ?? 0) + change
    if (count > 0) this.#overflowing.set(home, count)
    else this.#overflowing.delete(home)
    this.#setReach(home, this.#reachOf(home))
  }

  #reachOf(home: number): number {
    return (this.#head(SLOTS_OF_BUCKET * home) >> SLOT.reachShift) & SLOT.reachMask
  }

  /** Also says whether some are in the overflow. */
  #setReach(home: number, reach: number): void {
    const head = this.#head(SLOTS_OF_BUCKET * home)
    const others = head & ~(REACH_BITS | SLOT.overflow)
    const now = others | (reach << SLOT.reachShift) | (this.#overflowing.has(home) ? SLOT.overflow : 0)
    if (now !== head) this.#setHead(SLOTS_OF_BUCKET * home, now)
  }

  #isLive(slot: number): boolean {
    return (this.#head(slot) & SLOT.live) !== 0
  }

  #isWide(slot: number): boolean {
    return (this.#head(slot) & SLOT.wide) !== 0
  }

  #head(slot: number): number {
    return this.#words[slot * SLOT_WORDS + HEAD_WORD] ?? 0
  }

  /**
   * Whatever was written before is there when this is; whatever is written afterwards is not there earlier. For the latter it is
   * read, as some processors (arm64) let a plain write overtake an atomic one, but no atomic read that follows it.
   */
  #setHead(slot: number, head: number): void {
    const at = slot * SLOT_WORDS + HEAD_WORD
    Atomics.store(this.#words, at, head)
    Atomics.load(this.#words, at)
  }

  /** Returns of how many homes it is. */
  #readHash(): number {
    const value = this.#hashMap.lookup(ONLY_KEY) ?? Buffer.alloc(BLOCK_HASH.bytes)
    this.#hash = Int32Array.from({ length: BLOCK_HASH.homes / 4 }, (_, index) => value.readInt32LE(4 * index))
    return value.readUInt32LE(BLOCK_HASH.homes)
  }

  /** Of a table that is empty, or whose homes nobody knows any more. */
  #drawHash(): void {
    for (let slot = 0; slot < this.#slots; slot++) if (this.#head(slot) !== 0) this.#setHead(slot, 0)
    const value = Buffer.alloc(BLOCK_HASH.bytes)
    randomFillSync(value, 0, BLOCK_HASH.homes)
    value.writeUInt32LE(this.#homes, BLOCK_HASH.homes)
    this.#hashMap.update(ONLY_KEY, value)
    this.#readHash()
  }

  #homeOf(keys: Uint8Array, at: number): number {
    return this.#home(wordAt(keys, at), wordAt(keys, at + 4), wordAt(keys, at + 8), wordAt(keys, at + 12))
  }

  #homeOfSlot(slot: number): number {
    const word = (index: number) => this.#addressWord(slot, index)
    return this.#home(word(0), word(1), word(2), word(IPV4_WORD))
  }

  /** As in bpf/include/blocks.h; numbers of 64 bits by their halves. */
  #home(...words: readonly [number, number, number, number]): number {
    const hash = this.#hash
    let low = (hash[2 * KEY_WORDS] ?? 0) >>> 0
    let high = hash[2 * KEY_WORDS + 1] ?? 0
    for (let index = 0; index < KEY_WORDS; index++) {
      const word = words[index] ?? 0
      if (word === 0) continue
      const factor = hash[2 * index] ?? 0
      low += Math.imul(factor, word) >>> 0
      high += Math.imul(hash[2 * index + 1] ?? 0, word) + upperHalf(factor, word)
      if (low > 0xffff_ffff) {
        low -= 0x1_0000_0000
        high += 1
      }
      high |= 0
    }
    return upperHalf(Math.imul(high ^ (high >>> 15), SLOT.hashMix), this.#homes)
  }
}

/** In how many buckets from the home on a slot lies. */
function reachTo(home: number, slot: number): number {
  return (slot >> 1) - home + 1
}

/** Whether a key is an IPv4 address. */
function isIpv4(keys: Uint8Array, at: number): boolean {
  return MAPPED_WORDS.every((word, index) => wordAt(keys, at + 4 * index) === word)
}

/** As a slot counts time, rounded up; 0: never. */
function expiryUnits(expiresNs: bigint): bigint {
  const units = (expiresNs + EXPIRY_UNIT_NS - 1n) >> SLOT.expiryShift
  return units < EXPIRY_MAX ? units : EXPIRY_MAX
}

/** Little-endian. */
function wordAt(bytes: Uint8Array, at: number): number {
  return (bytes[at] ?? 0) | ((bytes[at + 1] ?? 0) << 8) | ((bytes[at + 2] ?? 0) << 16) | ((bytes[at + 3] ?? 0) << 24)
}

/** The upper 32 bits of the product of two numbers without sign. */
function upperHalf(one: number, other: number): number {
  const [oneLow, oneHigh, otherLow, otherHigh] = [one & 0xffff, one >>> 16, other & 0xffff, other >>> 16]
  const middle = oneHigh * otherLow + ((oneLow * otherLow) >>> 16)
  const rest = oneLow * otherHigh + (middle & 0xffff)
  return (oneHigh * otherHigh + (middle >>> 16) + (rest >>> 16)) >>> 0
}

function memoryOf(map: BpfMap): ArrayBuffer {
  const length = map.maxEntries * map.valueBytes
  const address = libc().mmap(null, length, PROT_READ_WRITE, MAP_SHARED, map.fd, 0)
  if (BigInt.asUintN(64, address) === MAP_FAILED) throw new BpfError(`mapping ${map.name}`, constants.errno.ENOMEM, '')
  const { buffer } = viewOf(address, length)
  if (!(buffer instanceof ArrayBuffer)) throw new TypeError('memory that is mapped is no array buffer')
  mappings.register(buffer, { address, length })
  return buffer
}
