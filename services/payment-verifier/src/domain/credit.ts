import { DUST_SATS } from '@tollward/documents'
import { type Invoice, type Standing, standingOf, sumsOf, type View } from './invoice.ts'
import type { Ledger } from './ledger.ts'

/** What became of an invoice's money. The parts of what was received add up to it. */
export interface Money {
  /** In blocks of the best chain. */
  readonly receivedSats: bigint
  /** Received, and not yet as deep as the invoice asks for. */
  readonly confirmingSats: bigint
  /** Bought a pass, or will. */
  readonly boughtSats: bigint
  /** The client's to spend again. */
  readonly creditedSats: bigint
  /** On record for the operator: it neither bought nor became credit. */
  readonly heldSats: bigint
}

/** A client's account of credit: a function of the ledger, the best chain and the time, as the states of invoices are. */
export interface Credit {
  /** What late, short and excess payments made. */
  readonly grantedSats: bigint
  /** What invoices use that have a pass or may still get one. */
  readonly spentSats: bigint
  /** What operators gave, less what they took. */
  readonly adjustedSats: bigint
  /** Granted and adjusted less spent; negative after a reorganisation that took back what was spent. */
  readonly balanceSats: bigint
}

/** What became of an invoice's money. `standing` is that of the same view. */
export function moneyOf(invoice: Invoice, view: View, { closed }: Standing = standingOf(invoice, view)): Money {
  const { amountSats, creditPolicy, redeemed, closedAs } = invoice
  const { confirmed, settled, settledInTime } = sumsOf(invoice, view)
  const isPaid = redeemed !== undefined || closedAs === 'unredeemed' || settledInTime >= amountSats
  let [late, short, excess] = [0n, 0n, 0n]
  if (isPaid && closedAs !== 'short') {
    excess = settled > amountSats ? settled - amountSats : 0n
    late = closed ? settled - excess : 0n
  } else if (closed) {
    late = settled - settledInTime
    short = settledInTime
  }
  const boughtSats = closed ? 0n : settled - excess
  const creditedSats =
    (creditPolicy.late ? late : 0n) + (creditPolicy.short ? short : 0n) + (creditPolicy.excess ? excess : 0n)
  return {
    receivedSats: confirmed,
    confirmingSats: confirmed - settled,
    boughtSats,
    creditedSats,
    heldSats: settled - boughtSats - creditedSats,
  }
}

/** A client's credit. The view knows the times that heightsOf(each of its invoices) names. */
export function creditOf(clientId: string, ledger: Ledger, view: View): Credit {
  let [grantedSats, spentSats] = [0n, 0n]
  for (const invoice of ledger.invoicesOf(clientId)) {
    const standing = standingOf(invoice, view)
    grantedSats += moneyOf(invoice, view, standing).creditedSats
    if (!standing.closed) spentSats += invoice.creditSats
  }
  const adjustedSats = adjustedOf(clientId, ledger)
  return { grantedSats, spentSats, adjustedSats, balanceSats: grantedSats + adjustedSats - spentSats }
}

/** How much credit an order of this price uses: what is left to pay is nothing, or more than dust. */
export function creditFor(priceSats: bigint, balanceSats: bigint): bigint {
  if (balanceSats <= 0n) return 0n
  if (balanceSats >= priceSats) return priceSats
  const mostSats = priceSats - DUST_SATS
  return balanceSats < mostSats ? balanceSats : mostSats
}

/**
 * The client's invoices whose use of credit is not covered any more, because a reorganisation or an operator took back what it was
 * made of. Passes come first, in the order in which they were got, so that none loses its cover to an order that came later; then
 * the invoices that wait for one.
 */
export function uncoveredUses(clientId: string, ledger: Ledger, view: View): string[] {
  // Nothing else takes credit back; a replica that is a block behind others must not think so.
  if (!ledger.creditTaken.has(clientId)) return []
  const uses = ledger
    .invoicesOf(clientId)
    .filter((invoice) => invoice.creditSats > 0n && !standingOf(invoice, view).closed)
    .toSorted((one, other) => rankOf(one) - rankOf(other))
  const { grantedSats, adjustedSats } = creditOf(clientId, ledger, view)
  let leftSats = grantedSats + adjustedSats
  return uses.flatMap(({ id, creditSats }) => {
    if (creditSats > leftSats) return [id]
    leftSats -= creditSats
    return []
  })
}

/** Invoices whose passes have to be suspended or restored as the chain goes: nothing takes back what the others bought. */
export function contested(ledger: Ledger): Invoice[] {
  const touched = [...ledger.reorganised].flatMap((id) => ledger.invoice(id) ?? [])
  const onCredit = [...ledger.creditTaken].flatMap((clientId) =>
    ledger.invoicesOf(clientId).filter(({ redeemed, creditSats }) => redeemed !== undefined && creditSats > 0n),
  )
  return [...new Set([...touched, ...onCredit])]
}

/** What operators gave and took; what they gave for found money counts as long as that is in a block. */
export function adjustedOf(clientId: string, ledger: Ledger): bigint {
  return ledger
    .adjustmentsOf(clientId)
    .filter(({ outpoint }) => outpoint === undefined || ledger.found(outpoint)?.payment.block !== undefined)
    .reduce((sum, { amountSats }) => sum + amountSats, 0n)
}

function rankOf({ redeemed }: Invoice): number {
  return redeemed?.sequence ?? Number.MAX_SAFE_INTEGER
}
