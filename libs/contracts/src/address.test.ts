import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import {
  formatAddress,
  formatRange,
  parseAddress,
  parseRange,
  parseRangeKey,
  rangeContains,
  rangeKey,
} from './address.ts'

const addressBytes = fc.uint8Array({ minLength: 16, maxLength: 16 })

test('every address survives being written and read', () => {
  fc.assert(fc.property(addressBytes, (address) => assert.deepEqual(parseAddress(formatAddress(address)), address)))
  fc.assert(fc.property(fc.ipV4(), (text) => assert.equal(formatAddress(parseAddress(text) ?? new Uint8Array()), text)))
})

test('what only looks like an address is none', () => {
  const notAddresses = [
    '',
    '1',
    '1.2.3',
    '1.2.3.4.5',
    '256.1.1.1',
    '01.2.3.4',
    '0x7f.0.0.1',
    '1.2.3.4:80',
    '[::1]',
    '::1%eth0',
    '::g',
    '1.2.3.4 ',
    'localhost',
  ]
  for (const text of notAddresses) assert.equal(parseAddress(text), undefined, text)
})

test('a range with bits beyond its prefix is a mistake, not a rounding', () => {
  for (const text of [
    '10.0.0.1/8',
    '10.0.0.0/33',
    '10.0.0.0/08',
    '::1/64',
    '10.0.0.0/8/8',
    '10.0.0.0/',
    '/8',
    '10.0.0.0/-1',
  ]) {
    assert.equal(parseRange(text), undefined, text)
  }
  for (const text of ['10.0.0.0/8', '127.0.0.66', '2001:db8::/32', '::/0', '0.0.0.0/0']) {
    const range = parseRange(text)
    assert.ok(range, text)
    assert.equal(formatRange(range), text)
  }
})

test('containment agrees with comparing bit by bit', () => {
  const bits = (address: Uint8Array) => [...address].map((byte) => byte.toString(2).padStart(8, '0')).join('')
  fc.assert(
    fc.property(
      addressBytes,
      addressBytes,
      fc.integer({ min: 0, max: 128 }),
      fc.boolean(),
      (a, b, prefixLength, near) => {
        const other = near
          ? Uint8Array.from([...a.subarray(0, prefixLength >> 3), ...b.subarray(prefixLength >> 3)])
          : b
        const expected = bits(a).slice(0, prefixLength) === bits(other).slice(0, prefixLength)
        assert.equal(rangeContains({ address: a, prefixLength }, other), expected)
      },
    ),
  )
})

test('every range has its own key, and the key reads back', () => {
  fc.assert(
    fc.property(addressBytes, fc.integer({ min: 0, max: 128 }), (address, prefixLength) => {
      assert.deepEqual(parseRangeKey(rangeKey({ address, prefixLength })), { address, prefixLength })
    }),
  )
  for (const key of ['', '00-1', `${'0'.repeat(32)}-129`, `${'0'.repeat(32)}-01`, `${'G'.repeat(32)}-1`])
    assert.equal(parseRangeKey(key), undefined)
})
