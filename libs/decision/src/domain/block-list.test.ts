import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { type AddressRange, parseAddress, parseRange, rangeContains, rangeKey } from '@tollward/contracts'
import fc from 'fast-check'
import { type BlockEntry, BlockList } from './block-list.ts'

/** Addresses close together, so that ranges overlap and nest. */
const address = fc.oneof(
  fc
    .tuple(fc.constantFrom(10, 127), fc.constantFrom(0, 1), fc.constantFrom(0, 128), fc.integer({ min: 0, max: 5 }))
    .map((parts) => bytes(parts.join('.'))),
  fc.integer({ min: 0, max: 7 }).map((last) => bytes(`2001:db8::${last}`)),
)
const range = fc.tuple(address, fc.integer({ min: 0, max: 128 })).map(([of, prefixLength]): AddressRange => {
  const masked = Uint8Array.from(of)
  for (let bit = prefixLength; bit < 128; bit++) masked[bit >> 3] = (masked[bit >> 3] ?? 0) & ~(1 << (7 - (bit & 7)))
  return { address: masked, prefixLength }
})
const step = fc.oneof(
  fc.record({ set: fc.record({ range, expiresAtMs: fc.integer({ min: 0, max: 100 }) }) }),
  fc.record({ remove: range }),
  fc.record({
    replace: fc.array(fc.record({ range, expiresAtMs: fc.integer({ min: 0, max: 100 }) }), { maxLength: 5 }),
  }),
)

function bytes(text: string): Uint8Array {
  const parsed = parseAddress(text)
  assert.ok(parsed)
  return parsed
}

describe('block list', () => {
  test('blocks what looking at every block one by one blocks', () => {
    fc.assert(
      fc.property(
        fc.array(step, { maxLength: 20 }),
        fc.array(address, { minLength: 1, maxLength: 10 }),
        fc.integer({ min: 0, max: 100 }),
        (steps, asked, now) => {
          const list = new BlockList([])
          let plain = new Map<string, BlockEntry>()
          for (const made of steps) {
            if ('set' in made) {
              list.set(made.set)
              plain.set(rangeKey(made.set.range), made.set)
            } else if ('remove' in made) {
              list.remove(rangeKey(made.remove))
              plain.delete(rangeKey(made.remove))
            } else {
              list.replace(made.replace)
              plain = new Map(made.replace.map((entry) => [rangeKey(entry.range), entry]))
            }
          }
          assert.equal(list.size, plain.size)
          for (const one of asked) {
            const expected = [...plain.values()].some(
              (entry) => entry.expiresAtMs > now && rangeContains(entry.range, one),
            )
            assert.equal(list.isBlocked(one, now), expected)
          }
        },
      ),
      { numRuns: 2000 },
    )
  })

  test('guarded addresses pass whatever is blocked, each address and not its prefix', () => {
    const list = new BlockList([bytes('127.0.0.1'), bytes('::1')])
    for (const cidr of ['127.0.0.0/8', '127.0.0.1', '::/0', '::1']) {
      const parsed = parseRange(cidr)
      assert.ok(parsed)
      list.set({ range: parsed, expiresAtMs: 100 })
    }
    assert.equal(list.isBlocked(bytes('127.0.0.1'), 0), false)
    assert.equal(list.isBlocked(bytes('::ffff:127.0.0.1'), 0), false)
    assert.equal(list.isBlocked(bytes('::1'), 0), false)
    assert.equal(list.isBlocked(bytes('127.0.0.66'), 0), true)
    assert.equal(list.isBlocked(bytes('::2'), 0), true)
  })

  test('a block ends at its time although nobody lifts it', () => {
    const list = new BlockList([])
    list.set({ range: { address: bytes('192.0.2.1'), prefixLength: 128 }, expiresAtMs: 50 })
    assert.equal(list.isBlocked(bytes('192.0.2.1'), 49), true)
    assert.equal(list.isBlocked(bytes('192.0.2.1'), 50), false)
  })
})
