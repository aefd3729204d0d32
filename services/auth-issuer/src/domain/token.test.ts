import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import {
  INTERNAL_TOKEN_LIFETIME_SECONDS,
  type IssuedToken,
  internalClaims,
  type TokenHolder,
  worthOf,
} from './token.ts'

const NOW = 1_800_000_000

const names = fc.uniqueArray(fc.constantFrom('a', 'b', 'c', 'd'), { maxLength: 4 })

const tokens: fc.Arbitrary<IssuedToken> = fc.record({
  clientId: fc.constantFrom('one', 'two'),
  subject: fc.constantFrom('one', 'two'),
  scopes: names,
  audience: names,
  issuedAtSeconds: fc.integer({ min: NOW - 1000, max: NOW }),
  expiresAtSeconds: fc.integer({ min: NOW - 100, max: NOW + 1000 }),
  generation: fc.constantFrom('g1', 'g2'),
})

const clients: fc.Arbitrary<TokenHolder> = fc.record({
  clientId: fc.constantFrom('one', 'two'),
  scopes: names,
  audience: names,
  generation: fc.constantFrom('g1', 'g2'),
})

test('a token is never worth more than it was issued with nor than its client may have now', () => {
  let worthSomething = 0
  fc.assert(
    fc.property(tokens, fc.option(clients, { nil: undefined }), (token, client) => {
      const worth = worthOf(token, client, NOW)
      if (!worth) return
      worthSomething += 1
      assert(client)
      assert.equal(client.clientId, token.clientId)
      assert.equal(client.generation, token.generation)
      assert(token.expiresAtSeconds > NOW)
      assert(worth.audience.length > 0)
      for (const scope of worth.scopes) assert(token.scopes.includes(scope) && client.scopes.includes(scope))
      for (const name of worth.audience) assert(token.audience.includes(name) && client.audience.includes(name))
    }),
    { numRuns: 2000 },
  )
  assert(worthSomething > 20, 'the property was tried on tokens that are worth something')
})

test('an internal token lives 60 seconds at most and never longer than its access token', () => {
  fc.assert(
    fc.property(tokens, (token) => {
      const { iat, exp } = internalClaims(token, {
        issuer: 'https://issuer.test',
        jti: 'j',
        origin: 'o',
        nowSeconds: NOW,
      })
      assert.equal(iat, NOW)
      assert.equal(exp, Math.min(NOW + INTERNAL_TOKEN_LIFETIME_SECONDS, token.expiresAtSeconds))
    }),
  )
})
