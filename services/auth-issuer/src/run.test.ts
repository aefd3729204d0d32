import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import { request } from 'node:http'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { timestampMs } from '@bufbuild/protobuf/wkt'
import { contract } from '@tollward/contracts'
import {
  ClientRevokedSchema,
  TokenIssuedSchema,
  type TokenRevoked,
  TokenRevokedSchema,
} from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
import { eventually, requires } from '@tollward/testkit'
import fc from 'fast-check'
import { createRemoteJWKSet, jwtVerify } from 'jose'
import * as oauth from 'oauth4webapi'
import * as openid from 'openid-client'
import { BODY_BYTES_MAX } from './adapters/provider.ts'
import { tokenHash } from './domain/token.ts'
import {
  askForToken,
  basic,
  type ClientSpec,
  filesOf,
  openTestIssuer,
  postForm,
  type Replica,
  type TestIssuer,
  type TokenAnswer,
} from './test-issuer.ts'

const skip = await requires({ tools: ['nats-server'] })

const OPERATOR_SECRET = randomBytes(32).toString('base64url')
const MINUTES_10 = 600

let issuer: TestIssuer
let first: Replica
let settings: Record<string, string>
const revoked: TokenRevoked[] = []
const resources = new AsyncDisposableStack()
const secretsSeen = new Set<string>([OPERATOR_SECRET])

before(async () => {
  if (skip) return
  issuer = resources.use(await openTestIssuer({ grants: ['client_credentials'] }))
  const operator = {
    clientId: 'operator',
    secretSha256: tokenHash(OPERATOR_SECRET),
    scopes: ['tollward.read', 'tollward.admin'],
  }
  const operatorFile = join(issuer.directory, 'operator.json')
  await writeFile(operatorFile, JSON.stringify(operator), { mode: 0o600 })
  settings = {
    TOLLWARD_OPERATOR_CLIENT_FILE: operatorFile,
    TOLLWARD_INTROSPECTION_URL: 'http://127.0.0.1:4010/introspect',
  }
  first = await issuer.replica(settings)
  resources.use(await issuer.bus.follow(contract(TokenRevokedSchema), 'beginning', (event) => revoked.push(event)))
})

after(() => resources.disposeAsync())

async function register(name: string, spec: ClientSpec): Promise<string> {
  const clientSecret = await issuer.register(name, spec)
  secretsSeen.add(clientSecret)
  return clientSecret
}

function post(path: string, clientId: string, secret: string, body: Record<string, string>, base = issuer.url) {
  return postForm(base + path, body, basic(clientId, secret))
}

async function tokenRequest(
  clientId: string,
  secret: string,
  body: Record<string, string> = {},
  base = issuer.url,
): Promise<TokenAnswer> {
  const answer = await askForToken(base, { grant_type: 'client_credentials', ...body }, basic(clientId, secret))
  if (answer.access_token) secretsSeen.add(answer.access_token)
  return answer
}

async function tokenOf(clientId: string, secret: string, base = issuer.url): Promise<string> {
  const answer = await tokenRequest(clientId, secret, {}, base)
  assert.equal(answer.status, 200, JSON.stringify(answer))
  return answer.access_token
}

async function infoOf(token: string) {
  const info = await issuer.infoOf(token)
  if (info.internalToken) secretsSeen.add(info.internalToken)
  return info
}

async function assertWorthNothing(token: string): Promise<void> {
  const { $typeName: _, ...info } = await infoOf(token)
  assert.deepEqual(info, {
    active: false,
    tokenHash: '',
    clientId: '',
    subject: '',
    scopes: [],
    audience: [],
    internalToken: '',
    grantHash: '',
    selfRegistered: false,
  })
}

