import { timestampMs } from '@bufbuild/protobuf/wkt'
import type { Bus, Entry, Following } from '@tollward/bus'
import { bucketContract, parseCallerKey, parseRangeKey } from '@tollward/contracts'
import { type Block, BlockSchema } from '@tollward/contracts/enforcement'
import type { Logger } from 'pino'
import type { BlockList, BlockTables } from '../domain/block-list.ts'
import type { CallerBlocks } from '../domain/caller-blocks.ts'
import type { DecisionMetrics } from '../metrics.ts'

/** The formats of Block that this library reads. */
const RANGE_FORMAT = 1
const CALLER_FORMAT = 2
/** A start that takes long says how far it is this often. */
const PROGRESS_LOG_MS = 1000

interface BlocksOptions {
  readonly blocks: BlockList
  readonly callerBlocks: CallerBlocks
  readonly log: Logger
  readonly metrics: Pick<DecisionMetrics, 'blocksRefused'>
  /** Told how far reading the bucket is. */
  readonly progress: (read: number, total: number) => void
}

/** What holds blocks: what is in force, or a draft of it. */
interface Held {
  readonly ranges: Pick<BlockTables, 'set' | 'remove'>
  readonly callers: CallerBlocks
}

/** Begins to keep the blocks as the bucket is. Resolves when all are known. */
export function followBlocks(
  bus: Bus,
  { blocks, callerBlocks, log, metrics, progress }: BlocksOptions,
): Promise<Following> {
  let saidAtMs = performance.now()
  let isFull = false
  const apply = ({ ranges, callers }: Held, key: string, entry: Entry<Block> | undefined) => {
    const caller = parseCallerKey(key)
    const expiresAtMs = entry && expiryOf(entry.value, caller ? CALLER_FORMAT : RANGE_FORMAT)
    if (!caller) {
      const range = expiresAtMs === undefined ? undefined : parseRangeKey(key)
      if (range && expiresAtMs !== undefined) ranges.set({ range, expiresAtMs })
      else ranges.remove(key)
      return
    }
    if (expiresAtMs === undefined) return callers.remove(caller)
    if (callers.set({ ...caller, expiresAtMs }, Date.now())) return
    metrics.blocksRefused.inc()
    if (!isFull) log.error({ callers: callers.size }, 'blocks of callers are not enforced: there are too many')
    isFull = true
  }
  const inForce: Held = { ranges: blocks, callers: callerBlocks }
  return bus.bucket(bucketContract(BlockSchema)).follow({
    begin: () => {
      const draft = { ranges: blocks.draft(), callers: callerBlocks.draft() }
      isFull = false
      return {
        set: (key, entry) => apply(draft, key, entry),
        finish: () => {
          blocks.swap(draft.ranges)
          callerBlocks.swap(draft.callers)
          log.info({ ranges: blocks.size, callers: callerBlocks.size }, 'blocks are known')
        },
      }
    },
    change: (key, entry) => {
      apply(inForce, key, entry)
      blocks.sweep(Date.now())
    },
    progress: (read, total) => {
      progress(read, total)
      if (performance.now() - saidAtMs < PROGRESS_LOG_MS) return
      saidAtMs = performance.now()
      log.info({ read, total }, 'blocks are being read')
    },
  })
}

/** When the block ends; undefined without an end, which no block may lack, or for a format that a later version wrote. */
function expiryOf({ format, expiresAt }: Block, wanted: number): number | undefined {
  return format === wanted && expiresAt ? timestampMs(expiresAt) : undefined
}
