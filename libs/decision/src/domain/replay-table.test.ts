import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { ReplayTable } from './replay-table.ts'

const WINDOW_MS = 100

test('an id counts once in every window, whenever it comes', () => {
  const uses = fc.array(fc.tuple(fc.constantFrom('a', 'b', 'c'), fc.integer({ min: 0, max: 80 })), { maxLength: 60 })
  fc.assert(
    fc.property(uses, (steps) => {
      const table = new ReplayTable({ windowMs: WINDOW_MS, idsMax: 100 })
      const takenAt = new Map<string, number>()
      let nowMs = 1_800_000_000_000
      for (const [id, laterMs] of steps) {
        nowMs += laterMs
        const before = takenAt.get(id)
        const taken = table.take(id, nowMs)
        if (before !== undefined && nowMs - before < WINDOW_MS) assert.equal(taken, 'used')
        if (before === undefined || nowMs - before >= 3 * WINDOW_MS) assert.equal(taken, 'fresh')
        if (taken === 'fresh') takenAt.set(id, nowMs)
      }
    }),
    { numRuns: 500 },
  )
})

test('a full table takes nothing new, and has room again when its ids are over', () => {
  const table = new ReplayTable({ windowMs: WINDOW_MS, idsMax: 2 })
  assert.deepEqual(
    ['a', 'b', 'c', 'a'].map((id) => table.take(id, 1000)),
    ['fresh', 'fresh', 'full', 'used'],
  )
  assert.equal(table.take('c', 1000 + 2 * WINDOW_MS), 'fresh')
  assert.equal(table.size, 1)
})
