import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { parseBasic } from './credentials.ts'
import { isTokenShaped } from './introspection.ts'

const basic = (text: string) => `Basic ${Buffer.from(text).toString('base64')}`

test('what a client encodes by RFC 6749 is read back', () => {
  const encode = (text: string) => new URLSearchParams({ x: text }).toString().slice(2)
  fc.assert(
    fc.property(fc.string({ unit: 'grapheme', minLength: 1 }), fc.string({ unit: 'grapheme' }), (id, secret) => {
      assert.deepEqual(parseBasic(basic(`${encode(id)}:${encode(secret)}`)), { clientId: id, clientSecret: secret })
    }),
  )
})

test('whatever is no Basic header gives no credentials', () => {
  const cases = [undefined, '', 'Basic', 'Basic ', 'Bearer x', 'Basic !!!', basic('nocolon'), basic(':x'), basic('%:x')]
  for (const header of cases) assert.equal(parseBasic(header), undefined, header)
  fc.assert(fc.property(fc.string({ unit: 'binary' }), (text) => void parseBasic(text)))
})

test('only what can stand in an Authorization header is asked about', () => {
  assert(isTokenShaped('Aq_-'.repeat(11)))
  for (const text of ['', 'short', ' '.repeat(43), 'a'.repeat(3000), `${'a'.repeat(43)}\n`, 'ä'.repeat(43)]) {
    assert(!isTokenShaped(text), text)
  }
})
