import { AppError } from '@tollward/errors'
import { type BooksRow, booksRow, differenceRow, partsOf } from './money-rows.ts'
import { type Surroundings, stepByStep, withSession } from './session.ts'

/** Blocks that one call looks through: it has to answer in time from a slow node, too. */
const BLOCKS_PER_CALL = 50

/** What the chain pays to the account and what the ledger knows of it, over a stretch of blocks. */
export interface Reconciled {
  readonly fromHeight: number
  readonly untilHeight: number
  readonly chainSats: number
  readonly ledgerSats: number
  readonly differences: readonly ReturnType<typeof differenceRow>[]
  readonly books: BooksRow
}

/** Looks through the chain from a height, by default the first that can hold money of the account, up to its tip. */
export async function reconcile(surroundings: Surroundings, from: number | undefined): Promise<Reconciled> {
  let books = await readBooks(surroundings)
  const fromHeight = from ?? books.firstBlockHeight
  const found = { chainSats: 0, ledgerSats: 0, differences: [] as ReturnType<typeof differenceRow>[] }
  let next = fromHeight
  // Blocks that come meanwhile are looked at as well, so that the sums are of the same chain as the books.
  while (next <= books.tipHeight) {
    await stepByStep(surroundings, 'tollward.read', async ({ admin, call }) => {
      const { part } = await admin.reconcileBlocks({ fromHeight: next, blocksMax: BLOCKS_PER_CALL }, call)
      if (!part) throw new AppError('internal', 'admin-api answered without what it compared.')
      next += part.blocks
      found.chainSats += Number(part.chainSats)
      found.ledgerSats += Number(part.ledgerSats)
      found.differences.push(...part.differences.map(differenceRow))
      return part.nextHeight === 0 ? 'done' : 'more'
    })
    books = await readBooks(surroundings)
  }
  return { fromHeight, untilHeight: next - 1, ...found, books }
}

/** Whether chain, ledger and books say the same, and the parts of the books are the whole. */
export function isAccountedFor({ fromHeight, chainSats, ledgerSats, differences, books }: Reconciled): boolean {
  const parts = Object.values(partsOf(books)).reduce((sum, amountSats) => sum + amountSats, 0)
  const isWhole = fromHeight <= books.firstBlockHeight
  return (
    differences.length === 0 &&
    chainSats === ledgerSats &&
    parts === books.receivedSats &&
    books.difficulties.length === 0 &&
    (!isWhole || chainSats === books.receivedSats)
  )
}

async function readBooks(surroundings: Surroundings): Promise<BooksRow> {
  return await withSession(surroundings, 'tollward.read', async ({ admin, call }) => {
    const { books } = await admin.getBooks({}, call)
    if (!books) throw new AppError('internal', 'admin-api answered without the books.')
    return booksRow(books)
  })
}
