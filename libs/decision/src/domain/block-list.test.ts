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
  fc.record({ sweepAt: fc.integer({ min: 0, max: 100 }) }),
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
            } else if ('sweepAt' in made) {
              for (let call = 0; call < 300; call++) list.sweep(made.sweepAt)
              for (const [key, { expiresAtMs }] of plain) if (expiresAtMs <= made.sweepAt) plain.delete(key)
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

  test('holds a hundred thousand blocks through growth, removal and sweeping, in small steps and little memory', () => {
    const list = new BlockList([])
    const plain = new Map<string, BlockEntry>()
    const random = numbers(7)
    const draw = (): BlockEntry => {
      const isV6 = random() % 2 === 0
      const drawn = bytes(isV6 ? '2001:db8::' : '0.0.0.0')
      for (let index = isV6 ? 5 : 12; index < (isV6 ? 8 : 16); index++) drawn[index] = random() & 0xff
      return { range: { address: drawn, prefixLength: isV6 ? 64 : 128 }, expiresAtMs: 1 + (random() % 100) }
    }
    let bytesBefore = list.bytes
    for (let step = 0; step < 120_000; step++) {
      const entry = draw()
      list.set(entry)
      plain.set(rangeKey(entry.range), entry)
      assert.ok(list.bytes - bytesBefore <= 50_000 || step < 10, 'growing copies one segment, not the table')
      bytesBefore = list.bytes
      if (step % 4 === 0) {
        const key = rangeKey(draw().range)
        list.remove(key)
        plain.delete(key)
      }
    }
    for (const key of [...plain.keys()].filter((_, index) => index % 3 === 0)) {
      list.remove(key)
      plain.delete(key)
    }
    const agree = (nowMs: number) => {
      assert.equal(list.size, plain.size)
      for (const { range: held, expiresAtMs } of plain.values())
        assert.equal(list.isBlocked(held.address, nowMs), expiresAtMs > nowMs)
      for (let step = 0; step < 20_000; step++) {
        const { range: asked } = draw()
        const expected = (plain.get(rangeKey(asked))?.expiresAtMs ?? 0) > nowMs
        assert.equal(list.isBlocked(asked.address, nowMs), expected)
      }
    }
    agree(0)
    agree(50)
    for (let call = 0; call < 1000; call++) list.sweep(50)
    for (const [key, { expiresAtMs }] of plain) if (expiresAtMs <= 50) plain.delete(key)
    agree(50)
    for (const key of plain.keys()) list.remove(key)
    assert.equal(list.size, 0)
  })

  test('what is in force stays in force until a draft is swapped in, whole', () => {
    const list = new BlockList([])
    const [before, after] = ['192.0.2.1', '192.0.2.2'].map(bytes)
    assert.ok(before && after)
    list.set({ range: { address: before, prefixLength: 128 }, expiresAtMs: 50 })
    const draft = list.draft()
    draft.set({ range: { address: after, prefixLength: 128 }, expiresAtMs: 50 })
    assert.deepEqual([list.isBlocked(before, 0), list.isBlocked(after, 0)], [true, false])
    list.swap(draft)
    assert.deepEqual([list.isBlocked(before, 0), list.isBlocked(after, 0)], [false, true])
  })
})

/** Numbers of 31 bits that look random and are the same each time (a linear congruential generator). */
function numbers(seed: number): () => number {
  let state = seed
  return () => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0
    return state >>> 8
  }
}
