import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { after, before, test } from 'node:test'
import { requires } from '@tollward/testkit'
import { exportSPKI, importJWK, SignJWT } from 'jose'
import { type Identity, startIdentity } from '../scenario/identity.ts'
import { forged, hs256, type Keys, makeKeys, nowSeconds } from './jwts.ts'
import { type Answer, assertOAuthError, postForm } from './oauth.ts'

const skip = await requires({ tools: ['nats-server'] })

const CLIENT = 'asserting'
const OTHER = 'asserting-too'
const ASSERTION_TYPE = 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer'
const MACHINE = { grants: ['client_credentials'], scopes: ['orders'], authentication: 'private_key_jwt' }

let identity: Identity
let keys: Keys
let otherKeys: Keys
let publicPem: string

before(async () => {
  if (skip !== false) return
  identity = await startIdentity()
  keys = await makeKeys()
  otherKeys = await makeKeys()
  publicPem = await exportSPKI(
    (await importJWK(keys.publicJwk, 'ES256', { extractable: true })) as import('node:crypto').webcrypto.CryptoKey,
  )
  const jwks = (publicJwk: object) => ({ keys: [{ ...publicJwk, kid: 'one', alg: 'ES256' }] })
  await identity.apply('Client', CLIENT, { ...MACHINE, jwks: jwks(keys.publicJwk) })
  await identity.apply('Client', OTHER, { ...MACHINE, jwks: jwks(otherKeys.publicJwk) })
})
after(() => identity?.[Symbol.asyncDispose]())

function claims(changes: object = {}): Record<string, unknown> {
  const iat = nowSeconds()
  return { iss: CLIENT, sub: CLIENT, aud: identity.issuerUrl, jti: randomUUID(), iat, exp: iat + 60, ...changes }
}

function signed(changes: object = {}, header: object = {}, by: Keys = keys): Promise<string> {
  return new SignJWT(claims(changes)).setProtectedHeader({ alg: 'ES256', kid: 'one', ...header }).sign(by.privateKey)
}

function tokenBy(assertion: string, more: Record<string, string> = {}): Promise<Answer> {
  return postForm(`${identity.issuerUrl}/token`, {
    grant_type: 'client_credentials',
    client_assertion_type: ASSERTION_TYPE,
    client_assertion: assertion,
    ...more,
  })
}

test('an assertion that is as it should be gives a token, once', { skip }, async () => {
  const assertion = await signed()
  assert.equal((await tokenBy(assertion)).status, 200)
  assertOAuthError(await tokenBy(assertion), 'invalid_client', 401)
})

test('of many uses of one assertion at once, one gives a token', { skip }, async () => {
  const assertion = await signed()
  const answers = await Promise.all(Array.from({ length: 8 }, () => tokenBy(assertion)))
  assert.equal(answers.filter(({ status }) => status === 200).length, 1)
})

test('no assertion without the client’s own signature, whatever its header says of algorithm and key', {
  skip,
}, async () => {
  const unsigned = claims()
  const forgeries = {
    none: forged({ alg: 'none' }, unsigned, ''),
    'none in other letters': forged({ alg: 'nOnE', kid: 'one' }, unsigned, ''),
    'HS256 under the public key as PEM': forged({ alg: 'HS256', kid: 'one' }, unsigned, hs256(publicPem)),
    'HS256 under the public key as JWK': forged({ alg: 'HS256' }, unsigned, hs256(JSON.stringify(keys.publicJwk))),
    'HS256 under nothing': forged({ alg: 'HS256' }, unsigned, hs256('')),
    'RS256 with a signature of ES256': (await signed()).replace(/^[^.]+/, () => header({ alg: 'RS256', kid: 'one' })),
    'an empty signature': forged({ alg: 'ES256', kid: 'one' }, unsigned, ''),
    'a signature of zeros': forged({ alg: 'ES256' }, unsigned, Buffer.alloc(64).toString('base64url')),
    'another key': await signed({}, {}, otherKeys),
    'another key in the header': await signed({}, { jwk: otherKeys.publicJwk }, otherKeys),
    'another key by address': await signed({}, { jku: 'http://127.0.0.1:1/jwks', kid: 'two' }, otherKeys),
    'an unknown critical header': forged({ alg: 'ES256', crit: ['x'], x: 1 }, unsigned, 'AA'),
  }
  for (const [what, assertion] of Object.entries(forgeries)) {
    const answer = await tokenBy(assertion)
    assert.notEqual(answer.status, 200, what)
    assertOAuthError(answer, 'invalid_client', 401)
  }
})

