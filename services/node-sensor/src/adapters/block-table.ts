import { type AddressRange, formatRange, parseRangeKey } from '@tollward/contracts'
import { AppError } from '@tollward/errors'
import {
  type BlockMap,
  type BlockMaps,
  type BlockTarget,
  blockMaps,
  blockTarget,
  bootTimeNs,
  decodeBlockHead,
  encodeBlock,
  isBlockOf,
  wallTimeToBootNs,
} from '@tollward/libbpf'
import type { Logger } from 'pino'
import { isOnlyGuarded, type WantedBlock } from '../domain/block.ts'
import { WantedBlocks } from '../domain/wanted-blocks.ts'
import type { Metrics } from '../metrics.ts'
import type { Kernel } from './kernel.ts'

const MAPS = ['block_exact', 'block_cidr4', 'block_cidr6'] as const
type MapName = (typeof MAPS)[number]
/** The field in the kernel's entry has 32 bits. */
const RULE_ID_MASK = 0xffff_ffff
/** Below this, two conversions of one expiry to the kernel's clock are the same. */
const EXPIRY_TOLERANCE_NS = 100_000_000n
const ADDRESS_BITS = 128
const MAPPED_BITS = 96
const MAPPED_PREFIX = Buffer.from('00000000000000000000ffff', 'hex')
/** Entries in one call to the kernel. */
const BATCH_ENTRIES = 4096
/** Blocks without room that are named in the log, until there is room again; their number is a metric. */
const NAMED_MAX = 100

/** Marks of a block. */
const NEW = 0
const APPLIED = 1
/** The kernel did not take it. */
const WAITING = 2

/** An expiry as the kernel's clock counts. */
type ToNs = (expiresAtMs: number) => bigint

interface BlockTableOptions {
  readonly kernel: Pick<Kernel, 'map'>
  readonly guarded: readonly Uint8Array[]
  readonly metrics: Pick<Metrics, 'blocksRefused' | 'blocksWaiting'>
  readonly log: Logger
}

/** What is blocked: as the bucket wants it, and as the kernel's maps hold it. */
export class BlockTable {
  readonly #maps: BlockMaps
  readonly #metrics: BlockTableOptions['metrics']
  readonly #log: Logger
  readonly #entries: Record<MapName, number> = { block_exact: 0, block_cidr4: 0, block_cidr6: 0 }
  #guarded: readonly Uint8Array[] = []
  /** The same, to find one among them at once. */
  #guardedOnes = new WantedBlocks()
  /** Until the bucket was read, what an earlier sensor left in the kernel stays. */
  #wantedIsKnown = false
  #wanted = new WantedBlocks()
  #waiting = 0
  #named = 0

