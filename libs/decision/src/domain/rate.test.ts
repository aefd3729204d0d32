import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { type Limit, RateTable } from './rate.ts'

const unlimited = () => assert.fail('nothing is evicted')

/** A bucket that leaks: the same limit, told in the other way. Times are whole milliseconds and intervals too, so it is exact. */
function naive(limit: Limit, times: readonly number[]): boolean[] {
  const intervalMs = (limit.perSeconds * 1000) / limit.requests
  let levelMs = 0
  let lastMs = 0
  return times.map((now) => {
    levelMs = Math.max(0, levelMs - (now - lastMs))
    lastMs = now
    if (levelMs > intervalMs * (limit.requests - 1)) return false
    levelMs += intervalMs
    return true
  })
}

const limit = fc.record({ requests: fc.constantFrom(1, 2, 5, 10, 50), perSeconds: fc.constantFrom(1, 2, 10) })
const times = fc.array(fc.integer({ min: 0, max: 500 }), { maxLength: 200 }).map((gaps) => {
  let now = 1_000_000
  return gaps.map((gap) => {
    now += gap
    return now
  })
})

describe('rates', () => {
  test('GCRA admits what a leaking bucket of the same size admits', () => {
    fc.assert(
      fc.property(limit, times, (given, at) => {
        const table = new RateTable(10, unlimited)
        assert.deepEqual(
          at.map((now) => table.take('k', given, now).conforms),
          naive(given, at),
        )
      }),
      { numRuns: 500 },
    )
  })

  test('after Retry-After seconds the request conforms', () => {
    fc.assert(
      fc.property(limit, times, (given, at) => {
        const table = new RateTable(10, unlimited)
        for (const now of at) {
          const rate = table.take('k', given, now)
          if (rate.conforms) continue
          assert.ok(table.take('k', given, now + rate.retryAfterSeconds * 1000).conforms)
          return
        }
      }),
      { numRuns: 500 },
    )
  })

  test('fractions of a millisecond do not cost a request of the burst', () => {
    const table = new RateTable(10, unlimited)
    const conforming = Array.from(
      { length: 8 },
      () => table.take('k', { requests: 7, perSeconds: 1 }, 1_700_000_000_000.3).conforms,
    )
    assert.deepEqual(conforming, [true, true, true, true, true, true, true, false])
  })

  test('keys do not share a limit', () => {
    const table = new RateTable(10, unlimited)
    const one = { requests: 1, perSeconds: 60 }
    assert.ok(table.take('a', one, 0).conforms)
    assert.ok(table.take('b', one, 0).conforms)
    assert.ok(!table.take('a', one, 1).conforms)
  })

  test('a request counts under all of its limits, or under none', () => {
    const wide = { key: 'wide', limit: { requests: 3, perSeconds: 60 } }
    const narrow = { key: 'narrow', limit: { requests: 1, perSeconds: 1 } }
    const table = new RateTable(10, unlimited)
    assert.ok(table.takeAll([wide, narrow], 0).conforms)
    for (let n = 0; n < 10; n++) {
      assert.deepEqual(table.takeAll([wide, narrow], 1), { conforms: false, retryAfterSeconds: 1, charge: narrow })
    }
    const unrefused = [1000, 2000].map((now) => table.takeAll([wide, narrow], now).conforms)
    assert.deepEqual(unrefused, [true, true], 'what was refused took nothing from the wide limit')
    assert.deepEqual(table.takeAll([wide, narrow], 3000), { conforms: false, retryAfterSeconds: 17, charge: wide })
  })

  test('several limits admit exactly what each of them would admit alone', () => {
    const limits = fc.array(limit, { minLength: 1, maxLength: 4 })
    fc.assert(
      fc.property(limits, times, (given, at) => {
        const table = new RateTable(10, unlimited)
        const apart = given.map(() => new RateTable(10, unlimited))
        const charges = given.map((limit, index) => ({ key: String(index), limit }))
        for (const now of at) {
          const all = charges.every((charge, index) => apart[index]?.check([charge], now).conforms)
          assert.equal(table.takeAll(charges, now).conforms, all)
          if (all) for (const [index, charge] of charges.entries()) apart[index]?.takeAll([charge], now)
        }
      }),
      { numRuns: 300 },
    )
  })

  test('of limits that refuse, the one that refuses longest is named, and after its seconds all conform', () => {
    const table = new RateTable(10, unlimited)
    const charges = [1, 50, 7].map((perSeconds) => ({ key: `${perSeconds}`, limit: { requests: 1, perSeconds } }))
    assert.ok(table.takeAll(charges, 0).conforms)
    assert.deepEqual(table.takeAll(charges, 0), { conforms: false, retryAfterSeconds: 50, charge: charges[1] })
    assert.ok(table.takeAll(charges, 50_000).conforms)
  })

  test('a request that counts as several takes as much as they', () => {
    const table = new RateTable(10, unlimited)
    const limit = { requests: 5, perSeconds: 5 }
    assert.ok(table.takeAll([{ key: 'k', limit, hits: 4 }], 0).conforms)
    assert.ok(!table.takeAll([{ key: 'k', limit, hits: 2 }], 0).conforms)
    assert.ok(table.takeAll([{ key: 'k', limit, hits: 0 }], 0).conforms)
    assert.ok(table.takeAll([{ key: 'k', limit }], 0).conforms)
    assert.ok(!table.takeAll([{ key: 'k', limit, hits: 6 }], 60_000).conforms, 'more than the limit never conforms')
  })

  test('a full table forgets stale keys first, then the oldest, and counts only those', () => {
    let evicted = 0
    const table = new RateTable(3, () => evicted++)
    const slow = { requests: 1, perSeconds: 100 }
    table.take('stale', { requests: 1000, perSeconds: 1 }, 0)
    table.take('old', slow, 10)
    table.take('new', slow, 20)
    table.take('more', slow, 30)
    assert.deepEqual([table.size, evicted], [3, 0])
    table.take('still more', slow, 40)
    assert.deepEqual([table.size, evicted], [3, 1])
    assert.ok(table.take('old', slow, 50).conforms, 'the oldest began anew')
    assert.ok(!table.take('more', slow, 60).conforms)
  })
})
