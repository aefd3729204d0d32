import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { after, before, test } from 'node:test'
import { requires } from '@tollward/testkit'
import { createRemoteJWKSet, jwtVerify } from 'jose'
import * as openid from 'openid-client'
import { askForToken, basic, type ClientSpec, openTestIssuer, type TestIssuer } from './test-issuer.ts'

const skip = await requires({ tools: ['nats-server'] })

const GRANT = 'urn:ietf:params:oauth:grant-type:token-exchange'
const ACCESS_TOKEN = 'urn:ietf:params:oauth:token-type:access_token'
const JWT = 'urn:ietf:params:oauth:token-type:jwt'

let issuer: TestIssuer
/** Secrets by client. */
const secrets = new Map<string, string>()
const resources = new AsyncDisposableStack()

before(async () => {
  if (skip) return
  issuer = resources.use(await openTestIssuer({ grants: ['client_credentials'] }))
  await issuer.replica()
  await client('app', { scopes: ['orders', 'stock'], audience: ['https://orders.example', 'https://stock.example'] })
  await client('orders-api', {
    grants: ['client_credentials', 'token_exchange'],
    audience: ['https://orders.example', 'https://bank.example'],
  })
  await client('no-exchange', { audience: ['https://orders.example'] })
})

after(() => resources.disposeAsync())

async function client(name: string, spec: ClientSpec): Promise<void> {
  secrets.set(name, await issuer.register(name, spec))
}

function post(name: string, parameters: [string, string][]) {
  return askForToken(issuer.url, parameters, basic(name, secrets.get(name)))
}

/** A token of the client `app` for its API of orders. */
async function subjectToken(scope = 'orders stock', resource = 'https://orders.example'): Promise<string> {
  const answer = await post('app', [
    ['grant_type', 'client_credentials'],
    ['scope', scope],
    ['resource', resource],
  ])
  assert.equal(answer.status, 200, JSON.stringify(answer))
  return answer.access_token
}

function exchange(token: string, parameters: [string, string][] = [], name = 'orders-api') {
  return post(name, [
    ['grant_type', GRANT],
    ['subject_token', token],
    ['subject_token_type', ACCESS_TOKEN],
    ...parameters,
  ])
}

async function claimsOf(token: string) {
  const keys = createRemoteJWKSet(new URL(`${issuer.url}/jwks`))
  return (await jwtVerify(token, keys, { issuer: issuer.url, typ: 'at+jwt', algorithms: ['ES256'] })).payload
}

test('a service gets an internal token for its caller’s, with the caller as subject and itself as actor', {
  skip,
}, async () => {
  const { status, access_token, expires_in, ...answer } = await exchange(await subjectToken())
  assert.equal(status, 200)
  assert.deepEqual(answer, { issued_token_type: ACCESS_TOKEN, token_type: 'Bearer', scope: 'orders stock' })
  const { iat, exp, jti, origin, ...claims } = await claimsOf(access_token)
  assert.deepEqual(claims, {
    iss: issuer.url,
    sub: 'app',
    client_id: 'app',
    aud: 'https://orders.example',
    scope: 'orders stock',
    act: { sub: 'orders-api' },
  })
  assert.equal(expires_in, 60)
  assert.equal((exp ?? 0) - (iat ?? 0), 60)
  assert.match(String(jti), /^[\w-]{22}$/)
  assert.match(String(origin), /^[0-9a-f]{64}$/)
})

test('openid-client exchanges a token and asks for less', { skip }, async () => {
  const config = await openid.discovery(
    new URL(issuer.url),
    'orders-api',
    {},
    openid.ClientSecretBasic(secrets.get('orders-api')),
    { execute: [openid.allowInsecureRequests] },
  )
  assert(config.serverMetadata().grant_types_supported?.includes(GRANT))
  const tokens = await openid.genericGrantRequest(config, GRANT, {
    subject_token: await subjectToken(),
    subject_token_type: ACCESS_TOKEN,
    requested_token_type: JWT,
    audience: 'https://orders.example',
    scope: 'stock',
  })
  assert.equal(tokens.issued_token_type, JWT)
  assert.equal((await claimsOf(tokens.access_token)).scope, 'stock')
})

