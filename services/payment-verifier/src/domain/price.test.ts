import assert from 'node:assert/strict'
import { test } from 'node:test'
import { PlanSchema } from '@tollward/documents'
import fc from 'fast-check'
import { confirmationsFor, priceOf } from './price.ts'

const DAY_MS = 24 * 3_600_000

const planOf = (spec: object) =>
  PlanSchema.parse({
    apiVersion: 'tollward.dev/v1',
    kind: 'Plan',
    metadata: { name: 'orders' },
    spec: { requests: 10, confirmations: 1, payWithin: '15m', confirmWithin: '2h', ...spec },
  })

const sats = fc.integer({ min: 546, max: 1_000_000_000 })
const basisPoints = fc.integer({ min: 0, max: 9000 })
const plan = fc
  .record({
    priceSats: sats,
    bitcoin: basisPoints,
    conduct: fc.option(fc.record({ basisPoints: fc.integer({ min: 1, max: 9000 }), minimumScore: fc.nat(999) })),
    cap: basisPoints,
    floorSats: sats,
  })
  .map(({ priceSats, conduct, ...discounts }) =>
    planOf({ priceSats, discounts: { ...discounts, ...(conduct && { conduct }) } }),
  )
const customer = fc.record({
  score: fc.nat(1000),
  ageMs: fc.integer({ min: 0, max: 30 * DAY_MS }),
  paidSats: fc.bigInt(0n, 10_000n),
})

test('a price is the list price less its cuts, and these keep within cap and floor', () => {
  fc.assert(
    fc.property(plan, customer, ({ spec, ...document }, who) => {
      const price = priceOf({ spec, ...document }, who)
      const cutSats = price.cuts.reduce((sum, { amountSats }) => sum + amountSats, 0n)
      assert.equal(price.sats, price.listSats - cutSats)
      assert.ok(cutSats * 10_000n <= price.listSats * BigInt(spec.discounts.cap))
      assert.ok(cutSats === 0n || price.sats >= BigInt(spec.discounts.floorSats))
      assert.ok(price.cuts.every(({ amountSats }) => amountSats > 0n))
    }),
  )
})

test('who behaves better, is known for longer or paid more never pays more', () => {
  fc.assert(
    fc.property(plan, customer, customer, (of, one, other) => {
      const better = {
        score: Math.max(one.score, other.score),
        ageMs: Math.max(one.ageMs, other.ageMs),
        paidSats: one.paidSats + other.paidSats,
      }
      assert.ok(priceOf(of, better).sats <= priceOf(of, one).sats)
    }),
  )
})

test('conduct cuts in full from 1000 on, in proportion between that and the minimum, and only with a history', () => {
  const conduct = { basisPoints: 2000, minimumScore: 600, minimumAge: '7d', minimumPaidSats: 5000 }
  const of = planOf({ priceSats: 10_000, discounts: { bitcoin: 1000, conduct } })
  const price = (score: number, ageMs = 7 * DAY_MS, paidSats = 5_000n) => priceOf(of, { score, ageMs, paidSats })
  assert.deepEqual(
    [599, 600, 800, 1000].map((score) => price(score).sats),
    [9_000n, 9_000n, 8_000n, 7_000n],
  )
  assert.deepEqual(price(1000).cuts, [
    { kind: 'bitcoin', basisPoints: 1000, amountSats: 1_000n, score: 0 },
    { kind: 'conduct', basisPoints: 2000, amountSats: 2_000n, score: 1000 },
  ])
  assert.equal(price(1000, 7 * DAY_MS - 1).sats, 9_000n)
  assert.equal(price(1000, 7 * DAY_MS, 4_999n).sats, 9_000n)
})

test('what goes beyond the cap or below the floor is taken from the last cut', () => {
  const conduct = { basisPoints: 5000, minimumScore: 0, minimumAge: '1s' }
  const who = { score: 1000, ageMs: DAY_MS, paidSats: 0n }
  const cuts = (discounts: object) =>
    priceOf(planOf({ priceSats: 10_000, discounts: { bitcoin: 3000, conduct, ...discounts } }), who).cuts.map(
      ({ amountSats }) => amountSats,
    )
  assert.deepEqual(cuts({}), [3_000n, 5_000n])
  assert.deepEqual(cuts({ cap: 4000 }), [3_000n, 1_000n])
  assert.deepEqual(cuts({ floorSats: 6_500 }), [3_000n, 500n])
  assert.deepEqual(cuts({ cap: 2000 }), [2_000n])
})

test('larger amounts need more confirmations, from each named amount on', () => {
  const of = planOf({
    priceSats: 10_000,
    confirmations: 1,
    moreConfirmations: [
      { fromSats: 20_000, confirmations: 3 },
      { fromSats: 1_000_000, confirmations: 6 },
    ],
  })
  assert.deepEqual(
    [1n, 19_999n, 20_000n, 999_999n, 1_000_000n].map((amount) => confirmationsFor(of, amount)),
    [1, 1, 3, 3, 6],
  )
})
