import { create } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import type { Network } from '@tollward/bitcoin'
import type { Implementation } from '@tollward/bus'
import { InvoiceRedeemedSchema } from '@tollward/contracts/ledger'
import { RedeemOutcome, type VerifierService } from '@tollward/contracts/payment'
import { AppError } from '@tollward/errors'
import { creditOf, moneyOf } from '../domain/credit.ts'
import { type Invoice, standingOf, type View } from '../domain/invoice.ts'
import type { Ledger } from '../domain/ledger.ts'
import { passIdOf } from '../domain/pass.ts'
import { priceOf } from '../domain/price.ts'
import { decideRedemption, type Presentation, type Redemption } from '../domain/redemption.ts'
import type { Metrics } from '../metrics.ts'
import { assertFollowed, type Chain } from './chain.ts'
import type { Conducts } from './conducts.ts'
import type { LedgerBook } from './ledger.ts'
import type { Passes } from './passes.ts'
import type { Plans } from './plans.ts'

/** When asking again makes sense: where blocks come by the minute, and where they come when somebody mines. */
const RETRY_AFTER_SECONDS: Readonly<Record<Network, number>> = { regtest: 1, signet: 30, mainnet: 30 }
const LIST_DEFAULT = 100
const LIST_MAX = 1_000
const TXID = /^[0-9a-f]{64}$/

export interface VerifierOptions {
  readonly book: LedgerBook
  readonly chain: Chain
  readonly passes: Passes
  readonly plans: Plans
  readonly conducts: Conducts
  /** Where clients reach this service. */
  readonly publicUrl: string
  readonly metrics: Metrics
  readonly network: Network
  readonly nodeSilentMaxMs: number
  /** How long a lease lasts from when its holder was heard. */
  readonly leaseLastsMs: number
}

type Response = Awaited<ReturnType<Implementation<typeof VerifierService>['redeem']>>

/** What payment-verifier answers on the bus. */
export function verifier(options: VerifierOptions): Implementation<typeof VerifierService> {
  const { chain, conducts, passes, plans, publicUrl, metrics, leaseLastsMs } = options
  return {
    redeem: async ({ clientId, plan, txid }) => {
      const presentation = { clientId, plan, txid: txid.toLowerCase() }
      if (!TXID.test(presentation.txid)) throw invalid('A txid is 64 hexadecimal digits.')
      if (clientId === '' || plan === '')
        throw invalid('Say which client presents the transaction, and for which plan.')
      const redemption = await redeem(presentation, options)
      metrics.redemptions.inc({ outcome: redemption.outcome })
      // Not waited for: how long the answer takes must not tell whether the transaction is somebody's.
      if (isForeign(presentation, redemption, options.book.ledger)) conducts.note(clientId, { foreignTxids: 1 })
      return await answerOf(redemption, options)
    },
    lease: async ({ passId, holder, wantedRequests }) => {
      if (passId === '' || holder === '') throw invalid('Say which pass, and who will spend the chunk.')
      const { lease, unrecordedRequestsMax } = await passes.lease(passId, { holder, wantedRequests })
      if (lease === undefined) return { grantedRequests: 0 }
      const { leaseId, grantedRequests } = lease
      return { grantedRequests: Number(grantedRequests), leaseId, lastsMs: leaseLastsMs, unrecordedRequestsMax }
    },
    record: async ({ passId, holder, leaseId, servedRequests, ends }) => {
      if (passId === '' || holder === '' || (leaseId === '' && !ends))
        throw invalid('Say which pass, who holds the lease, and which lease unless it ends.')
      const inForce = await passes.record(passId, { holder, leaseId, servedRequests, ends })
      return { inForce, lastsMs: inForce ? leaseLastsMs : 0 }
    },
    quote: async ({ clientId, plan: name }) => {
      if (clientId === '' || name === '') throw invalid('Say which client asks, and for which plan.')
      const plan = plans.get(name)
      if (plan === undefined) return { isSold: false }
      const { ledger } = options.book
      const view = await chain.view(ledger.invoicesOf(clientId))
      const { listSats, sats, cuts } = priceOf(plan, conducts.customer(clientId, view.tipHeight, view.nowMs))
      const { balanceSats } = creditOf(clientId, ledger, view)
      return {
        isSold: true,
        listPriceSats: listSats,
        priceSats: sats,
        discounts: [...cuts],
        creditSats: balanceSats > 0n ? balanceSats : 0n,
        invoicesUrl: `${publicUrl}/invoices`,
      }
    },
    listInvoices: async ({ clientId, limit }) => {
      const { book, chain } = options
      const all = clientId === '' ? [...book.ledger.invoices()] : book.ledger.invoicesOf(clientId)
      const newest = all.slice(-Math.min(limit === 0 ? LIST_DEFAULT : limit, LIST_MAX)).reverse()
      const view = await chain.view(newest)
      return { invoices: newest.map((invoice) => listed(invoice, view, passes)) }
    },
  }
}

/** Whether a transaction that is worth nothing to who presents it pays somebody else. */
function isForeign({ clientId, txid }: Presentation, { outcome }: Redemption, ledger: Ledger): boolean {
  if (outcome !== 'not-seen' && outcome !== 'nothing-open') return false
  const paid = ledger.invoicesPaidBy(txid)
  return paid.length > 0 && paid.every((invoice) => invoice.clientId !== clientId)
}