  constructor({ kernel, guarded, metrics, log }: BlockTableOptions) {
    this.#maps = blockMaps({ map: (name) => kernel.map(name) })
    this.#metrics = metrics
    this.#log = log
    this.#setGuarded(guarded)
    for (const name of MAPS) for (const { count } of this.#maps[name].entries()) this.#entries[name] += count
  }

  /** Makes the maps hold exactly these. What is in force and stays is not touched in between. */
  replace(wanted: WantedBlocks): void {
    this.#wantedIsKnown = true
    this.#wanted = wanted
    this.#reconcile()
  }

  /** Applies one block at once. Returns whether it is new, and not the extension of one. */
  set(block: WantedBlock): boolean {
    const { position, isNew } = this.#wanted.set(block.range, wantedOf(block))
    this.#apply(position)
    this.#showWaiting()
    return isNew
  }

  /** Applies one block at once where the table has another, or none; before the first `replace` it does nothing. */
  setIfOther(block: WantedBlock): void {
    if (!this.#wantedIsKnown) return
    const { address, prefixLength } = block.range
    const position = this.#wanted.find(address, prefixLength)
    const { expiresAtMs, ruleId } = wantedOf(block)
    const held = position < 0 ? undefined : this.#wanted.wanted(position)
    if (held?.expiresAtMs !== expiresAtMs || held.ruleId !== ruleId) this.set(block)
  }

  /** Lifts one block at once. Its room goes to one that waits. */
  remove(key: string): void {
    const range = parseRangeKey(key)
    const position = range ? this.#wanted.find(range.address, range.prefixLength) : -1
    if (position < 0) return
    this.#removeAt(position)
    if (this.#waiting > 0) this.#apply(this.#wanted.marked(WAITING))
    this.#showWaiting()
  }

  /** Whether a block of the range would do nothing. */
  isGuarded(range: AddressRange): boolean {
    if (range.prefixLength === ADDRESS_BITS) return this.#guardedOnes.find(range.address, ADDRESS_BITS) >= 0
    return isOnlyGuarded(range, this.#guarded)
  }

  /** The guarded addresses have changed: blocks that named only such may begin to count, or end. */
  guard(guarded: readonly Uint8Array[]): void {
    this.#setGuarded(guarded)
    this.#reconcile()
  }

  /** Converts every expiry anew: the wall clock was set. */
  convertExpiries(): void {
    this.#reconcile()
  }

  /** Makes room: takes out what is over, which the kernel ignores already, and applies what waits while there is room. */
  sweep(nowMs: number): void {
    const wanted = this.#wanted
    for (let at = wanted.over(nowMs); at >= 0; at = wanted.over(nowMs, at)) this.#removeAt(at)
    let at = this.#waiting > 0 ? wanted.marked(WAITING) : -1
    // One without room is enough to know: the others would find none either, or get their turn in a moment.
    while (at >= 0 && this.#apply(at)) at = wanted.marked(WAITING, at)
    this.#showWaiting()
  }

  /** Blocks that the kernel did not take. */
  get waiting(): number {
    return this.#waiting
  }

  /** For metrics. */
  sizes(): Record<string, { entries: number; capacity: number }> {
    return Object.fromEntries(
      MAPS.map((name) => [name, { entries: this.#entries[name], capacity: this.#maps[name].maxEntries }]),
    )
  }

  #setGuarded(guarded: readonly Uint8Array[]): void {
    this.#guarded = guarded
    this.#guardedOnes = new WantedBlocks()
    for (const address of guarded)
      this.#guardedOnes.set({ address, prefixLength: ADDRESS_BITS }, { expiresAtMs: 0, ruleId: 0 })
  }

  /**
   * Compares the maps with what is wanted, all of both, and makes them so: first what must not stay goes, as it may take the room
   * of what must come.
   */
  #reconcile(): void {
    if (!this.#wantedIsKnown) return
    this.#wanted.clearMarks()
    this.#waiting = 0
    this.#named = 0
    const toNs = expiryToNs()
    for (const name of MAPS) this.#compare(name, toNs)
    this.#applyNew(toNs)
    this.#showWaiting()
  }

  /** Removes from one map what is not wanted, and corrects what is wanted otherwise. */
  #compare(name: MapName, toNs: ToNs): void {
    const map = this.#maps[name]
    const nowNs = bootTimeNs()
    let unwanted = Buffer.alloc(BATCH_ENTRIES * map.keyBytes)
    let unwantedBytes = 0
    const changed = new Batch(map)
    for (const { count, keys, values } of map.entries()) {
      for (let index = 0; index < count; index++) {
        const [keyAt, valueAt] = [index * map.keyBytes, index * map.valueBytes]
        const position = this.#positionOf(name, keys, keyAt)
        if (position < 0) {
          if (unwantedBytes === unwanted.length) unwanted = Buffer.concat([unwanted, Buffer.alloc(unwanted.length)])
          unwantedBytes += keys.copy(unwanted, unwantedBytes, keyAt, keyAt + map.keyBytes)
          continue
        }
        const held = decodeBlockHead(values, valueAt)
        const { expiresAtMs, ruleId } = this.#wanted.wanted(position)
        const expiresNs = toNs(expiresAtMs)
        this.#wanted.mark(position, APPLIED)
        if (isSame(held, expiresNs, ruleId)) continue
        const target = blockTarget(this.#wanted.range(position))
        // What has lapsed is no block that is extended: its hits do not count for the new one.
        const previous = held.expiresNs > nowNs ? values.subarray(valueAt, valueAt + map.valueBytes) : undefined
        changed.add(position, target.key, encodeBlock(target, { expiresNs, ruleId, mode: 'drop' }, previous))
        if (!changed.isFull) continue
        changed.write('held')
        changed.clear()
      }
    }
    changed.write('held')
    this.#entries[name] -= map.deleteBatch(unwanted.subarray(0, unwantedBytes))
  }

  /** Writes all that is in no map yet, in batches. */
  #applyNew(toNs: ToNs): void {
    const wanted = this.#wanted
    const nowNs = bootTimeNs()
    const batches = new Map(MAPS.map((name) => [name, new Batch(this.#maps[name])]))
    for (let at = wanted.marked(NEW); at >= 0; at = wanted.marked(NEW, at + 1)) {
      const range = wanted.range(at)
      const { expiresAtMs, ruleId } = wanted.wanted(at)
      const expiresNs = toNs(expiresAtMs)
      if (expiresNs <= nowNs || this.isGuarded(range)) continue
      const target = blockTarget(range)
      const batch = batches.get(target.map)
      batch?.add(at, target.key, encodeBlock(target, { expiresNs, ruleId, mode: 'drop' }))
      if (batch?.isFull) this.#writeNew(target.map, batch)
    }
    for (const [name, batch] of batches) this.#writeNew(name, batch)
  }

  /** As many as there is room for; the others wait. */
  #writeNew(name: MapName, batch: Batch): void {
    const room = Math.max(0, this.#maps[name].maxEntries - this.#entries[name])
    const { positions } = batch
    const taken = positions.slice(0, room)
    try {
      batch.write('new', taken.length)
      this.#entries[name] += taken.length
      for (const position of taken) this.#wanted.mark(position, APPLIED)
    } catch (error) {
      this.#log.error({ err: error, map: name }, 'blocks could not be written together, and are written one by one')
      this.#entries[name] = 0
      for (const { count } of this.#maps[name].entries()) this.#entries[name] += count
      for (const position of taken) this.#apply(position)
    }
    const rest = positions.slice(room)
    const tried = rest.findIndex((position) => !this.#apply(position)) + 1
    // The others would find no room either, at some microseconds each.
    if (tried > 0) this.#wait(rest.slice(tried))
    batch.clear()
  }

  #wait(positions: readonly number[]): void {
    for (const position of positions) this.#wanted.mark(position, WAITING)
    this.#waiting += positions.length
    this.#metrics.blocksRefused.inc({ reason: 'full' }, positions.length)
  }

  /** Position of the block that an entry of the kernel belongs to, by the key at an offset; -1: it must not stay. */
  #positionOf(name: MapName, keys: Buffer, at: number): number {
    if (name === 'block_exact') {
      const position = this.#wanted.find(keys, ADDRESS_BITS, at)
      return position >= 0 && this.#guardedOnes.find(keys, ADDRESS_BITS, at) >= 0 ? -1 : position
    }
    const range = rangeOf(name, keys.subarray(at, at + this.#maps[name].keyBytes))
    const position = this.#wanted.find(range.address, range.prefixLength)
    return position >= 0 && this.isGuarded(range) ? -1 : position
  }

  /** Puts one block into the kernel. False: it waits for room. */
  #apply(position: number): boolean {
    const range = this.#wanted.range(position)
    const waited = this.#wanted.markOf(position) === WAITING
    let isApplied = true
    if (!this.isGuarded(range)) {
      const target = blockTarget(range)
      try {
        this.#write(target, position)
      } catch (error) {
        this.#refused(error, range, target, waited)
        isApplied = false
      }
    }
    this.#wanted.mark(position, isApplied ? APPLIED : WAITING)
    this.#waiting += Number(!isApplied) - Number(waited)
    return isApplied
  }

  #refused(error: unknown, range: AddressRange, { map }: BlockTarget, waited: boolean): void {
    const isFull = error instanceof AppError && error.code === 'resource_exhausted'
    this.#metrics.blocksRefused.inc({ reason: isFull ? 'full' : 'failed' })
    // Once for each block, however often it is tried.
    if (waited || this.#named >= NAMED_MAX) return
    this.#named += 1
    const block = formatRange(range)
    this.#log.error({ err: error, block, map, isFull }, 'block is not enforced on this node')
    if (this.#named === NAMED_MAX)
      this.#log.error({ map }, 'more blocks are not enforced on this node; blocks_waiting says how many')
  }

  #write(target: BlockTarget, position: number): void {
    const map = this.#maps[target.map]
    const { expiresAtMs, ruleId } = this.#wanted.wanted(position)
    const expiresNs = wallTimeToBootNs(expiresAtMs)
    const found = map.lookup(target.key)
    const held = found && isBlockOf(target, found) ? found : undefined
    const previous = held && decodeBlockHead(held, 0)
    if (previous && isSame(previous, expiresNs, ruleId)) return
    // What has lapsed is no block that is extended: its hits do not count for the new one.
    const goesOn = previous !== undefined && previous.expiresNs > bootTimeNs()
    map.update(target.key, encodeBlock(target, { expiresNs, ruleId, mode: 'drop' }, goesOn ? held : undefined))
    if (!held) this.#entries[target.map] += 1
  }

  #removeAt(position: number): void {
    const { map, key } = blockTarget(this.#wanted.range(position))
    if (this.#wanted.markOf(position) === WAITING) this.#waiting -= 1
    this.#wanted.remove(position)
    if (this.#maps[map].delete(key)) this.#entries[map] -= 1
  }

  #showWaiting(): void {
    if (this.#waiting === 0) this.#named = 0
    this.#metrics.blocksWaiting.set(this.#waiting)
  }
}

/** Entries of one map on their way to the kernel. */
class Batch {
  readonly positions: number[] = []
  readonly #map: BlockMap
  readonly #keys: Buffer
  readonly #values: Buffer

  constructor(map: BlockMap) {
    this.#map = map
    this.#keys = Buffer.alloc(BATCH_ENTRIES * map.keyBytes)
    this.#values = Buffer.alloc(BATCH_ENTRIES * map.valueBytes)
  }

  get isFull(): boolean {
    return this.positions.length === BATCH_ENTRIES
  }

  add(position: number, key: Buffer, value: Buffer): void {
    const index = this.positions.push(position) - 1
    this.#keys.set(key, index * this.#map.keyBytes)
    this.#values.set(value, index * this.#map.valueBytes)
  }

  /** Sets the first of them, or all. */
  write(are: 'new' | 'held', count = this.positions.length): void {
    this.#map.updateBatch(
      this.#keys.subarray(0, count * this.#map.keyBytes),
      this.#values.subarray(0, count * this.#map.valueBytes),
      are,
    )
  }

  clear(): void {
    this.positions.length = 0
  }
}

/** What is kept of a block. */
export function wantedOf({ expiresAtMs, revision }: WantedBlock): { expiresAtMs: number; ruleId: number } {
  return { expiresAtMs, ruleId: revision % (RULE_ID_MASK + 1) }
}

/** The conversion of wallTimeToBootNs for many, by one look at the clocks. */
function expiryToNs(): ToNs {
  const nowMs = Date.now()
  const nowNs = bootTimeNs()
  return (expiresAtMs) => {
    const bootNs = nowNs + BigInt(Math.round(expiresAtMs - nowMs)) * 1_000_000n
    return bootNs > 0n ? bootNs : 1n
  }
}

/** Of an entry of a trie. */
function rangeOf(name: Exclude<MapName, 'block_exact'>, key: Buffer): AddressRange {
  const prefixLength = key.readUInt32LE(0)
  if (name === 'block_cidr6') return { address: key.subarray(4), prefixLength }
  return { address: Buffer.concat([MAPPED_PREFIX, key.subarray(4)]), prefixLength: MAPPED_BITS + prefixLength }
}

type Held = ReturnType<typeof decodeBlockHead>

function isSame(held: Held, expiresNs: bigint, ruleId: number): boolean {
  const difference = held.expiresNs - expiresNs
  const isNear = difference < EXPIRY_TOLERANCE_NS && difference > -EXPIRY_TOLERANCE_NS
  return isNear && held.ruleId === ruleId && held.isDrop
}
