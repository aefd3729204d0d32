import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { resourceOf } from './audience.ts'
import type { IssuedToken } from './token.ts'
import { exchanged } from './token-exchange.ts'

const NAMES = ['https://a.example', 'https://b.example', 'stock', 'orders']
const SCOPES = ['read', 'write', 'pay']

const TOKEN: IssuedToken = {
  clientId: 'app',
  subject: 'person',
  scopes: ['read', 'write'],
  audience: ['https://a.example', 'stock'],
  issuedAtSeconds: 1000,
  expiresAtSeconds: 2000,
  generation: 'g',
  confirmation: { jkt: 'thumbprint' },
}
const ANY = { audiences: [], resources: [], scopes: [] }

test('without a target the token is for every audience that both have, with all its scopes', () => {
  const outcome = exchanged(TOKEN, { audience: ['stock', 'https://b.example'] }, ANY)
  assert.deepEqual(outcome, { worth: { ...TOKEN, audience: ['stock'] } })
})

test('a target is named by its name or as a resource indicator', () => {
  const client = { audience: ['stock', 'https://a.example'] }
  for (const wanted of [{ audiences: ['stock'] }, { resources: [resourceOf('stock')] }]) {
    assert.deepEqual(exchanged(TOKEN, client, { ...ANY, ...wanted }), { worth: { ...TOKEN, audience: ['stock'] } })
  }
  const malformed = exchanged(TOKEN, client, { ...ANY, resources: ['urn:tollward:audience:%'] })
  assert('error' in malformed && malformed.error === 'invalid_target')
})

test('an exchange never gives more audience, scope or time than the token has, nor an audience the client has not', () => {
  const token = fc.record({ scopes: fc.subarray(SCOPES), audience: fc.subarray(NAMES, { minLength: 1 }) })
  const client = fc.record({ audience: fc.subarray(NAMES) })
  const wanted = fc.record({
    audiences: fc.subarray(NAMES, { maxLength: 2 }),
    resources: fc.subarray(NAMES.map(resourceOf), { maxLength: 2 }),
    scopes: fc.subarray(SCOPES),
  })
  fc.assert(
    fc.property(token, client, wanted, (had, { audience }, asked) => {
      const outcome = exchanged({ ...TOKEN, ...had }, { audience }, asked)
      const targets = [...asked.audiences, ...NAMES.filter((name) => asked.resources.includes(resourceOf(name)))]
      const allowed = had.audience.filter((name) => audience.includes(name))
      if ('error' in outcome) {
        const isTarget = allowed.length === 0 || targets.some((name) => !allowed.includes(name))
        assert.equal(outcome.error, isTarget ? 'invalid_target' : 'invalid_scope')
        assert(isTarget || asked.scopes.some((scope) => !had.scopes.includes(scope)))
        return
      }
      const { worth } = outcome
      assert(worth.audience.length > 0 && worth.audience.every((name) => had.audience.includes(name)))
      assert(worth.audience.every((name) => audience.includes(name)))
      assert(worth.scopes.every((scope) => had.scopes.includes(scope)))
      if (targets.length > 0) assert.deepEqual(new Set(worth.audience), new Set(targets))
      const { scopes: _scopes, audience: _audience, ...rest } = TOKEN
      assert.deepEqual({ ...worth, ...rest }, worth)
    }),
    { numRuns: 2000 },
  )
})
