import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { parseBasic, readCredentials } from './credentials.ts'
import { isJwtShaped, isTokenShaped } from './introspection.ts'

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
  const cases = ['', 'Basic', 'Basic ', 'Bearer x', 'Basic !!!', basic('nocolon'), basic(':x'), basic('%:x')]
  for (const header of cases) assert.equal(parseBasic(header), undefined, header)
  fc.assert(fc.property(fc.string({ unit: 'binary' }), (text) => void parseBasic(text)))
})

test('only what can stand in an Authorization header is asked about', () => {
  assert(isTokenShaped('Aq_-'.repeat(11)))
  for (const text of ['', 'short', ' '.repeat(43), 'a'.repeat(3000), `${'a'.repeat(43)}\n`, 'ä'.repeat(43)]) {
    assert(!isTokenShaped(text), text)
  }
})

test('a client authenticates by the header or by the body, and not by both', () => {
  const form = (fields: Record<string, string>) => new URLSearchParams(fields)
  const expected = { clientId: 'c', clientSecret: 's' }
  const post = { client_id: 'c', client_secret: 's' }
  assert.deepEqual(readCredentials(basic('c:s'), form({})), expected)
  assert.deepEqual(readCredentials(basic('c:s'), form({ client_id: 'c' })), expected)
  assert.deepEqual(readCredentials(undefined, form(post)), expected)
  for (const fields of [post, { client_id: 'other' }, { client_secret: 's' }]) {
    assert.equal(readCredentials(basic('c:s'), form(fields)), 'twice')
  }
  for (const fields of [{}, { client_id: 'c' }, { client_secret: 's' }, { client_id: '', client_secret: 's' }]) {
    assert.equal(readCredentials(undefined, form(fields)), undefined)
  }
  assert.equal(readCredentials('Bearer t', form({})), undefined)
})

test('only what has three parts can be an internal token', () => {
  assert(isJwtShaped('a.b-_.C0'))
  for (const text of ['', 'a', 'a.b', 'a.b.', '.b.c', 'a.b.c.d', 'a.b.c=', 'Aq_-'.repeat(11)])
    assert(!isJwtShaped(text), text)
})
