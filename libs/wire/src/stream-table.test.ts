import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { StreamTable } from './stream-table.ts'

test('whatever comes and goes, in whatever order, the table has what a map would have', () => {
  const step = fc.record({ does: fc.constantFrom('add', 'add', 'delete'), slot: fc.nat({ max: 100 }) })
  fc.assert(
    fc.property(fc.array(step, { minLength: 50, maxLength: 400 }), fc.constantFrom(2, 64, 130), (steps, stride) => {
      const table = new StreamTable<{ id: number }>()
      const map = new Map<number, { id: number }>()
      for (const { does, slot } of steps) {
        // Numbers that share few places meet each other often.
        const id = slot * stride + 1
        if (does === 'delete') assert.equal(table.delete(id), map.delete(id))
        else if (!map.has(id)) {
          const stream = { id }
          table.add(stream)
          map.set(id, stream)
        }
        assert.equal(table.size, map.size)
        for (const [known, stream] of map) assert.equal(table.get(known), stream)
        assert.equal(table.get(id), map.get(id))
      }
      const ascending = (all: Iterable<{ id: number }>) => [...all].sort((one, other) => one.id - other.id)
      assert.deepEqual(ascending(table.values()), ascending(map.values()))
    }),
    { numRuns: 300 },
  )
})
