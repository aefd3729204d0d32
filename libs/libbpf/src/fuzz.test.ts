import assert from 'node:assert/strict'
import { test } from 'node:test'
import { fuzzGuard } from './test-fuzz.ts'
import { needsKernel } from './test-sensor.ts'

/** The soak sends ten million. */
const PACKETS = 100_000

test('of mutated frames the guard drops those of blocked sources and no other, and counts each of them once', {
  skip: needsKernel,
}, async () => {
  const seed = Date.now() % 1_000_000_000
  const { packets, readable, dropped } = await fuzzGuard(PACKETS, seed)
  assert.equal(packets, PACKETS)
  // The mutations leave some of everything.
  for (const share of [readable / packets, dropped / readable])
    assert(share > 0.1 && share < 0.95, `${share}, seed ${seed}`)
})
