import { ExactBlocks } from './exact-blocks.ts'
import { BLOCK_LENGTHS4, type BlockTarget, CIDR4_KEY } from './layout.ts'
import type { BpfMap } from './map.ts'

type Entries = Pick<
  BpfMap,
  'keyBytes' | 'valueBytes' | 'maxEntries' | 'lookup' | 'update' | 'updateBatch' | 'delete' | 'deleteBatch' | 'entries'
>

/** A map of blocks; to write it keeps `block_lengths4` right. */
export interface BlockMap extends Omit<Entries, 'updateBatch'> {
  /** As in BpfMap. Who knows that all of them are new, or that none is, spares a look-up of each. */
  updateBatch(keys: Uint8Array, values: Uint8Array, are?: 'new' | 'held'): void
}
export type BlockMaps = Readonly<Record<BlockTarget['map'], BlockMap>>

/** First 16 bits of an IPv4 address: the places of `block_lengths4`. */
const PLACE_BITS = 16
const PLACES = 1 << PLACE_BITS
/** Prefix lengths of IPv4: 0 to 32. */
const LENGTHS = 33
const MAPPED_PREFIX = Buffer.from('00000000000000000000ffff', 'hex')
const [EXACT_KEY_BYTES, EXACT_IPV4, IPV4_BITS] = [16, 12, 32]

/**
 * The maps of blocks of one sensor, for whoever writes them; one at a time. To make it sets right what `block_lengths4` says of
 * the blocks that are there.
 */
export function blockMaps({ map }: { readonly map: (name: string) => BpfMap }): BlockMaps {
  const [exact, ranges] = [new ExactBlocks({ map }), map('block_cidr4')]
  const lengths = new Lengths(map('block_lengths4'))
  exact.takeOver()
  const readAll = () => {
    lengths.clear()
    for (const { count, keys } of exact.entries()) lengths.hold(exactIn(keys.subarray(0, count * EXACT_KEY_BYTES)))
    for (const { count, keys } of ranges.entries()) lengths.hold(rangesIn(keys.subarray(0, count * CIDR4_KEY.bytes)))
    lengths.tell()
  }
  readAll()
  return {
    block_exact: new CountedMap(exact, { lengths, ipv4In: exactIn, readAll }),
    block_cidr4: new CountedMap(ranges, { lengths, ipv4In: rangesIn, readAll }),
    block_cidr6: map('block_cidr6'),
  }
}

/** An IPv4 block. */
interface Range {
  readonly first: number
  readonly length: number
}

/**
 * Which prefix lengths the kernel looks for in each /16: one is said before the first block with it is there, and until the last
 * is gone, so the kernel overlooks none.
 */
class Lengths {
  readonly #map: BpfMap
  /** How many blocks of a length lie in a place, at place * LENGTHS + length; of one that covers several places, 1 in each. */
  readonly #counts = new Uint32Array(PLACES * LENGTHS)
  readonly #changed = new Set<number>()

  constructor(map: BpfMap) {
    this.#map = map
  }

  /** Before blocks are there that were not. `tell` tells the kernel. */
  hold(ranges: Iterable<Range>): void {
    for (const range of ranges) this.#add(range, 1)
  }

  /** When they are gone. */
  forget(ranges: Iterable<Range>): void {
    for (const range of ranges) this.#add(range, -1)
  }

  clear(): void {
    this.#counts.fill(0)
    for (let place = 0; place < PLACES; place++) this.#changed.add(place)
  }