test('openid-client and oauth4webapi get a token by discovery and client credentials', { skip }, async () => {
  const secret = await register('conforming', { scopes: ['orders'], audience: ['https://api.example'] })
  for (const authentication of [openid.ClientSecretBasic(secret), openid.ClientSecretPost(secret)]) {
    const config = await openid.discovery(new URL(issuer.url), 'conforming', {}, authentication, {
      execute: [openid.allowInsecureRequests],
    })
    const tokens = await openid.clientCredentialsGrant(config, { scope: 'orders', resource: 'https://api.example' })
    assert.equal(tokens.token_type, 'bearer')
    assert.equal(tokens.expires_in, MINUTES_10)
    assert.equal((await infoOf(tokens.access_token)).active, true)
    await openid.tokenRevocation(config, tokens.access_token)
    await assertWorthNothing(tokens.access_token)
  }
  const insecure = { [oauth.allowInsecureRequests]: true }
  const url = new URL(issuer.url)
  const server = await oauth.processDiscoveryResponse(
    url,
    await oauth.discoveryRequest(url, { algorithm: 'oauth2', ...insecure }),
  )
  const client = { client_id: 'conforming' }
  const answer = await oauth.clientCredentialsGrantRequest(
    server,
    client,
    oauth.ClientSecretBasic(secret),
    { scope: 'orders' },
    insecure,
  )
  const { access_token, scope } = await oauth.processClientCredentialsResponse(server, client, answer)
  assert.equal(scope, 'orders')
  assert.match(access_token, /^[\w-]{43}$/)
})

test('discovery advertises exactly what is offered, at the issuer’s address whatever the Host header says', {
  skip,
}, async () => {
  const text = await new Promise<string>((resolve, reject) => {
    const target = { headers: { host: 'evil.example', 'x-forwarded-host': 'evil.example' } }
    const sent = request(`${issuer.url}/.well-known/openid-configuration`, target, async (response) => {
      resolve(Buffer.concat(await response.toArray()).toString())
    })
    sent.on('error', reject).end()
  })
  assert.deepEqual(JSON.parse(text), {
    issuer: issuer.url,
    authorization_endpoint: `${issuer.url}/auth`,
    pushed_authorization_request_endpoint: `${issuer.url}/request`,
    device_authorization_endpoint: `${issuer.url}/device/auth`,
    token_endpoint: `${issuer.url}/token`,
    revocation_endpoint: `${issuer.url}/token/revocation`,
    introspection_endpoint: 'http://127.0.0.1:4010/introspect',
    userinfo_endpoint: `${issuer.url}/me`,
    end_session_endpoint: `${issuer.url}/session/end`,
    registration_endpoint: `${issuer.url}/reg`,
    jwks_uri: `${issuer.url}/jwks`,
    grant_types_supported: [
      'authorization_code',
      'refresh_token',
      'client_credentials',
      'urn:ietf:params:oauth:grant-type:device_code',
      'urn:ietf:params:oauth:grant-type:token-exchange',
    ],
    response_types_supported: ['code'],
    response_modes_supported: ['form_post', 'fragment', 'query'],
    code_challenge_methods_supported: ['S256'],
    authorization_response_iss_parameter_supported: true,
    scopes_supported: ['openid', 'offline_access'],
    claims_supported: ['sub', 'preferred_username', 'sid', 'auth_time', 'iss'],
    subject_types_supported: ['public'],
    id_token_signing_alg_values_supported: ['ES256', 'EdDSA'],
    token_endpoint_auth_methods_supported: ['client_secret_basic', 'client_secret_post', 'private_key_jwt', 'none'],
    token_endpoint_auth_signing_alg_values_supported: ['ES256', 'EdDSA', 'Ed25519', 'RS256', 'PS256'],
    dpop_signing_alg_values_supported: ['ES256', 'EdDSA', 'Ed25519'],
  })
  for (const path of ['/session/end/confirm', '/token/introspection', '/backchannel', '/nothing']) {
    const response = await fetch(issuer.url + path, { headers: { accept: 'text/html' } })
    assert.equal(response.status, 404, path)
    assert.equal((JSON.parse(await response.text()) as { error: string }).error, 'not_found')
  }
})

test('the published keys have no private part', { skip }, async () => {
  const { keys } = (await (await fetch(`${issuer.url}/jwks`)).json()) as { keys: Record<string, string>[] }
  assert.deepEqual(
    keys.map((key) => Object.keys(key).sort().join(' ')),
    ['alg crv kid kty use x y', 'alg crv kid kty use x'],
  )
})

test('a client works from the moment its document and secret exist, and no longer when it is disabled', {
  skip,
}, async () => {
  const secret = await register('sudden', { scopes: ['orders'] })
  const token = await tokenOf('sudden', secret)
  assert.equal((await infoOf(token)).active, true)
  await issuer.apply('sudden', { scopes: ['orders'], disabled: true })
  await assertWorthNothing(token)
  const refused = async () => {
    const answer = await tokenRequest('sudden', secret)
    if (answer.status === 200) await assertWorthNothing(answer.access_token)
    return answer.error === 'invalid_client'
  }
  await eventually(refused, { what: 'no token is issued any more', timeoutMs: 1000 })
})

