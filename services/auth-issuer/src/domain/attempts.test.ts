import assert from 'node:assert/strict'
import { test } from 'node:test'
import { parseAddress } from '@tollward/contracts'
import fc from 'fast-check'
import { type Rate, sourceOf, takeAttempt, withoutAttempt } from './attempts.ts'

const RATE: Rate = { burst: 3, intervalMs: 1000 }
const NOW = 1_800_000_000_000

function takeAll(arrivalMs: number, nowMs: number): { arrivalMs: number; taken: number; retryAfterMs: number } {
  let state = arrivalMs
  for (let taken = 0; ; taken++) {
    const result = takeAttempt(state, RATE, nowMs)
    if ('retryAfterMs' in result) return { arrivalMs: state, taken, retryAfterMs: result.retryAfterMs }
    state = result.theoreticalArrivalMs
  }
}

test('so many attempts at once, then one each interval', () => {
  const first = takeAll(0, NOW)
  assert.equal(first.taken, 3)
  assert.equal(first.retryAfterMs, 1000)
  assert.equal(takeAll(first.arrivalMs, NOW + 999).taken, 0)
  assert.equal(takeAll(first.arrivalMs, NOW + 1000).taken, 1)
  assert.equal(takeAll(first.arrivalMs, NOW + 60_000).taken, 3, 'the burst is back after a while')
})

test('nobody waits for longer than one interval, whatever is stored', () => {
  fc.assert(
    fc.property(fc.integer({ min: -1e13, max: 1e15 }), (arrivalMs) => {
      const result = takeAttempt(arrivalMs, RATE, NOW)
      if ('retryAfterMs' in result) assert(result.retryAfterMs > 0 && result.retryAfterMs <= RATE.intervalMs)
      else assert(result.theoreticalArrivalMs > NOW)
    }),
  )
})

test('an attempt that is given back is free again', () => {
  const { arrivalMs } = takeAll(0, NOW)
  assert.equal(takeAll(withoutAttempt(arrivalMs, RATE), NOW).taken, 1)
})

test('a source is an IPv4 address, or all of a subscriber’s IPv6 addresses', () => {
  const source = (text: string) => {
    const address = parseAddress(text)
    assert(address)
    return Buffer.from(sourceOf(address)).toString('hex')
  }
  assert.notEqual(source('192.0.2.1'), source('192.0.2.2'))
  assert.equal(source('2001:db8:1:2::1'), source('2001:db8:1:2:ffff::9'))
  assert.notEqual(source('2001:db8:1:2::1'), source('2001:db8:1:3::1'))
})
