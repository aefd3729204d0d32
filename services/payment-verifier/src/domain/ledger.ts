import { timestampMs } from '@bufbuild/protobuf/wkt'
import { ScriptMap, showHash } from '@tollward/bitcoin'
import type {
  CreditAdjusted,
  EntryAppended,
  InvoiceOpened,
  MoneyFound,
  Outpoint,
  PaymentConfirmed,
  PaymentSeen,
} from '@tollward/contracts/ledger'
import type { Invoice, Payment, Place } from './invoice.ts'
import type { PriceCut } from './price.ts'

/**
 * Reorganisations that go deeper than this are not looked for after an absence. At this depth the consensus rules let coinbase
 * outputs be spent: nobody expects such blocks to leave the chain.
 */
const FINALITY_BLOCKS = 100

/** What an entry is about, if it changed anything. */
export interface Applied {
  readonly invoiceId?: string
  readonly opened?: { readonly tipHeight: number }
  /** It was the last entry of a back-up. */
  readonly restored?: true
}

/** Money at an address of the account that no invoice has. */
export interface FoundMoney {
  readonly addressIndex: number
  readonly payment: Payment
  /** Whose credit an operator made it; undefined: nobody's. */
  readonly clientId?: string
}

/** Credit that an operator gave or took. */
export interface Adjustment {
  readonly id: string
  readonly clientId: string
  readonly amountSats: bigint
  readonly reason: string
  readonly operator: string
  readonly atMs: number
  /** Key of the found money that it is for. */
  readonly outpoint?: string
}

/** A back-up that is being written to the ledger, or was. */
export interface Restore {
  /** Sequence here of the entry before its first. */
  readonly after: number
  /** Sequence here of its last entry. */
  readonly last: number
}

/** Money in a block; the invoice is undefined for found money. */
export interface PaymentInBlock {
  readonly invoice: Invoice | undefined
  readonly payment: Payment
}

const NO_PAYMENTS: ReadonlyMap<string, Payment> = new Map()
const NO_CUTS: readonly PriceCut[] = []

/** Everything that the ledger says, computed entry by entry. An entry that says what is known already changes nothing. */
export class Ledger {
  /** Of the last entry applied. */
  #sequence = 0
  readonly #invoices = new Map<string, Invoice>()
  readonly #byScript = new ScriptMap<string>()
  readonly #byPageKey = new Map<string, string>()
  readonly #byClient = new Map<string, string[]>()
  /** Of a client that uses credit: how many of its oldest invoices are redeemed or closed for good. */
  readonly #firstOpen = new Map<string, number>()
  readonly #byTxid = new Map<string, Set<string>>()
  readonly #byBlock = new Map<string, { readonly place: Place; readonly outpoints: Set<string> }>()
  /** Invoice id by outpoint, in the order in which the payments were first written of. */
  readonly #byOutpoint = new Map<string, string>()
  readonly #found = new Map<string, FoundMoney>()
  readonly #adjustments = new Map<string, Adjustment>()
  readonly #adjustmentsOf = new Map<string, Adjustment[]>()
  readonly #drawn = new Map<string, bigint>()
  readonly #reorganised = new Set<string>()
  /** Outpoints of money that waits for a block. */
  readonly #unconfirmed = new Set<string>()
  readonly #creditTaken = new Set<string>()
  #nextAddressIndex = 0
  #openedAt: Place | undefined
  #firstOpenedHeight: number | undefined
  #unknownEntries = 0
  #restore: Restore | undefined

  get sequence(): number {
    return this.#sequence
  }

  /** Entries that this version cannot read, or that speak of an invoice that is not there. */
  get unknownEntries(): number {
    return this.#unknownEntries
  }

  /** One more than the highest that was ever given out, found with money, or passed over. */
  get nextAddressIndex(): number {
    return this.#nextAddressIndex
  }

  get invoiceCount(): number {
    return this.#invoices.size
  }

  /** Height of the best block when the first invoice was opened; undefined before there is one. */
  get firstOpenedHeight(): number | undefined {
    return this.#firstOpenedHeight
  }

  /** The back-up that was written here last. */
  get restore(): Restore | undefined {
    return this.#restore
  }

  /** Whether only entries of a back-up may be written: not all of them are here yet. */
  get isRestoring(): boolean {
    return this.#restore !== undefined && this.#sequence < this.#restore.last
  }

  /** Redeemed invoices whose payments a reorganisation has touched. */
  get reorganised(): ReadonlySet<string> {
    return this.#reorganised
  }

