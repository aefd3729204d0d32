import type { Credit, Difference, GetBooksResponse, Payment, Standing } from '@tollward/contracts/payment'
import { timeText } from './rows.ts'

/*
 * Money as rows: amounts as numbers of sats (none exceeds 2^53), times as text. The names of the fields are what `-o json` and the
 * CSV promise.
 */

export function paymentRow(payment: Payment) {
  const { txid, vout, addressIndex, address, invoiceId, clientId, plan, state, blockHeight, blockHash } = payment
  return {
    ...{ txid, vout, amountSats: Number(payment.amountSats), state, seenAt: timeText(payment.seenAt) },
    ...{ blockHeight: blockHeight === 0 ? undefined : blockHeight, blockHash, addressIndex, address },
    ...{ invoiceId, clientId, plan, boughtSats: Number(payment.boughtSats) },
    ...{ creditedSats: Number(payment.creditedSats), heldSats: Number(payment.heldSats) },
  }
}

export type PaymentRow = ReturnType<typeof paymentRow>

export function creditRow({ clientId, balanceSats, grantedSats, spentSats, adjustedSats }: Credit) {
  return {
    ...{ clientId, balanceSats: Number(balanceSats), grantedSats: Number(grantedSats) },
    ...{ spentSats: Number(spentSats), adjustedSats: Number(adjustedSats) },
  }
}

export function differenceRow({ kind, txid, vout, chainSats, ledgerSats, blockHeight, addressIndex }: Difference) {
  return { kind, txid, vout, chainSats: Number(chainSats), ledgerSats: Number(ledgerSats), blockHeight, addressIndex }
}

export function booksRow(books: GetBooksResponse) {
  const { tipHeight, tipHash, nextAddressIndex, descriptor, firstBlockHeight, difficulties } = books
  return {
    ...{ ledgerSequence: Number(books.ledgerSequence), tipHeight, tipHash, receivedSats: Number(books.receivedSats) },
    ...{ boughtSats: Number(books.boughtSats), creditedSats: Number(books.creditedSats) },
    ...{ heldSats: Number(books.heldSats), confirmingSats: Number(books.confirmingSats) },
    ...{ unclaimedSats: Number(books.unclaimedSats), creditSpentSats: Number(books.creditSpentSats) },
    ...{ creditLeftSats: Number(books.creditLeftSats), creditAdjustedSats: Number(books.creditAdjustedSats) },
    ...{ nextAddressIndex, descriptor, firstBlockHeight, difficulties },
  }
}

export type BooksRow = ReturnType<typeof booksRow>

/** What the money received is made of; its parts are the whole, or the books are wrong. */
export function partsOf(books: BooksRow) {
  const { boughtSats, creditedSats, heldSats, confirmingSats, unclaimedSats } = books
  return { boughtSats, creditedSats, heldSats, confirmingSats, unclaimedSats }
}

export function standingRow({ conduct, score, reasons }: Standing) {
  const { override } = conduct ?? {}
  const word = override && { score: override.score, until: timeText(override.until), reason: override.reason }
  return {
    ...{ clientId: conduct?.clientId, score, firstSeenAt: timeText(conduct?.firstSeenAt) },
    ...{ paidSats: Number(conduct?.paidSats ?? 0n), admitted: rounded(conduct?.admitted) },
    ...{ violations: rounded(conduct?.violations), foreignTxids: rounded(conduct?.foreignTxids) },
    ...{ alerts: rounded(conduct?.alerts), failedLogins: rounded(conduct?.failedLogins), reasons },
    ...{ override: word && { ...word, operator: override.operator } },
  }
}

/** Counts decay, so they have fractions that nobody reads. */
function rounded(count = 0): number {
  return Math.round(count * 10) / 10
}
