import { create } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { type AccountKey, type BlockHeader, hashBytes } from '@tollward/bitcoin'
import type { Implementation } from '@tollward/bus'
import { CreditAdjustedSchema } from '@tollward/contracts/ledger'
import type { TreasuryService } from '@tollward/contracts/payment'
import { AppError } from '@tollward/errors'
import {
  type Accounted,
  accountOf,
  accountOfFound,
  type Comparison,
  compare,
  type PaidBlock,
  paymentsFrom,
  type Reading,
} from '../domain/accounting.ts'
import { booksOf } from '../domain/books.ts'
import { creditOf } from '../domain/credit.ts'
import { outpointKey } from '../domain/ledger.ts'
import { exportPart, importPart } from './backups.ts'
import { assertFollowed, type Chain } from './chain.ts'
import type { LedgerBook } from './ledger.ts'
import type { Passes } from './passes.ts'

const PAGE_DEFAULT = 100
const PAGE_MAX = 1_000
/** Blocks that one call looks through: it has to answer in time from a slow node, too. */
const BLOCKS_PER_CALL = 50
/** Differences that one answer tells, of some hundred bytes each: the bus takes a mebibyte. Sums are of all of them. */
const DIFFERENCES_PER_ANSWER = 4_000
/** Clients that one answer names: about half of what the bus takes, with the longest of names. */
const CREDITS_PER_ANSWER = 2_000
const REASON_LENGTH_MAX = 200
const ADJUSTMENT_ID = /^[\w-]{16,64}$/
const TXID = /^[0-9a-f]{64}$/

export interface TreasuryOptions {
  readonly book: LedgerBook
  readonly chain: Chain
  readonly passes: Passes
  readonly account: AccountKey
  readonly nodeSilentMaxMs: number
}

type Treasury = Implementation<typeof TreasuryService>
type AdjustCreditRequest = Parameters<Treasury['adjustCredit']>[0]

/** What operators ask and tell about money. */
export function treasury(options: TreasuryOptions): Treasury {
  const { book, chain, account, nodeSilentMaxMs } = options
  return {
    listPayments: async ({ pageToken, pageSize, clientId }) => {
      const size = Math.min(pageSize === 0 ? PAGE_DEFAULT : pageSize, PAGE_MAX)
      const { page, next } = paymentsFrom(book.ledger, readingOf(pageToken), size, clientId)
      const view = await chain.view(page.flatMap((each) => ('invoice' in each ? [each.invoice] : [])))
      const accounted = page.map((each) =>
        'invoice' in each ? accountOf(each.invoice, each.payment, view) : accountOfFound(each, view),
      )
      const nextPageToken = page.length < size ? '' : `${next.payments}.${next.found}`
      return { payments: accounted.map((each) => listed(each, account)), nextPageToken }
    },

    getBooks: async () => {
      assertFollowed(chain, nodeSilentMaxMs)
      return await books(options)
    },

    reconcileBlocks: async ({ fromHeight, blocksMax }) => {
      assertFollowed(chain, nodeSilentMaxMs)
      const most = Math.min(blocksMax || BLOCKS_PER_CALL, BLOCKS_PER_CALL)
      let compared = await compareBlocks(options, fromHeight, most)
      if ((compared?.differences.length ?? 0) > DIFFERENCES_PER_ANSWER)
        compared = await compareBlocks(options, fromHeight, 1)
      // The chain moved on while we looked: the caller asks again from the same block.
      if (compared === undefined) return { blocks: 0, nextHeight: Math.max(1, fromHeight) }
      const { blocks, chainSats, ledgerSats, differences } = compared
      const next = fromHeight + blocks
      const nextHeight = next > (chain.follower.tip?.height ?? 0) ? 0 : next
      return { blocks, nextHeight, chainSats, ledgerSats, differences: differences.slice(0, DIFFERENCES_PER_ANSWER) }
    },

    listCredits: async ({ clientId }) => {
      const clients = clientId === '' ? [...book.ledger.clients()] : [clientId]
      const view = await chain.view(clients.flatMap((id) => book.ledger.invoicesOf(id)))
      const credits = clients.map((id) => ({ clientId: id, ...creditOf(id, book.ledger, view) }))
      const some = credits.filter(
        ({ grantedSats, spentSats, adjustedSats }) => grantedSats !== 0n || spentSats !== 0n || adjustedSats !== 0n,
      )
      if (some.length <= CREDITS_PER_ANSWER) return { credits: some }
      throw new AppError('too_large', `${some.length} clients have credit: ask for one of them.`)
    },

    adjustCredit: async (request) => {
      await adjustCredit(request, options)
      const { clientId } = request
      const view = await chain.view(book.ledger.invoicesOf(clientId))
      return { credit: { clientId, ...creditOf(clientId, book.ledger, view) } }
    },

    exportLedger: ({ fromSequence }) => exportPart(fromSequence, options),
    importLedger: (request) => importPart(request, options),
  }
}