  /** Clients of whose money a reorganisation moved or removed some, or from whom an operator took credit. */
  get creditTaken(): ReadonlySet<string> {
    return this.#creditTaken
  }

  invoice(id: string): Invoice | undefined {
    return this.#invoices.get(id)
  }

  /** The invoice whose output script, in hexadecimal, this is. */
  invoiceOfScript(script: string): Invoice | undefined {
    return this.#of(this.#byScript.get(script))
  }

  /** The invoice whose page for people has this key, in base64url. */
  invoiceOfPageKey(pageKey: string): Invoice | undefined {
    return this.#of(this.#byPageKey.get(pageKey))
  }

  /** A client's invoices, oldest first. */
  invoicesOf(clientId: string): Invoice[] {
    return this.#all(this.#byClient.get(clientId) ?? [])
  }

  /** Every invoice, oldest first. */
  invoices(): Iterable<Invoice> {
    return this.#invoices.values()
  }

  /** Every client that has an invoice or whose credit an operator changed. */
  clients(): ReadonlySet<string> {
    return new Set([...this.#byClient.keys(), ...this.#adjustmentsOf.keys()])
  }

  /** Invoices that a transaction pays, whoever they belong to. */
  invoicesPaidBy(txid: string): Invoice[] {
    return this.#all(this.#byTxid.get(txid) ?? [])
  }

  /** Every payment to an invoice, those seen first coming first. */
  *payments(): Iterable<{ readonly invoice: Invoice; readonly payment: Payment }> {
    for (const [outpoint, id] of this.#byOutpoint) {
      const invoice = this.#invoices.get(id)
      const payment = invoice?.payments.get(outpoint)
      if (invoice !== undefined && payment !== undefined) yield { invoice, payment }
    }
  }

  /** What a transaction pays, to invoices and to addresses that no invoice has; for those the invoice id is empty. */
  *paymentsOf(txid: string): Iterable<{ readonly invoiceId: string; readonly payment: Payment }> {
    for (const { id, payments } of this.invoicesPaidBy(txid))
      for (const payment of payments.values()) if (payment.txid === txid) yield { invoiceId: id, payment }
    for (const { payment } of this.#found.values()) if (payment.txid === txid) yield { invoiceId: '', payment }
  }

  /** Money at addresses of the account that no invoice has, those found first coming first. */
  foundMoney(): Iterable<FoundMoney> {
    return this.#found.values()
  }

  /** Found money by its outpoint's key. */
  found(outpoint: string): FoundMoney | undefined {
    return this.#found.get(outpoint)
  }

  adjustment(id: string): Adjustment | undefined {
    return this.#adjustments.get(id)
  }

  /** What operators did to a client's credit, oldest first. */
  adjustmentsOf(clientId: string): readonly Adjustment[] {
    return this.#adjustmentsOf.get(clientId) ?? []
  }

  /** How much of a pass's quota was handed out at the most. */
  drawnOf(passId: string): bigint {
    return this.#drawn.get(passId) ?? 0n
  }

  /** Blocks that hold money, whether it pays an invoice or was found. */
  *paidBlocks(): Iterable<Place> {
    for (const { place } of this.#byBlock.values()) yield place
  }

  /** Transactions that wait for a block, as far as is known. */
  unconfirmedTxids(): ReadonlySet<string> {
    return new Set([...this.#unconfirmed].map((outpoint) => outpoint.slice(0, outpoint.indexOf(':'))))
  }

  /** Output scripts of all invoices, in hexadecimal. */
  scripts(): Iterable<string> {
    return this.#byScript.keys()
  }

  /** The money in a block, whether it pays an invoice or was found. */
  paymentsIn(blockHash: string): PaymentInBlock[] {
    return [...(this.#byBlock.get(blockHash)?.outpoints ?? [])].flatMap((outpoint) => {
      const invoice = this.#of(this.#byOutpoint.get(outpoint))
      const payment = invoice?.payments.get(outpoint) ?? this.#found.get(outpoint)?.payment
      return payment === undefined ? [] : [{ invoice, payment }]
    })
  }

  /**
   * Blocks that the ledger relies upon. Every block up to the highest of them was looked through by whoever wrote the entry;
   * only that one itself perhaps in part.
   */
  knownBlocks(): Place[] {
    const paid = [...this.#byBlock.values()].map(({ place }) => place)
    const highest = paid.reduce((most, { height }) => Math.max(most, height), this.#openedAt?.height ?? 0)
    const known = new Map(
      paid.filter(({ height }) => height > highest - FINALITY_BLOCKS).map((place) => [place.hash, place]),
    )
    if (this.#openedAt !== undefined) known.set(this.#openedAt.hash, this.#openedAt)
    return [...known.values()]
  }

  /** Takes the next entry of the stream in. */
  apply(appended: EntryAppended, sequence: number): Applied {
    const wasRestoring = this.isRestoring
    const applied = this.#apply(appended, sequence)
    if (!wasRestoring) return applied
    // Nobody looks for payments of the past before the whole past is there.
    return this.isRestoring ? {} : { restored: true }
  }

  /** Passes over an entry whose bytes nobody can read: the next one is still the next one. */
  skip(sequence: number): Applied {
    this.#sequence = sequence
    return this.#unknown()
  }

  #apply({ entry, appendedAt }: EntryAppended, sequence: number): Applied {
    const wasRestoring = this.isRestoring
    this.#sequence = sequence
    switch (entry.case) {
      case 'invoiceOpened':
        return this.#open(entry.value)
      case 'paymentSeen':
        return this.#see(entry.value)
      case 'paymentConfirmed':
        return this.#confirm(entry.value)
      case 'paymentUnconfirmed': {
        const { invoiceId, outpoint, blockHash } = entry.value
        const hash = showHash(blockHash)
        return this.#pay(invoiceId, outpoint, (known) => (known?.block?.hash === hash ? takenBack(known) : known))
      }
      case 'paymentReplaced': {
        const { invoiceId, outpoint, replacedBy: by } = entry.value
        const replacedBy = by.length === 0 ? '' : showHash(by)
        return this.#pay(invoiceId, outpoint, (known) => known && (known.block ? known : { ...known, replacedBy }))
      }
      case 'invoiceRedeemed': {
        const { invoiceId, passId, redeemedAt } = entry.value
        const invoice = this.#invoices.get(invoiceId)
        if (invoice === undefined) return this.#unknown()
        if (invoice.redeemed !== undefined) return {}
        this.#invoices.set(invoiceId, { ...invoice, redeemed: { passId, atMs: timestampOf(redeemedAt), sequence } })
        return { invoiceId }
      }
      case 'passDrawn': {
        const { passId, invoiceId, drawnRequests } = entry.value
        if (drawnRequests > this.drawnOf(passId)) this.#drawn.set(passId, drawnRequests)
        return { invoiceId }
      }
      case 'moneyFound':
        return this.#find(entry.value, timestampOf(appendedAt))
      case 'addressesSkipped':
        this.#nextAddressIndex = Math.max(this.#nextAddressIndex, entry.value.nextIndex)
        // One that a back-up holds is of another restore, in its own past.
        if (entry.value.restoredEntries > 0n && !wasRestoring)
          this.#restore = { after: sequence, last: sequence + Number(entry.value.restoredEntries) }
        return {}
      case 'creditAdjusted':
        return this.#adjust(entry.value, timestampOf(appendedAt))
      default:
        return this.#unknown()
    }
  }

  #open(opened: InvoiceOpened): Applied {
    if (this.#invoices.has(opened.invoiceId)) return {}
    const { invoiceId: id, clientId, tipHeight } = opened
    const invoice = invoiceOf(opened, this.#sequence)
    if (invoice.creditSats > 0n) this.#closeOver(clientId, invoice.openedAtMs)
    this.#invoices.set(id, invoice)
    this.#byScript.set(Buffer.from(opened.script).toString('hex'), id)
    if (invoice.pageKey !== '') this.#byPageKey.set(invoice.pageKey, id)
    this.#byClient.set(clientId, this.#byClient.get(clientId) ?? [])
    this.#byClient.get(clientId)?.push(id)
    this.#nextAddressIndex = Math.max(this.#nextAddressIndex, opened.addressIndex + 1)
    this.#firstOpenedHeight ??= tipHeight
    if (tipHeight >= (this.#openedAt?.height ?? 0))
      this.#openedAt = { hash: showHash(opened.tipHash), height: tipHeight }
    return { invoiceId: id, opened: { tipHeight } }
  }

  /** Closes for good what is over by the clock when credit is used, because that credit may be its money. */
  #closeOver(clientId: string, nowMs: number): void {
    const first = this.#firstOpen.get(clientId) ?? 0
    let done = 0
    for (const [offset, invoice] of this.#all(this.#byClient.get(clientId)?.slice(first) ?? []).entries()) {
      const isOpen = invoice.redeemed === undefined && invoice.closedAs === undefined
      const closedAs = isOpen ? overAs(invoice, nowMs) : undefined
      if (closedAs !== undefined) this.#invoices.set(invoice.id, { ...invoice, closedAs })
      if (offset === done && (!isOpen || closedAs !== undefined)) done += 1
    }
    this.#firstOpen.set(clientId, first + done)
  }

  #see({ invoiceId, outpoint, amountSats, seenAt }: PaymentSeen): Applied {
    return this.#pay(invoiceId, outpoint, (known, at) => {
      if (known?.replacedBy === undefined)
        return known ?? { ...at, amountSats, seenAtMs: timestampOf(seenAt), takenBack: false, returns: 0 }
      return { ...standingAgain(known), returns: known.returns + 1 }
    })
  }

  #confirm({ invoiceId, outpoint, amountSats, blockHash, blockHeight, medianTimePast }: PaymentConfirmed): Applied {
    const first = { amountSats, seenAtMs: timestampOf(medianTimePast), returns: 0 }
    const block = { hash: showHash(blockHash), height: blockHeight }
    return this.#pay(invoiceId, outpoint, (known, at) => ({
      ...at,
      ...first,
      ...(known && standingAgain(known)),
      block,
      takenBack: false,
    }))
  }

  #pay(
    invoiceId: string,
    outpoint: Outpoint | undefined,
    next: (known: Payment | undefined, at: { txid: string; vout: number }) => Payment | undefined,
  ): Applied {
    if (outpoint === undefined) return this.#unknown()
    const at = { txid: showHash(outpoint.txid), vout: outpoint.vout }
    const key = outpointKey(at)
    if (invoiceId === '') return this.#refind(key, (known) => next(known, at))
    const invoice = this.#invoices.get(invoiceId)
    if (invoice === undefined) return this.#unknown()
    const before = invoice.payments.get(key)
    const payment = next(before, at)
    if (payment === undefined || payment === before || isSame(payment, before)) return {}
    const isMoved = before?.block !== undefined
    const moved = invoice.redeemed !== undefined && isMoved
    const payments = new Map(invoice.payments).set(key, payment)
    this.#invoices.set(invoiceId, { ...invoice, payments, reorganised: invoice.reorganised || moved })
    if (moved) this.#reorganised.add(invoiceId)
    if (isMoved) this.#creditTaken.add(invoice.clientId)
    this.#byTxid.set(at.txid, (this.#byTxid.get(at.txid) ?? new Set()).add(invoiceId))
    this.#byOutpoint.set(key, invoiceId)
    this.#move(key, before, payment)
    return { invoiceId }
  }

  #find({ addressIndex, outpoint, amountSats, blockHash, blockHeight }: MoneyFound, foundAtMs: number): Applied {
    if (outpoint === undefined) return this.#unknown()
    this.#nextAddressIndex = Math.max(this.#nextAddressIndex, addressIndex + 1)
    const at = { txid: showHash(outpoint.txid), vout: outpoint.vout }
    const key = outpointKey(at)
    const block = blockHash.length === 0 ? {} : { block: { hash: showHash(blockHash), height: blockHeight } }
    if (!this.#found.has(key)) {
      const payment = { ...at, amountSats, seenAtMs: foundAtMs, takenBack: false, returns: 0, ...block }
      this.#found.set(key, { addressIndex, payment })
      this.#move(key, undefined, payment)
      return {}
    }
    return this.#refind(key, (known) => known && { ...standingAgain(known), ...block, takenBack: false })
  }

  /** Changes what is known of found money. */
  #refind(key: string, next: (known: Payment | undefined) => Payment | undefined): Applied {
    const found = this.#found.get(key)
    if (found === undefined) return this.#unknown()
    const payment = next(found.payment)
    if (payment === undefined || isSame(payment, found.payment)) return {}
    this.#found.set(key, { ...found, payment })
    if (found.clientId !== undefined) this.#creditTaken.add(found.clientId)
    this.#move(key, found.payment, payment)
    return {}
  }

