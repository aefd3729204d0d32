import assert from 'node:assert/strict'
import { test } from 'node:test'
import { create, type MessageInitShape } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { EntryAppendedSchema } from '@tollward/contracts/ledger'
import { type Conduct, OverrideSchema } from '@tollward/contracts/payment'
import { CallObservedSchema, Outcome } from '@tollward/contracts/sensor'
import fc from 'fast-check'
import { Callers } from './callers.ts'
import {
  ADDRESSES_MAX,
  afterDeeds,
  calledFrom,
  customerOf,
  type Deeds,
  decayed,
  deedsOfCall,
  HALF_LIFE_MS,
  LATELY_MS,
  newConduct,
  scoreOf,
  together,
} from './conduct.ts'
import { Ledger } from './ledger.ts'

const NOW_MS = 1_700_000_000_000
const DAY_MS = 86_400_000

const count = fc.double({ min: 0, max: 1e6, noNaN: true })
const deeds = fc.record({ admitted: count, violations: count, foreignTxids: count, alerts: count, failedLogins: count })
const elapsedMs = fc.integer({ min: 0, max: 400 * DAY_MS })

const conductOf = (did: Deeds) => afterDeeds(undefined, 'c', did, NOW_MS)
const score = (conduct: Conduct, ageMs: number, atMs = NOW_MS) => scoreOf(conduct, NOW_MS - ageMs, atMs).score
const near = (one: number, other: number) => Math.abs(one - other) <= 1e-9 * Math.max(1, one, other)

test('a score is a whole number from 0 to 1000', () => {
  fc.assert(
    fc.property(deeds, elapsedMs, (did, ageMs) => {
      const value = score(conductOf(did), ageMs)
      assert.ok(Number.isInteger(value) && value >= 0 && value <= 1000, String(value))
    }),
  )
})

test('more good deeds and a longer history never lower a score, more bad ones never raise it', () => {
  const bad = fc.constantFrom('violations', 'foreignTxids', 'alerts', 'failedLogins')
  fc.assert(
    fc.property(deeds, elapsedMs, elapsedMs, count, bad, (did, ageMs, olderByMs, more, kind) => {
      const before = score(conductOf(did), ageMs)
      assert.ok(score(conductOf({ ...did, admitted: did.admitted + more }), ageMs) >= before, 'more requests')
      assert.ok(score(conductOf(did), ageMs + olderByMs) >= before, 'more days')
      assert.ok(score(conductOf({ ...did, [kind]: did[kind] + more }), ageMs) <= before, kind)
    }),
  )
})

test('what is counted in many steps and replicas is counted as if it were one', () => {
  const step = fc.tuple(deeds, fc.integer({ min: 0, max: 30 * DAY_MS }))
  fc.assert(
    fc.property(fc.array(step, { minLength: 1, maxLength: 8 }), (steps) => {
      let nowMs = NOW_MS
      let conduct: Conduct | undefined
      const sum = { admitted: 0, violations: 0 }
      for (const [did, afterMs] of steps) {
        nowMs += afterMs
        const left = 0.5 ** (afterMs / HALF_LIFE_MS)
        sum.admitted = sum.admitted * left + did.admitted
        sum.violations = sum.violations * left + did.violations
        conduct = afterDeeds(conduct, 'c', did, nowMs)
      }
      assert.ok(conduct && near(conduct.admitted, sum.admitted) && near(conduct.violations, sum.violations))
    }),
  )
  fc.assert(
    fc.property(deeds, deeds, (one, other) => {
      const apart = afterDeeds(afterDeeds(undefined, 'c', one, NOW_MS), 'c', other, NOW_MS)
      const atOnce = afterDeeds(undefined, 'c', together(one, other), NOW_MS)
      for (const kind of ['admitted', 'violations', 'foreignTxids', 'alerts', 'failedLogins'] as const) {
        assert.ok(near(apart[kind], atOnce[kind]), kind)
      }
    }),
  )
})