async function books({ book: { ledger }, chain, account }: TreasuryOptions) {
  const view = await chain.view(ledger.invoices())
  const { sequence, nextAddressIndex, unknownEntries } = ledger
  const { tip } = chain.follower
  const sums = booksOf(ledger, view)
  const difficulties: string[] = []
  if (unknownEntries > 0) difficulties.push(`${unknownEntries} entries of the ledger cannot be read by this version.`)
  const { creditLackingSats, ...told } = sums
  if (creditLackingSats > 0n)
    difficulties.push(`Clients lack ${creditLackingSats} sats of credit, which was taken back after they had spent it.`)
  return {
    ...told,
    ledgerSequence: BigInt(sequence),
    tipHeight: tip?.height ?? 0,
    tipHash: tip?.hash ?? '',
    nextAddressIndex: Math.max(nextAddressIndex, chain.addressFloor ?? 0),
    descriptor: account.descriptor,
    firstBlockHeight: firstBlockHeight(ledger, tip?.height ?? 0),
    difficulties,
  }
}

/** Below it no block can hold money that this ledger knows of. */
function firstBlockHeight(ledger: LedgerBook['ledger'], tipHeight: number): number {
  const paid = [...ledger.paidBlocks()].map(({ height }) => height)
  return paid.reduce((lowest, height) => Math.min(lowest, height), (ledger.firstOpenedHeight ?? tipHeight) + 1)
}

/** Looks through some blocks; undefined: the chain moved on meanwhile, so what was seen may be nothing the ledger speaks of. */
async function compareBlocks(
  { book: { ledger }, chain }: TreasuryOptions,
  fromHeight: number,
  blocksMax: number,
): Promise<(Comparison & { readonly blocks: number }) | undefined> {
  const tip = chain.follower.tip
  const until = Math.min(fromHeight + blocksMax - 1, tip?.height ?? -1)
  const heights = Array.from({ length: Math.max(0, until - fromHeight + 1) }, (_, offset) => fromHeight + offset)
  const indexOf = (script: string) => ledger.invoiceOfScript(script)?.addressIndex ?? chain.addresses.indexOf(script)
  const scripts = {
    has: (script: string) => indexOf(script) !== undefined,
    *all() {
      yield* ledger.scripts()
      yield* chain.addresses.scripts.all()
    },
  }
  const blocks: PaidBlock[] = []
  const headers: readonly BlockHeader[] = heights.length === 0 ? [] : await chain.source.headersAt(heights)
  for (const { hash, height } of headers) {
    const { outputs } = await chain.source.findingsIn({ hash, height }, { scripts, spendings: new Set<string>() })
    blocks.push({ hash, height, outputs })
  }
  const isSame = chain.follower.tip?.hash === tip?.hash && chain.follower.caughtUp
  if (!isSame || headers.length < heights.length) return undefined
  return { ...compare(blocks, ledger, indexOf), blocks: blocks.length }
}

async function adjustCredit(request: AdjustCreditRequest, { book, chain, nodeSilentMaxMs }: TreasuryOptions) {
  const { adjustmentId, clientId, amountSats, reason, operator, txid, vout } = request
  if (!ADJUSTMENT_ID.test(adjustmentId)) throw invalid('Give a random id of 16 to 64 letters and digits.')
  if (clientId === '' || operator === '') throw invalid('Say whose credit it is, and who changes it.')
  if (amountSats === 0n) throw invalid('Give or take at least 1 sat.')
  if (reason.trim() === '' || reason.length > REASON_LENGTH_MAX)
    throw invalid(`Give a reason of at most ${REASON_LENGTH_MAX} characters: it stays in the ledger.`)
  if (txid !== '' && !TXID.test(txid)) throw invalid('A txid is 64 hexadecimal digits in lower case.')
  assertFollowed(chain, nodeSilentMaxMs)
  const value = create(CreditAdjustedSchema, {
    ...{ adjustmentId, clientId, amountSats, reason, operator },
    ...(txid === '' ? {} : { outpoint: { txid: hashBytes(txid), vout } }),
  })
  await book.write((ledger) => {
    const done = ledger.adjustment(adjustmentId)
    if (done !== undefined) {
      if (done.clientId === clientId && done.amountSats === amountSats) return undefined
      throw new AppError('conflict', 'That id belongs to another adjustment: use a new one.')
    }
    if (txid !== '') {
      const found = ledger.found(outpointKey({ txid, vout }))
      if (found?.payment.block === undefined) throw new AppError('not_found', 'No such money was found in a block.')
      if (found.clientId !== undefined) throw new AppError('failed_precondition', 'That money was given to a client.')
      if (found.payment.amountSats !== amountSats)
        throw invalid(`The found output holds ${found.payment.amountSats} sats: give all of it.`)
    }
    return { case: 'creditAdjusted', value }
  })
}

function listed({ payment, addressIndex, invoice, clientId, ...account }: Accounted, key: AccountKey) {
  const { txid, vout, amountSats, seenAtMs, block } = payment
  return {
    ...{ txid, vout, amountSats, addressIndex, clientId, ...account },
    address: invoice?.address ?? key.address(addressIndex).address,
    invoiceId: invoice?.id ?? '',
    plan: invoice?.plan ?? '',
    seenAt: timestampFromMs(seenAtMs),
    blockHeight: block?.height ?? 0,
    blockHash: block?.hash ?? '',
  }
}

function readingOf(pageToken: string): Reading {
  if (pageToken === '') return { payments: 0, found: 0 }
  const match = /^(\d{1,12})\.(\d{1,12})$/.exec(pageToken)
  if (match === null) throw invalid('That is no page token: take the one of the page before.')
  return { payments: Number(match[1]), found: Number(match[2]) }
}

function invalid(message: string): AppError {
  return new AppError('invalid_argument', message)
}
