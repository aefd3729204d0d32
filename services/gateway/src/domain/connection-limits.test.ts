import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ConnectionCounts, FrameRate } from './connection-limits.ts'

test('a source gets back what it releases, and no more', () => {
  const counts = new ConnectionCounts(2)
  assert.deepEqual([counts.take('a'), counts.take('a'), counts.take('a'), counts.take('b')], [true, true, false, true])
  counts.release('a')
  assert.deepEqual([counts.take('a'), counts.take('a')], [true, false])
  counts.release('nobody')
  assert.deepEqual([counts.take('nobody'), counts.take('nobody'), counts.take('nobody')], [true, true, false])
})

test('so many frames fit into each window, and the next window begins anew', () => {
  const rate = new FrameRate(2, 1000)
  assert.deepEqual([rate.take(0), rate.take(10), rate.take(20), rate.take(999)], [true, true, false, false])
  assert.deepEqual([rate.take(1000), rate.take(1001), rate.take(1002)], [true, true, false])
})