test('an unknown client, a wrong secret and a client without secret get the same answer', { skip }, async () => {
  await register('known', {})
  await issuer.apply('secretless', {})
  const answers = [
    await tokenRequest('known', 'wrong'),
    await tokenRequest('nobody', 'wrong'),
    await tokenRequest('secretless', 'wrong'),
    await tokenRequest('UPPER_case/..', 'wrong'),
  ]
  for (const answer of answers) {
    assert.deepEqual(answer, {
      status: 401,
      error: 'invalid_client',
      error_description: 'client authentication failed',
    })
  }
  const hash = await tokenRequest('operator', tokenHash(OPERATOR_SECRET))
  assert.equal(hash.status, 401, 'the stored hash is not the secret')
})

test('a scope beyond the document is refused, and without scope the token has the document’s', { skip }, async () => {
  const secret = await register('scoped', { scopes: ['orders', 'stock'] })
  const refused = await tokenRequest('scoped', secret, { scope: 'orders admin' })
  assert.equal(refused.status, 400)
  assert.equal(refused.error, 'invalid_scope')
  assert.equal((await tokenRequest('scoped', secret, { scope: 'stock' })).scope, 'stock')
  const all = await tokenRequest('scoped', secret)
  assert.equal(all.scope, 'orders stock')
  await issuer.apply('scoped', { scopes: ['stock'] })
  assert.deepEqual((await infoOf(all.access_token)).scopes, ['stock'], 'a scope that was taken away')
})

test('no document gives a scope of Tollward’s own; the operator’s file does', { skip }, async () => {
  const secret = await register('climber', { scopes: ['orders'] })
  await issuer.apply('climber', { scopes: ['orders', 'tollward.admin'] })
  await eventually(async () => (await tokenRequest('climber', secret)).error === 'invalid_client', {
    what: 'the whole document counts for nothing',
  })
  assert.equal((await tokenRequest('climber', secret, { scope: 'tollward.admin' })).error, 'invalid_client')
  await register('operator-like', {})
  await issuer.apply('operator', { scopes: ['orders'] })
  const operator = await tokenRequest('operator', OPERATOR_SECRET, { scope: 'tollward.admin tollward.read' })
  assert.equal(operator.status, 200)
  assert.deepEqual((await infoOf(operator.access_token)).audience, ['urn:tollward:admin'])
  await assert.rejects(issuer.rpc.replaceClientSecret({ clientId: 'operator' }), { code: 'failed_precondition' })
})

test('audience and lifetime are the client’s; with several audiences a resource must be named', { skip }, async () => {
  const one = await register('one-audience', { audience: ['orders-api'], tokenLifetime: '30s' })
  const answer = await tokenRequest('one-audience', one)
  assert.equal(answer.expires_in, 30)
  const info = await infoOf(answer.access_token)
  assert.deepEqual(info.audience, ['orders-api'])
  assert(info.expiresAt && info.issuedAt && info.internalTokenExpiresAt)
  assert.equal(timestampMs(info.expiresAt) - timestampMs(info.issuedAt), 30_000)
  assert.equal(timestampMs(info.internalTokenExpiresAt), timestampMs(info.expiresAt), 'not longer than the token')

  const two = await register('two-audiences', { audience: ['https://a.example', 'https://b.example'] })
  assert.equal((await tokenRequest('two-audiences', two)).error, 'invalid_target')
  const named = await tokenRequest('two-audiences', two, { resource: 'https://b.example' })
  assert.deepEqual((await infoOf(named.access_token)).audience, ['https://b.example'])
  const foreign = await tokenRequest('two-audiences', two, { resource: 'https://c.example' })
  assert.equal(foreign.error, 'invalid_target')
  await issuer.apply('two-audiences', { audience: ['https://a.example'] })
  await assertWorthNothing(named.access_token)
})

test('a token is worth nothing after its lifetime', { skip }, async () => {
  const secret = await register('brief', { tokenLifetime: '1s' })
  const token = await tokenOf('brief', secret)
  await eventually(async () => !(await infoOf(token)).active, { what: 'the token has lapsed', timeoutMs: 5000 })
  await assertWorthNothing(token)
})

