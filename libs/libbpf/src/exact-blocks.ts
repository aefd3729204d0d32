import { randomFillSync } from 'node:crypto'
import { constants } from 'node:os'
import { BLOCK, BLOCK_HASH, BLOCK_MODE, BLOCK_SLOT, SLOT } from './layout.ts'
import type { Batch, BpfMap } from './map.ts'
import { BpfError, libc, viewOf } from './native.ts'

const [PROT_READ_WRITE, MAP_SHARED] = [3, 1]
const MAP_FAILED = 0xffff_ffff_ffff_ffffn
/** BPF_MAP_TYPE_HASH and BPF_MAP_TYPE_ARRAY of <linux/bpf.h>. */
const [HASH, ARRAY] = [1, 2]
const KEY_BYTES = 16
const KEY_WORDS = KEY_BYTES / 4
const HEAD_WORD = BLOCK_SLOT.head / 4
const REACH_BITS = SLOT.reachMask << SLOT.reachShift
const VERSION = 1 << SLOT.versionShift
/** Slots for each block: at more, no look-up would be faster; at fewer, more find no room near their home. */
const SLOTS_EACH = 2
/** As many as batches of the kernel's own maps have. */
const BATCH_ENTRIES = 4096
const ONLY_KEY = Buffer.alloc(4)
/** Of two modes, the one that lets less pass is higher. */
const STRICTNESS = { [BLOCK_MODE.audit]: 0, [BLOCK_MODE.rateLimit]: 1, [BLOCK_MODE.drop]: 2 }

/** How many slots the map `block_exact` must have, that so many addresses find room. */
export function slotsFor(addresses: number): number {
  return SLOTS_EACH * addresses + SLOT.reachMax
}

/** Whether a map is such a table, and not the hash that sensors had before. */
export function isSlots({ type }: Pick<BpfMap, 'type'>): boolean {
  return type === ARRAY
}

/** Memory that is mapped as long as a view of it can be reached. */
const mappings = new FinalizationRegistry<{ address: bigint; length: number }>(({ address, length }) => {
  libc().munmap(address, length)
})

/**
 * The table of exact addresses (see bpf/include/layout.h) as if it were a hash from address to block. Slots are written in the
 * kernel's own memory, without a system call, each change in an order in which every packet is judged by what was there before
 * or what is there afterwards: a slot is filled before its head says so, an address is within its home's reach before it
 * counts as there, and no block ever moves. One writer at a time; who has the maps of another calls `takeOver` first.
 */
export class ExactBlocks {
  readonly name: string
  readonly keyBytes = KEY_BYTES
  readonly valueBytes: number
  readonly maxEntries: number
  /** To whoever copies entries, this is a hash of blocks. */
  readonly type = HASH
  readonly types: BpfMap['types']
  readonly #hashMap: BpfMap
  readonly #overflow: BpfMap
  /** Of each home, how many are in the overflow. */
  readonly #overflowing = new Map<number, number>()
  readonly #homes: number
  readonly #slots: number
  readonly #slotWords: number
  readonly #words: Int32Array
  readonly #longs: BigUint64Array
  readonly #bytes: Buffer
  /** Lower and upper half of each factor, then of the addend. */
  #hash = new Int32Array(0)
  #count = 0

