import { create } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { type AccountAddress, hashBytes } from '@tollward/bitcoin'
import { CreditPolicySchema, DiscountSchema, InvoiceOpenedSchema } from '@tollward/contracts/ledger'
import { durationMs, type Plan } from '@tollward/documents'
import { AppError } from '@tollward/errors'
import type { Fact } from './facts.ts'
import type { Invoice, Place } from './invoice.ts'
import type { Ledger } from './ledger.ts'
import { passIdOf } from './pass.ts'
import { confirmationsFor, type Price } from './price.ts'

/** What a client asks for. */
export interface Order {
  readonly invoiceId: string
  readonly clientId: string
  readonly plan: Plan
  /** Empty: every order is a new one. */
  readonly idempotencyKey: string
  /** Random: whoever has it may look at the invoice. */
  readonly pageKey: Uint8Array
}

/** What an order comes to. */
export interface Terms {
  readonly price: Price
  /** Of the client's credit, what the invoice uses; see creditFor. */
  readonly creditSats: bigint
}

/** How many invoices one client may have and open: each one takes an address for ever. */
export interface OrderLimits {
  readonly openInvoicesMax: number
  readonly invoicesPerMinute: number
}

const MINUTE_MS = 60_000

/** The invoice that the same order opened before. AppError `conflict` if its key was used for another plan. */
export function invoiceOfOrder(
  { invoiceId, clientId, plan, idempotencyKey }: Omit<Order, 'pageKey'>,
  ledger: Ledger,
): Invoice | undefined {
  const opened = ledger.invoice(invoiceId)
  if (opened !== undefined || idempotencyKey === '') return opened
  const same = ledger.invoicesOf(clientId).find((invoice) => invoice.idempotencyKey === idempotencyKey)
  if (same !== undefined && same.plan !== plan.metadata.name) {
    throw new AppError('conflict', 'This idempotencyKey belongs to an order of another plan: use a new one.')
  }
  return same
}

/** A refusal for now. */
export interface Waiting {
  readonly reason: 'open-invoices' | 'invoice-rate'
  readonly retryAfterSeconds: number
}

/** Why the client has to wait before it may open another invoice; counted over all replicas, because the ledger is. */
export function mustWait(clientId: string, ledger: Ledger, limits: OrderLimits, nowMs: number): Waiting | undefined {
  const invoices = ledger.invoicesOf(clientId)
  const lastMinute = invoices.filter(({ openedAtMs }) => openedAtMs > nowMs - MINUTE_MS)
  const oldest = lastMinute.at(-limits.invoicesPerMinute)
  if (oldest !== undefined) {
    return { reason: 'invoice-rate', retryAfterSeconds: secondsUntil(oldest.openedAtMs + MINUTE_MS, nowMs) }
  }
  const open = invoices.filter((invoice) => isUnpaid(invoice) && closesAtMs(invoice) >= nowMs)
  if (open.length < limits.openInvoicesMax) return undefined
  return { reason: 'open-invoices', retryAfterSeconds: secondsUntil(Math.min(...open.map(closesAtMs)), nowMs) }
}

/**
 * The ledger's line for a new invoice at this address, given while this was the best block. One that credit covers is redeemed by
 * the same line.
 */
export function openedFact(order: Order, terms: Terms, at: AccountAddress, tip: Place, nowMs: number): Fact {
  const { metadata, spec } = order.plan
  const { price, creditSats } = terms
  const amountSats = price.sats - creditSats
  const value = create(InvoiceOpenedSchema, {
    invoiceId: order.invoiceId,
    clientId: order.clientId,
    plan: metadata.name,
    listPriceSats: price.listSats,
    discounts: price.cuts.map((cut) => create(DiscountSchema, cut)),
    creditSats,
    amountSats,
    confirmations: confirmationsFor(order.plan, amountSats),
    quotaRequests: BigInt(spec.requests ?? 0),
    durationSeconds: BigInt(spec.duration === undefined ? 0 : Math.ceil(durationMs(spec.duration) / 1000)),
    addressIndex: at.index,
    address: at.address,
    script: at.script,
    openedAt: timestampFromMs(nowMs),
    payBy: timestampFromMs(nowMs + durationMs(spec.payWithin)),
    confirmBy: timestampFromMs(nowMs + durationMs(spec.confirmWithin)),
    confirmByHeight: spec.confirmWithinBlocks === undefined ? 0 : tip.height + spec.confirmWithinBlocks,
    redeemBy: timestampFromMs(nowMs + durationMs(spec.redeemWithin)),
    tipHeight: tip.height,
    tipHash: hashBytes(tip.hash),
    idempotencyKey: order.idempotencyKey,
    pageKey: order.pageKey,
    creditPolicy: create(CreditPolicySchema, spec.credit),
    passId: amountSats === 0n ? passIdOf(order.invoiceId) : '',
  })
  return { case: 'invoiceOpened', value }
}

function isUnpaid(invoice: Invoice): boolean {
  if (invoice.redeemed !== undefined) return false
  const confirmed = [...invoice.payments.values()].filter(({ block }) => block !== undefined)
  return confirmed.reduce((sum, { amountSats }) => sum + amountSats, 0n) < invoice.amountSats
}

function closesAtMs({ payments, payByMs, confirmByMs }: Invoice): number {
  return [...payments.values()].some(({ replacedBy }) => replacedBy === undefined) ? confirmByMs : payByMs
}

function secondsUntil(timeMs: number, nowMs: number): number {
  return Math.max(1, Math.ceil((timeMs - nowMs) / 1000))
}
