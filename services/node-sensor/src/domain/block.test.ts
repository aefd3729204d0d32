import assert from 'node:assert/strict'
import { test } from 'node:test'
import { create } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { formatRange, parseAddress, parseRange, rangeKey } from '@tollward/contracts'
import { BlockSchema } from '@tollward/contracts/enforcement'
import fc from 'fast-check'
import { isOnlyGuarded, readBlock } from './block.ts'

const range = (cidr: string) => {
  const parsed = parseRange(cidr)
  assert(parsed)
  return parsed
}
const address = (text: string) => {
  const parsed = parseAddress(text)
  assert(parsed)
  return parsed
}

test('only a range of which every address is guarded is guarded', () => {
  const guarded = ['10.0.0.1', '10.0.0.2', '10.0.0.3', '::1'].map(address)
  assert(isOnlyGuarded(range('10.0.0.1'), guarded))
  assert(isOnlyGuarded(range('::1'), guarded))
  assert(isOnlyGuarded(range('10.0.0.2/31'), guarded))
  assert(!isOnlyGuarded(range('10.0.0.0/30'), guarded))
  assert(!isOnlyGuarded(range('10.0.0.4'), guarded))
  assert(!isOnlyGuarded(range('10.0.0.0/8'), guarded))
  assert(!isOnlyGuarded(range('0.0.0.0/0'), guarded))
})

test('a key names a range only if no bit is set beyond its prefix, as when its text is read', () => {
  const value = create(BlockSchema, { format: 1, expiresAt: timestampFromMs(2000) })
  const ranges = fc.record({
    // Often with few bits set, so that both happen.
    address: fc
      .array(fc.constantFrom(0, 0, 0, 1, 0x80, 0xc0, 0xff), { minLength: 16, maxLength: 16 })
      .map((bytes) => Uint8Array.from(bytes)),
    prefixLength: fc.nat(128),
  })
  fc.assert(
    fc.property(ranges, (candidate) => {
      const isRead = readBlock(rangeKey(candidate), value, 1) !== undefined
      assert.equal(isRead, parseRange(formatRange(candidate)) !== undefined)
    }),
    { numRuns: 2000 },
  )
})

test('a block without an end, of another format, or under a key that is no range is none', () => {
  const value = create(BlockSchema, { format: 1, expiresAt: timestampFromMs(2000), decidedAt: timestampFromMs(1000) })
  const key = rangeKey(range('192.0.2.0/24'))
  assert.deepEqual(readBlock(key, value, 7), {
    ...{ key, range: range('192.0.2.0/24') },
    ...{ expiresAtMs: 2000, decidedAtMs: 1000, revision: 7 },
  })
  assert.equal(readBlock('no-range', value, 7), undefined)
  const withHostBits = key.replace('c0000200', 'c0000201')
  assert.equal(readBlock(withHostBits, value, 7), undefined)
  assert.equal(readBlock(key, { ...value, format: 2 }, 7), undefined)
  assert.equal(readBlock(key, create(BlockSchema, { format: 1 }), 7), undefined)
})
