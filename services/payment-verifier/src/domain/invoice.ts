import type { PriceCut } from './price.ts'

/** Where a block stands; the hash is in hexadecimal as nodes show it. */
export interface Place {
  readonly hash: string
  readonly height: number
}

/** Money on the way to an address of the account: an output to its script. */
export interface Payment {
  readonly txid: string
  readonly vout: number
  readonly amountSats: bigint
  readonly seenAtMs: number
  /** The block that holds it; undefined while it is unconfirmed. */
  readonly block?: Place
  /** A reorganisation took it out of its block, and no other has it yet. */
  readonly takenBack: boolean
  /** The transaction that spends the same coins instead; empty: it only vanished; undefined: it stands. */
  readonly replacedBy?: string
  /** How often it came back after having been replaced, without being in a block. */
  readonly returns: number
}

/** Which money of an invoice becomes its client's credit; the rest stays on record for the operator. */
export interface CreditPolicy {
  /** Seen or confirmed too late, or not redeemed in time. */
  readonly late: boolean
  /** Less than the amount. */
  readonly short: boolean
  /** More than the amount. */
  readonly excess: boolean
}

/** An invoice as the ledger tells it. Price, quota and clocks are those of its plan at the time it was opened. */
export interface Invoice {
  readonly id: string
  readonly clientId: string
  readonly plan: string
  /** To be paid to the address: the list price less cuts and credit; 0: credit covers it all. */
  readonly amountSats: bigint
  readonly listPriceSats: bigint
  readonly cuts: readonly PriceCut[]
  /** Of the client's credit, what it uses unless it closes without a pass. */
  readonly creditSats: bigint
  readonly creditPolicy: CreditPolicy
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
  /** The last confirmation at or below this height is in time whatever the clocks say; 0: confirmByMs alone counts. */
  readonly confirmByHeight: number
  /** Undefined: a paid invoice may be redeemed for ever. */
  readonly redeemByMs?: number
  readonly idempotencyKey: string
  /** base64url; empty: it has no page. */
  readonly pageKey: string
  readonly payments: ReadonlyMap<string, Payment>
  /** The sequence is that of the ledger's entry. */
  readonly redeemed?: { readonly passId: string; readonly atMs: number; readonly sequence: number }
  /** Since it was redeemed, a reorganisation moved or removed a payment. */
  readonly reorganised: boolean
  /**
   * It was over by the clock when its client used credit, short of money or paid and not redeemed. Its money may be in that use,
   * so nothing opens it again.
   */
  readonly closedAs?: 'short' | 'unredeemed'
}

/** What the ledger does not say: the best chain as we follow it, and the time. */
export interface View {
  readonly nowMs: number
  readonly tipHeight: number
  /** BIP-113, by height, at least for heightsOf(the invoice). */
  readonly medianTimePastsMs: ReadonlyMap<number, number>
  /** Ids of invoices whose use of credit is not covered any more. */
  readonly uncovered: ReadonlySet<string>
}

export type InvoiceState =
  | 'issued'
  | 'seen'
  | 'confirming'
  | 'paid'
  | 'overpaid'
  | 'underpaid'
  | 'paid-late'
  | 'expired'
  | 'replaced'
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
  /** Whether the credit that it uses is still there. */
  readonly covered: boolean
  /** Without a pass, and there will be none: the credit that it used is given back. */
  readonly closed: boolean
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
  const closed = isClosed(invoice, view, sums)
  return {
    state: stateOf(invoice, view, sums, pass, closed),
    receivedSats: sums.confirmed,
    pendingSats: sums.all - sums.confirmed,
    confirmations: confirmationsOf(invoice, view),
    open: invoice.redeemed === undefined && !closed && sums.settledInTime < invoice.amountSats,
    closed,
    covered: !view.uncovered.has(invoice.id),
    late: sums.all >= invoice.amountSats && sums.inTime < invoice.amountSats,
  }
}

/** What the payments of an invoice add up to; those that were replaced do not count. */
export interface Sums {
  readonly all: bigint
  readonly confirmed: bigint
  /** With as many confirmations as needed. */
  readonly settled: bigint
  /** Neither seen nor settled after its time, as far as that has happened. */
  readonly inTime: bigint
  readonly settledInTime: bigint
}

