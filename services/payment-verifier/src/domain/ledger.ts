import { timestampMs } from '@bufbuild/protobuf/wkt'
import { showHash } from '@tollward/bitcoin'
import type { EntryAppended, InvoiceOpened, Outpoint } from '@tollward/contracts/ledger'
import type { Invoice, Payment, Place } from './invoice.ts'

/** Reorganisations that go deeper than this are not looked for after an absence. */
const FINALITY_BLOCKS = 100

/** The invoice that an entry is about, if the entry changed anything. */
export interface Applied {
  readonly invoiceId?: string
  readonly opened?: { readonly tipHeight: number }
}

/** Everything that the ledger says, computed entry by entry. An entry that says what is known already changes nothing. */
export class Ledger {
  /** Of the last entry applied. */
  #sequence = 0
  readonly #invoices = new Map<string, Invoice>()
  readonly #byScript = new Map<string, string>()
  readonly #byClient = new Map<string, string[]>()
  readonly #byTxid = new Map<string, Set<string>>()
  readonly #byBlock = new Map<string, { readonly place: Place; readonly outpoints: Set<string> }>()
  readonly #reorganised = new Set<string>()
  #nextAddressIndex = 0
  #openedAt: Place | undefined
  #unknownEntries = 0

  get sequence(): number {
    return this.#sequence
  }

  /** Entries that this version cannot read, or that speak of an invoice that is not there. */
  get unknownEntries(): number {
    return this.#unknownEntries
  }

  /** One more than the highest that was ever given out. */
  get nextAddressIndex(): number {
    return this.#nextAddressIndex
  }

  get invoiceCount(): number {
    return this.#invoices.size
  }

  /** Redeemed invoices whose payments a reorganisation has touched. */
  get reorganised(): ReadonlySet<string> {
    return this.#reorganised
  }

  invoice(id: string): Invoice | undefined {
    return this.#invoices.get(id)
  }

  /** The invoice whose output script, in hexadecimal, this is. */
  invoiceOfScript(script: string): Invoice | undefined {
    const id = this.#byScript.get(script)
    return id === undefined ? undefined : this.#invoices.get(id)
  }

  /** A client's invoices, oldest first. */
  invoicesOf(clientId: string): Invoice[] {
    return this.#all(this.#byClient.get(clientId) ?? [])
  }

  /** Every invoice, oldest first. */
  invoices(): Iterable<Invoice> {
    return this.#invoices.values()
  }

  /** Invoices that a transaction pays, whoever they belong to. */
  invoicesPaidBy(txid: string): Invoice[] {
    return this.#all(this.#byTxid.get(txid) ?? [])
  }

