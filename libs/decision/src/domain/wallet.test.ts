import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { DRY_FOR_MS, LEASE_IDLE_MS } from '../edges.ts'
import { type ChunkUse, chunkRequests, type HeldPass, type LeaseAnswer, Wallet } from './wallet.ts'

const pass = (passId: string, more: Partial<HeldPass> = {}): HeldPass => ({
  passId,
  clientId: 'c',
  plan: 'p',
  quotaRequests: 100n,
  activatedAtMs: 0,
  expiresAtMs: undefined,
  state: 'active',
  ...more,
})

const LASTS_MS = 30_000
const answer = (grantedRequests: number, more: Partial<LeaseAnswer> = {}): LeaseAnswer => ({
  leaseId: 'l',
  grantedRequests,
  unrecordedRequestsMax: 2,
  lastsMs: LASTS_MS,
  ...more,
})
const takes = (wallet: Wallet, held: HeldPass, clockMs = 0) => {
  let taken = 0
  while (wallet.take(held, clockMs)) taken += 1
  return taken
}

describe('wallet', () => {
  test('the oldest pass of the client and plan is used first, and no other client or plan has it', () => {
    const wallet = new Wallet()
    wallet.replace([
      pass('new', { activatedAtMs: 2 }),
      pass('old', { activatedAtMs: 1 }),
      pass('other', { clientId: 'd' }),
    ])
    assert.equal(wallet.current('c', 'p', 0)?.passId, 'old')
    assert.equal(wallet.current('d', 'p', 0)?.passId, 'other')
    assert.equal(wallet.current('c', 'q', 0), undefined)
    wallet.remove('old')
    assert.equal(wallet.current('c', 'p', 0)?.passId, 'new')
  })

  test('nothing is taken that was not leased', () => {
    const wallet = new Wallet()
    const held = pass('a')
    wallet.set(held)
    assert.deepEqual([wallet.take(held, 0), wallet.need(held, 0, 0)], [false, 'lease'])
    wallet.leased('a', answer(2, { unrecordedRequestsMax: 9 }), 0, 0)
    assert.equal(takes(wallet, held), 2)
    assert.equal(wallet.need(held, 0, 0), 'lease')
  })

  test('no more than the bound is served beyond the last record that was acknowledged', () => {
    const wallet = new Wallet()
    const held = pass('a')
    wallet.set(held)
    wallet.leased('a', answer(100, { unrecordedRequestsMax: 4 }), 0, 0)
    assert.ok(wallet.take(held, 0))
    assert.equal(wallet.need(held, 0, 0), undefined)
    assert.ok(wallet.take(held, 0))
    assert.equal(wallet.need(held, 0, 0), 'record', 'early, so that nobody has to wait for it')
    const use = wallet.use('a', false)
    assert.deepEqual(use, { leaseId: 'l', served: 2, atStake: 2 })
    assert.equal(takes(wallet, held), 2)
    assert.equal(wallet.need(held, 0, 0), 'record')
    wallet.recorded('a', use as ChunkUse, LASTS_MS, 0)
    assert.equal(takes(wallet, held), 2)
  })

  test('whatever is answered late, lost or repeated, no more is served than granted, or than recorded and the bound', () => {
    const step = fc.oneof(
      fc.record({ do: fc.constant('take' as const), count: fc.integer({ min: 1, max: 9 }) }),
      fc.record({ do: fc.constant('lease' as const), isHeard: fc.boolean() }),
      fc.record({ do: fc.constant('record' as const), isHeard: fc.boolean(), ends: fc.boolean() }),
      fc.record({ do: fc.constant('wait' as const), ms: fc.integer({ min: 0, max: LASTS_MS }) }),
    )
    fc.assert(
      fc.property(fc.array(step, { maxLength: 60, size: 'max' }), (steps) => {
        const bound = 3
        const wallet = new Wallet()
        const held = pass('a')
        wallet.set(held)
        // The verifier's side: one lease, and what was truly served of it.
        let lease = { id: 0, granted: 0, recorded: 0, served: 0, isThere: false }
        let nowMs = 0
        for (const each of steps) {
          if (each.do === 'wait') nowMs += each.ms
          else if (each.do === 'take') {
            for (let count = 0; count < each.count && wallet.take(held, nowMs); count += 1) {
              lease.served += 1
              assert.ok(lease.isThere, 'nothing of a lease that ended')
            }
            assert.ok(lease.served <= lease.granted)
            assert.ok(lease.served <= lease.recorded + bound)
          } else if (each.do === 'lease') {
            if (!lease.isThere) lease = { id: lease.id + 1, granted: 0, recorded: 0, served: 0, isThere: true }
            lease.granted = Math.max(lease.granted, lease.recorded + wallet.wanted('a'))
            const heard = answer(lease.granted, { leaseId: `${lease.id}`, unrecordedRequestsMax: bound })
            if (each.isHeard) wallet.leased('a', heard, nowMs, nowMs)
            else wallet.doubt('a')
          } else {
            const use = wallet.use('a', each.ends)
            if (use === undefined) continue
            const isThere = lease.isThere && (use.leaseId === '' ? each.ends : use.leaseId === `${lease.id}`)
            if (isThere) lease.recorded = Math.max(lease.recorded, use.served)
            if (isThere && each.ends) lease.isThere = false
            if (each.isHeard) wallet.recorded('a', use, isThere && !each.ends ? LASTS_MS : undefined, nowMs)
          }
        }
      }),
    )
  })

  test('of a pass whose whole quota is leased, what we hold is spent, and then nothing', () => {
    const wallet = new Wallet()
    wallet.leased('a', answer(1), 0, 0)
    wallet.set(pass('a', { state: 'exhausted' }))
    const current = wallet.current('c', 'p', 0)
    assert.ok(current)
    assert.ok(wallet.take(current, 0))
    assert.equal(wallet.current('c', 'p', 0), undefined)
  })

  test('a suspended or lapsed pass admits nothing, though some of it is leased', () => {
    const wallet = new Wallet()
    wallet.leased('a', answer(5), 0, 0)
    wallet.set(pass('a', { state: 'suspended' }))
    assert.equal(wallet.current('c', 'p', 0), undefined)
    wallet.set(pass('a', { expiresAtMs: 10 }))
    assert.equal(wallet.current('c', 'p', 9)?.passId, 'a')
    assert.equal(wallet.current('c', 'p', 10), undefined)
  })

  test('a pass from which nothing more could be leased is passed over for a while', () => {
    const wallet = new Wallet()
    const held = pass('a')
    wallet.set(held)
    wallet.leased('a', answer(0), 1000, 0)
    assert.equal(wallet.current('c', 'p', 1000), undefined)
    assert.equal(wallet.current('c', 'p', 1000 + DRY_FOR_MS)?.passId, 'a')
    wallet.leased('a', answer(2), 2000, 0)
    assert.equal(takes(wallet, held), 2)
    wallet.leased('a', answer(2), 3000, 0)
    assert.deepEqual([wallet.isSpent('a', 3000), wallet.current('c', 'p', 3000)], [true, undefined])
  })

  test('a lease that was not renewed admits nothing, and has to be ended before there is another', () => {
    const wallet = new Wallet()
    const held = pass('a')
    wallet.set(held)
    wallet.leased('a', answer(50), 0, 1000)
    assert.ok(wallet.take(held, 999 + LASTS_MS))
    const clockMs = 1000 + LASTS_MS
    assert.deepEqual([wallet.take(held, clockMs), wallet.need(held, 0, clockMs)], [false, 'end'])
    const use = wallet.use('a', true)
    assert.equal(wallet.take(held, 2000), false, 'whatever the clock says')
    wallet.recorded('a', use as ChunkUse, undefined, clockMs)
    assert.equal(wallet.need(held, 0, clockMs), 'lease')
  })

  test('a lease in the place of one that lapsed unheard begins anew', () => {
    const wallet = new Wallet()
    const held = pass('a')
    wallet.set(held)
    wallet.leased('a', answer(50), 0, 0)
    assert.equal(takes(wallet, held), 2)
    wallet.leased('a', answer(50, { leaseId: 'next' }), 0, 0)
    assert.equal(takes(wallet, held), 2)
    wallet.recorded('a', { leaseId: 'l', served: 2, atStake: 0 }, undefined, 0)
    assert.deepEqual(wallet.use('a', false), { leaseId: 'next', served: 2, atStake: 0 })
  })

  test('a lease that may have been granted unheard is ended before another is asked for', () => {
    const wallet = new Wallet()
    const held = pass('a')
    wallet.set(held)
    wallet.doubt('a')
    assert.deepEqual([wallet.current('c', 'p', 0), wallet.take(held, 0), wallet.need(held, 0, 0)], [held, false, 'end'])
    const use = wallet.use('a', true)
    assert.deepEqual(use, { leaseId: '', served: 0, atStake: 0 })
    wallet.recorded('a', use as ChunkUse, undefined, 0)
    assert.equal(wallet.need(held, 0, 0), 'lease')
  })

  test('a chunk in slow use is renewed in time, and one that nobody uses is given back', () => {
    const wallet = new Wallet()
    const held = pass('a')
    wallet.set(held)
    wallet.leased('a', answer(50, { unrecordedRequestsMax: 40 }), 0, 0)
    const due = (clockMs: number) => wallet.due(0, clockMs)
    for (let clockMs = 0; clockMs <= LASTS_MS / 2; clockMs += 5_000) {
      wallet.take(held, clockMs)
      assert.deepEqual(due(clockMs), [])
    }
    wallet.take(held, 16_000)
    assert.deepEqual(due(16_000), [{ passId: 'a', need: 'record' }])
    wallet.recorded('a', wallet.use('a', false) as ChunkUse, LASTS_MS, 16_000)
    assert.deepEqual(due(16_000 + LEASE_IDLE_MS - 1), [])
    assert.deepEqual(due(16_000 + LEASE_IDLE_MS), [{ passId: 'a', need: 'end' }])
  })

  test('a pass without quota is not leased and lasts until it lapses', () => {
    const wallet = new Wallet()
    const held = pass('a', { quotaRequests: 0n, expiresAtMs: 10 })
    wallet.set(held)
    assert.ok(wallet.take(held, 0) && wallet.take(held, 0))
    assert.equal(wallet.need(held, 0, 0), undefined)
  })

  test('a chunk is a small part of the quota and never all of a large one', () => {
    assert.equal(chunkRequests(pass('a', { quotaRequests: 1n })), 1)
    assert.equal(chunkRequests(pass('a', { quotaRequests: 1000n })), 50)
    assert.equal(chunkRequests(pass('a', { quotaRequests: 1_000_000_000n })), 5000)
  })
})