test('what was done counts half after each half-life, and what is bad about a client fades', () => {
  const conduct = conductOf({ admitted: 1000, violations: 200, foreignTxids: 10, alerts: 3, failedLogins: 20 })
  const later = decayed(conduct, NOW_MS + HALF_LIFE_MS)
  assert.deepEqual(
    [later.admitted, later.violations, later.foreignTxids, later.alerts, later.failedLogins],
    [500, 100, 5, 1.5, 10],
  )
  fc.assert(
    fc.property(elapsedMs, elapsedMs, (one, more) => {
      const steps = decayed(decayed(conduct, NOW_MS + one), NOW_MS + one + more)
      assert.ok(near(steps.admitted, decayed(conduct, NOW_MS + one + more).admitted))
    }),
  )
  assert.equal(decayed(conduct, NOW_MS - DAY_MS).admitted, 1000, 'a clock that goes back')
  const bad = conductOf({ foreignTxids: 6 })
  assert.equal(score(bad, 0), 100)
  assert.equal(score(bad, 0, NOW_MS + HALF_LIFE_MS), 400)
})

test('whoever has little history has no good score, and a good one has the points that the documentation names', () => {
  assert.equal(score(conductOf({ admitted: 1e6 }), DAY_MS - 1), 400)
  assert.equal(score(conductOf({ admitted: 99 }), 365 * DAY_MS), 400)
  assert.equal(score(conductOf({ admitted: 10_000 }), 90 * DAY_MS), 1000)
  assert.equal(score(conductOf({ admitted: 10_000 }), 45 * DAY_MS), 850)
})

test('mistakes cost nothing: a few violations, and a txid that was mistaken', () => {
  const ageMs = 90 * DAY_MS
  assert.equal(score(conductOf({ admitted: 10_000, violations: 5, foreignTxids: 3, failedLogins: 10 }), ageMs), 1000)
  assert.equal(score(conductOf({ admitted: 10_000, foreignTxids: 8 }), ageMs), 500)
  assert.equal(score(conductOf({ admitted: 3_000, violations: 1_005 }), ageMs), 0)
})

test('what was only seen at an address never costs more than 300 points', () => {
  const ageMs = 90 * DAY_MS
  fc.assert(
    fc.property(count, count, (alerts, failedLogins) => {
      assert.ok(score(conductOf({ admitted: 10_000, alerts, failedLogins }), ageMs) >= 700)
    }),
  )
})

test("an operator's word counts instead of the score until it ends", () => {
  const override = create(OverrideSchema, {
    score: 900,
    reason: 'partner',
    operator: 'ops',
    until: timestampFromMs(NOW_MS + 1000),
  })
  const conduct = { ...conductOf({ violations: 100 }), override }
  assert.deepEqual(scoreOf(conduct, NOW_MS, NOW_MS), {
    score: 900,
    reasons: [`ops set it to 900 until ${new Date(NOW_MS + 1000).toISOString()}: partner`],
  })
  assert.equal(score(conduct, 0, NOW_MS + 1000), 0)
  const { until: _until, ...endless } = override
  assert.equal(score({ ...conduct, override: endless }, 0, NOW_MS + 1e12), 900)
})

test('only what a client itself was refused is a violation of its', () => {
  const call = (init: object) =>
    deedsOfCall(create(CallObservedSchema, { clientId: 'c', outcome: Outcome.REFUSED, reason: 'rule-denied', ...init }))
  assert.deepEqual(call({}), { violations: 1 })
  assert.deepEqual(call({ count: 5000 }), { violations: 1 }, 'the others may be of anybody at the same address')
  assert.deepEqual(call({ reason: 'client-limit' }), { violations: 1 })
  assert.deepEqual(call({ reason: 'client-limit', limitedByAddress: true }), {}, 'others may have used the limit up')
  assert.deepEqual(call({ outcome: Outcome.WOULD_REFUSE }), {}, 'trying a policy out costs nobody anything')
  assert.deepEqual(call({ outcome: Outcome.ADMITTED, reason: '' }), { admitted: 100 }, 'one of a hundred is recorded')
  for (const reason of ['payment-required', 'payment-pending', 'unavailable', 'blocked', '']) {
    assert.deepEqual(call({ reason }), {}, reason)
  }
  assert.equal(call({ clientId: '' }), undefined)
})

