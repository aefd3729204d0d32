import { adjustedOf, creditOf, moneyOf } from './credit.ts'
import type { View } from './invoice.ts'
import type { Ledger } from './ledger.ts'

/** The whole account. received = bought + credited + held + confirming + unclaimed. */
export interface Books {
  /** In blocks of the best chain. */
  readonly receivedSats: bigint
  /** Bought passes, or will. */
  readonly boughtSats: bigint
  /** Became credit of clients, found money that an operator gave to one included. */
  readonly creditedSats: bigint
  /** On record for the operator. */
  readonly heldSats: bigint
  /** Not yet as deep as its invoice asks for. */
  readonly confirmingSats: bigint
  /** Found, and given to nobody. */
  readonly unclaimedSats: bigint
  readonly creditSpentSats: bigint
  /** What clients have left; those who have less than nothing count as nothing. */
  readonly creditLeftSats: bigint
  /** What clients lack, because it was taken back after they had spent it. */
  readonly creditLackingSats: bigint
  /** What operators gave, less what they took, beyond found money. */
  readonly creditAdjustedSats: bigint
}

/** The books of the whole ledger. The view knows the times that heightsOf(each invoice) names. */
export function booksOf(ledger: Ledger, view: View): Books {
  const books = {
    receivedSats: 0n,
    boughtSats: 0n,
    creditedSats: 0n,
    heldSats: 0n,
    confirmingSats: 0n,
    unclaimedSats: 0n,
    creditSpentSats: 0n,
    creditLeftSats: 0n,
    creditLackingSats: 0n,
    creditAdjustedSats: 0n,
  }
  for (const invoice of ledger.invoices()) {
    const money = moneyOf(invoice, view)
    books.receivedSats += money.receivedSats
    books.boughtSats += money.boughtSats
    books.creditedSats += money.creditedSats
    books.heldSats += money.heldSats
    books.confirmingSats += money.confirmingSats
  }
  for (const { payment, clientId } of ledger.foundMoney()) {
    if (payment.block === undefined) continue
    books.receivedSats += payment.amountSats
    books.creditAdjustedSats -= clientId === undefined ? 0n : payment.amountSats
    if (clientId === undefined) books.unclaimedSats += payment.amountSats
    else books.creditedSats += payment.amountSats
  }
  for (const clientId of ledger.clients()) {
    const { balanceSats, spentSats } = creditOf(clientId, ledger, view)
    books.creditSpentSats += spentSats
    books.creditAdjustedSats += adjustedOf(clientId, ledger)
    if (balanceSats > 0n) books.creditLeftSats += balanceSats
    else books.creditLackingSats -= balanceSats
  }
  return books
}