  #adjust(adjusted: CreditAdjusted, atMs: number): Applied {
    const { adjustmentId: id, clientId, amountSats, reason, operator, outpoint } = adjusted
    if (this.#adjustments.has(id)) return {}
    const key = outpoint && outpointKey({ txid: showHash(outpoint.txid), vout: outpoint.vout })
    const of = key === undefined ? {} : { outpoint: key }
    const adjustment = { id, clientId, amountSats, reason, operator, atMs, ...of }
    this.#adjustments.set(id, adjustment)
    this.#adjustmentsOf.set(clientId, [...this.adjustmentsOf(clientId), adjustment])
    const found = key === undefined ? undefined : this.#found.get(key)
    if (key !== undefined && found !== undefined) this.#found.set(key, { ...found, clientId })
    if (amountSats < 0n) this.#creditTaken.add(clientId)
    return {}
  }

  #move(outpoint: string, before: Payment | undefined, after: Payment | undefined): void {
    const [from, to] = [before?.block, after?.block]
    if (after !== undefined && to === undefined && after.replacedBy === undefined) this.#unconfirmed.add(outpoint)
    else this.#unconfirmed.delete(outpoint)
    if (from !== undefined) {
      const left = this.#byBlock.get(from.hash)
      left?.outpoints.delete(outpoint)
      if (left?.outpoints.size === 0) this.#byBlock.delete(from.hash)
    }
    if (to === undefined) return
    const joined = this.#byBlock.get(to.hash) ?? { place: to, outpoints: new Set<string>() }
    joined.outpoints.add(outpoint)
    this.#byBlock.set(to.hash, joined)
  }

  #of(id: string | undefined): Invoice | undefined {
    return id === undefined ? undefined : this.#invoices.get(id)
  }

  #all(ids: Iterable<string>): Invoice[] {
    return [...ids].flatMap((id) => this.#invoices.get(id) ?? [])
  }

  #unknown(): Applied {
    this.#unknownEntries += 1
    return {}
  }
}

