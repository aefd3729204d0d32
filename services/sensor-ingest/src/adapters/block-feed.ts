import type { Bus, Following } from '@tollward/bus'
import { bucketContract, contract, parseCallerKey } from '@tollward/contracts'
import { BlockDecidedSchema, BlockLiftedSchema, BlockSchema, LiftCause } from '@tollward/contracts/enforcement'
import { type BlockLedger, PRIOR_AGE_MAX_MS } from '../domain/block-ledger.ts'

/**
 * Keeps the ledger as the bucket `blocks` and its audit have it, as far as addresses are concerned: blocked callers are not what
 * packets tell of. Resolves when the past has been read.
 */
export async function followBlocks(bus: Bus, ledger: BlockLedger, nowMs: number): Promise<Following[]> {
  const since = { timeMs: nowMs - PRIOR_AGE_MAX_MS }
  return await Promise.all([
    bus.bucket(bucketContract(BlockSchema)).follow({
      snapshot: (entries) =>
        ledger.replace(
          [...entries].flatMap(([key, { value }]) => (parseCallerKey(key) ? [] : [[key, value] as const])),
        ),
      change: (key, entry) => {
        if (!parseCallerKey(key)) ledger.set(key, entry?.value)
      },
    }),
    bus.follow(contract(BlockDecidedSchema), since, ({ block }) => {
      if (block && !block.caller) ledger.notePrior(block)
    }),
    bus.follow(contract(BlockLiftedSchema), since, ({ address, prefixLength, cause, caller }) => {
      if (cause === LiftCause.REMOVED && !caller) ledger.forgetPriors({ address, prefixLength })
    }),
  ])
}
