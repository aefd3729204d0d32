import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { test } from 'node:test'
import { DUST_SATS, PlanSchema } from '@tollward/documents'
import fc from 'fast-check'
import { creditFor } from './credit.ts'
import { entryOf } from './facts.ts'
import type { Invoice } from './invoice.ts'
import { Ledger } from './ledger.ts'
import { openedFact } from './opening.ts'
import { passIdOf } from './pass.ts'
import { priceOf } from './price.ts'

const NOW_MS = 1_700_000_000_000
const TIP = { hash: createHash('sha256').update('tip').digest('hex'), height: 700 }
const AT = { index: 7, address: 'address', script: Buffer.from('0014', 'hex') }

/** The invoice as the ledger tells it after the order. */
function opened(spec: object, balanceSats: bigint): Invoice {
  const plan = PlanSchema.parse({
    apiVersion: 'tollward.dev/v1',
    kind: 'Plan',
    metadata: { name: 'orders' },
    spec: { priceSats: 10_000, requests: 10, confirmations: 1, payWithin: '15m', confirmWithin: '2h', ...spec },
  })
  const price = priceOf(plan, { score: 0, ageMs: 0, paidSats: 0n })
  const order = { invoiceId: 'i', clientId: 'c', plan, idempotencyKey: '', pageKey: Buffer.from('key') }
  const fact = openedFact(order, { price, creditSats: creditFor(price.sats, balanceSats) }, AT, TIP, NOW_MS)
  const ledger = new Ledger()
  ledger.apply(entryOf(fact, NOW_MS), 1)
  const invoice = ledger.invoice('i')
  assert.ok(invoice)
  return invoice
}

test('what is to be paid is the list price less discounts and credit: nothing, or what nodes relay', () => {
  const spec = fc.record({
    priceSats: fc.integer({ min: 546, max: 100_000 }),
    discounts: fc.record({ bitcoin: fc.integer({ min: 0, max: 9000 }) }),
  })
  fc.assert(
    fc.property(spec, fc.bigInt(-1_000n, 120_000n), (of, balanceSats) => {
      const { listPriceSats, cuts, creditSats, amountSats, redeemed } = opened(of, balanceSats)
      const cutSats = cuts.reduce((sum, cut) => sum + cut.amountSats, 0n)
      assert.equal(amountSats, listPriceSats - cutSats - creditSats)
      assert.ok(amountSats === 0n || amountSats >= DUST_SATS, `${amountSats} to be paid`)
      assert.ok(creditSats >= 0n && (creditSats === 0n || creditSats <= balanceSats))
      assert.equal(redeemed?.passId, amountSats === 0n ? passIdOf('i') : undefined)
    }),
  )
})

test('an invoice freezes the clocks and the policy of its plan', () => {
  const frozen = opened({ confirmWithinBlocks: 20, redeemWithin: '2d', credit: { late: false } }, 0n)
  assert.deepEqual(
    [frozen.openedAtMs, frozen.payByMs, frozen.confirmByMs, frozen.redeemByMs],
    [NOW_MS, NOW_MS + 900_000, NOW_MS + 7_200_000, NOW_MS + 172_800_000],
  )
  assert.equal(frozen.confirmByHeight, 720)
  assert.deepEqual(frozen.creditPolicy, { late: false, short: true, excess: true })
  assert.equal(opened({}, 0n).confirmByHeight, 0)
})

test('confirmations go by what is paid on the chain, not by the price', () => {
  const spec = { priceSats: 50_000, moreConfirmations: [{ fromSats: 40_000, confirmations: 6 }] }
  assert.equal(opened(spec, 0n).confirmationsNeeded, 6)
  assert.equal(opened(spec, 20_000n).confirmationsNeeded, 1)
})
