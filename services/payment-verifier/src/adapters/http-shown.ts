import { formatPaymentUri } from '@tollward/bitcoin'
import { DUST_SATS, durationMs, type Plan } from '@tollward/documents'
import { creditOf, moneyOf } from '../domain/credit.ts'
import { type Invoice, type InvoiceState, type Payment, type Standing, standingOf } from '../domain/invoice.ts'
import { type Price, type PriceCut, priceOf } from '../domain/price.ts'
import type { Chain } from './chain.ts'
import type { Conducts } from './conducts.ts'
import type { LedgerBook } from './ledger.ts'
import type { Passes, PassUsage } from './passes.ts'
import type { Plans } from './plans.ts'

/** What is sold, at the price for a client; undefined: for nobody in particular. */
export function showPlans(clientId: string | undefined, { plans, conducts, chain }: ShowOptions) {
  const tipHeight = chain.follower.tip?.height ?? 0
  const customer = clientId === undefined ? undefined : conducts.customer(clientId, tipHeight, Date.now())
  return plans.all().map((plan) => shownPlan(plan, customer && priceOf(plan, customer)))
}

function shownPlan({ metadata, spec }: Plan, price: Price | undefined) {
  return {
    name: metadata.name,
    ...(metadata.description === undefined ? {} : { description: metadata.description }),
    priceSats: String(price?.sats ?? spec.priceSats),
    ...(price === undefined ? {} : { listPriceSats: String(price.listSats), discounts: price.cuts.map(shownDiscount) }),
    ...(spec.requests === undefined ? {} : { requests: spec.requests }),
    ...(spec.duration === undefined ? {} : { durationSeconds: seconds(spec.duration) }),
    confirmations: spec.confirmations,
    ...(spec.moreConfirmations.length === 0 ? {} : { moreConfirmations: spec.moreConfirmations }),
    payWithinSeconds: seconds(spec.payWithin),
    confirmWithinSeconds: seconds(spec.confirmWithin),
    ...(spec.confirmWithinBlocks === undefined ? {} : { confirmWithinBlocks: spec.confirmWithinBlocks }),
    redeemWithinSeconds: seconds(spec.redeemWithin),
  }
}

/** A client's credit. AppError `unavailable` if the node has to be asked and does not answer. */
export async function showCredit(clientId: string, { book, chain }: ShowOptions) {
  const view = await chain.view(book.ledger.invoicesOf(clientId))
  const { balanceSats, grantedSats, spentSats, adjustedSats } = creditOf(clientId, book.ledger, view)
  return {
    balanceSats: String(balanceSats),
    grantedSats: String(grantedSats),
    spentSats: String(spentSats),
    adjustedSats: String(adjustedSats),
  }
}

function seconds(duration: string): number {
  return Math.ceil(durationMs(duration) / 1000)
}

/** What clients are shown is made from this. */
export interface ShowOptions {
  readonly book: LedgerBook
  readonly plans: Plans
  readonly conducts: Conducts
  readonly chain: Chain
  readonly passes: Passes
  /** Where clients reach this service. */
  readonly publicUrl: string
}

/** An invoice as its owner sees it now. Amounts are in sats, times are ISO 8601. */
export interface ShownInvoice {
  readonly id: string
  readonly url: string
  /** The page for people; absent for invoices from before there were pages. */
  readonly pageUrl?: string
  readonly plan: string
  readonly state: InvoiceState
  readonly listPriceSats: string
  readonly discounts: readonly ShownDiscount[]
  readonly creditUsedSats: string
  /** The list price less discounts and credit. */
  readonly amountSats: string
  readonly address: string
  /** What is still to be paid, or was. */
  readonly uri: string
  /** 0: nothing any more, because enough is on its way or it is too late. */
  readonly toPaySats: string
  readonly receivedSats: string
  readonly pendingSats: string
  readonly excessSats: string
  /** What of the money is the client's to spend again. */
  readonly creditedSats: string
  readonly confirmations: number
  readonly confirmationsNeeded: number
  readonly openedAt: string
  readonly payBy: string
  readonly confirmBy: string
  readonly confirmByHeight?: number
  readonly redeemBy?: string
  readonly requests?: number
  readonly durationSeconds?: number
  readonly passId?: string
  readonly pass?: PassUsage
  readonly payments: readonly ShownPayment[]
}