  constructor({ map }: { readonly map: (name: string) => BpfMap }) {
    const slots = map('block_exact')
    this.name = slots.name
    this.#hashMap = map('block_hash')
    this.#overflow = map('block_overflow')
    this.types = this.#overflow.types
    this.valueBytes = this.#overflow.valueBytes
    this.#slots = slots.maxEntries
    this.#homes = slots.maxEntries - SLOT.reachMax
    this.maxEntries = Math.floor(this.#homes / SLOTS_EACH)
    if (!isSlots(slots) || this.maxEntries < 1 || slots.valueBytes < BLOCK_SLOT.block + this.valueBytes)
      throw new TypeError(`${slots.name} is no table of blocks with room for one`)
    this.#slotWords = slots.valueBytes / 4
    const memory = memoryOf(slots)
    this.#words = new Int32Array(memory)
    this.#longs = new BigUint64Array(memory)
    this.#bytes = Buffer.from(memory)
    this.#readHash()
  }

  /** Sets right what an earlier writer left, whenever it ended, and draws the hash of a table that has none. */
  takeOver(): void {
    if (this.#readHash() !== this.#homes) this.#drawHash()
    this.#overflowing.clear()
    this.#count = 0
    for (const { count, keys } of this.#overflow.entries()) {
      this.#count += count
      for (let index = 0; index < count; index++) this.#overflows(this.#homeOf(keys, index * KEY_BYTES), 1)
    }
    const reaches = new Uint8Array(this.#slots)
    for (let slot = 0; slot < this.#slots; slot++) {
      if (!this.#isLive(slot)) continue
      const home = this.#homeOfSlot(slot)
      reaches[home] = slot - home + 1
      this.#count += 1
    }
    for (let home = 0; home < this.#homes; home++) this.#setReach(home, reaches[home] ?? 0)
  }

  lookup(key: Uint8Array): Buffer | undefined {
    const home = this.#homeOf(key, 0)
    const slot = this.#find(home, key, 0)
    if (slot >= 0) return Buffer.from(this.#bytes.subarray(this.#blockAt(slot), this.#blockAt(slot) + this.valueBytes))
    return this.#head(home) & SLOT.overflow ? this.#overflow.lookup(key) : undefined
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
    const keys = Buffer.alloc(BATCH_ENTRIES * KEY_BYTES)
    const values = Buffer.alloc(BATCH_ENTRIES * this.valueBytes)
    let count = 0
    for (let slot = 0; slot < this.#slots; slot++) {
      if (!this.#isLive(slot)) continue
      const at = this.#blockAt(slot)
      this.#bytes.copy(keys, count * KEY_BYTES, at - BLOCK_SLOT.block, at - BLOCK_SLOT.block + KEY_BYTES)
      this.#bytes.copy(values, count * this.valueBytes, at, at + this.valueBytes)
      count += 1
      if (count < BATCH_ENTRIES) continue
      yield { count, keys, values }
      count = 0
    }
    if (count > 0) yield { count, keys, values }
    yield* this.#overflow.entries()
  }

  /** The slot of an address in which it is looked for first. */
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
    const slot = this.#freeSlot(home)
    if (slot < 0) {
      this.#overflow.update(key, value)
      this.#overflows(home, 1)
    } else {
      this.#bytes.set(key, this.#blockAt(slot) - BLOCK_SLOT.block)
      this.#bytes.set(value, this.#blockAt(slot))
      this.#setHead(slot, (this.#head(slot) | SLOT.live) + VERSION)
      if (this.#reachOf(home) < slot - home + 1) this.#setReach(home, slot - home + 1)
    }
    this.#count += 1
  }

  #delete(keys: Uint8Array, at: number): boolean {
    const home = this.#homeOf(keys, at)
    const slot = this.#find(home, keys, at)
    if (slot >= 0) {
      this.#setHead(slot, (this.#head(slot) & ~SLOT.live) + VERSION)
      if (this.#reachOf(home) === slot - home + 1) this.#setReach(home, this.#reachBefore(home, slot))
    } else {
      if (!(this.#head(home) & SLOT.overflow) || !this.#overflow.delete(keys.subarray(at, at + KEY_BYTES))) return false
      this.#overflows(home, -1)
    }
    this.#count -= 1
    return true
  }

  /**
   * Expiry and mode are two words. First goes what lets more pass, so a packet in between is judged as before or as afterwards;
   * a kernel that read one of them before and one after sees another version and reads again.
   */
  #replace(slot: number, value: Uint8Array): void {
    const next = Buffer.from(value.buffer, value.byteOffset, value.length)
    const at = this.#blockAt(slot)
    this.#goOn(at, next)
    const modeOf = (bytes: Buffer, from: number) => bytes.readUInt8(from + BLOCK.mode) as keyof typeof STRICTNESS
    const isLaxer = STRICTNESS[modeOf(next, 0)] < STRICTNESS[modeOf(this.#bytes, at)]
    const order = isLaxer ? [BLOCK.ruleId, BLOCK.expiresNs] : [BLOCK.expiresNs, BLOCK.ruleId]
    for (const field of order) {
      Atomics.store(this.#longs, (at + field) / 8, next.readBigUInt64LE(field))
      this.#setHead(slot, this.#head(slot) + VERSION)
    }
  }

  /** A block that begins anew has none; else what the kernel counted meanwhile stays. */
  #goOn(at: number, next: Buffer): void {
    const fields = [BLOCK.hits, BLOCK.firstHitNs, BLOCK.lastHitNs]
    const isNew = fields.every((field) => next.readBigUInt64LE(field) === 0n)
    for (const field of fields) {
      const [index, wanted] = [(at + field) / 8, next.readBigUInt64LE(field)]
      const held = Atomics.load(this.#longs, index)
      const isBehind = field === BLOCK.firstHitNs ? held === 0n : held < wanted
      if (isNew || isBehind) Atomics.store(this.#longs, index, wanted)
    }
  }

  /** The slot that holds an address; -1: none. */
  #find(home: number, keys: Uint8Array, at: number): number {
    const end = home + this.#reachOf(home)
    for (let slot = home; slot < end; slot++) if (this.#isLive(slot) && this.#holds(slot, keys, at)) return slot
    return -1
  }

  #holds(slot: number, keys: Uint8Array, at: number): boolean {
    // From the end: most addresses begin alike.
    for (let word = KEY_WORDS - 1; word >= 0; word--)
      if (this.#words[slot * this.#slotWords + word] !== wordAt(keys, at + 4 * word)) return false
    return true
  }

  #freeSlot(home: number): number {
    for (let slot = home; slot < home + SLOT.reachMax; slot++) if (!this.#isLive(slot)) return slot
    return -1
  }

  #isInOverflow(home: number, key: Uint8Array): boolean {
    return (this.#head(home) & SLOT.overflow) !== 0 && this.#overflow.lookup(key) !== undefined
  }

  /** How far those of a home reach that come before a slot. */
  #reachBefore(home: number, end: number): number {
    for (let slot = end - 1; slot >= home; slot--)
      if (this.#isLive(slot) && this.#homeOfSlot(slot) === home) return slot - home + 1
    return 0
  }

  #overflows(home: number, change: 1 | -1): void {
    const count = (this.#overflowing.get(home) ?? 0) + change
    if (count > 0) this.#overflowing.set(home, count)
    else this.#overflowing.delete(home)
    this.#setReach(home, this.#reachOf(home))
  }

  #reachOf(home: number): number {
    return (this.#head(home) >> SLOT.reachShift) & SLOT.reachMask
  }

  /** Also says whether some are in the overflow. */
  #setReach(home: number, reach: number): void {
    const head = this.#head(home)
    const others = head & ~(REACH_BITS | SLOT.overflow)
    const now = others | (reach << SLOT.reachShift) | (this.#overflowing.has(home) ? SLOT.overflow : 0)
    if (now !== head) this.#setHead(home, now)
  }

  #isLive(slot: number): boolean {
    return (this.#head(slot) & SLOT.live) !== 0
  }

  #head(slot: number): number {
    return this.#words[slot * this.#slotWords + HEAD_WORD] ?? 0
  }

  /**
   * Whatever was written before is there when this is; whatever is written afterwards is not there earlier. For the latter it is
   * read, as some processors (arm64) let a plain write overtake an atomic one, but no atomic read that follows it.
   */
  #setHead(slot: number, head: number): void {
    const at = slot * this.#slotWords + HEAD_WORD
    Atomics.store(this.#words, at, head)
    Atomics.load(this.#words, at)
  }

  #blockAt(slot: number): number {
    return slot * this.#slotWords * 4 + BLOCK_SLOT.block
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
    const [words, at] = [this.#words, slot * this.#slotWords]
    return this.#home(words[at] ?? 0, words[at + 1] ?? 0, words[at + 2] ?? 0, words[at + 3] ?? 0)
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
