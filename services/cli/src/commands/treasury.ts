import { randomUUID } from 'node:crypto'
import { AppError } from '@tollward/errors'
import { type Command, InvalidArgumentError, Option } from 'commander'
import { AnswerIsNo } from '../answer.ts'
import { answering, count, type OutputOptions, written } from '../arguments.ts'
import { csvLine } from '../csv.ts'
import { booksRow, creditRow, type PaymentRow, partsOf, paymentRow } from '../money-rows.ts'
import { fields, json } from '../output.ts'
import { isAccountedFor, type Reconciled, reconcile } from '../reconciling.ts'
import { type Surroundings, stepByStep, withSession } from '../session.ts'

const PAYMENT_COLUMNS = ['txid', 'vout', 'amountSats', 'state', 'blockHeight', 'clientId', 'plan', 'invoiceId']
const CSV_COLUMNS = [
  ...['txid', 'vout', 'amountSats', 'state', 'seenAt', 'blockHeight', 'blockHash', 'addressIndex', 'address'],
  ...['invoiceId', 'clientId', 'plan', 'boughtSats', 'creditedSats', 'heldSats'],
] as const satisfies readonly (keyof PaymentRow)[]
const CREDIT_COLUMNS = ['clientId', 'balanceSats', 'grantedSats', 'spentSats', 'adjustedSats']
const DIFFERENCE_COLUMNS = ['kind', 'txid', 'vout', 'chainSats', 'ledgerSats', 'blockHeight', 'addressIndex']
const PAYMENTS_PER_PAGE = 500

interface ListOptions extends OutputOptions {
  readonly client?: string
  readonly limit: number
}

interface CreditOptions extends OutputOptions {
  readonly reason: string
  readonly for?: Outpoint
}

interface Outpoint {
  readonly txid: string
  readonly vout: number
}

/** `payments`: what came in, what became of it, and whether that is all. */
export function addTreasuryCommands(program: Command, surroundings: Surroundings): void {
  const { out } = surroundings
  const payments = program.command('payments').description('bitcoin received, and what became of each satoshi')
  answering(payments, 'list', 'show the newest', { isDefault: true })
    .option('--client <name>', 'of this client only')
    .option('--limit <number>', 'the newest so many', count, 100)
    .action(async (options: ListOptions) => {
      let newest: PaymentRow[] = []
      await eachPage(surroundings, options.client, (rows) => {
        newest = [...newest, ...rows].slice(-options.limit)
      })
      out(written(newest, PAYMENT_COLUMNS, 'no payments', options))
    })

  payments
    .command('export')
    .description('write all of them, oldest first')
    .addOption(new Option('--csv', 'as CSV (RFC 4180)').makeOptionMandatory())
    .option('--client <name>', 'of this client only')
    .action(async ({ client }: { client?: string }) => {
      out(csvLine(CSV_COLUMNS))
      await eachPage(surroundings, client, (rows) => {
        out(rows.map((row) => csvLine(CSV_COLUMNS.map((column) => row[column]))).join(''))
      })
    })

  answering(payments, 'reconcile', 'walk the chain and compare; succeeds when every satoshi is accounted for')
    .option('--from <height>', 'the first block; by default the first that can hold anything', height)
    .action(async (options: OutputOptions & { from?: number }) => {
      writeReconciled(await reconcile(surroundings, options.from), options, surroundings)
    })

  answering(payments, 'books', 'sum the account up').action(({ output }: OutputOptions) =>
    withSession(surroundings, 'tollward.read', async ({ admin, call }) => {
      const { books } = await admin.getBooks({}, call)
      if (!books) throw new AppError('internal', 'admin-api answered without the books.')
      const row = booksRow(books)
      out(output === 'json' ? json(row) : fields({ ...row, difficulties: row.difficulties.join(' ') }))
    }),
  )

  addCreditCommands(payments, surroundings)
}

function addCreditCommands(payments: Command, surroundings: Surroundings): void {
  const { out } = surroundings
  answering(payments, 'credits', 'show what clients have in credit')
    .option('--client <name>', 'of this client only')
    .action((options: OutputOptions & { client?: string }) =>
      withSession(surroundings, 'tollward.read', async ({ admin, call }) => {
        const { credits } = await admin.listCredits({ clientId: options.client ?? '' }, call)
        out(written(credits.map(creditRow), CREDIT_COLUMNS, 'nobody has credit', options))
      }),
    )

  answering(payments, 'credit', 'give a client credit, or take some with a negative number')
    .argument('<client>')
    .argument('<sats>', 'how much', sats)
    .requiredOption('--reason <text>', 'for the ledger and the audit')
    .option('--for <txid:vout>', 'the found money that it is for', outpoint)
    .action((clientId: string, amountSats: bigint, options: CreditOptions) =>
      withSession(surroundings, 'tollward.admin', async ({ admin, call }) => {
        const adjustment = { adjustmentId: randomUUID(), clientId, amountSats, reason: options.reason, ...options.for }
        const { credit } = await admin.adjustCredit(adjustment, call)
        if (!credit) throw new AppError('internal', 'admin-api answered without the credit.')
        const row = creditRow(credit)
        out(options.output === 'json' ? json(row) : `${row.clientId} has ${row.balanceSats} sats in credit\n`)
      }),
    )
}

/** Writes what a reconciliation found. Throws AnswerIsNo unless every satoshi is accounted for. */
export function writeReconciled(found: Reconciled, { output }: OutputOptions, { out }: Surroundings): void {
  const isComplete = isAccountedFor(found)
  const { differences, fromHeight, untilHeight, chainSats, ledgerSats, books } = found
  if (output === 'json') out(json({ accountedFor: isComplete, ...found }))
  else {
    if (differences.length > 0) out(written(differences, DIFFERENCE_COLUMNS, '', { output }))
    const blocks = `${fromHeight} to ${untilHeight}`
    out(fields({ blocks, chainSats, ledgerSats, receivedSats: books.receivedSats, ...partsOf(books) }))
    for (const difficulty of books.difficulties) out(`${difficulty}\n`)
    out(isComplete ? 'every satoshi is accounted for\n' : 'not every satoshi is accounted for\n')
  }
  if (!isComplete) throw new AnswerIsNo()
}

async function eachPage(
  surroundings: Surroundings,
  clientId: string | undefined,
  take: (rows: PaymentRow[]) => void,
): Promise<void> {
  let pageToken = ''
  await stepByStep(surroundings, 'tollward.read', async ({ admin, call }) => {
    const request = { pageToken, pageSize: PAYMENTS_PER_PAGE, clientId: clientId ?? '' }
    const { payments, nextPageToken } = await admin.listPayments(request, call)
    take(payments.map(paymentRow))
    pageToken = nextPageToken
    return pageToken === '' ? 'done' : 'more'
  })
}

function sats(text: string): bigint {
  if (!/^-?[1-9]\d{0,15}$/.test(text)) throw new InvalidArgumentError('It is a whole number of sats other than 0.')
  return BigInt(text)
}

function outpoint(text: string): Outpoint {
  const match = /^([0-9a-f]{64}):(\d{1,9})$/i.exec(text)
  if (!match?.[1] || !match[2]) throw new InvalidArgumentError('It is the txid, a colon and the number of the output.')
  return { txid: match[1].toLowerCase(), vout: Number(match[2]) }
}

function height(text: string): number {
  if (!/^\d{1,9}$/.test(text)) throw new InvalidArgumentError('It is the height of a block.')
  return Number(text)
}
