import type { Bus } from '@tollward/bus'
import { bucketContract } from '@tollward/contracts'
import { PassSchema, TreasuryService } from '@tollward/contracts/payment'
import { AppError } from '@tollward/errors'
import type { AdminMethods, AdminStreams } from './calls.ts'

/** Looking through blocks, and writing a page of entries one after the other, takes payment-verifier seconds. */
const WORK_TIMEOUT_MS = 25_000
/** Passes that one message of an export holds: a pass has some hundred bytes. */
const PASSES_PER_MESSAGE = 200

type TreasuryMethods = Pick<
  AdminMethods,
  'listPayments' | 'getBooks' | 'reconcileBlocks' | 'listCredits' | 'adjustCredit' | 'importLedger'
>

/** What payment-verifier says of the account's money, and what operators do about it. */
export function treasuryMethods(bus: Bus): TreasuryMethods {
  const treasury = bus.client(TreasuryService, { timeoutMs: WORK_TIMEOUT_MS })
  return {
    listPayments: async ({ pageToken, pageSize, clientId }) => {
      const { payments, nextPageToken } = await treasury.listPayments({ pageToken, pageSize, clientId })
      return { payments, nextPageToken }
    },
    getBooks: async () => ({ books: await treasury.getBooks({}) }),
    reconcileBlocks: async ({ fromHeight, blocksMax }) => ({
      part: await treasury.reconcileBlocks({ fromHeight, blocksMax }),
    }),
    listCredits: async ({ clientId }) => ({ credits: (await treasury.listCredits({ clientId })).credits }),
    adjustCredit: async ({ adjustmentId, clientId, amountSats, reason, txid, vout }, { caller }) => {
      const operator = caller.clientId
      const adjustment = { adjustmentId, clientId, amountSats, reason, operator, txid, vout }
      const { credit } = await treasury.adjustCredit(adjustment)
      return credit === undefined ? {} : { credit }
    },
    importLedger: async ({ part }) => {
      if (part === undefined) throw new AppError('invalid_argument', 'Say what to import: a part of an export.')
      return { part: await treasury.importLedger(part) }
    },
  }
}

/**
 * Streams the ledger page by page, and then the passes as they were before: of one that was drawn from meanwhile, the ledger has the
 * last word.
 */
export function ledgerExporter(bus: Bus): AdminStreams['exportLedger'] {
  const treasury = bus.client(TreasuryService, { timeoutMs: WORK_TIMEOUT_MS })
  const passes = bus.bucket(bucketContract(PassSchema))
  return async (_request, { write }) => {
    const all = (await passes.entries()).map(({ value }) => value)
    let fromSequence = 1n
    for (;;) {
      const part = await treasury.exportLedger({ fromSequence })
      await write({ part })
      fromSequence += BigInt(part.entries.length)
      if (fromSequence > part.lastSequence) break
      if (part.entries.length === 0) throw new AppError('internal', 'payment-verifier gave no more of its ledger.')
    }
    for (let start = 0; start < all.length; start += PASSES_PER_MESSAGE) {
      await write({ part: { passes: all.slice(start, start + PASSES_PER_MESSAGE) } })
    }
  }
}