test('a kid is a name among the client’s own keys and nothing else', { skip }, async () => {
  const kids = [
    'two',
    '../../../../etc/passwd',
    '/dev/null',
    "' OR '1'='1",
    'one\0',
    '$(id)',
    'x'.repeat(4000),
    '__proto__',
  ]
  for (const kid of kids) {
    assertOAuthError(await tokenBy(await signed({}, { kid }, otherKeys)), 'invalid_client', 401)
    assertOAuthError(await tokenBy(forged({ alg: 'HS256', kid }, claims(), hs256(''))), 'invalid_client', 401)
  }
})

test('an assertion for somebody else, of somebody else, over, or not yet valid is refused', { skip }, async () => {
  const now = nowSeconds()
  const wrong = {
    'another audience': { aud: 'https://other.example' },
    'no audience': { aud: undefined },
    'another issuer': { iss: OTHER },
    'another subject': { sub: OTHER },
    'no subject': { sub: undefined },
    'no end': { exp: undefined },
    'over for a minute': { iat: now - 120, exp: now - 60 },
    'not yet valid': { nbf: now + 300, exp: now + 600 },
    'no jti': { jti: undefined },
    'times that are words': { exp: 'tomorrow' },
  }
  for (const [what, changes] of Object.entries(wrong)) {
    const answer = await tokenBy(await signed(changes))
    assert.notEqual(answer.status, 200, what)
    assertOAuthError(answer, 'invalid_client', 401)
  }
  const impersonated = await signed({ iss: OTHER, sub: OTHER })
  assertOAuthError(await tokenBy(impersonated), 'invalid_client', 401)
  assertOAuthError(await tokenBy(await signed(), { client_id: OTHER }), /^invalid_(client|request)$/)
})

test('a client with a key does not get in by a secret, nor beside one', { skip }, async () => {
  const url = `${identity.issuerUrl}/token`
  const body = { grant_type: 'client_credentials', client_id: CLIENT, client_secret: '' }
  assertOAuthError(await postForm(url, body), 'invalid_client', 401)
  assertOAuthError(
    await postForm(url, { ...body, client_secret: JSON.stringify(keys.publicJwk) }),
    'invalid_client',
    401,
  )
  assertOAuthError(await postForm(url, { grant_type: 'client_credentials', client_id: CLIENT }), 'invalid_client', 401)
  const both = await tokenBy(await signed(), { client_id: CLIENT, client_secret: 'x' })
  assertOAuthError(both, /^invalid_(client|request)$/)
})

test('assertions that are no JWT are refused', { skip }, async () => {
  const headers = ['[]', 'null', '"ES256"', '{"alg":["ES256"]}', '{"alg":{}}', '{"alg":"ES256","kid":{}}', '{'].map(
    (text) => `${Buffer.from(text).toString('base64url')}.e30.AA`,
  )
  for (const text of ['', '.', '..', 'a.b.c', '{}', 'é.é.é', `${'a'.repeat(9000)}.b.c`, ...headers]) {
    const answer = await tokenBy(text)
    assertOAuthError(answer, /^invalid_(client|request)$/)
  }
})

function header(content: object): string {
  return Buffer.from(JSON.stringify(content)).toString('base64url')
}
