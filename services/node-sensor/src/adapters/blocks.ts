import type { Bus, Entry, Following } from '@tollward/bus'
import { bucketContract, formatRange, parseCallerKey, parseRangeKey } from '@tollward/contracts'
import { type Block, BlockSchema } from '@tollward/contracts/enforcement'
import type { Logger } from 'pino'
import { readBlock, type WantedBlock } from '../domain/block.ts'
import { WantedBlocks } from '../domain/wanted-blocks.ts'
import type { Metrics } from '../metrics.ts'
import { type BlockTable, wantedOf } from './block-table.ts'

interface BlocksOptions {
  readonly bus: Bus
  readonly table: BlockTable
  readonly metrics: Metrics
  readonly log: Logger
}

/** Begins to keep the kernel's blocks as the bucket is. Resolves when the kernel has all of them. */
export function followBlocks({ bus, table, metrics, log }: BlocksOptions): Promise<Following> {
  const read = (entry: Entry<Block>): WantedBlock | undefined => {
    // A caller is known by its token, which no packet shows.
    if (parseCallerKey(entry.key)) return undefined
    const block = readBlock(entry.key, entry.value, entry.revision)
    if (!block) {
      metrics.blocksIgnored.inc({ reason: 'unreadable' })
      log.error({ key: entry.key, format: entry.value.format }, 'block is ignored: it is of another format or damaged')
    } else if (table.isGuarded(block.range)) {
      metrics.blocksIgnored.inc({ reason: 'guarded' })
      log.warn(
        { range: formatRange(block.range), decidedBy: entry.value.decidedBy },
        'block is ignored: it names only guarded addresses',
      )
    }
    return block
  }
  return bus.bucket(bucketContract(BlockSchema)).follow({
    // Built entry by entry: a million decoded blocks beside one another would be a gigabyte.
    begin: () => {
      const wanted = new WantedBlocks()
      return {
        set: (key, entry) => {
          const block = entry && read(entry)
          if (!block) return remove(wanted, key)
          wanted.set(block.range, wantedOf(block))
          // What is new since the last reading waits for nothing; what is gone, until all is read.
          table.setIfOther(block)
        },
        finish: () => {
          const startedMs = performance.now()
          table.replace(wanted)
          const tookMs = Math.round(performance.now() - startedMs)
          log.info({ blocks: wanted.size, tookMs }, 'blocks are as the bucket is')
        },
      }
    },
    change: (key, entry) => {
      const block = entry && read(entry)
      if (!block) return table.remove(key)
      const isNew = table.set(block)
      if (isNew && block.decidedAtMs > 0) metrics.apply.observe(Math.max(0, Date.now() - block.decidedAtMs) / 1000)
    },
  })
}

/** What is no range, or is unreadable, was never set. */
function remove(wanted: WantedBlocks, key: string): void {
  const range = parseRangeKey(key)
  const position = range ? wanted.find(range.address, range.prefixLength) : -1
  if (position >= 0) wanted.remove(position)
}
