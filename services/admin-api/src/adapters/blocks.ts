import { timestampMs } from '@bufbuild/protobuf/wkt'
import type { Bus } from '@tollward/bus'
import { type AddressRange, bucketContract, rangeKey } from '@tollward/contracts'
import { type Block, BlockSchema } from '@tollward/contracts/enforcement'
import { AppError } from '@tollward/errors'
import { operatorBlock, readRange } from '../domain/block.ts'
import type { AdminMethods } from './calls.ts'

/** Writers of one block that may come between before we give up. */
const ATTEMPTS_MAX = 5

/** Blocks of operators, in the bucket that enforcers watch; sensor-ingest writes there too. */
export function blockMethods(
  bus: Bus,
  guarded: readonly AddressRange[],
): Pick<AdminMethods, 'listBlocks' | 'addBlock' | 'removeBlock'> {
  const bucket = bus.bucket(bucketContract(BlockSchema))

  return {
    listBlocks: async () => {
      const blocks = (await bucket.entries()).map(({ value }) => value)
      return { blocks: blocks.sort((a, b) => endOf(a) - endOf(b)) }
    },

    addBlock: async ({ cidr, ttlSeconds, reason }, { caller }) => {
      const block = operatorBlock({ cidr, ttlSeconds, reason }, { ...caller, guarded, nowMs: Date.now() })
      const key = rangeKey(block)
      const options = { expiresAtMs: endOf(block) }
      await againIfOutrun(async () => {
        const before = await bucket.get(key)
        if (before) await bucket.update(key, block, before.revision, options)
        else await bucket.create(key, block, options)
      })
      return { block }
    },

    removeBlock: async ({ cidr }) => {
      const key = rangeKey(readRange(cidr))
      const removed = await againIfOutrun(async () => {
        const before = await bucket.get(key)
        if (before) await bucket.remove(key, { revision: before.revision })
        return before !== undefined
      })
      return { removed }
    },
  }
}

function endOf({ expiresAt }: Block): number {
  return expiresAt ? timestampMs(expiresAt) : 0
}

async function againIfOutrun<T>(change: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await change()
    } catch (error) {
      const outrun = error instanceof AppError && (error.code === 'conflict' || error.code === 'already_exists')
      if (!outrun || attempt === ATTEMPTS_MAX) throw error
    }
  }
}
