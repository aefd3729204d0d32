import assert from 'node:assert/strict'
import { test } from 'node:test'
import { heightsOf, type Invoice, type Payment, standingOf, type View } from './invoice.ts'

const OPENED_MS = 1_000_000
const PAY_BY_MS = OPENED_MS + 900_000
const CONFIRM_BY_MS = OPENED_MS + 7_200_000
const HOUR_MS = 3_600_000

const payment = (change: Partial<Payment> = {}): Payment => ({
  txid: 'aa'.repeat(32),
  vout: 0,
  amountSats: 10_000n,
  seenAtMs: OPENED_MS + 1,
  takenBack: false,
  returns: 0,
  ...change,
})
const block = (height: number) => ({ hash: `block ${height}`, height })

function invoice(payments: Payment[] = [], change: Partial<Invoice> = {}): Invoice {
  return {
    id: 'i',
    clientId: 'c',
    plan: 'p',
    amountSats: 10_000n,
    listPriceSats: 10_000n,
    cuts: [],
    creditSats: 0n,
    creditPolicy: { late: true, short: true, excess: true },
    confirmationsNeeded: 3,
    quotaRequests: 1000n,
    durationMs: HOUR_MS,
    addressIndex: 0,
    address: 'a',
    openedAtMs: OPENED_MS,
    payByMs: PAY_BY_MS,
    confirmByMs: CONFIRM_BY_MS,
    confirmByHeight: 0,
    idempotencyKey: '',
    pageKey: '',
    payments: new Map(payments.map((each, index) => [`${each.txid}:${index}`, each])),
    reorganised: false,
    ...change,
  }
}

/** The chain at a height; every block has the same median time past unless told otherwise. */
function view(
  tipHeight: number,
  {
    nowMs = OPENED_MS,
    medianMs = OPENED_MS,
    uncovered = [],
  }: { nowMs?: number; medianMs?: number | ((height: number) => number); uncovered?: string[] } = {},
): View {
  const median = typeof medianMs === 'number' ? () => medianMs : medianMs
  const heights = Array.from({ length: tipHeight + 1 }, (_, height) => height)
  const medianTimePastsMs = new Map(heights.map((height) => [height, median(height)]))
  return { nowMs, tipHeight, medianTimePastsMs, uncovered: new Set(uncovered) }
}

const state = (...args: Parameters<typeof standingOf>) => standingOf(...args).state

test('an invoice without payment is issued up to pay-by, and expired after it', () => {
  assert.equal(state(invoice(), view(9, { nowMs: PAY_BY_MS })), 'issued')
  assert.equal(state(invoice(), view(9, { nowMs: PAY_BY_MS + 1 })), 'expired')
  assert.equal(standingOf(invoice(), view(9, { nowMs: PAY_BY_MS })).open, true)
  assert.equal(standingOf(invoice(), view(9, { nowMs: PAY_BY_MS + 1 })).open, false)
})

test('confirmations count from the block of the payment, and the last one needed pays', () => {
  const paid = invoice([payment({ block: block(7) })])
  assert.deepEqual(
    [7, 8, 9, 10].map((tip) => state(paid, view(tip))),
    ['confirming', 'confirming', 'paid', 'paid'],
  )
  assert.deepEqual(
    [7, 8, 9, 10].map((tip) => standingOf(paid, view(tip)).confirmations),
    [1, 2, 3, 4],
  )
  assert.equal(state(invoice([payment()]), view(9)), 'seen')
})

test('a payment that was seen at pay-by is in time, one millisecond later it is late', () => {
  const seenAt = (seenAtMs: number) => invoice([payment({ seenAtMs, block: block(5) })])
  assert.equal(state(seenAt(PAY_BY_MS), view(9)), 'paid')
  assert.equal(state(seenAt(PAY_BY_MS + 1), view(9)), 'paid-late')
  assert.equal(standingOf(invoice([payment({ seenAtMs: PAY_BY_MS + 1 })]), view(9)).late, true)
})

test('the median time past of the block with the last confirmation decides on confirm-by', () => {
  const paid = invoice([payment({ block: block(5) })])
  const at = (deciding: number) => view(9, { medianMs: (height) => (height === 7 ? deciding : CONFIRM_BY_MS * 2) })
  assert.equal(state(paid, at(CONFIRM_BY_MS)), 'paid')
  assert.equal(state(paid, at(CONFIRM_BY_MS + 1)), 'paid-late')
  assert.ok(heightsOf(paid, 9).includes(7))
})

test('an unconfirmed payment expires when no block to come can be in time', () => {
  assert.equal(state(invoice([payment()]), view(9, { medianMs: CONFIRM_BY_MS })), 'seen')
  assert.equal(state(invoice([payment()]), view(9, { medianMs: CONFIRM_BY_MS + 1 })), 'expired')
})

