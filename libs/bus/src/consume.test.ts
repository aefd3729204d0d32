import assert from 'node:assert/strict'
import { test } from 'node:test'
import { REDELIVERY_DELAYS_MS, redeliveryDelayMs } from './consume.ts'

const USED_UP = REDELIVERY_DELAYS_MS.length + 1

test('a message rests longer after each failure, until its retries are used up', () => {
  const delays = [1, 2, 3, 4, 5].map((deliveries) => redeliveryDelayMs(deliveries, 'internal', false))
  assert.deepEqual(delays, [...REDELIVERY_DELAYS_MS])
  assert.equal(redeliveryDelayMs(USED_UP, 'unavailable', false), undefined)
})

test('a consumer that waits for outages keeps what fails because of one, and nothing else', () => {
  for (const code of ['unavailable', 'deadline_exceeded', 'resource_exhausted']) {
    assert.equal(redeliveryDelayMs(USED_UP * 100, code, true), REDELIVERY_DELAYS_MS.at(-1))
  }
  for (const code of ['internal', 'conflict', 'retries used up']) {
    assert.equal(redeliveryDelayMs(USED_UP, code, true), undefined)
  }
})
