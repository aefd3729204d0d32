import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { WantedBlocks } from './wanted-blocks.ts'

/** Few addresses, so that they are set, changed and removed again and again. */
const range = fc.record({
  address: fc.nat(400).map((number) => {
    const address = new Uint8Array(16)
    new DataView(address.buffer).setUint32(12, number * 0x0100_0001)
    return address
  }),
  prefixLength: fc.constantFrom(24, 96, 128),
})
const step = fc.record({ range, removes: fc.boolean(), expiresAtMs: fc.nat(1000), ruleId: fc.nat(0xffff_ffff) })

test('wanted blocks are as a map of the same steps says, whatever was set, changed and removed', () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 6000, size: 'max' }), (steps) => {
      const blocks = new WantedBlocks()
      const model = new Map<string, { expiresAtMs: number; ruleId: number; mark: number }>()
      for (const { range, removes, expiresAtMs, ruleId } of steps) {
        const key = JSON.stringify([...range.address, range.prefixLength])
        const position = blocks.find(range.address, range.prefixLength)
        assert.equal(position >= 0, model.has(key))
        if (removes) {
          if (position >= 0) blocks.remove(position)
          model.delete(key)
        } else {
          const set = blocks.set(range, { expiresAtMs, ruleId })
          assert.equal(set.isNew, !model.has(key))
          blocks.mark(set.position, ruleId & 7)
          model.set(key, { expiresAtMs, ruleId, mark: ruleId & 7 })
        }
        assert.equal(blocks.size, model.size)
      }
      const found = new Map(
        Array.from({ length: blocks.size }, (_, position) => {
          const { address, prefixLength } = blocks.range(position)
          assert.equal(blocks.find(address, prefixLength), position)
          return [
            JSON.stringify([...address, prefixLength]),
            { ...blocks.wanted(position), mark: blocks.markOf(position) },
          ]
        }),
      )
      assert.deepEqual(found, model)
      const over = [...model.values()].filter(({ expiresAtMs }) => expiresAtMs <= 500).length
      let met = 0
      for (let at = blocks.over(500); at >= 0; at = blocks.over(500, at)) met += 1
      assert.equal(met, over)
    }),
    { numRuns: 30 },
  )
})