/** Decides on the last entry of the ledger, and if the decision is a new pass, makes it the next one. */
async function redeem(presentation: Presentation, options: VerifierOptions): Promise<Redemption> {
  const { book, chain, passes, nodeSilentMaxMs } = options
  const view = await chain.view(book.ledger.invoicesOf(presentation.clientId))
  let redemption: Redemption = decideRedemption(presentation, book.ledger, view, (passId) => passes.use(passId))
  if (redemption.outcome !== 'redeem') return redemption
  // Closed: while we don't see the chain, a reorganisation may have taken the payment back.
  assertFollowed(chain, nodeSilentMaxMs)
  await book.write((ledger, nowMs) => {
    // After our own entry the decision is "pass", which is what ends the writing.
    redemption = decideRedemption(presentation, ledger, { ...view, nowMs }, (passId) => passes.use(passId))
    if (redemption.outcome !== 'redeem') return undefined
    const invoiceId = redemption.invoice.id
    const value = create(InvoiceRedeemedSchema, {
      invoiceId,
      passId: passIdOf(invoiceId),
      redeemedAt: timestampFromMs(nowMs),
    })
    return { case: 'invoiceRedeemed', value }
  })
  return redemption
}

async function answerOf(redemption: Redemption, { passes, network }: VerifierOptions): Promise<Response> {
  const retryAfterSeconds = RETRY_AFTER_SECONDS[network]
  switch (redemption.outcome) {
    case 'pass':
    case 'redeem':
      return { outcome: RedeemOutcome.REDEEMED, pass: await passes.ensure(redemption.invoice) }
    case 'pending': {
      const { confirmationsMissing, covered } = redemption
      const waits = `The payment needs ${confirmationsMissing} more confirmation${confirmationsMissing === 1 ? '' : 's'}.`
      const detail = covered ? waits : LACKING
      return { outcome: RedeemOutcome.PENDING, confirmationsMissing, retryAfterSeconds, detail }
    }
    case 'not-seen':
      return {
        outcome: RedeemOutcome.NOT_SEEN,
        retryAfterSeconds,
        detail: 'No payment of yours with this txid is known here yet: pay your invoice, then send the txid again.',
      }
    case 'nothing-open':
      return {
        outcome: RedeemOutcome.NOTHING_OPEN,
        detail: 'This txid pays no invoice of yours, and none of yours is open: open one and pay it.',
      }
    case 'exhausted':
      return { outcome: RedeemOutcome.EXHAUSTED, detail: 'What this payment bought is used up: open a new invoice.' }
    case 'insufficient':
      return { outcome: RedeemOutcome.INSUFFICIENT, detail: shortfall(redemption) }
  }
}

/** Of an invoice whose use of credit is not covered any more. */
const LACKING =
  'Credit that this invoice uses was taken back with the payment that it came from: it is yours again when that confirms again.'

/** Where the money of a closed invoice is. */
const ON_RECORD = 'It is on record: GET /credit says what of it you may spend.'

function shortfall({ invoice, standing }: Extract<Redemption, { outcome: 'insufficient' }>): string {
  const missing = invoice.amountSats - standing.receivedSats - standing.pendingSats
  if (standing.late) return `The payment came after the time of its invoice. ${ON_RECORD}`
  if (missing <= 0n) return `The payment was not redeemed within the time of its invoice. ${ON_RECORD}`
  if (standing.state === 'replaced') {
    const next = standing.open ? 'pay it, and send the txid of that' : 'open a new one'
    return `Another transaction replaced this one, and nothing pays your invoice: ${next}.`
  }
  if (!standing.open) return `The payment is ${missing} sats short, and its invoice is closed. ${ON_RECORD}`
  const until = new Date(invoice.payByMs).toISOString()
  return `The payment is ${missing} sats short: pay them to the same address before ${until}.`
}

function listed(invoice: Invoice, view: View, passes: Passes) {
  const use = invoice.redeemed === undefined ? 'usable' : passes.use(invoice.redeemed.passId)
  const standing = standingOf(invoice, view, use)
  const { redeemByMs, redeemed } = invoice
  return {
    invoiceId: invoice.id,
    clientId: invoice.clientId,
    plan: invoice.plan,
    amountSats: invoice.amountSats,
    receivedSats: standing.receivedSats,
    address: invoice.address,
    state: standing.state,
    confirmations: standing.confirmations,
    confirmationsNeeded: invoice.confirmationsNeeded,
    openedAt: timestampFromMs(invoice.openedAtMs),
    payBy: timestampFromMs(invoice.payByMs),
    confirmBy: timestampFromMs(invoice.confirmByMs),
    listPriceSats: invoice.listPriceSats,
    discounts: [...invoice.cuts],
    creditUsedSats: invoice.creditSats,
    creditedSats: moneyOf(invoice, view, standing).creditedSats,
    ...(redeemByMs === undefined ? {} : { redeemBy: timestampFromMs(redeemByMs) }),
    passId: redeemed?.passId ?? '',
  }
}

function invalid(message: string): AppError {
  return new AppError('invalid_argument', message)
}
