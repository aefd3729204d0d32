import type { Bus, Following } from '@tollward/bus'
import { bucketContract, contract } from '@tollward/contracts'
import { BlockDecidedSchema, BlockLiftedSchema, BlockSchema, LiftCause } from '@tollward/contracts/enforcement'
import { type BlockLedger, PRIOR_AGE_MAX_MS } from '../domain/block-ledger.ts'

/** Keeps the ledger as the bucket `blocks` and its audit have it. Resolves when the past has been read. */
export async function followBlocks(bus: Bus, ledger: BlockLedger, nowMs: number): Promise<Following[]> {
  const since = { timeMs: nowMs - PRIOR_AGE_MAX_MS }
  return await Promise.all([
    bus.bucket(bucketContract(BlockSchema)).follow({
      snapshot: (entries) => ledger.replace([...entries].map(([key, { value }]) => [key, value] as const)),
      change: (key, entry) => ledger.set(key, entry?.value),
    }),
    bus.follow(contract(BlockDecidedSchema), since, ({ block }) => {
      if (block) ledger.notePrior(block)
    }),
    bus.follow(contract(BlockLiftedSchema), since, ({ address, prefixLength, cause }) => {
      if (cause === LiftCause.REMOVED) ledger.forgetPriors({ address, prefixLength })
    }),
  ])
}
