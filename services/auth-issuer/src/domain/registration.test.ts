import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { test } from 'node:test'
import fc from 'fast-check'
import { isClientId, usesSecret } from './client.ts'
import {
  IDLE_LIFETIME_MS,
  isRegistrationId,
  metadataOfRegistration,
  PAID_LIFETIME_MS,
  putOffLapse,
  registrationId,
  registrationRate,
  type Spec,
  specOf,
  type Terms,
  UNUSED_LIFETIME_MS,
} from './registration.ts'

const SELF: Terms = {
  grants: ['client_credentials'],
  scopes: ['orders', 'stock'],
  audience: ['https://api.example'],
  selfRegistered: true,
}
const CODE: Terms = { ...SELF, grants: ['authorization_code', 'refresh_token', 'device_code'], selfRegistered: false }
const CALLBACK = { redirect_uris: ['https://app.example/callback'] }

function registered(metadata: Record<string, unknown>, terms = SELF): Spec {
  const result = specOf(metadata, terms)
  assert('spec' in result, JSON.stringify(result))
  return result.spec
}

function refused(metadata: Record<string, unknown>, terms = SELF) {
  const result = specOf(metadata, terms)
  assert('error' in result, `was taken: ${JSON.stringify(metadata)}`)
  return result
}

test('without metadata a client gets what its terms allow, and nothing else', () => {
  const spec = registered({})
  assert.deepEqual(spec.grants, ['client_credentials'])
  assert.deepEqual(spec.scopes, ['orders', 'stock'])
  assert.deepEqual(spec.audience, ['https://api.example'])
  assert.equal(spec.authentication, 'client_secret_basic')
  assert.deepEqual([spec.redirectUris, spec.introspects, spec.disabled], [[], [], false])
})

test('no metadata give more than the terms', () => {
  const excessive = [
    { grant_types: ['authorization_code'], ...CALLBACK },
    { grant_types: ['client_credentials', 'urn:ietf:params:oauth:grant-type:token-exchange'] },
    { grant_types: ['password'] },
    { scope: 'orders admin' },
    { scope: 'tollward.admin' },
    { redirect_uris: ['https://app.example/'] },
    { token_endpoint_auth_method: 'none' },
  ]
  for (const metadata of excessive) refused(metadata)
  const ignored = { audience: ['https://other.example'], introspects: ['https://api.example'], tokenLifetime: '365d' }
  assert.deepEqual(registered(ignored), registered({}))
})

test('whatever is sent, what is registered is within the terms or it is refused', () => {
  const mostly = (likely: fc.Arbitrary<unknown>) =>
    fc.oneof({ arbitrary: likely, weight: 9 }, { arbitrary: fc.jsonValue({ maxDepth: 2 }), weight: 1 })
  const known = fc.record(
    {
      client_name: mostly(fc.string({ unit: 'grapheme', maxLength: 30 })),
      grant_types: mostly(fc.subarray(['client_credentials', 'authorization_code', 'refresh_token', 'implicit'])),
      redirect_uris: mostly(fc.constantFrom([], ['https://a.example/'], ['https://a.example/', 'http://b.example/'])),
      scope: mostly(fc.constantFrom('orders', 'orders  stock', 'admin', 'orders tollward.admin', '')),
      token_endpoint_auth_method: mostly(fc.constantFrom('none', 'client_secret_post', '__proto__')),
      audience: mostly(fc.constant(['https://other.example'])),
    },
    { requiredKeys: [] },
  )
  let taken = 0
  fc.assert(
    fc.property(known, fc.constantFrom(SELF, CODE), (metadata, terms) => {
      const result = specOf(metadata, terms)
      if ('error' in result) return
      taken += 1
      const { spec } = result
      assert(spec.grants.every((grant) => terms.grants.includes(grant)))
      assert(spec.scopes.every((scope) => terms.scopes.includes(scope)))
      assert.deepEqual(spec.audience, terms.audience)
      assert.deepEqual(spec.introspects, [])
    }),
    { numRuns: 2000 },
  )
  assert(taken > 10, `only ${taken} were taken`)
})

test('redirect URIs are judged as a Client document’s, with the error of their own', () => {
  const bad = ['http://app.example/', 'https://app.example/#x', 'javascript:alert(1)', 'app:/callback', '/callback', '']
  for (const uri of bad) {
    const { error, description } = refused({ redirect_uris: [uri] }, CODE)
    assert.equal(error, 'invalid_redirect_uri', uri)
    assert.match(description, /^redirect_uris/)
  }
  for (const uri of [
    'https://app.example/cb',
    'http://127.0.0.1/cb',
    'http://localhost:8000/cb',
    'com.example.app:/cb',
  ]) {
    assert.deepEqual(registered({ redirect_uris: [uri] }, CODE).redirectUris, [uri])
  }
  assert.equal(refused({}, CODE).error, 'invalid_redirect_uri', 'the code flow needs one')
  const many = Array.from({ length: 21 }, (_, index) => `https://app.example/${index}`)
  assert.equal(refused({ redirect_uris: many }, CODE).error, 'invalid_redirect_uri')
})

