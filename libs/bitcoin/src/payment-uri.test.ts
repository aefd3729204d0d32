import assert from 'node:assert/strict'
import { test } from 'node:test'
import { AppError } from '@tollward/errors'
import fc from 'fast-check'
import { AMOUNT_SATS_MAX, formatBtc, formatPaymentUri, parseBtc, parsePaymentUri } from './mod.ts'

const ADDRESS = 'bc1qcr8te4kr609gcawutmrza0j4xv80jy8z306fyu'
const TAPROOT = 'bc1p5cyxnuxmeuwuvkwfem96lqzszd02n6xdcjrs20cac6yqjjwudpxqkedrcr'
const amounts = fc.bigInt({ min: 0n, max: AMOUNT_SATS_MAX })
const texts = fc.string({ unit: 'grapheme', maxLength: 60 })

const refused = (uri: string, message: RegExp) =>
  assert.throws(
    () => parsePaymentUri(uri, 'mainnet'),
    (error) => error instanceof AppError && error.code === 'invalid_argument' && message.test(error.message),
  )

test('an amount survives the way to BTC and back, sat by sat', () => {
  fc.assert(fc.property(amounts, (amountSats) => parseBtc(formatBtc(amountSats)) === amountSats))
  assert.equal(formatBtc(1n), '0.00000001')
  assert.equal(formatBtc(10_000n), '0.0001')
  assert.equal(formatBtc(100_000_000n), '1')
  assert.equal(formatBtc(AMOUNT_SATS_MAX), '21000000')
  assert.throws(() => formatBtc(-1n), RangeError)
  assert.throws(() => formatBtc(AMOUNT_SATS_MAX + 1n), RangeError)
})

test('what is no exact amount is refused', () => {
  for (const text of [
    '',
    '.',
    '1.',
    '.5',
    '-1',
    '+1',
    '1e3',
    '0.000000001',
    '0x1',
    '1,0',
    ' 1',
    '1 ',
    '21000000.00000001',
    '١',
  ]) {
    assert.throws(() => parseBtc(text), AppError, text)
  }
})

test('a payment URI survives being written and read', () => {
  fc.assert(
    fc.property(fc.constantFrom(ADDRESS, TAPROOT), amounts, texts, texts, (address, amountSats, label, message) => {
      const request = { address, amountSats, label, message }
      assert.deepEqual(parsePaymentUri(formatPaymentUri(request), 'mainnet'), request)
    }),
  )
  assert.equal(
    formatPaymentUri({ address: ADDRESS, amountSats: 10_000n, label: 'a b' }),
    `bitcoin:${ADDRESS}?amount=0.0001&label=a%20b`,
  )
})

test('whatever is given as a URI, the answer is a payment or a clear refusal', () => {
  const pieces = fc.constantFrom(
    'bitcoin:',
    'BITCOIN:',
    ADDRESS,
    '?',
    '&',
    'amount=',
    '0.1',
    'req-',
    '%',
    '=',
    '#',
    'x',
  )
  const uris = fc.oneof(
    fc.string(),
    fc.array(pieces, { maxLength: 8 }).map((parts) => parts.join('')),
  )
  fc.assert(
    fc.property(uris, (uri) => {
      try {
        parsePaymentUri(uri, 'mainnet')
      } catch (error) {
        assert.ok(error instanceof AppError && error.code === 'invalid_argument')
      }
    }),
    { numRuns: 2000 },
  )
})

test('a URI that demands the unknown, pays elsewhere or contradicts itself is refused', () => {
  assert.deepEqual(parsePaymentUri(`BITCOIN:${ADDRESS.toUpperCase()}`, 'mainnet'), { address: ADDRESS.toUpperCase() })
  assert.deepEqual(parsePaymentUri(`bitcoin:${ADDRESS}?somethingelse=50&x`, 'mainnet'), { address: ADDRESS })
  refused(`bitcoin:${ADDRESS}?req-somethingelse=50`, /not supported/)
  refused(`bitcoin:${ADDRESS}?REQ-x=50`, /not supported/)
  refused(`bitcoin:${ADDRESS}?amount=1&amount=2`, /twice/)
  refused(`bitcoin:${ADDRESS}?amount=1&AMOUNT=2`, /twice/)
  refused(`bitcoin:${ADDRESS}?label=%zz`, /escape/)
  refused(`bitcoin:bcrt1q6rhpng9evdsfnn833a4f4vej0asu6dk5srld6x`, /not a mainnet address/)
  refused(`bitcoin:${ADDRESS.slice(0, -1)}q`, /not a mainnet address/)
  refused(`bitcoin:?amount=1`, /not a mainnet address/)
  refused(`litecoin:${ADDRESS}`, /bitcoin:/)
  refused(`bitcoin:${ADDRESS}?label=${'x'.repeat(5000)}`, /longer/)
})