test('the internal token is an at+jwt that verifies against the published keys and says what the token may', {
  skip,
}, async () => {
  const secret = await register('exchanger', { scopes: ['orders', 'stock'], audience: ['https://api.example'] })
  const { access_token: token } = await tokenRequest('exchanger', secret, { scope: 'orders' })
  const [first, second] = [await infoOf(token), await infoOf(token)]
  assert.equal(first.tokenHash, tokenHash(token))
  assert.equal(first.clientId, 'exchanger')
  assert.equal(first.subject, 'exchanger')
  const keys = createRemoteJWKSet(new URL(`${issuer.url}/jwks`))
  const checks = { issuer: issuer.url, audience: 'https://api.example', typ: 'at+jwt', algorithms: ['ES256'] }
  const { payload } = await jwtVerify(first.internalToken, keys, checks)
  const { iat, exp, jti, ...claims } = payload
  assert.deepEqual(claims, {
    iss: issuer.url,
    sub: 'exchanger',
    aud: 'https://api.example',
    client_id: 'exchanger',
    scope: 'orders',
    origin: tokenHash(token),
  })
  assert.equal((exp ?? 0) - (iat ?? 0), 60)
  const other = await jwtVerify(second.internalToken, keys, checks)
  assert.notEqual(jti, other.payload.jti)
  assert.equal(Buffer.from(jti ?? '', 'base64url').length, 16)
  await assertWorthNothing(first.internalToken)
})

test('whatever is no token of ours is worth nothing, and says nothing', { skip }, async () => {
  for (const text of ['', 'x', 'a'.repeat(43), 'a'.repeat(100_000), '../../x', '\u0000', 'ey.J.x', '$KV.x.>']) {
    await assertWorthNothing(text)
  }
})

test('a revoked token is worth nothing when its revocation is answered, and the event has its hash', {
  skip,
}, async () => {
  const secret = await register('leaver', { scopes: ['orders'] })
  const [token, kept] = [await tokenOf('leaver', secret), await tokenOf('leaver', secret)]
  assert.equal((await post('/token/revocation', 'leaver', secret, { token })).status, 200)
  await assertWorthNothing(token)
  assert.equal((await infoOf(kept)).active, true)
  const event = await eventually(() => revoked.find((entry) => entry.tokenHash === tokenHash(token)), {
    what: 'the revocation is announced',
  })
  assert.equal(event.clientId, 'leaver')
  assert(event.expiresAt)
  assert.equal((await post('/token/revocation', 'leaver', secret, { token })).status, 200, 'again is no error')

  const stranger = await register('stranger', {})
  const attempt = await post('/token/revocation', 'stranger', stranger, { token: kept })
  assert.equal(attempt.status, 200)
  assert.equal((await infoOf(kept)).active, true, 'another client cannot revoke it')
  assert.equal((await post('/token/revocation', 'leaver', 'wrong', { token: kept })).status, 401)
})

test('Revoke ends a token by its hash, and every token of a client at once', { skip }, async () => {
  const secret = await register('revoked', {})
  const tokens = await Promise.all([1, 2, 3].map(() => tokenOf('revoked', secret)))
  const [first = '', second = '', third = ''] = tokens
  const hashed = { target: { case: 'tokenHash', value: tokenHash(first) }, reason: 'seen in a log' } as const
  assert.equal((await issuer.rpc.revoke(hashed)).revoked, true)
  assert.equal((await issuer.rpc.revoke(hashed)).revoked, false, 'it is revoked already')
  await assertWorthNothing(first)
  assert.equal((await infoOf(second)).active, true)

  const clients: string[] = []
  await using _events = await issuer.bus.follow(contract(ClientRevokedSchema), 'now', ({ clientId }) =>
    clients.push(clientId),
  )
  assert.equal(
    (await issuer.rpc.revoke({ target: { case: 'clientId', value: 'revoked' }, reason: 'stolen' })).revoked,
    true,
  )
  await assertWorthNothing(second)
  await assertWorthNothing(third)
  await eventually(() => clients.includes('revoked'), { what: 'the revocation of the client is announced' })
  assert.equal((await infoOf(await tokenOf('revoked', secret))).active, true, 'its secret still gets new tokens')
  assert.equal((await issuer.rpc.revoke({ target: { case: 'clientId', value: 'nobody' } })).revoked, false)
  await assert.rejects(issuer.rpc.revoke({ target: { case: 'tokenHash', value: 'xyz' } }), { code: 'invalid_argument' })
  await assert.rejects(issuer.rpc.revoke({}), { code: 'invalid_argument' })

  const operator = await tokenOf('operator', OPERATOR_SECRET)
  assert.equal((await issuer.rpc.revoke({ target: { case: 'clientId', value: 'operator' } })).revoked, true)
  await assertWorthNothing(operator)
})