  tell(): void {
    if (this.#changed.size === 0) return
    const keys = Buffer.alloc(this.#changed.size * 4)
    const values = Buffer.alloc(this.#changed.size * BLOCK_LENGTHS4.bytes)
    let index = 0
    for (const place of this.#changed) {
      keys.writeUInt32LE(place, index * 4)
      values.writeBigUInt64LE(this.#lengthsAt(place), index++ * BLOCK_LENGTHS4.bytes)
    }
    this.#changed.clear()
    this.#map.updateBatch(keys, values)
  }

  /** The longest has the lowest bit. */
  #lengthsAt(place: number): bigint {
    let lengths = 0
    for (let length = 0; length < LENGTHS; length++)
      if (this.#counts[place * LENGTHS + length] !== 0) lengths += 2 ** (IPV4_BITS - length)
    return BigInt(lengths)
  }

  #add({ first, length }: Range, count: 1 | -1): void {
    const from = first >>> (IPV4_BITS - PLACE_BITS)
    const end = from + 2 ** Math.max(0, PLACE_BITS - length)
    for (let place = from; place < end; place++) {
      const at = place * LENGTHS + length
      const before = this.#counts[at] ?? 0
      this.#counts[at] = before + count
      if (before === 0 || before + count === 0) this.#changed.add(place)
    }
  }
}

interface Counting {
  readonly lengths: Lengths
  /** The IPv4 blocks among keys. */
  readonly ipv4In: (keys: Uint8Array) => Iterable<Range>
  readonly readAll: () => void
}

/** A map whose IPv4 blocks are counted by their lengths. */
class CountedMap implements BlockMap {
  readonly keyBytes: number
  readonly valueBytes: number
  readonly maxEntries: number
  readonly #map: Entries
  readonly #counting: Counting

  constructor(map: Entries, counting: Counting) {
    this.keyBytes = map.keyBytes
    this.valueBytes = map.valueBytes
    this.maxEntries = map.maxEntries
    this.#map = map
    this.#counting = counting
  }

  lookup(key: Uint8Array): Buffer | undefined {
    return this.#map.lookup(key)
  }

  entries(): ReturnType<BpfMap['entries']> {
    return this.#map.entries()
  }

  update(key: Uint8Array, value: Uint8Array, how?: Parameters<BpfMap['update']>[2]): void {
    const isHeld = how === 'replace' || (how !== 'create' && this.#map.lookup(key) !== undefined)
    this.#add(isHeld ? key.subarray(0, 0) : key, () => this.#map.update(key, value, how))
  }

  updateBatch(keys: Uint8Array, values: Uint8Array, are?: 'new' | 'held'): void {
    const added = are === 'new' ? keys : are === 'held' ? keys.subarray(0, 0) : this.#missing(keys)
    this.#add(added, () => this.#map.updateBatch(keys, values))
  }

  delete(key: Uint8Array): boolean {
    const isRemoved = this.#map.delete(key)
    if (isRemoved) this.#forget(key)
    return isRemoved
  }

  deleteBatch(keys: Uint8Array): number {
    const removed = this.#map.deleteBatch(keys)
    if (removed === keys.length / this.keyBytes) this.#forget(keys)
    else this.#counting.readAll()
    return removed
  }

  #add(added: Uint8Array, write: () => void): void {
    const { lengths, ipv4In } = this.#counting
    lengths.hold(ipv4In(added))
    lengths.tell()
    try {
      write()
    } catch (error) {
      // Of a batch some may be there.
      this.#forget(this.#missing(added))
      throw error
    }
  }

  #forget(keys: Uint8Array): void {
    const { lengths, ipv4In } = this.#counting
    lengths.forget(ipv4In(keys))
    lengths.tell()
  }

  #missing(keys: Uint8Array): Uint8Array {
    const missing: Uint8Array[] = []
    for (let at = 0; at < keys.length; at += this.keyBytes) {
      const key = keys.subarray(at, at + this.keyBytes)
      if (this.#map.lookup(key) === undefined) missing.push(key)
    }
    return Buffer.concat(missing)
  }
}

/** In keys of block_exact; those of IPv6 are left out. */
function* exactIn(keys: Uint8Array): Generator<Range> {
  const bytes = Buffer.from(keys.buffer, keys.byteOffset, keys.length)
  for (let at = 0; at < bytes.length; at += EXACT_KEY_BYTES) {
    if (bytes.compare(MAPPED_PREFIX, 0, EXACT_IPV4, at, at + EXACT_IPV4) === 0)
      yield { first: bytes.readUInt32BE(at + EXACT_IPV4), length: IPV4_BITS }
  }
}

/** In keys of block_cidr4. */
function* rangesIn(keys: Uint8Array): Generator<Range> {
  const bytes = Buffer.from(keys.buffer, keys.byteOffset, keys.length)
  for (let at = 0; at < bytes.length; at += CIDR4_KEY.bytes) {
    const length = bytes.readUInt32LE(at + CIDR4_KEY.prefixLength)
    yield { first: bytes.readUInt32BE(at + CIDR4_KEY.address), length }
  }
}