test('money paid counts as deep as its invoice asks for, and no more once a reorganisation took it back', () => {
  const ledger = new Ledger()
  const append = (entry: MessageInitShape<typeof EntryAppendedSchema>['entry']) =>
    ledger.apply(create(EntryAppendedSchema, { ...(entry && { entry }) }), ledger.sequence + 1)
  const openedAt = timestampFromMs(NOW_MS - 50 * DAY_MS)
  const outpoint = { txid: Buffer.alloc(32, 1), vout: 0 }
  const block = { blockHeight: 10, blockHash: Buffer.alloc(32, 2) }
  append({
    case: 'invoiceOpened',
    value: { invoiceId: 'i', clientId: 'c', amountSats: 500n, confirmations: 3, openedAt },
  })
  append({ case: 'paymentConfirmed', value: { invoiceId: 'i', outpoint, amountSats: 700n, ...block } })
  const customer = (tipHeight: number, conduct?: Conduct) =>
    customerOf(conduct, ledger.invoicesOf('c'), tipHeight, NOW_MS)
  assert.equal(customer(11).paidSats, 0n)
  assert.equal(customer(12).paidSats, 700n)
  // Nothing but the ledger knows it: it is as old as its first invoice, and has no history.
  assert.deepEqual([customer(12).ageMs, customer(12).score], [50 * DAY_MS, 400])
  const older = afterDeeds(undefined, 'c', { admitted: 10_000 }, NOW_MS - 60 * DAY_MS)
  assert.equal(customer(12, older).ageMs, 60 * DAY_MS)
  append({ case: 'paymentUnconfirmed', value: { invoiceId: 'i', outpoint, ...block } })
  assert.equal(customer(12).paidSats, 0n)
})

const address = (last: number) => Uint8Array.from([...new Uint8Array(15), last])

test('what happens at an address is put down to a client only if it alone called from there lately', () => {
  const callers = new Callers()
  const called = (clientId: string, from: number, atMs = NOW_MS) =>
    callers.set(afterDeeds(undefined, clientId, { calledFrom: [calledFrom(address(from), atMs)] }, atMs))
  called('a', 1)
  assert.equal(callers.soleAt(address(1), NOW_MS), 'a')
  assert.equal(callers.soleAt(address(2), NOW_MS), undefined)
  assert.equal(callers.soleAt(address(1), NOW_MS + LATELY_MS), undefined)
  called('b', 1, NOW_MS + 1000)
  assert.equal(callers.soleAt(address(1), NOW_MS + 1000), undefined)
  assert.equal(callers.soleAt(address(1), NOW_MS + LATELY_MS), 'b')
  called('b', 2, NOW_MS + 1000)
  assert.equal(callers.soleAt(address(1), NOW_MS + 1000), 'a')
  callers.delete('a')
  callers.delete('b')
  assert.equal(callers.addresses, 0)
})