test('a new secret ends the old one and its tokens; a forgotten client’s tokens stay dead when it comes back', {
  skip,
}, async () => {
  const old = await register('rotating', {})
  const token = await tokenOf('rotating', old)
  assert.equal((await issuer.rpc.replaceClientSecret({ clientId: 'rotating', onlyIfMissing: true })).clientSecret, '')
  const { clientSecret: secret } = await issuer.rpc.replaceClientSecret({ clientId: 'rotating' })
  secretsSeen.add(secret)
  assert.equal(Buffer.from(secret, 'base64url').length, 32)
  await eventually(async () => (await tokenRequest('rotating', old)).status === 401, {
    what: 'the old secret is refused',
  })
  await assertWorthNothing(token)
  const newer = await tokenOf('rotating', secret)

  await issuer.rpc.forgetClient({ clientId: 'rotating' })
  await eventually(async () => (await tokenRequest('rotating', secret)).status === 401, { what: 'it is unknown' })
  await register('rotating', {})
  await assertWorthNothing(newer)
  await assert.rejects(issuer.rpc.replaceClientSecret({ clientId: 'never-applied' }), { code: 'not_found' })
})

test('of several first secrets asked for at once one is made', { skip }, async () => {
  await issuer.apply('contested', {})
  const made = await Promise.all(
    Array.from({ length: 8 }, () => issuer.rpc.replaceClientSecret({ clientId: 'contested', onlyIfMissing: true })),
  )
  assert.equal(made.filter(({ clientSecret }) => clientSecret !== '').length, 1)
})

test('AuthenticateClient says yes to the client’s secret only', { skip }, async () => {
  const secret = await register('asker', {})
  const ask = async (clientId: string, clientSecret: string) =>
    (await issuer.rpc.authenticateClient({ clientId, clientSecret })).authenticated
  assert.equal(await ask('asker', secret), true)
  assert.equal(await ask('asker', `${secret}x`), false)
  assert.equal(await ask('asker', ''), false)
  assert.equal(await ask('nobody', secret), false)
  assert.equal(await ask('', ''), false)
  await issuer.apply('asker', { introspects: ['orders-api'] })
  const { introspects } = await issuer.rpc.authenticateClient({ clientId: 'asker', clientSecret: secret })
  assert.deepEqual(introspects, ['orders-api'])
})

test('an issued token is announced by its hash', { skip }, async () => {
  const secret = await register('announced', { scopes: ['orders'] })
  const hashes: string[] = []
  await using _events = await issuer.bus.follow(contract(TokenIssuedSchema), 'now', (event) =>
    hashes.push(event.tokenHash),
  )
  const token = await tokenOf('announced', secret)
  await eventually(() => hashes.includes(tokenHash(token)), { what: 'the token is announced' })
})

test('malformed requests get a JSON error and never a stack trace or a server error', { skip }, async () => {
  const bodies = fc.oneof(
    fc.string({ unit: 'binary', maxLength: 300 }),
    fc.record({ grant_type: fc.constantFrom('client_credentials', 'password', '__proto__'), scope: fc.string() }),
    fc.array(fc.tuple(fc.constantFrom('grant_type', 'client_id', 'scope', 'resource', 'token'), fc.string()), {
      maxLength: 6,
    }),
  )
  const headers = fc.record({
    'content-type': fc.constantFrom('application/x-www-form-urlencoded', 'application/json', 'text/plain', 'x'),
    authorization: fc.oneof(
      fc.constantFrom('Basic', 'Basic =', 'Basic OTp4', 'Bearer x', 'Basic AAAA'),
      fc.string({ maxLength: 40 }).map((text) => `Basic ${Buffer.from(text).toString('base64')}`),
    ),
  })
  await fc.assert(
    fc.asyncProperty(fc.constantFrom('/token', '/token/revocation'), headers, bodies, async (path, head, content) => {
      const body =
        typeof content === 'string'
          ? content
          : new URLSearchParams(Array.isArray(content) ? content : Object.entries(content)).toString()
      const response = await fetch(issuer.url + path, { method: 'POST', headers: head, body })
      const text = await response.text()
      assert(response.status >= 400 && response.status < 500, `${response.status} ${text}`)
      const { error } = JSON.parse(text) as { error?: unknown }
      assert.equal(typeof error, 'string')
      assert.doesNotMatch(text, /node_modules|\bat .*:\d+/)
    }),
    { numRuns: 150 },
  )
})