export function sumsOf(invoice: Invoice, view: View): Sums {
  const sums = { all: 0n, confirmed: 0n, settled: 0n, inTime: 0n, settledInTime: 0n }
  for (const payment of invoice.payments.values()) {
    if (payment.replacedBy !== undefined) continue
    const { settled, inTime } = timelinessOf(invoice, payment, view)
    sums.all += payment.amountSats
    if (payment.block !== undefined) sums.confirmed += payment.amountSats
    if (settled) sums.settled += payment.amountSats
    if (inTime) sums.inTime += payment.amountSats
    if (inTime && settled) sums.settledInTime += payment.amountSats
  }
  return sums
}

/** Whether a payment has all confirmations that it needs, and whether it is in time, or can still be. */
function timelinessOf(invoice: Invoice, { block, seenAtMs }: Payment, view: View) {
  const height = (block?.height ?? view.tipHeight + 1) + invoice.confirmationsNeeded - 1
  const isDeep = block !== undefined && height <= view.tipHeight
  // Of redeemed invoices nobody asks any more how fast they were confirmed.
  if (invoice.redeemed !== undefined) return { settled: isDeep, inTime: true }
  const settledAtMs = isDeep ? view.medianTimePastsMs.get(height) : undefined
  const inTime = seenAtMs <= invoice.payByMs && isInTime(invoice, height, settledAtMs, view)
  return { settled: settledAtMs !== undefined, inTime }
}

/** No block to come can have a smaller median time past than the best one has. */
function isInTime(
  { confirmByMs, confirmByHeight }: Invoice,
  height: number,
  settledAtMs: number | undefined,
  { medianTimePastsMs, tipHeight }: View,
): boolean {
  return (settledAtMs ?? medianTimePastsMs.get(tipHeight) ?? 0) <= confirmByMs || height <= confirmByHeight
}

function isClosed(invoice: Invoice, view: View, sums: Sums): boolean {
  const { redeemed, closedAs, amountSats, payByMs, redeemByMs, confirmationsNeeded } = invoice
  if (redeemed !== undefined) return false
  if (closedAs !== undefined) return true
  if (sums.settledInTime >= amountSats) return redeemByMs !== undefined && view.nowMs > redeemByMs
  if (sums.inTime >= amountSats) return false
  const canStillBePaid = isInTime(invoice, view.tipHeight + confirmationsNeeded, undefined, view)
  return view.nowMs > payByMs || !canStillBePaid
}

function stateOf(invoice: Invoice, view: View, sums: Sums, pass: PassUse, closed: boolean): InvoiceState {
  const { amountSats, redeemed, reorganised } = invoice
  const covered = !view.uncovered.has(invoice.id)
  if (redeemed !== undefined) {
    if (!covered || (reorganised && sums.settled < amountSats)) return 'reorganised'
    const isOver = (passEndsAtMs(invoice) ?? Number.POSITIVE_INFINITY) <= view.nowMs
    return isOver || pass === 'used-up' ? 'exhausted' : 'redeemed'
  }
  if (!closed && !covered) return 'reorganised'
  if (sums.settledInTime >= amountSats) {
    if (closed) return 'expired'
    return sums.all > amountSats ? 'overpaid' : 'paid'
  }
  if (sums.settled >= amountSats) return 'paid-late'
  return unsettledStateOf(invoice, view, sums, closed)
}

function unsettledStateOf(invoice: Invoice, view: View, sums: Sums, closed: boolean): InvoiceState {
  const { amountSats, payments, confirmationsNeeded } = invoice
  const standing = [...payments.values()].filter(({ replacedBy }) => replacedBy === undefined)
  if (standing.some(({ takenBack }) => takenBack) && sums.confirmed < amountSats) return 'reorganised'
  if (standing.length === 0 && payments.size > 0) return 'replaced'
  if (sums.all === 0n) return closed ? 'expired' : 'issued'
  if (sums.all < amountSats) return 'underpaid'
  if (sums.confirmed >= amountSats) return 'confirming'
  return isInTime(invoice, view.tipHeight + confirmationsNeeded, undefined, view) ? 'seen' : 'expired'
}

function confirmationsOf(invoice: Invoice, view: View): number {
  const counts = [...invoice.payments.values()]
    .filter(({ replacedBy }) => replacedBy === undefined)
    .map(({ block, amountSats }) => ({
      // The ledger may hear of a block before the view is of it: whatever is in a block has one confirmation.
      count: block === undefined ? 0 : Math.max(1, view.tipHeight - block.height + 1),
      amountSats,
    }))
    .toSorted((one, other) => other.count - one.count)
  let sum = 0n
  for (const { count, amountSats } of counts) {
    sum += amountSats
    if (sum >= invoice.amountSats) return count
  }
  return 0
}
