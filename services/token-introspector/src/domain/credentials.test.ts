import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { parseBasic, presentedCredentials } from './credentials.ts'
import { readForm } from './form.ts'
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
  const form = (fields: Record<string, string>) => {
    const read = readForm(String(new URLSearchParams(fields)))
    assert(typeof read === 'object')
    return read
  }
  const post = { client_id: 'c', client_secret: 's' }
  assert.deepEqual(presentedCredentials('Basic x', form({ token: 't' })), { authorization: 'Basic x' })
  assert.deepEqual(presentedCredentials(undefined, form(post)), { clientId: 'c', clientSecret: 's' })
  for (const fields of [post, { client_secret: 's' }, { client_secret: '' }]) {
    assert.equal(presentedCredentials('Basic x', form(fields)), 'twice')
  }
  for (const fields of [{}, { client_id: 'c' }, { client_secret: 's' }, { client_id: '', client_secret: 's' }]) {
    assert.equal(presentedCredentials(undefined, form(fields)), undefined)
  }
})

test('a body is read as a form, however little is in it, and nothing that decides may be there twice', () => {
  const names = fc.constantFrom('token', 'client_id', 'client_secret', 'token_type_hint', 'x')
  const values = fc.oneof(fc.stringMatching(/^[\w.~-]{1,60}$/), fc.string({ unit: 'binary', maxLength: 20 }))
  fc.assert(
    fc.property(fc.array(fc.tuple(names, values), { maxLength: 4 }), (fields) => {
      const parameters = new URLSearchParams(fields)
      const twice = ['token', 'client_id', 'client_secret'].filter((name) => parameters.getAll(name).length > 1)
      const expected = {
        token: parameters.get('token') ?? undefined,
        clientId: parameters.get('client_id') ?? undefined,
        clientSecret: parameters.get('client_secret') ?? undefined,
      }
      assert.deepEqual(readForm(String(parameters)), twice[0] ?? expected)
    }),
    { numRuns: 1000 },
  )
})

test('only what has three parts can be an internal token', () => {
  assert(isJwtShaped('a.b-_.C0'))
  for (const text of ['', 'a', 'a.b', 'a.b.', '.b.c', 'a.b.c.d', 'a.b.c=', 'Aq_-'.repeat(11)])
    assert(!isJwtShaped(text), text)
})
