import { type Invoice, type PassUse, type Standing, standingOf, type View } from './invoice.ts'
import type { Ledger } from './ledger.ts'

/** What comes of presenting a transaction. */
export type Redemption =
  /** A pass of before, or, of an invoice that is paid, a new one. */
  | { readonly outcome: 'pass' | 'redeem'; readonly invoice: Invoice }
  /** It waits for confirmations of the payment, or for credit that it used and that was taken back. */
  | { readonly outcome: 'pending'; readonly confirmationsMissing: number; readonly covered: boolean }
  | { readonly outcome: 'insufficient'; readonly invoice: Invoice; readonly standing: Standing }
  | { readonly outcome: 'exhausted' }
  | { readonly outcome: 'not-seen' | 'nothing-open' }

/** Who presents what. */
export interface Presentation {
  readonly clientId: string
  readonly plan: string
  /** 64 lower-case hexadecimal digits. */
  readonly txid: string
}

/** From what helps the client most to what helps it least: one transaction may pay several of its invoices. */
const PREFERENCE = ['pass', 'redeem', 'pending', 'insufficient', 'exhausted'] as const

/**
 * Decides a presentation from the presenter's own invoices alone: whether the transaction is unknown, unrelated or pays somebody
 * else changes nothing in the answer.
 */
export function decideRedemption(
  presentation: Presentation,
  ledger: Ledger,
  view: View,
  passUse: (passId: string) => PassUse,
): Redemption {
  const { clientId, plan, txid } = presentation
  const standing = (invoice: Invoice) =>
    standingOf(invoice, view, invoice.redeemed === undefined ? 'usable' : passUse(invoice.redeemed.passId))
  const found = ledger
    .invoicesPaidBy(txid)
    .filter((invoice) => invoice.clientId === clientId && invoice.plan === plan)
    .map((invoice) => redemptionOf(invoice, standing(invoice)))
  for (const outcome of PREFERENCE) {
    const best = found.find((redemption) => redemption.outcome === outcome)
    if (best !== undefined) return best
  }
  const isWaiting = ledger.invoicesOf(clientId).some((invoice) => standing(invoice).open)
  return { outcome: isWaiting ? 'not-seen' : 'nothing-open' }
}

function redemptionOf(invoice: Invoice, standing: Standing): Redemption {
  const confirmationsMissing = Math.max(1, invoice.confirmationsNeeded - standing.confirmations)
  switch (standing.state) {
    case 'redeemed':
      return { outcome: 'pass', invoice }
    case 'paid':
    case 'overpaid':
      return { outcome: 'redeem', invoice }
    case 'exhausted':
      return { outcome: 'exhausted' }
    case 'seen':
    case 'confirming':
    case 'reorganised':
      if (standing.late || standing.closed) return { outcome: 'insufficient', invoice, standing }
      return { outcome: 'pending', confirmationsMissing, covered: standing.covered }
    case 'underpaid':
    case 'paid-late':
    case 'expired':
    case 'replaced':
    case 'issued':
      return { outcome: 'insufficient', invoice, standing }
  }
}