interface ShownDiscount {
  readonly kind: 'bitcoin' | 'conduct'
  readonly basisPoints: number
  readonly amountSats: string
  /** With conduct: the score that decided. */
  readonly score?: number
}

interface ShownPayment {
  readonly txid: string
  readonly vout: number
  readonly amountSats: string
  readonly blockHeight?: number
  /** Another transaction spends its coins, or no node has it any more. */
  readonly replaced?: true
}

/** What an invoice looks like now. AppError `unavailable` if the node has to be asked and does not answer. */
export async function showInvoice(invoice: Invoice, { chain, passes, publicUrl }: ShowOptions): Promise<ShownInvoice> {
  const { amountSats, address, plan, quotaRequests, redeemed, pageKey, confirmByHeight, redeemByMs } = invoice
  const view = await chain.view([invoice])
  const standing = standingOf(invoice, view, redeemed === undefined ? 'usable' : passes.use(redeemed.passId))
  const usage = redeemed && passes.usage(redeemed.passId)
  const excessSats = standing.receivedSats - amountSats
  const toPaySats = stillToPay(invoice, standing, view.nowMs)
  return {
    id: invoice.id,
    url: `${publicUrl}/invoices/${invoice.id}`,
    ...(pageKey === '' ? {} : { pageUrl: `${publicUrl}/pay/${pageKey}` }),
    plan,
    state: standing.state,
    listPriceSats: String(invoice.listPriceSats),
    discounts: invoice.cuts.map(shownDiscount),
    creditUsedSats: String(invoice.creditSats),
    amountSats: String(amountSats),
    address,
    uri: formatPaymentUri({ address, amountSats: toPaySats === 0n ? amountSats : toPaySats, label: plan }),
    toPaySats: String(toPaySats),
    receivedSats: String(standing.receivedSats),
    pendingSats: String(standing.pendingSats),
    excessSats: String(excessSats > 0n ? excessSats : 0n),
    creditedSats: String(moneyOf(invoice, view, standing).creditedSats),
    confirmations: Math.min(standing.confirmations, invoice.confirmationsNeeded),
    confirmationsNeeded: invoice.confirmationsNeeded,
    openedAt: new Date(invoice.openedAtMs).toISOString(),
    payBy: new Date(invoice.payByMs).toISOString(),
    confirmBy: new Date(invoice.confirmByMs).toISOString(),
    ...(confirmByHeight === 0 ? {} : { confirmByHeight }),
    ...(redeemByMs === undefined ? {} : { redeemBy: new Date(redeemByMs).toISOString() }),
    ...(quotaRequests === 0n ? {} : { requests: Number(quotaRequests) }),
    ...(invoice.durationMs === 0 ? {} : { durationSeconds: invoice.durationMs / 1000 }),
    ...(redeemed === undefined ? {} : { passId: redeemed.passId }),
    ...(usage === undefined ? {} : { pass: usage }),
    payments: [...invoice.payments.values()].map(shownPayment),
  }
}

function stillToPay({ amountSats, payByMs }: Invoice, standing: Standing, nowMs: number): bigint {
  const missingSats = amountSats - standing.receivedSats - standing.pendingSats
  if (!standing.open || nowMs > payByMs || missingSats <= 0n) return 0n
  // Nodes would not relay less.
  if (missingSats < DUST_SATS) return DUST_SATS
  return missingSats
}

/** A part of what is taken off a price. */
function shownDiscount({ kind, basisPoints, amountSats, score }: PriceCut): ShownDiscount {
  return { kind, basisPoints, amountSats: String(amountSats), ...(kind === 'conduct' ? { score } : {}) }
}

function shownPayment({ txid, vout, amountSats, block, replacedBy }: Payment): ShownPayment {
  return {
    txid,
    vout,
    amountSats: String(amountSats),
    ...(block === undefined ? {} : { blockHeight: block.height }),
    ...(replacedBy === undefined ? {} : { replaced: true }),
  }
}
