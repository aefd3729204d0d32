import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { HEADER_BYTES_MAX, HEADER_FIELDS_MAX, readFields, singleValue } from './fields.ts'

const TXID = '0A'.repeat(32)
const NOTHING = { token: undefined, scheme: 'bearer', txid: undefined, proof: undefined, strays: [] } as const

describe('fields of a request', () => {
  test('a token comes from one Authorization of scheme Bearer, in any case', () => {
    for (const name of ['authorization', 'Authorization', 'AUTHORIZATION']) {
      assert.deepEqual(readFields([name, 'bearer  abc-._~+/=']), { ...NOTHING, token: 'abc-._~+/=' })
    }
  })

  test('another scheme is no token, and Bearer with something else than a token is an empty one', () => {
    for (const value of ['Basic YTpi', 'DPoPx t', 'Bearert', '']) {
      assert.deepEqual(readFields(['authorization', value]), NOTHING)
    }
    for (const value of ['Bearer', 'Bearer ', 'Bearer a b', 'Bearer "x"', 'Bearer \u00e9']) {
      assert.deepEqual(readFields(['authorization', value]), { ...NOTHING, token: '' })
    }
  })

  test('a DPoP token comes with its one proof, and several proofs or what cannot be one are none', () => {
    const dpop = { ...NOTHING, token: 't', scheme: 'dpop' } as const
    assert.deepEqual(readFields(['Authorization', 'DPoP t']), dpop)
    assert.deepEqual(readFields(['Authorization', 'dpop t', 'DPoP', 'a.b.c']), { ...dpop, proof: 'a.b.c' })
    for (const proofs of [
      ['dpop', 'a.b.c', 'DPoP', 'a.b.c'],
      ['dpop', 'a.b.c, d.e.f'],
      ['dpop', 'a'.repeat(5000)],
    ]) {
      assert.deepEqual(readFields(['authorization', 'DPoP t', ...proofs]), { ...dpop, proof: false })
    }
  })

  test('two credentials are refused, whether in two fields or joined in one', () => {
    assert.equal(readFields(['authorization', 'Bearer a', 'Authorization', 'Bearer b']), 'authorization-ambiguous')
    assert.equal(readFields(['authorization', 'Bearer a, Bearer b']), 'authorization-ambiguous')
    assert.equal(readFields(['authorization', 'Bearer a,Basic YTpi']), 'authorization-ambiguous')
  })

  test('a txid has exactly 64 hexadecimal digits and comes once', () => {
    const fields = readFields(['X-Bitcoin-Txid', TXID])
    assert.equal(typeof fields === 'object' && fields.txid, TXID.toLowerCase())
    for (const value of ['', 'ab', `${TXID}0`, `${TXID} `, TXID.replace('0', 'g'), `${TXID},${TXID}`]) {
      assert.equal(readFields(['x-bitcoin-txid', value]), 'txid-malformed')
    }
    assert.equal(readFields(['x-bitcoin-txid', TXID, 'x-bitcoin-txid', TXID]), 'txid-malformed')
  })

  test('every header that claims to be ours is found, in any case and with underscores too', () => {
    const fields = readFields([
      'X-Tollward-Client',
      'a',
      'x_tollward_pass',
      'b',
      'x-tollward_new',
      'c',
      'X-BITCOIN_TXID',
      'd',
      'x-other',
      'e',
    ])
    assert.deepEqual(typeof fields === 'object' && fields.strays, [
      'x-tollward-client',
      'x_tollward_pass',
      'x-tollward_new',
      'x-bitcoin_txid',
    ])
  })

  test('Connection cannot name what we set', () => {
    for (const value of ['authorization', 'close, X-Tollward-Client', 'x-bitcoin-txid', 'keep-alive,x_tollward_pass']) {
      assert.equal(readFields(['Connection', value]), 'header-connection')
    }
    assert.equal(typeof readFields(['Connection', 'keep-alive, upgrade']), 'object')
  })

  test('too many fields, too many bytes and too long a credential are refused', () => {
    assert.equal(readFields(Array.from({ length: HEADER_FIELDS_MAX }, () => ['a', 'b']).flat()) === 'too-large', false)
    assert.equal(readFields(Array.from({ length: HEADER_FIELDS_MAX + 1 }, () => ['a', 'b']).flat()), 'too-large')
    assert.equal(readFields(['a', 'b'.repeat(HEADER_BYTES_MAX)]), 'too-large')
    assert.equal(readFields(['authorization', `Bearer ${'b'.repeat(5000)}`]), 'too-large')
  })

  test('a header that came more than once has no single value', () => {
    assert.equal(singleValue(['X-A', '1', 'x-b', '2'], 'x-a'), '1')
    assert.equal(singleValue(['X-A', '1', 'x-a', '1'], 'x-a'), false)
    assert.equal(singleValue(['X-A', '1'], 'x-b'), undefined)
  })
})
