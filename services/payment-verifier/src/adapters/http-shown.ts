import { formatPaymentUri } from '@tollward/bitcoin'
import { durationMs, type Plan } from '@tollward/documents'
import { type Invoice, standingOf } from '../domain/invoice.ts'
import type { Chain } from './chain.ts'
import type { Passes } from './passes.ts'

/** A plan as clients see it. */
export function shownPlan({ metadata, spec }: Plan) {
  return {
    name: metadata.name,
    ...(metadata.description === undefined ? {} : { description: metadata.description }),
    priceSats: String(spec.priceSats),
    ...(spec.requests === undefined ? {} : { requests: spec.requests }),
    ...(spec.duration === undefined ? {} : { durationSeconds: seconds(spec.duration) }),
    confirmations: spec.confirmations,
    payWithinSeconds: seconds(spec.payWithin),
    confirmWithinSeconds: seconds(spec.confirmWithin),
  }
}

function seconds(duration: string): number {
  return Math.ceil(durationMs(duration) / 1000)
}

/** What an invoice is shown from. */
export interface ShowOptions {
  readonly chain: Chain
  readonly passes: Passes
  /** Where clients reach this service. */
  readonly publicUrl: string
}

/** An invoice as its owner sees it now. */
export async function shownInvoice(invoice: Invoice, { chain, passes, publicUrl }: ShowOptions) {
  const { amountSats, address, plan, quotaRequests, redeemed } = invoice
  const view = await chain.view([invoice])
  const standing = standingOf(invoice, view, redeemed === undefined ? 'usable' : passes.use(redeemed.passId))
  const excessSats = standing.receivedSats - amountSats
  return {
    id: invoice.id,
    url: `${publicUrl}/invoices/${invoice.id}`,
    plan,
    state: standing.state,
    address,
    amountSats: String(amountSats),
    uri: formatPaymentUri({ address, amountSats, label: plan }),
    receivedSats: String(standing.receivedSats),
    pendingSats: String(standing.pendingSats),
    excessSats: String(excessSats > 0n ? excessSats : 0n),
    confirmations: Math.min(standing.confirmations, invoice.confirmationsNeeded),
    confirmationsNeeded: invoice.confirmationsNeeded,
    openedAt: new Date(invoice.openedAtMs).toISOString(),
    payBy: new Date(invoice.payByMs).toISOString(),
    confirmBy: new Date(invoice.confirmByMs).toISOString(),
    ...(quotaRequests === 0n ? {} : { requests: Number(quotaRequests) }),
    ...(invoice.durationMs === 0 ? {} : { durationSeconds: invoice.durationMs / 1000 }),
    ...(redeemed === undefined ? {} : { passId: redeemed.passId }),
    payments: [...invoice.payments.values()].map(({ txid, vout, amountSats: paidSats, block }) => ({
      txid,
      vout,
      amountSats: String(paidSats),
      ...(block === undefined ? {} : { blockHeight: block.height }),
    })),
  }
}