  /** Outpoints of the payments in a block, by invoice id. */
  paymentsIn(blockHash: string): { readonly invoice: Invoice; readonly payment: Payment }[] {
    return [...(this.#byBlock.get(blockHash)?.outpoints ?? [])].flatMap((outpoint) => {
      const invoice = this.#all(this.#byTxid.get(outpoint.slice(0, outpoint.indexOf(':'))) ?? []).find((candidate) =>
        candidate.payments.has(outpoint),
      )
      const payment = invoice?.payments.get(outpoint)
      return invoice === undefined || payment === undefined ? [] : [{ invoice, payment }]
    })
  }

  /**
   * Blocks that the ledger relies upon. Every block up to the highest of them was looked through by whoever wrote the entry;
   * only that one itself perhaps in part.
   */
  knownBlocks(): Place[] {
    const paid = [...this.#byBlock.values()].map(({ place }) => place)
    const highest = Math.max(this.#openedAt?.height ?? 0, ...paid.map(({ height }) => height))
    const known = new Map(
      paid.filter(({ height }) => height > highest - FINALITY_BLOCKS).map((place) => [place.hash, place]),
    )
    if (this.#openedAt !== undefined) known.set(this.#openedAt.hash, this.#openedAt)
    return [...known.values()]
  }

  /** Takes the next entry of the stream in. */
  apply({ entry }: EntryAppended, sequence: number): Applied {
    this.#sequence = sequence
    switch (entry.case) {
      case 'invoiceOpened':
        return this.#open(entry.value)
      case 'paymentSeen': {
        const { invoiceId, outpoint, amountSats, seenAt } = entry.value
        return this.#pay(
          invoiceId,
          outpoint,
          (known, at) => known ?? { ...at, amountSats, seenAtMs: timestampOf(seenAt), takenBack: false },
        )
      }
      case 'paymentConfirmed': {
        const { invoiceId, outpoint, amountSats, blockHash, blockHeight: height, medianTimePast } = entry.value
        const first = { amountSats, seenAtMs: timestampOf(medianTimePast) }
        const block = { hash: showHash(blockHash), height }
        return this.#pay(invoiceId, outpoint, (known, at) => ({ ...at, ...first, ...known, block, takenBack: false }))
      }
      case 'paymentUnconfirmed': {
        const { invoiceId, outpoint, blockHash } = entry.value
        const hash = showHash(blockHash)
        return this.#pay(invoiceId, outpoint, (known) => (known?.block?.hash === hash ? takenBack(known) : known))
      }
      case 'invoiceRedeemed': {
        const { invoiceId, passId, redeemedAt } = entry.value
        const invoice = this.#invoices.get(invoiceId)
        if (invoice === undefined) return this.#unknown()
        if (invoice.redeemed !== undefined) return {}
        this.#invoices.set(invoiceId, { ...invoice, redeemed: { passId, atMs: timestampOf(redeemedAt) } })
        return { invoiceId }
      }
      default:
        return this.#unknown()
    }
  }

  /** Passes over an entry whose bytes nobody can read: the next one is still the next one. */
  skip(sequence: number): Applied {
    this.#sequence = sequence
    return this.#unknown()
  }

  #open(opened: InvoiceOpened): Applied {
    if (this.#invoices.has(opened.invoiceId)) return {}
    const { invoiceId: id, clientId, tipHeight } = opened
    this.#invoices.set(id, invoiceOf(opened))
    this.#byScript.set(Buffer.from(opened.script).toString('hex'), id)
    this.#byClient.set(clientId, this.#byClient.get(clientId) ?? [])
    this.#byClient.get(clientId)?.push(id)
    this.#nextAddressIndex = Math.max(this.#nextAddressIndex, opened.addressIndex + 1)
    if (tipHeight >= (this.#openedAt?.height ?? 0))
      this.#openedAt = { hash: showHash(opened.tipHash), height: tipHeight }
    return { invoiceId: id, opened: { tipHeight } }
  }

  #pay(
    invoiceId: string,
    outpoint: Outpoint | undefined,
    next: (known: Payment | undefined, at: { txid: string; vout: number }) => Payment | undefined,
  ): Applied {
    const invoice = this.#invoices.get(invoiceId)
    if (invoice === undefined || outpoint === undefined) return this.#unknown()
    const at = { txid: showHash(outpoint.txid), vout: outpoint.vout }
    const key = outpointKey(at)
    const before = invoice.payments.get(key)
    const payment = next(before, at)
    if (payment === undefined || payment === before || isSame(payment, before)) return {}
    const moved = invoice.redeemed !== undefined && before?.block !== undefined
    const payments = new Map(invoice.payments).set(key, payment)
    this.#invoices.set(invoiceId, { ...invoice, payments, reorganised: invoice.reorganised || moved })
    if (moved) this.#reorganised.add(invoiceId)
    this.#byTxid.set(at.txid, (this.#byTxid.get(at.txid) ?? new Set()).add(invoiceId))
    this.#move(key, before?.block, payment.block)
    return { invoiceId }
  }

  #move(outpoint: string, from: Place | undefined, to: Place | undefined): void {
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

function invoiceOf(opened: InvoiceOpened): Invoice {
  return {
    id: opened.invoiceId,
    clientId: opened.clientId,
    plan: opened.plan,
    amountSats: opened.amountSats,
    confirmationsNeeded: opened.confirmations,
    quotaRequests: opened.quotaRequests,
    durationMs: Number(opened.durationSeconds) * 1000,
    addressIndex: opened.addressIndex,
    address: opened.address,
    openedAtMs: timestampOf(opened.openedAt),
    payByMs: timestampOf(opened.payBy),
    confirmByMs: timestampOf(opened.confirmBy),
    idempotencyKey: opened.idempotencyKey,
    payments: new Map(),
    reorganised: false,
  }
}

function takenBack({ block: _block, ...payment }: Payment): Payment {
  return { ...payment, takenBack: true }
}

function isSame(one: Payment, other: Payment | undefined): boolean {
  return other !== undefined && one.block?.hash === other.block?.hash && one.takenBack === other.takenBack
}

function timestampOf(timestamp: Parameters<typeof timestampMs>[0] | undefined): number {
  return timestamp === undefined ? 0 : timestampMs(timestamp)
}
