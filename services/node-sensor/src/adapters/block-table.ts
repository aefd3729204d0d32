import type { AddressRange } from '@tollward/contracts'
import { AppError } from '@tollward/errors'
import {
  type BlockTarget,
  type BpfMap,
  blockTarget,
  bootTimeNs,
  decodeBlock,
  encodeBlock,
  wallTimeToBootNs,
} from '@tollward/libbpf'
import type { Logger } from 'pino'
import { isOnlyGuarded, type WantedBlock } from '../domain/block.ts'
import type { Metrics } from '../metrics.ts'
import type { Kernel } from './kernel.ts'

const MAPS = ['block_exact', 'block_cidr4', 'block_cidr6'] as const
/** The field in the kernel's entry has 32 bits. */
const RULE_ID_MASK = 0xffff_ffff
/** Below this, two conversions of one expiry to the kernel's clock are the same. */
const EXPIRY_TOLERANCE_NS = 100_000_000n

interface BlockTableOptions {
  readonly kernel: Kernel
  readonly guarded: readonly Uint8Array[]
  readonly metrics: Metrics
  readonly log: Logger
}

/** What is blocked: as the bucket wants it, and as the kernel's maps hold it. */
export class BlockTable {
  readonly #maps: Readonly<Record<(typeof MAPS)[number], BpfMap>>
  readonly #metrics: Metrics
  readonly #log: Logger
  readonly #entries = { block_exact: 0, block_cidr4: 0, block_cidr6: 0 }
  #guarded: readonly Uint8Array[]
  /** Until the bucket was read, what an earlier sensor left in the kernel stays. */
  #wantedIsKnown = false
  #wanted = new Map<string, WantedBlock>()
  /** Keys of blocks that the kernel did not take. */
  readonly #waiting = new Set<string>()

  constructor({ kernel, guarded, metrics, log }: BlockTableOptions) {
    this.#maps = {
      block_exact: kernel.map('block_exact'),
      block_cidr4: kernel.map('block_cidr4'),
      block_cidr6: kernel.map('block_cidr6'),
    }
    this.#guarded = guarded
    this.#metrics = metrics
    this.#log = log
    for (const name of MAPS) this.#entries[name] = [...this.#maps[name].keys()].length
  }

  /** Makes the maps hold exactly these. What is in force and stays is not touched in between. */
  replace(blocks: readonly WantedBlock[]): void {
    this.#wantedIsKnown = true
    this.#wanted = new Map(blocks.map((block) => [block.key, block]))
    this.#waiting.clear()
    this.#removeUnwanted()
    for (const block of blocks) this.#apply(block)
    this.#showWaiting()
  }

  /** Applies one block at once. Returns whether it is new, and not the extension of one. */
  set(block: WantedBlock): boolean {
    const isNew = !this.#wanted.has(block.key)
    this.#wanted.set(block.key, block)
    this.#apply(block)
    this.#showWaiting()
    return isNew
  }

  /** Lifts one block at once. Its room goes to one that waits. */
  remove(key: string): void {
    const block = this.#wanted.get(key)
    if (!block) return
    this.#wanted.delete(key)
    this.#waiting.delete(key)
    this.#delete(blockTarget(block.range))
    const [next] = this.#waiting
    if (next !== undefined) this.#retry(next)
    this.#showWaiting()
  }

  /** Whether a block of the range would do nothing. */
  isGuarded(range: AddressRange): boolean {
    return isOnlyGuarded(range, this.#guarded)
  }

  /** The guarded addresses have changed: blocks that named only such may begin to count, or end. */
  guard(guarded: readonly Uint8Array[]): void {
    this.#guarded = guarded
    if (this.#wantedIsKnown) this.#removeUnwanted()
    for (const block of this.#wanted.values()) this.#apply(block)
    this.#showWaiting()
  }

  /** Converts every expiry anew: the wall clock was set. */
  convertExpiries(): void {
    for (const block of this.#wanted.values()) this.#apply(block)
  }

  /** Makes room: takes out what is over, which the kernel ignores already, and applies what waits. */
  sweep(nowMs: number): void {
    for (const { key, expiresAtMs } of this.#wanted.values()) if (expiresAtMs <= nowMs) this.remove(key)
    for (const key of this.#waiting) this.#retry(key)
    this.#showWaiting()
  }

  /** For metrics. */
  sizes(): Record<string, { entries: number; capacity: number }> {
    return Object.fromEntries(
      MAPS.map((name) => [name, { entries: this.#entries[name], capacity: this.#maps[name].maxEntries }]),
    )
  }

  #apply(block: WantedBlock): void {
    if (this.isGuarded(block.range)) return
    const target = blockTarget(block.range)
    try {
      this.#write(target, block)
      this.#waiting.delete(block.key)
    } catch (error) {
      const isFull = error instanceof AppError && error.code === 'resource_exhausted'
      this.#metrics.blocksRefused.inc({ reason: isFull ? 'full' : 'failed' })
      // Once for each block, however often it is tried.
      if (!this.#waiting.has(block.key))
        this.#log.error({ err: error, block: block.key, map: target.map, isFull }, 'block is not enforced on this node')
      this.#waiting.add(block.key)
    }
  }

  #write(target: BlockTarget, { expiresAtMs, revision }: WantedBlock): void {
    const map = this.#maps[target.map]
    const expiresNs = wallTimeToBootNs(expiresAtMs)
    const ruleId = revision % (RULE_ID_MASK + 1)
    const held = map.lookup(target.key)
    const previous = held && decodeBlock(held)
    if (previous && isSame(previous, expiresNs, ruleId)) return
    // What has lapsed is no block that is extended: its hits do not count for the new one.
    const goesOn = previous !== undefined && previous.expiresNs > bootTimeNs()
    map.update(target.key, encodeBlock(target, { expiresNs, ruleId, mode: 'drop' }, goesOn ? held : undefined))
    if (!held) this.#entries[target.map] += 1
  }

  #delete(target: BlockTarget): void {
    if (this.#maps[target.map].delete(target.key)) this.#entries[target.map] -= 1
  }

  #removeUnwanted(): void {
    const targets = new Set<string>()
    for (const { range } of this.#wanted.values()) {
      if (this.isGuarded(range)) continue
      const { map, key } = blockTarget(range)
      targets.add(`${map}${key.toString('hex')}`)
    }
    for (const map of MAPS)
      for (const key of this.#maps[map].keys())
        if (!targets.has(`${map}${key.toString('hex')}`)) this.#delete({ map, key, prefixLength: 0 })
  }

  #retry(key: string): void {
    const block = this.#wanted.get(key)
    if (block) this.#apply(block)
  }

  #showWaiting(): void {
    this.#metrics.blocksWaiting.set(this.#waiting.size)
  }
}

function isSame(held: { expiresNs: bigint; ruleId: number; mode: string }, expiresNs: bigint, ruleId: number): boolean {
  const difference = held.expiresNs - expiresNs
  const isNear = difference < EXPIRY_TOLERANCE_NS && difference > -EXPIRY_TOLERANCE_NS
  return isNear && held.ruleId === ruleId && held.mode === 'drop'
}
