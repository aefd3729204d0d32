import { timestampMs } from '@bufbuild/protobuf/wkt'
import type { Bus } from '@tollward/bus'
import { type AddressRange, bucketContract, CALLER_BLOCKS_MAX, type CallerKind } from '@tollward/contracts'
import { type Block, BlockSchema } from '@tollward/contracts/enforcement'
import { AppError } from '@tollward/errors'
import { blockedKey, operatorBlock } from '../domain/block.ts'
import type { AdminMethods } from './calls.ts'

/** Writers of one block that may come between before we give up. */
const ATTEMPTS_MAX = 5

const CALLER_KINDS: readonly CallerKind[] = ['token', 'grant', 'client', 'subject']

/** Blocks of operators, in the bucket that enforcers watch; sensor-ingest writes there too. */
export function blockMethods(
  bus: Bus,
  guarded: readonly AddressRange[],
  callerBlocksMax = CALLER_BLOCKS_MAX,
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
      const blocks = (await bucket.entries()).map(({ value }) => value)
      return { blocks: blocks.sort((a, b) => endOf(a) - endOf(b)) }
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