test('several payments add up, and only those that are in time and deep enough buy', () => {
  const half = payment({ amountSats: 5_000n, block: block(5) })
  assert.equal(state(invoice([half]), view(9)), 'underpaid')
  assert.equal(standingOf(invoice([half]), view(9, { nowMs: PAY_BY_MS })).open, true)
  assert.equal(standingOf(invoice([half]), view(9, { nowMs: PAY_BY_MS + 1 })).open, false)
  assert.equal(state(invoice([half, payment({ amountSats: 5_000n, block: block(8) })]), view(9)), 'confirming')
  assert.equal(state(invoice([half, payment({ amountSats: 5_000n, block: block(7) })]), view(9)), 'paid')
  assert.equal(state(invoice([half, payment({ amountSats: 5_001n, block: block(7) })]), view(9)), 'overpaid')
  assert.equal(state(invoice([half, payment({ amountSats: 5_000n })]), view(9)), 'seen')
  const late = payment({ amountSats: 5_000n, block: block(5), seenAtMs: PAY_BY_MS + 1 })
  assert.equal(state(invoice([half, late]), view(9)), 'paid-late')
})

test('a payment that was taken back makes the invoice reorganised until it is in a block again', () => {
  assert.equal(state(invoice([payment({ takenBack: true })]), view(9)), 'reorganised')
  assert.equal(standingOf(invoice([payment({ takenBack: true })]), view(9)).open, true)
  assert.equal(state(invoice([payment({ block: block(9) })]), view(9)), 'confirming')
})

test('a redeemed invoice stays so whatever the clocks say, until it is used up, over, or reorganised', () => {
  const redeemed = { passId: 'x', atMs: OPENED_MS, sequence: 9 }
  const paid = (change: Partial<Invoice> = {}) => invoice([payment({ block: block(5) })], { redeemed, ...change })
  const late = view(9, { medianMs: CONFIRM_BY_MS * 2 })
  assert.equal(state(paid(), late), 'redeemed')
  assert.equal(state(paid(), late, 'used-up'), 'exhausted')
  assert.equal(state(paid(), view(9, { nowMs: OPENED_MS + HOUR_MS - 1 })), 'redeemed')
  assert.equal(state(paid(), view(9, { nowMs: OPENED_MS + HOUR_MS })), 'exhausted')
  assert.equal(state(paid({ durationMs: 0 }), view(9, { nowMs: OPENED_MS * 100 })), 'redeemed')
  assert.equal(state(invoice([payment({ takenBack: true })], { redeemed, reorganised: true }), late), 'reorganised')
  assert.equal(state(invoice([payment({ block: block(8) })], { redeemed, reorganised: true }), late), 'reorganised')
  assert.equal(state(invoice([payment({ block: block(7) })], { redeemed, reorganised: true }), late), 'redeemed')
})

test('the height of the block with the last confirmation is in time too, whatever the clocks say', () => {
  const slow = { medianMs: CONFIRM_BY_MS * 2 }
  const at = (height: number) => invoice([payment({ block: block(5) })], { confirmByHeight: height })
  assert.equal(state(at(7), view(9, slow)), 'paid')
  assert.equal(state(at(6), view(9, slow)), 'paid-late')
  assert.equal(state(invoice([payment()], { confirmByHeight: 12 }), view(9, slow)), 'seen')
  assert.equal(state(invoice([payment()], { confirmByHeight: 11 }), view(9, slow)), 'expired')
})

test('a payment that cannot be confirmed in time any more is late before it is confirmed', () => {
  const confirming = standingOf(invoice([payment({ block: block(9) })]), view(9, { medianMs: CONFIRM_BY_MS + 1 }))
  assert.deepEqual([confirming.state, confirming.late, confirming.open], ['confirming', true, false])
})

test('a paid invoice that nobody redeems in time is closed, one that was redeemed is not', () => {
  const paid = (change: Partial<Invoice> = {}) =>
    invoice([payment({ block: block(5) })], { redeemByMs: 900, ...change })
  assert.equal(state(paid(), view(9, { nowMs: 900 })), 'paid')
  assert.equal(state(paid(), view(9, { nowMs: 901 })), 'expired')
  assert.equal(standingOf(paid(), view(9, { nowMs: 901 })).closed, true)
  const redeemed = { passId: 'x', atMs: OPENED_MS, sequence: 9 }
  assert.equal(standingOf(paid({ redeemed }), view(9, { nowMs: 901 })).closed, false)
})

test('what was replaced does not count, and the invoice may be paid again until pay-by', () => {
  const replaced = invoice([payment({ replacedBy: '' })])
  assert.deepEqual([state(replaced, view(9)), standingOf(replaced, view(9)).open], ['replaced', true])
  assert.equal(standingOf(replaced, view(9, { nowMs: PAY_BY_MS + 1 })).open, false)
  assert.equal(standingOf(replaced, view(9)).pendingSats, 0n)
  assert.equal(state(invoice([payment({ replacedBy: 'bb' }), payment()]), view(9)), 'seen')
})

test('an invoice whose use of credit is not covered gives and keeps no pass', () => {
  const lacking = { uncovered: ['i'] }
  const paid = invoice([payment({ block: block(5) })])
  assert.equal(state(paid, view(9, lacking)), 'reorganised')
  const redeemed = { ...paid, redeemed: { passId: 'x', atMs: OPENED_MS, sequence: 9 } }
  assert.equal(state(redeemed, view(9, lacking)), 'reorganised')
  assert.equal(state(redeemed, view(9)), 'redeemed')
  assert.equal(state(invoice(), view(9, { ...lacking, nowMs: PAY_BY_MS + 1 })), 'expired')
})

test('an invoice that was over when its client used credit is never opened again', () => {
  const paid = invoice([payment({ block: block(5) })], { closedAs: 'short' })
  assert.deepEqual([state(paid, view(9)), standingOf(paid, view(9)).closed], ['expired', true])
})
