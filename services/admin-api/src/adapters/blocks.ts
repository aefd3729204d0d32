import { timestampMs } from '@bufbuild/protobuf/wkt'
import type { Bucket, Bus, Entry } from '@tollward/bus'
import { type AddressRange, bucketContract, CALLER_BLOCKS_MAX, type CallerKind } from '@tollward/contracts'
import { type Block, BlockSchema } from '@tollward/contracts/enforcement'
import { AppError } from '@tollward/errors'
import { blockedKey, operatorBlock } from '../domain/block.ts'
import type { AdminMethods } from './calls.ts'

/** Writers of one block that may come between before we give up. */
const ATTEMPTS_MAX = 5

/** Blocks in one answer, some 200 bytes each: a million would fill the memory of both sides. */
const BLOCKS_LISTED_MAX = 10_000

const CALLER_KINDS: readonly CallerKind[] = ['token', 'grant', 'client', 'subject']

/** Blocks of operators, in the bucket that enforcers watch; sensor-ingest writes there too. */
export function blockMethods(
  bus: Bus,
  guarded: readonly AddressRange[],
  { callerBlocksMax = CALLER_BLOCKS_MAX, blocksListedMax = BLOCKS_LISTED_MAX } = {},
): Pick<AdminMethods, 'listBlocks' | 'addBlock' | 'removeBlock'> {
  const bucket = bus.bucket(bucketContract(BlockSchema))

  const refuseTooMany = async () => {
    const kinds = await Promise.all(CALLER_KINDS.map((kind) => bucket.entries(`${kind}.*`)))
    if (kinds.flat().length < callerBlocksMax) return
    const advice = 'lift some, or disable the client or person that they are of'
    throw new AppError('resource_exhausted', `${callerBlocksMax} callers are blocked, and no more can be: ${advice}.`)
  }

  return {
    listBlocks: async () => {
      const { blocks, leftOut } = await newest(bucket, blocksListedMax)
      return { blocks: blocks.sort((a, b) => endOf(a) - endOf(b)), leftOut }
    },

    addBlock: async (request, { caller: by }) => {
      const key = blockedKey(request)
      const block = operatorBlock(request, { by, guarded, nowMs: Date.now() })
      const options = { expiresAtMs: endOf(block) }
      await againIfOutrun(async () => {
        const before = await bucket.get(key)
        if (before) return await bucket.update(key, block, before.revision, options)
        if (block.caller) await refuseTooMany()
        return await bucket.create(key, block, options)
      })
      return { block }
    },

    removeBlock: async (request) => {
      const key = blockedKey(request)
      const removed = await againIfOutrun(async () => {
        const before = await bucket.get(key)
        if (before) await bucket.remove(key, { revision: before.revision })
        return before !== undefined
      })
      return { removed }
    },
  }
}

/** What was written last, without ever holding more. */
async function newest(bucket: Bucket<Block>, max: number): Promise<{ blocks: Block[]; leftOut: number }> {
  const { promise, resolve } = Promise.withResolvers<{ blocks: Block[]; leftOut: number }>()
  const begin = () => {
    const kept = new Map<string, Block>()
    let leftOut = 0
    return {
      set: (key: string, entry: Entry<Block> | undefined) => {
        kept.delete(key)
        if (!entry) return
        kept.set(key, entry.value)
        if (kept.size <= max) return
        for (const oldest of kept.keys().take(1)) kept.delete(oldest)
        leftOut += 1
      },
      finish: () => resolve({ blocks: [...kept.values()], leftOut }),
    }
  }
  await using _following = await bucket.follow({ begin, change: () => {} })
  return await promise
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
