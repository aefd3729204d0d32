import { create, fromBinary } from '@bufbuild/protobuf'
import type { AccountKey } from '@tollward/bitcoin'
import type { Implementation } from '@tollward/bus'
import { AddressesSkippedSchema, type EntryAppended, EntryAppendedSchema } from '@tollward/contracts/ledger'
import type { TreasuryService } from '@tollward/contracts/payment'
import { AppError } from '@tollward/errors'
import { entryOf } from '../domain/facts.ts'
import { LOOKAHEAD_ADDRESSES } from './addresses.ts'
import type { LedgerBook } from './ledger.ts'
import type { Passes } from './passes.ts'

/** Entries that one part of an export holds: each has less than two thousand bytes, and the bus takes a mebibyte. */
const ENTRIES_PER_PART = 300

interface BackupOptions {
  readonly book: LedgerBook
  readonly passes: Passes
  readonly account: AccountKey
}

type Treasury = Implementation<typeof TreasuryService>
type ImportRequest = Parameters<Treasury['importLedger']>[0]
type ExportPart = Awaited<ReturnType<Treasury['exportLedger']>>
type ImportAnswer = Awaited<ReturnType<Treasury['importLedger']>>

/** Some entries of the ledger as they are, from a sequence on. */
export async function exportPart(fromSequence: bigint, { book, account }: BackupOptions): Promise<ExportPart> {
  await book.reachesEnd()
  const { sequence: last, nextAddressIndex, isRestoring } = book.ledger
  if (isRestoring) throw new AppError('unavailable', 'The ledger is being restored; back it up when that is done.')
  const from = Number(fromSequence)
  if (from < 1) throw new AppError('invalid_argument', 'The first entry of a ledger is number 1.')
  const count = Math.max(0, Math.min(ENTRIES_PER_PART, last - from + 1))
  const entries = await book.stored(from, count)
  if (entries.length < count) throw new AppError('internal', 'Entries of the ledger are missing.')
  const { network, descriptor } = account
  return { entries, lastSequence: BigInt(last), network, descriptor, nextAddressIndex }
}

/**
 * Writes a part of a back-up. Its first part is preceded by an entry that keeps all others from writing before the last part is
 * there, and every replica from giving out an address that may have been given out after the back-up was made. AppError
 * `failed_precondition` if the back-up is of another account, or the ledger is another one.
 */
export async function importPart(request: ImportRequest, options: BackupOptions): Promise<ImportAnswer> {
  const { book, passes, account } = options
  const { network, descriptor, passes: restored } = request
  if (network !== account.network || descriptor !== account.descriptor) {
    const message = 'The back-up is of another network or account than TOLLWARD_NETWORK and TOLLWARD_ACCOUNT_KEY say.'
    throw new AppError('failed_precondition', message)
  }
  await book.reachesEnd()
  if (book.ledger.restore === undefined) await begin(request, book)
  const nextSequence = await writeEntries(request, book)
  if (restored.length > 0) {
    if (book.ledger.isRestoring)
      throw new AppError('failed_precondition', `Entry ${nextSequence} of the back-up comes before the passes.`)
    for (const pass of restored) {
      const { redeemed } = book.ledger.invoice(pass.invoiceId) ?? {}
      const isLastWord = pass.drawnRequests === book.ledger.drawnOf(pass.passId)
      // Any other one is made from the ledger, which knows that more was drawn of it.
      if (redeemed?.passId === pass.passId && isLastWord) await passes.restore(pass)
    }
  }
  return { nextSequence: BigInt(nextSequence) }
}

async function begin({ entriesTotal, nextAddressIndex }: ImportRequest, book: LedgerBook): Promise<void> {
  if (book.ledger.sequence > 0) {
    const message = 'The ledger has entries of its own: a back-up is restored to an empty one only.'
    throw new AppError('failed_precondition', message)
  }
  if (entriesTotal === 0n) throw new AppError('invalid_argument', 'The back-up holds no entries.')
  const value = create(AddressesSkippedSchema, {
    nextIndex: nextAddressIndex + LOOKAHEAD_ADDRESSES,
    reason: 'restored from a back-up',
    restoredEntries: entriesTotal,
  })
  await book.restore([entryOf({ case: 'addressesSkipped', value }, Date.now())])
}

/** Writes what of the part is not there yet, and returns the number of the entry that is wanted next. */
async function writeEntries({ fromSequence, entries, entriesTotal }: ImportRequest, book: LedgerBook): Promise<number> {
  const { restore } = book.ledger
  if (restore === undefined) throw new AppError('conflict', 'The restore has not begun; try again.')
  if (restore.last - restore.after !== Number(entriesTotal)) throw otherLedger()
  const wanted = Math.min(book.ledger.sequence, restore.last) - restore.after + 1
  const from = Number(fromSequence)
  if (entries.length > 0 && (from < 1 || from > wanted))
    throw new AppError('failed_precondition', `Entry ${wanted} of the back-up is wanted next.`)
  const there = Math.min(entries.length, wanted - from)
  if (there > 0) {
    const known = await book.stored(restore.after + from, there)
    if (known.length < there || known.some((bytes, index) => !isSame(bytes, entries[index]))) throw otherLedger()
  }
  const missing = entries.slice(Math.max(0, there))
  if (missing.length > 0) await book.restore(missing.map(readEntry))
  return wanted + missing.length
}

function readEntry(bytes: Uint8Array): EntryAppended {
  try {
    return fromBinary(EntryAppendedSchema, bytes)
  } catch (error) {
    throw new AppError('invalid_argument', 'The back-up holds what is no entry of a ledger.', { cause: error })
  }
}

function isSame(one: Uint8Array, other: Uint8Array | undefined): boolean {
  return other !== undefined && Buffer.compare(one, other) === 0
}

function otherLedger(): AppError {
  const message = 'The ledger has entries that are not in this back-up: a back-up is restored to an empty one only.'
  return new AppError('failed_precondition', message)
}