test('names are plain text of at most 100 characters', () => {
  assert.equal(registered({ client_name: 'Ørders ✓ 注文' }).displayName, 'Ørders ✓ 注文')
  for (const name of ['', ' ', 'a\u0000b', 'a\nb', '\u001b[31mred', 'a\u202eb', 'a\u2028b', 'a'.repeat(101), 7]) {
    assert.match(refused({ client_name: name }).description, /^client_name: /, JSON.stringify(name))
  }
})

test('keys are sent, never fetched, and never private', () => {
  const key = { kty: 'EC', crv: 'P-256', x: 'x'.repeat(43), y: 'y'.repeat(43) }
  const signs = { token_endpoint_auth_method: 'private_key_jwt' }
  assert.equal(usesSecret(registered({ ...signs, jwks: { keys: [key] } })), false)
  const uri = refused({ ...signs, jwks_uri: 'http://169.254.169.254/' })
  assert.match(uri.description, /^jwks_uri: is not fetched here/)
  assert.match(refused({ ...signs, jwks: { keys: [{ ...key, d: 'd' }] } }).description, /private key/)
  refused({ ...signs, jwks: { keys: Array.from({ length: 11 }, () => key) } })
  refused(signs)
  refused({ jwks: { keys: [key] } })
})

test('what contradicts itself is refused, null counts as left out, and OpenID’s scopes need no leave', () => {
  refused({ ...CALLBACK, response_types: [] }, CODE)
  refused({ response_types: ['code'] })
  refused({ dpop_bound_access_tokens: true, tls_client_certificate_bound_access_tokens: true })
  refused({ grant_types: [] })
  assert.deepEqual(registered({ client_name: null, redirect_uris: null, scope: null }), registered({}))
  assert.deepEqual(registered({ ...CALLBACK, scope: 'openid offline_access stock' }, CODE).scopes, ['stock'])
  assert.equal(registered({ dpop_bound_access_tokens: true }).senderConstraint, 'dpop')
})

test('what is answered can be sent back as an update and changes nothing', () => {
  const key = { kty: 'OKP', crv: 'Ed25519', x: 'x'.repeat(43) }
  const sent = [
    [{}, SELF],
    [{ client_name: 'Shop', scope: 'stock', dpop_bound_access_tokens: true }, SELF],
    [{ ...CALLBACK, grant_types: ['authorization_code', 'refresh_token'], token_endpoint_auth_method: 'none' }, CODE],
    [{ token_endpoint_auth_method: 'private_key_jwt', jwks: { keys: [key] } }, SELF],
    [
      {
        token_endpoint_auth_method: 'tls_client_auth',
        tls_client_auth_subject_dn: 'CN=shop',
        tls_client_certificate_bound_access_tokens: true,
      },
      SELF,
    ],
  ] as const
  for (const [metadata, terms] of sent) {
    const spec = registered(metadata, terms)
    const answered = metadataOfRegistration({ clientId: 'reg_x', spec, terms, registeredAtMs: 1_700_000_000_999 })
    assert.equal(answered.client_id_issued_at, 1_700_000_000)
    assert.deepEqual(registered(answered, terms), spec)
  }
})

test('an id of a registered client can be no document’s name', () => {
  const id = registrationId(randomBytes)
  assert.equal(isRegistrationId(id), true)
  assert.equal(isClientId(id), false)
  for (const text of ['', 'shop', 'reg_', `${id}x`, 'reg_../../../../../../../x', id.toUpperCase()]) {
    assert.equal(isRegistrationId(text), false, text)
  }
})

test('a self-registered client lapses an hour after it came, 30 days after its last token, or 400 if it ever paid', () => {
  const now = 1_000_000
  assert.equal(putOffLapse(now + UNUSED_LIFETIME_MS, false, now), now + IDLE_LIFETIME_MS)
  assert.equal(putOffLapse(now + IDLE_LIFETIME_MS, false, now + 1000), undefined, 'not at each token')
  assert.equal(putOffLapse(now + IDLE_LIFETIME_MS, true, now), now + PAID_LIFETIME_MS)
  assert.deepEqual(registrationRate(10), { burst: 10, intervalMs: 360_000 })
})