test('an oversized body is refused with a clear error, whether its length is told or not', { skip }, async () => {
  const big = `grant_type=client_credentials&x=${'y'.repeat(BODY_BYTES_MAX)}`
  const contentType = { 'content-type': 'application/x-www-form-urlencoded' }
  const told = await fetch(`${issuer.url}/token`, { method: 'POST', headers: contentType, body: big })
  assert.equal(told.status, 413)
  assert.match(await told.text(), /at most 16384 bytes/)
  const stream = new Blob([big.repeat(5)]).stream()
  const untold = await fetch(`${issuer.url}/token`, {
    method: 'POST',
    headers: contentType,
    body: stream,
    duplex: 'half',
  })
  assert.equal(untold.status, 400)
  assert.equal((JSON.parse(await untold.text()) as { error: string }).error, 'invalid_request')
})

test('two replicas share clients, tokens and revocations', { skip }, async () => {
  await using second = await issuer.replica(settings)
  const secret = await register('roaming', {})
  const [here, there] = [await tokenOf('roaming', secret), await tokenOf('roaming', secret, second.url)]
  // The queue group hands each call to either replica.
  for (let round = 0; round < 8; round++) {
    assert.equal((await infoOf(here)).active, true)
    assert.equal((await infoOf(there)).active, true)
  }
  assert.equal((await post('/token/revocation', 'roaming', secret, { token: here }, second.url)).status, 200)
  assert.equal((await post('/token/revocation', 'roaming', secret, { token: there })).status, 200)
  for (let round = 0; round < 8; round++) {
    await assertWorthNothing(here)
    await assertWorthNothing(there)
  }
})

test('without the bus requests get 503 and no token is worth anything; with it everything works as before', {
  skip,
}, async () => {
  const secret = await register('patient', {})
  const token = await tokenOf('patient', secret)
  await issuer.nats.stop()
  await assert.rejects(issuer.rpc.exchange({ token }), (error) => error instanceof AppError)
  const answer = await post('/token', 'patient', secret, { grant_type: 'client_credentials' })
  assert.equal(answer.status, 503, answer.text)
  assert.equal((JSON.parse(answer.text) as { error: string }).error, 'temporarily_unavailable')
  assert.equal(answer.headers.get('retry-after'), '1')
  assert.equal((await post('/token/revocation', 'patient', secret, { token })).status, 503)
  await eventually(async () => (await fetch(`${first.healthUrl}/healthz/ready`)).status === 503, {
    what: 'the issuer is not ready',
  })
  await issuer.nats.start()
  await eventually(async () => (await fetch(`${first.healthUrl}/healthz/ready`)).ok, { what: 'the issuer is ready' })
  await eventually(() => issuer.bus.connected, { what: 'the test is connected' })
  assert.equal((await infoOf(token)).active, true)
  assert.equal((await tokenRequest('patient', secret)).status, 200)
})

test('no token, secret or internal token is in the store or in the log; their hashes are', { skip }, async () => {
  const secret = await register('traced', { scopes: ['orders'] })
  const token = await tokenOf('traced', secret)
  assert.equal((await infoOf(token)).active, true)
  assert.equal((await first.stop()) === 0, true)
  await issuer.nats.stop()
  const store = await filesOf(issuer.nats)
  assert(store.includes(Buffer.from(tokenHash(token), 'hex').toString('base64url')), 'the scan finds keys')
  assert(store.includes('"clientId":"traced"'), 'the scan finds values')
  const log = first.lines.join('\n')
  assert.match(log, /"ready"/)
  assert(secretsSeen.size >= 4)
  for (const text of secretsSeen) {
    assert(!store.includes(text), 'a secret is in the store')
    assert(!log.includes(text), 'a secret is in the log')
  }
  assert.doesNotMatch(log, /oidc-provider (NOTICE|WARNING)/)
})