/** The key by which money is counted once. */
export function outpointKey({ txid, vout }: { readonly txid: string; readonly vout: number }): string {
  return `${txid}:${vout}`
}

function invoiceOf(opened: InvoiceOpened, sequence: number): Invoice {
  const openedAtMs = timestampOf(opened.openedAt)
  const { creditPolicy: policy } = opened
  return {
    id: opened.invoiceId,
    clientId: opened.clientId,
    plan: opened.plan,
    amountSats: opened.amountSats,
    listPriceSats: opened.listPriceSats === 0n ? opened.amountSats : opened.listPriceSats,
    cuts: opened.discounts.length === 0 ? NO_CUTS : opened.discounts.map(cutOf),
    creditSats: opened.creditSats,
    creditPolicy: { late: policy?.late ?? false, short: policy?.short ?? false, excess: policy?.excess ?? false },
    confirmationsNeeded: opened.confirmations,
    quotaRequests: opened.quotaRequests,
    durationMs: Number(opened.durationSeconds) * 1000,
    addressIndex: opened.addressIndex,
    address: opened.address,
    openedAtMs,
    payByMs: timestampOf(opened.payBy),
    confirmByMs: timestampOf(opened.confirmBy),
    confirmByHeight: opened.confirmByHeight,
    ...(opened.redeemBy === undefined ? {} : { redeemByMs: timestampOf(opened.redeemBy) }),
    idempotencyKey: opened.idempotencyKey,
    pageKey: Buffer.from(opened.pageKey).toString('base64url'),
    payments: NO_PAYMENTS,
    ...(opened.passId === '' ? {} : { redeemed: { passId: opened.passId, atMs: openedAtMs, sequence } }),
    reorganised: false,
  }
}

