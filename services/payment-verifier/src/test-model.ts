import { RedeemOutcome } from '@tollward/contracts/payment'
import { DUST_SATS } from '@tollward/documents'

export const QUOTA_REQUESTS = 1000

/** A transaction that pays invoices, and the one that spends the same coin. */
export interface TransactionModel {
  readonly txid: string
  readonly conflict: string
  readonly outputs: readonly { readonly invoice: InvoiceModel; readonly amountSats: bigint }[]
  /** The height of its block, or how it stands without one. */
  where: number | 'mempool' | 'gone'
  /** It was in a block that is not in the best chain any more. */
  takenBack: boolean
}

export interface InvoiceModel {
  readonly id: string
  readonly client: string
  readonly plan: string
  readonly confirmationsNeeded: number
  readonly amountSats: bigint
  readonly creditSats: bigint
  readonly address: string
  /** Pay-by was over before anything was paid. */
  readonly isLate: boolean
  /** Serial number of the redemption. */
  redeemed?: number
  passId?: string
  served: number
}

/** What should be true of invoices, credit and passes: a few sums over who paid what and what the best chain holds. */
export class Model {
  readonly invoices: InvoiceModel[] = []
  readonly transactions: TransactionModel[] = []
  tipHeight: number
  #redemptions = 0

  constructor(tipHeight: number) {
    this.tipHeight = tipHeight
  }

  sums(invoice: InvoiceModel) {
    const sums = { all: 0n, confirmed: 0n, settled: 0n }
    for (const { where, outputs } of this.transactions) {
      if (where === 'gone') continue
      for (const { amountSats } of outputs.filter((output) => output.invoice === invoice)) {
        sums.all += amountSats
        if (where === 'mempool') continue
        sums.confirmed += amountSats
        if (this.tipHeight - where + 1 >= invoice.confirmationsNeeded) sums.settled += amountSats
      }
    }
    return sums
  }

  state(invoice: InvoiceModel): string {
    const { all, confirmed, settled } = this.sums(invoice)
    const { amountSats, isLate, redeemed } = invoice
    const isCovered = !this.#uncovered(invoice.client).has(invoice)
    if (redeemed !== undefined) {
      if (!isCovered || settled < amountSats) return 'reorganised'
      return invoice.served === QUOTA_REQUESTS ? 'exhausted' : 'redeemed'
    }
    if (!isLate && !isCovered) return 'reorganised'
    if (settled >= amountSats) return isLate ? 'paid-late' : all > amountSats ? 'overpaid' : 'paid'
    const paying = this.transactions.filter(({ outputs }) => outputs.some((output) => output.invoice === invoice))
    const isTakenBack = paying.some(({ where, takenBack }) => where === 'mempool' && takenBack)
    if (isTakenBack && confirmed < amountSats) return 'reorganised'
    if (all === 0n) return paying.length > 0 ? 'replaced' : isLate ? 'expired' : 'issued'
    if (all < amountSats) return 'underpaid'
    return confirmed >= amountSats ? 'confirming' : 'seen'
  }

  balanceSats(client: string): bigint {
    return this.#uses(client).reduce((left, { creditSats }) => left - creditSats, this.#grantedSats(client))
  }

  /** What an order of this price uses of the client's credit. */
  creditFor(client: string, priceSats: bigint): bigint {
    const balance = this.balanceSats(client)
    if (balance <= 0n) return 0n
    if (balance >= priceSats) return priceSats
    const most = priceSats - DUST_SATS
    if (balance > most) return most
    return balance
  }

  /** What presenting a transaction comes to; `fresh` are the invoices of which one is redeemed by it. */
  presented(client: string, plan: string, txid: string): { outcome: RedeemOutcome; fresh: InvoiceModel[] } {
    const paid = this.transactions
      .filter((transaction) => transaction.txid === txid)
      .flatMap(({ outputs }) => outputs.map(({ invoice }) => invoice))
      .filter((invoice) => invoice.client === client && invoice.plan === plan)
    const having = (...states: string[]) => paid.filter((invoice) => states.includes(this.state(invoice)))
    if (having('redeemed').length > 0) return { outcome: RedeemOutcome.REDEEMED, fresh: [] }
    const fresh = having('paid', 'overpaid')
    if (fresh.length > 0) return { outcome: RedeemOutcome.REDEEMED, fresh }
    const pending = having('seen', 'confirming', 'reorganised').filter(
      ({ isLate, redeemed }) => !isLate || redeemed !== undefined,
    )
    if (pending.length > 0) return { outcome: RedeemOutcome.PENDING, fresh }
    if (paid.length > having('exhausted').length) return { outcome: RedeemOutcome.INSUFFICIENT, fresh }
    if (paid.length > 0) return { outcome: RedeemOutcome.EXHAUSTED, fresh }
    const isOpen = this.invoices.some(
      (invoice) => invoice.client === client && this.#waits(invoice) && this.sums(invoice).settled < invoice.amountSats,
    )
    return { outcome: isOpen ? RedeemOutcome.NOT_SEEN : RedeemOutcome.NOTHING_OPEN, fresh }
  }

  redeem(invoice: InvoiceModel, passId: string): void {
    this.#redemptions += 1
    invoice.redeemed = this.#redemptions
    invoice.passId = passId
  }

  #waits({ redeemed, isLate }: InvoiceModel): boolean {
    return redeemed === undefined && !isLate
  }

  #grantedSats(client: string): bigint {
    return this.invoices
      .filter((invoice) => invoice.client === client)
      .reduce((sum, invoice) => {
        const { settled } = this.sums(invoice)
        if (invoice.isLate && invoice.redeemed === undefined) return sum + settled
        return settled > invoice.amountSats ? sum + settled - invoice.amountSats : sum
      }, 0n)
  }

  /** Passes in the order in which they were got, then what waits for one. */
  #uses(client: string): InvoiceModel[] {
    const of = this.invoices.filter((invoice) => invoice.client === client && invoice.creditSats > 0n)
    const passes = of.filter(({ redeemed }) => redeemed !== undefined)
    passes.sort((one, other) => (one.redeemed ?? 0) - (other.redeemed ?? 0))
    return [...passes, ...of.filter((invoice) => this.#waits(invoice))]
  }

  #uncovered(client: string): Set<InvoiceModel> {
    let left = this.#grantedSats(client)
    const uncovered = new Set<InvoiceModel>()
    for (const invoice of this.#uses(client)) {
      if (invoice.creditSats > left) uncovered.add(invoice)
      else left -= invoice.creditSats
    }
    return uncovered
  }
}
