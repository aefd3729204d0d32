import { timestampMs } from '@bufbuild/protobuf/wkt'
import { type AddressRange, rangeContains, rangeKey } from '@tollward/contracts'
import type { Block } from '@tollward/contracts/enforcement'
import { BoundedTable } from './bounded-table.ts'

/** Sources whose earlier blocks are remembered. About 100 bytes each. */
const PRIORS_MAX = 65_536

/** Earlier blocks count for this long. */
export const PRIOR_AGE_MAX_MS = 24 * 60 * 60_000

/** A machine never blocks for longer at a time, unless the setting itself is longer. */
const BLOCK_MAX_MS = 60 * 60_000

const DETECTOR_PREFIX = 'detector:'

/** Who decided a block of one of our detectors. */
export function decidedBy(detector: string): string {
  return `${DETECTOR_PREFIX}${detector}`
}

/** What is blocked now, and what machines had blocked before, as far as a decision needs it. */
export class BlockLedger {
  /** By key; the kinds that questions are about are kept apart, so that a hundred thousand blocks of operators cost nothing. */
  readonly #exact = new Map<string, Block>()
  readonly #wide = new Map<string, Block>()
  readonly #machine = new Map<string, Block>()
  readonly #priors = new BoundedTable<{ count: number; lastMs: number }>(PRIORS_MAX)

  get evictions(): number {
    return this.#priors.evictions
  }

  /** The complete state of the bucket. */
  replace(blocks: Iterable<readonly [string, Block]>): void {
    for (const kind of [this.#exact, this.#wide, this.#machine]) kind.clear()
    for (const [key, block] of blocks) this.set(key, block)
  }

  set(key: string, block: Block | undefined): void {
    for (const kind of [this.#exact, this.#wide, this.#machine]) kind.delete(key)
    if (block === undefined) return
    const kind = block.prefixLength === 128 ? this.#exact : this.#wide
    kind.set(key, block)
    if (block.decidedBy.startsWith(DETECTOR_PREFIX)) this.#machine.set(key, block)
  }

  /** Remembers that a machine blocked a source. */
  notePrior({ address, prefixLength, decidedBy, decidedAt }: Block): void {
    if (!decidedBy.startsWith(DETECTOR_PREFIX) || decidedAt === undefined) return
    const key = rangeKey({ address, prefixLength })
    const decidedMs = timestampMs(decidedAt)
    const prior = this.#priors.get(key)
    const isOld = prior !== undefined && decidedMs - prior.lastMs > PRIOR_AGE_MAX_MS
    this.#priors.set(key, { count: isOld ? 1 : (prior?.count ?? 0) + 1, lastMs: decidedMs })
  }

  /** An operator lifted the block: what led to it does not count against the source. */
  forgetPriors(range: AddressRange): void {
    this.#priors.delete(rangeKey(range))
  }

  /** Whether a block, exact or wider, covers the address now. */
  covers(address: Uint8Array, nowMs: number): boolean {
    const exact = this.#exact.get(rangeKey({ address, prefixLength: 128 }))
    if (exact !== undefined && isActive(exact, nowMs)) return true
    return this.#wide.values().some((block) => isActive(block, nowMs) && rangeContains(block, address))
  }

  /** How many blocks of machines are in force. */
  machineBlocks(nowMs: number): number {
    return this.#machine.values().reduce((count, block) => (isActive(block, nowMs) ? count + 1 : count), 0)
  }

  /** How long the next block of this address lasts: the setting, doubled for each earlier one. */
  durationMs(address: Uint8Array, blockForMs: number, nowMs: number): number {
    const prior = this.#priors.get(rangeKey({ address, prefixLength: 128 }))
    const count = prior !== undefined && nowMs - prior.lastMs <= PRIOR_AGE_MAX_MS ? prior.count : 0
    return Math.min(blockForMs * 2 ** count, Math.max(blockForMs, BLOCK_MAX_MS))
  }
}

function isActive({ expiresAt }: Block, nowMs: number): boolean {
  return expiresAt === undefined || timestampMs(expiresAt) > nowMs
}