function cutOf({ kind, basisPoints, amountSats, score }: InvoiceOpened['discounts'][number]): PriceCut {
  return { kind: kind === 'conduct' ? 'conduct' : 'bitcoin', basisPoints, amountSats, score }
}

/** How an invoice that nobody redeemed is over by the clock, as far as the ledger alone tells; undefined: it is not. */
function overAs({ payments, payByMs, redeemByMs, amountSats }: Invoice, nowMs: number): Invoice['closedAs'] {
  let inTime = 0n
  for (const { seenAtMs, replacedBy, amountSats: paidSats } of payments.values())
    if (seenAtMs <= payByMs && replacedBy === undefined) inTime += paidSats
  if (inTime < amountSats) return nowMs > payByMs ? 'short' : undefined
  return redeemByMs !== undefined && nowMs > redeemByMs ? 'unredeemed' : undefined
}

function takenBack({ block: _block, ...payment }: Payment): Payment {
  return { ...payment, takenBack: true }
}

function standingAgain({ replacedBy: _replacedBy, ...payment }: Payment): Payment {
  return payment
}

function isSame(one: Payment, other: Payment | undefined): boolean {
  if (other === undefined || one.block?.hash !== other.block?.hash) return false
  return one.takenBack === other.takenBack && one.replacedBy === other.replacedBy
}

function timestampOf(timestamp: Parameters<typeof timestampMs>[0] | undefined): number {
  return timestamp === undefined ? 0 : timestampMs(timestamp)
}
