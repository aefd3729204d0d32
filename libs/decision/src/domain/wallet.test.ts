import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { DRY_FOR_MS } from '../edges.ts'
import { chunkRequests, type HeldPass, Wallet } from './wallet.ts'

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
    assert.equal(wallet.take(held), false)
    wallet.leased('a', 2, 0)
    assert.deepEqual([wallet.take(held), wallet.take(held), wallet.take(held)], [true, true, false])
  })

  test('of a pass whose whole quota is leased, what we hold is spent, and then nothing', () => {
    const wallet = new Wallet()
    wallet.leased('a', 1, 0)
    wallet.set(pass('a', { state: 'exhausted' }))
    const current = wallet.current('c', 'p', 0)
    assert.ok(current)
    assert.ok(wallet.take(current))
    assert.equal(wallet.current('c', 'p', 0), undefined)
  })

  test('a suspended or lapsed pass admits nothing, though some of it is leased', () => {
    const wallet = new Wallet()
    wallet.leased('a', 5, 0)
    wallet.set(pass('a', { state: 'suspended' }))
    assert.equal(wallet.current('c', 'p', 0), undefined)
    wallet.set(pass('a', { expiresAtMs: 10 }))
    assert.equal(wallet.current('c', 'p', 9)?.passId, 'a')
    assert.equal(wallet.current('c', 'p', 10), undefined)
  })

  test('a pass from which nothing could be leased is passed over for a while', () => {
    const wallet = new Wallet()
    wallet.set(pass('a'))
    wallet.leased('a', 0, 1000)
    assert.equal(wallet.current('c', 'p', 1000), undefined)
    assert.equal(wallet.current('c', 'p', 1000 + DRY_FOR_MS)?.passId, 'a')
  })

  test('a pass without quota is not leased and lasts until it lapses', () => {
    const wallet = new Wallet()
    const held = pass('a', { quotaRequests: 0n, expiresAtMs: 10 })
    wallet.set(held)
    assert.ok(wallet.take(held) && wallet.take(held))
    assert.equal(wallet.isLow(held), false)
  })

  test('what is given back is gone here', () => {
    const wallet = new Wallet()
    const held = pass('a')
    wallet.set(held)
    wallet.leased('a', 5, 0)
    wallet.take(held)
    assert.deepEqual(wallet.giveBack(), [{ passId: 'a', unused: 4 }])
    assert.equal(wallet.take(held), false)
    assert.deepEqual(wallet.giveBack(), [])
  })

  test('a chunk is a small part of the quota and never all of a large one', () => {
    assert.equal(chunkRequests(pass('a', { quotaRequests: 1n })), 1)
    assert.equal(chunkRequests(pass('a', { quotaRequests: 1000n })), 50)
    assert.equal(chunkRequests(pass('a', { quotaRequests: 1_000_000_000n })), 1000)
  })
})