test('an exchange never gives an audience or scope that the token or the client has not', { skip }, async () => {
  const token = await subjectToken('orders')
  const cases: [string, string][][] = [
    [['audience', 'https://stock.example']],
    [['audience', 'https://bank.example']],
    [['resource', 'https://bank.example']],
    [['audience', 'orders']],
    [
      ['audience', 'https://orders.example'],
      ['audience', 'https://bank.example'],
    ],
  ]
  for (const parameters of cases) {
    const answer = await exchange(token, parameters)
    assert.deepEqual([answer.status, answer.error], [400, 'invalid_target'], JSON.stringify(parameters))
  }
  assert.equal((await exchange(await subjectToken('stock', 'https://stock.example'))).error, 'invalid_target')
  assert.equal((await exchange(token, [['scope', 'orders stock']])).error, 'invalid_scope')
})

test('a subject token that is not live, not ours or of another type is refused', { skip }, async () => {
  const live = await subjectToken()
  const internal = (await exchange(live)).access_token
  for (const token of [randomBytes(32).toString('base64url'), internal, '', 'x'.repeat(9000)]) {
    assert.equal((await exchange(token)).error, 'invalid_request')
  }
  const revoked = await subjectToken()
  await issuer.rpc.revoke({ target: { case: 'token', value: revoked } })
  assert.equal((await exchange(revoked)).error, 'invalid_request')
  const wrong: [string, string][][] = [
    [['subject_token_type', JWT]],
    [['requested_token_type', 'urn:ietf:params:oauth:token-type:refresh_token']],
    [
      ['actor_token', live],
      ['actor_token_type', ACCESS_TOKEN],
    ],
    [['actor_token_type', ACCESS_TOKEN]],
    [['subject_token', live]],
    [
      ['scope', 'orders'],
      ['scope', 'stock'],
    ],
  ]
  for (const parameters of wrong) {
    assert.equal((await exchange(live, parameters)).error, 'invalid_request', JSON.stringify(parameters))
  }
  const missing = await post('orders-api', [
    ['grant_type', GRANT],
    ['subject_token', live],
  ])
  assert.equal(missing.error, 'invalid_request')
})

test('only a client whose document says so exchanges, authenticated', { skip }, async () => {
  const token = await subjectToken()
  const refused = await exchange(token, [], 'no-exchange')
  assert.deepEqual([refused.status, refused.error], [400, 'invalid_request'])
  secrets.set('unknown', 'wrong')
  assert.equal((await exchange(token, [], 'unknown')).status, 401)
  await client('former', { grants: ['client_credentials', 'token_exchange'], audience: ['https://orders.example'] })
  assert.equal((await exchange(token, [], 'former')).status, 200)
  await issuer.apply('former', { audience: ['https://orders.example'] })
  assert.equal((await exchange(token, [], 'former')).status, 400)
})

test('what was exchanged lives no longer than its origin, and is worth nothing once that is revoked', {
  skip,
}, async () => {
  await client('brief', { audience: ['https://orders.example'], tokenLifetime: '20s' })
  const origin = (await post('brief', [['grant_type', 'client_credentials']])).access_token
  const { access_token, expires_in } = await exchange(origin)
  assert(expires_in !== undefined && expires_in <= 20)
  const active = async () => (await issuer.rpc.exchange({ token: access_token, acceptInternal: true })).info?.active
  assert.equal(await active(), true)
  await issuer.rpc.revoke({ target: { case: 'token', value: origin } })
  assert.equal(await active(), false)
})

test('a bound token stays bound when it is exchanged', { skip }, async () => {
  const config = await openid.discovery(new URL(issuer.url), 'app', {}, openid.ClientSecretBasic(secrets.get('app')), {
    execute: [openid.allowInsecureRequests],
  })
  const DPoP = openid.getDPoPHandle(config, await openid.randomDPoPKeyPair('ES256'))
  const bound = await openid.clientCredentialsGrant(config, { resource: 'https://orders.example' }, { DPoP })
  const answer = await exchange(bound.access_token)
  assert.equal(answer.token_type, 'DPoP')
  const { cnf } = await claimsOf(answer.access_token)
  assert.deepEqual(cnf, { jkt: await DPoP.calculateThumbprint() })
})