test('whatever a client calls from, so many addresses of it are remembered, the latest', () => {
  fc.assert(
    fc.property(fc.array(fc.tuple(fc.integer({ min: 0, max: 20 }), fc.nat(LATELY_MS - 1))), (calls) => {
      const callers = new Callers()
      let conduct = newConduct('c', NOW_MS)
      let sum: Deeds = {}
      for (const [from, agoMs] of calls) {
        const deed = { calledFrom: [calledFrom(address(from), NOW_MS - agoMs)] }
        conduct = afterDeeds(conduct, 'c', deed, NOW_MS)
        sum = together(sum, deed)
        callers.set(conduct)
      }
      const latest = new Map<number, number>()
      for (const [from, agoMs] of calls) latest.set(from, Math.min(agoMs, latest.get(from) ?? LATELY_MS))
      const expected = [...latest.values()].toSorted((one, other) => one - other).slice(0, ADDRESSES_MAX)
      const kept = conduct.calledFrom.map(({ address: from }) => latest.get(from[15] ?? -1))
      assert.deepEqual(kept.toReversed(), expected)
      assert.equal(sum.calledFrom?.length ?? 0, expected.length)
      assert.equal(callers.addresses, expected.length)
    }),
    // Random calls seldom come from more addresses than are remembered.
    { examples: [[Array.from({ length: ADDRESSES_MAX + 2 }, (_, index) => [index, index])]] },
  )
})

// What others do, and what happens where others call from, in any order between what the client does itself.
const event = fc.record({
  kind: fc.constantFrom('call', 'refused', 'folded', 'alert', 'login', 'foreign txid', 'reuse'),
  clientId: fc.constantFrom('victim', 'other', 'third', ''),
  from: fc.integer({ min: 1, max: 4 }),
  afterMs: fc.integer({ min: 0, max: DAY_MS / 2 }),
})

test('whatever others do, and wherever, the score of a client is not below what it would be without them', () => {
  const victimsAddress = 1
  const play = (events: readonly (typeof event extends fc.Arbitrary<infer E> ? E : never)[]) => {
    const known = new Map<string, Conduct>()
    const callers = new Callers()
    let nowMs = NOW_MS
    const did = (clientId: string, deed: Deeds) => {
      const conduct = afterDeeds(known.get(clientId), clientId, deed, nowMs)
      known.set(clientId, conduct)
      callers.set(conduct)
    }
    did('victim', { admitted: 5000 })
    for (const { kind, clientId, from, afterMs } of events) {
      nowMs += afterMs
      if (kind === 'call' || kind === 'refused' || kind === 'folded') {
        const outcome = kind === 'call' ? Outcome.ADMITTED : Outcome.REFUSED
        const count = kind === 'folded' ? 1000 : 1
        const deed = deedsOfCall(create(CallObservedSchema, { clientId, outcome, reason: 'no-rule', count }))
        if (deed) did(clientId, { ...deed, calledFrom: [calledFrom(address(from), nowMs)] })
      } else if (kind === 'alert' || kind === 'login') {
        const caller = callers.soleAt(address(from), nowMs)
        if (caller !== undefined) did(caller, kind === 'alert' ? { alerts: 1 } : { failedLogins: 1 })
      } else if (clientId !== '') {
        did(clientId, kind === 'reuse' ? { failedLogins: 1 } : { foreignTxids: 1 })
      }
    }
    const conduct = known.get('victim')
    assert.ok(conduct)
    return scoreOf(conduct, NOW_MS - 90 * DAY_MS, NOW_MS + 60 * DAY_MS).score
  }
  fc.assert(
    fc.property(fc.array(event, { maxLength: 60 }), (all) => {
      // The client calls from one address, and nobody does anything there without a token.
      const events = all.map((one) => (one.clientId === 'victim' ? { ...one, from: victimsAddress } : one))
      const isOwn = (one: (typeof events)[number]) => one.clientId === 'victim' || one.from === victimsAddress
      const isSeenThere = (one: (typeof events)[number]) => one.kind === 'alert' || one.kind === 'login'
      // Without the others: time passes as before, and what was seen at the client's address stays.
      let waitedMs = 0
      const alone: typeof events = []
      for (const one of events) {
        waitedMs += one.afterMs
        if (one.clientId !== 'victim' && !(isSeenThere(one) && isOwn(one))) continue
        alone.push({ ...one, afterMs: waitedMs })
        waitedMs = 0
      }
      assert.ok(play(events) >= play(alone))
    }),
  )
})
