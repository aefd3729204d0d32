import { timestampMs } from '@bufbuild/protobuf/wkt'
import type { Bus, Entry, Following } from '@tollward/bus'
import { bucketContract, parseRangeKey } from '@tollward/contracts'
import { type Block, BlockSchema } from '@tollward/contracts/enforcement'
import type { BlockEntry, BlockList } from '../domain/block-list.ts'

/** The format of Block that this library reads. */
const BLOCK_FORMAT = 1

/** Begins to keep the block list as the bucket is. Resolves when all blocks are known. */
export function followBlocks(bus: Bus, blocks: BlockList): Promise<Following> {
  return bus.bucket(bucketContract(BlockSchema)).follow({
    snapshot: (entries) =>
      blocks.replace(
        entries
          .values()
          .map(blockEntry)
          .filter((block) => block !== undefined),
      ),
    change: (key, entry) => {
      const block = entry && blockEntry(entry)
      if (block) blocks.set(block)
      else blocks.remove(key)
    },
  })
}

/** The range is the key's; undefined without an end, which no block may lack, or for a format that a later version wrote. */
function blockEntry({ key, value }: Entry<Block>): BlockEntry | undefined {
  const range = parseRangeKey(key)
  if (!range || value.format !== BLOCK_FORMAT || !value.expiresAt) return undefined
  return { range, expiresAtMs: timestampMs(value.expiresAt) }
}
