/** Where a block stands; the hash is in hexadecimal as nodes show it. */
export interface Place {
  readonly hash: string
  readonly height: number
}

/** Money on the way to an invoice: an output to its script. */
export interface Payment {
  readonly txid: string
  readonly vout: number
  readonly amountSats: bigint
  readonly seenAtMs: number
  /** The block that holds it; undefined while it is unconfirmed. */
  readonly block?: Place
  /** A reorganisation took it out of its block, and no other has it yet. */
  readonly takenBack: boolean
}

/** An invoice as the ledger tells it. Price, quota and clocks are those of its plan at the time it was opened. */
export interface Invoice {
  readonly id: string
  readonly clientId: string
  readonly plan: string
  readonly amountSats: bigint
  readonly confirmationsNeeded: number
  /** 0: without limit. */
  readonly quotaRequests: bigint
  /** 0: for ever. */
  readonly durationMs: number
  readonly addressIndex: number
  readonly address: string
  readonly openedAtMs: number
  readonly payByMs: number
  readonly confirmByMs: number
  readonly idempotencyKey: string
  readonly payments: ReadonlyMap<string, Payment>
  readonly redeemed?: { readonly passId: string; readonly atMs: number }
  /** Since it was redeemed, a reorganisation moved or removed a payment. */
  readonly reorganised: boolean
}

/** What the ledger does not say: the best chain as we follow it, and the time. */
export interface View {
  readonly nowMs: number
  readonly tipHeight: number
  /** BIP-113, by height, at least for heightsOf(the invoice). */
  readonly medianTimePastsMs: ReadonlyMap<number, number>
}

type InvoiceState =
  | 'issued'
  | 'seen'
  | 'confirming'
  | 'paid'
  | 'overpaid'
  | 'underpaid'
  | 'paid-late'
  | 'expired'
  | 'reorganised'
  | 'redeemed'
  | 'exhausted'

/** An invoice now. */
export interface Standing {
  readonly state: InvoiceState
  /** In blocks of the best chain. */
  readonly receivedSats: bigint
  /** Seen, and in no block. */
  readonly pendingSats: bigint
  /** Of the payment that completes the amount; 0 while it is unconfirmed or missing. */
  readonly confirmations: number
  /** Whether paying, or waiting, still leads to a pass. */
  readonly open: boolean
  /** Everything is there, but some of it was seen or confirmed after its time. */
  readonly late: boolean
}

/** Whether a pass of the invoice was used up; its duration is looked at by itself. */
export type PassUse = 'usable' | 'used-up'

/** Heights whose median time past standingOf needs. */
export function heightsOf(invoice: Invoice, tipHeight: number): number[] {
  if (invoice.redeemed !== undefined || invoice.payments.size === 0) return []
  const settling = [...invoice.payments.values()].flatMap(({ block }) =>
    block === undefined ? [] : [block.height + invoice.confirmationsNeeded - 1],
  )
  return [...settling.filter((height) => height <= tipHeight), tipHeight]
}

/** When the pass of a redeemed invoice ends; undefined: not by time. */
export function passEndsAtMs({ redeemed, durationMs }: Invoice): number | undefined {
  return redeemed === undefined || durationMs === 0 ? undefined : redeemed.atMs + durationMs
}

/** The state of an invoice: a function of the ledger, the best chain and the time, with nothing remembered. */
export function standingOf(invoice: Invoice, view: View, pass: PassUse = 'usable'): Standing {
  const sums = sumsOf(invoice, view)
  const state = stateOf(invoice, view, sums, pass)
  const late = sums.all >= invoice.amountSats && sums.inTime < invoice.amountSats
  const waiting = state === 'issued' || state === 'seen' || state === 'confirming' || state === 'reorganised'
  const toppingUp = state === 'underpaid' && view.nowMs <= invoice.payByMs
  return {
    state,
    receivedSats: sums.confirmed,
    pendingSats: sums.all - sums.confirmed,
    confirmations: confirmationsOf(invoice, view),
    open: invoice.redeemed === undefined && !late && (waiting || toppingUp),
    late,
  }
}

interface Sums {
  readonly all: bigint
  readonly confirmed: bigint
  /** With as many confirmations as needed. */
  readonly settled: bigint
  /** Neither seen nor settled after its time, as far as that has happened. */
  readonly inTime: bigint
  readonly settledInTime: bigint
}

function sumsOf(invoice: Invoice, view: View): Sums {
  const sums = { all: 0n, confirmed: 0n, settled: 0n, inTime: 0n, settledInTime: 0n }
  for (const payment of invoice.payments.values()) {
    const settledAtMs = settledAtOf(invoice, payment, view)
    const inTime = payment.seenAtMs <= invoice.payByMs && (settledAtMs ?? 0) <= invoice.confirmByMs
    sums.all += payment.amountSats
    if (payment.block !== undefined) sums.confirmed += payment.amountSats
    if (settledAtMs !== undefined) sums.settled += payment.amountSats
    if (inTime) sums.inTime += payment.amountSats
    if (inTime && settledAtMs !== undefined) sums.settledInTime += payment.amountSats
  }
  return sums
}

/** Median time past of the block with the last confirmation that the payment needs; undefined before there is one. */
function settledAtOf(invoice: Invoice, { block }: Payment, view: View): number | undefined {
  if (block === undefined) return undefined
  const height = block.height + invoice.confirmationsNeeded - 1
  if (height > view.tipHeight) return undefined
  // Of redeemed invoices nobody asks any more how fast they were confirmed.
  return invoice.redeemed === undefined ? view.medianTimePastsMs.get(height) : 0
}

function stateOf(invoice: Invoice, view: View, sums: Sums, pass: PassUse): InvoiceState {
  const { amountSats, redeemed, reorganised, payByMs, confirmByMs } = invoice
  if (redeemed !== undefined) {
    if (reorganised && sums.settled < amountSats) return 'reorganised'
    const isOver = (passEndsAtMs(invoice) ?? Number.POSITIVE_INFINITY) <= view.nowMs
    return isOver || pass === 'used-up' ? 'exhausted' : 'redeemed'
  }
  if (sums.settledInTime >= amountSats) return sums.all > amountSats ? 'overpaid' : 'paid'
  if (sums.settled >= amountSats) return 'paid-late'
  const takenBack = [...invoice.payments.values()].some((payment) => payment.takenBack)
  if (takenBack && sums.confirmed < amountSats) return 'reorganised'
  if (sums.all === 0n) return view.nowMs > payByMs ? 'expired' : 'issued'
  if (sums.all < amountSats) return 'underpaid'
  if (sums.confirmed >= amountSats) return 'confirming'
  // No block to come can have a smaller median time past than the best one has.
  return (view.medianTimePastsMs.get(view.tipHeight) ?? 0) > confirmByMs ? 'expired' : 'seen'
}

function confirmationsOf(invoice: Invoice, view: View): number {
  const counts = [...invoice.payments.values()]
    .map(({ block, amountSats }) => ({
      count: block === undefined ? 0 : view.tipHeight - block.height + 1,
      amountSats,
    }))
    .toSorted((one, other) => other.count - one.count)
  let sum = 0n
  for (const { count, amountSats } of counts) {
    sum += amountSats
    if (sum >= invoice.amountSats) return Math.max(0, count)
  }
  return 0
}
