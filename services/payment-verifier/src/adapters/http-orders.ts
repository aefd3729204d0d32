import { randomBytes, randomUUID } from 'node:crypto'
import type { AccountKey } from '@tollward/bitcoin'
import type { TokenInfo } from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
import { z } from 'zod'
import { creditFor, creditOf } from '../domain/credit.ts'
import type { Invoice } from '../domain/invoice.ts'
import { invoiceOfOrder, mustWait, type OrderLimits, openedFact, type Waiting } from '../domain/opening.ts'
import { priceOf } from '../domain/price.ts'
import { assertFollowed, type Chain } from './chain.ts'
import type { Conducts } from './conducts.ts'
import type { LedgerBook } from './ledger.ts'
import type { Passes } from './passes.ts'
import type { Plans } from './plans.ts'
import { Problem } from './problem.ts'

/** Whoever guesses a page's key is as likely to guess an id. */
const PAGE_KEY_BYTES = 16

const OrderBody = z.strictObject({
  plan: z.string().min(1).max(63),
  idempotencyKey: z
    .string()
    .regex(/^[A-Za-z0-9_-]{1,128}$/)
    .optional(),
  /** Whether credit pays as much of it as it can. */
  useCredit: z.boolean().default(true),
})

export interface OrderOptions {
  readonly book: LedgerBook
  readonly chain: Chain
  readonly passes: Passes
  readonly plans: Plans
  readonly conducts: Conducts
  readonly account: AccountKey
  readonly limits: OrderLimits
  /** Of a client that registered itself: of those anybody can have many. */
  readonly selfRegisteredLimits: OrderLimits
  readonly nodeSilentMaxMs: number
}

/** Opens an invoice for whoever asks, or finds the one that the same order opened before. Problem for whatever is in the way. */
export async function openInvoice(
  { clientId, selfRegistered }: TokenInfo,
  body: unknown,
  options: OrderOptions,
): Promise<{ invoice: Invoice; isNew: boolean }> {
  const { book, chain, passes, plans, conducts, account, limits, selfRegisteredLimits, nodeSilentMaxMs } = options
  const asked = OrderBody.safeParse(body)
  if (!asked.success) {
    const message =
      'Send JSON with plan, and if you like useCredit and idempotencyKey of 1 to 128 letters, digits, - and _.'
    throw new Problem('malformed-request', new AppError('invalid_argument', message))
  }
  const plan = plans.get(asked.data.plan)
  if (plan === undefined) {
    throw new Problem('no-such-plan', new AppError('not_found', 'There is no such plan: GET /plans lists them.'))
  }
  const invoiceId = randomUUID()
  const { idempotencyKey = '', useCredit } = asked.data
  const order = { invoiceId, clientId, plan, idempotencyKey, pageKey: randomBytes(PAGE_KEY_BYTES) }
  const view = await chain.view(book.ledger.invoicesOf(clientId))
  await book.write((ledger, nowMs) => {
    if (invoiceOfOrder(order, ledger) !== undefined) return undefined
    const waiting = mustWait(clientId, ledger, selfRegistered ? selfRegisteredLimits : limits, nowMs)
    if (waiting !== undefined) throw tooMany(waiting)
    // Closed: without the chain nobody could see the payment, and addresses might be given twice.
    assertFollowed(chain, nodeSilentMaxMs)
    const { tip } = chain.follower
    if (tip === undefined || chain.addressFloor === undefined)
      throw new AppError('unavailable', 'Try again in a moment.')
    const address = account.address(Math.max(ledger.nextAddressIndex, chain.addressFloor))
    const price = priceOf(plan, conducts.customer(clientId, tip.height, nowMs))
    const { balanceSats } = creditOf(clientId, ledger, { ...view, nowMs })
    const creditSats = useCredit ? creditFor(price.sats, balanceSats) : 0n
    return openedFact(order, { price, creditSats }, address, tip, nowMs)
  })
  const invoice = invoiceOfOrder(order, book.ledger)
  if (invoice === undefined) throw new AppError('internal', 'The invoice was written and is not there.')
  if (invoice.redeemed !== undefined) await passes.ensure(invoice)
  return { invoice, isNew: invoice.id === invoiceId }
}

function tooMany({ reason, retryAfterSeconds }: Waiting): Problem {
  const message =
    reason === 'invoice-rate'
      ? 'You open invoices too fast: wait as long as Retry-After says.'
      : 'You have too many unpaid invoices: pay one, or wait until one expires.'
  return new Problem(reason, new AppError('resource_exhausted', message), { retryAfterSeconds })
}
