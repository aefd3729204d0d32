import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { RegistrationService } from '@tollward/contracts/token'
import { requires } from '@tollward/testkit'
import * as oauth from 'oauth4webapi'
import * as openid from 'openid-client'
import { checkStatus, type DecisionPoints, startDecisionPoints } from '../scenario/decision-points.ts'
import { type Identity, startIdentity } from '../scenario/identity.ts'
import { discovered, INSECURE } from './clients.ts'
import { API, CALLBACK } from './code-flow.ts'
import { type Answer, ask, assertNoStackTrace, basic, postForm } from './oauth.ts'

const skip = await requires({ tools: ['nats-server'] })

const LIFETIME_SECONDS = 600
const OPEN = { scopes: ['orders'], audience: [API], registrationsPerSourceAndHour: 20 }

let identity: Identity
let points: DecisionPoints

before(async () => {
  if (skip !== false) return
  identity = await startIdentity({ issuerEnvironment: { TOLLWARD_SELF_REGISTRATION: JSON.stringify(OPEN) } })
  points = await startDecisionPoints(identity)
})
after(async () => {
  await points?.[Symbol.asyncDispose]()
  await identity?.[Symbol.asyncDispose]()
})

/** An initial access token, as an operator makes it. */
async function initialToken(registrationsMax = 1): Promise<string> {
  const { token } = await identity.bus.client(RegistrationService).createInitialAccessToken({
    lifetimeSeconds: LIFETIME_SECONDS,
    scopes: ['orders'],
    audience: [API],
    grants: ['client_credentials', 'authorization_code', 'refresh_token'],
    registrationsMax,
  })
  return token
}

function register(metadata: unknown, token?: string): Promise<Answer> {
  return ask(`${identity.issuerUrl}/reg`, {
    method: 'POST',
    headers: {
      'content-type': 'application/json',
      ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
    },
    body: typeof metadata === 'string' ? metadata : JSON.stringify(metadata),
  })
}

function manage(method: string, url: string, token: string, metadata?: object): Promise<Answer> {
  return ask(url, {
    method,
    headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
    ...(metadata === undefined ? {} : { body: JSON.stringify(metadata) }),
  })
}

function assertRefused(answer: Answer, error: string | RegExp, status: number, what = ''): void {
  const seen = `${what}: ${answer.status} ${answer.text}`
  assert.equal(answer.status, status, seen)
  if (typeof error === 'string') assert.equal(answer.json.error, error, seen)
  else assert.match(String(answer.json.error), error, seen)
  assertNoStackTrace(answer.text)
}

test('both libraries register a client with an initial access token, and it gets its tokens', { skip }, async () => {
  const token = await initialToken(2)
  const metadata = { grant_types: ['client_credentials'], response_types: [], scope: 'orders' }
  const config = await openid.dynamicClientRegistration(
    new URL(identity.issuerUrl),
    { ...metadata, token_endpoint_auth_method: 'client_secret_post' },
    undefined,
    { initialAccessToken: token, execute: [openid.allowInsecureRequests] },
  )
  const tokens = await openid.clientCredentialsGrant(config, { scope: 'orders' })
  const { info } = await identity.issuerRpc.exchange({ token: tokens.access_token })
  assert.deepEqual(
    [info?.active, info?.clientId, info?.selfRegistered],
    [true, config.clientMetadata().client_id, false],
  )

  const server = await discovered(identity)
  const response = await oauth.dynamicClientRegistrationRequest(server, metadata, {
    ...INSECURE,
    initialAccessToken: token,
  })
  const client = await oauth.processDynamicClientRegistrationResponse(response)
  const authentication = oauth.ClientSecretBasic(String(client.client_secret))
  const answer = await oauth.clientCredentialsGrantRequest(server, client, authentication, {}, INSECURE)
  assert.ok((await oauth.processClientCredentialsResponse(server, client, answer)).access_token)
  assertRefused(await register(metadata, token), 'invalid_token', 401, 'a third client')
})

test('a registered client is read, changed and deleted with its own token, which each change replaces', {
  skip,
}, async () => {
  const { json } = await register({ grant_types: ['client_credentials'], client_name: 'First' }, await initialToken())
  const [url, token] = [String(json.registration_client_uri), String(json.registration_access_token)]
  const read = await manage('GET', url, token)
  assert.equal(read.status, 200, read.text)
  assert.equal(read.json.client_name, 'First')
  const wanted = { client_id: json.client_id, grant_types: ['client_credentials'], client_name: 'Second' }
  const changed = await manage('PUT', url, String(read.json.registration_access_token ?? token), wanted)
  assert.equal(changed.status, 200, changed.text)
  assert.equal(changed.json.client_name, 'Second')
  const latest = String(changed.json.registration_access_token ?? token)

  const more = { ...wanted, scope: 'orders admin' }
  assertRefused(await manage('PUT', url, latest, more), 'invalid_client_metadata', 400)
  const other = await register({ grant_types: ['client_credentials'] }, await initialToken())
  const foreign = String(other.json.registration_access_token)
  for (const method of ['GET', 'DELETE']) {
    assertRefused(await manage(method, url, foreign), 'invalid_token', 401, `${method} by another client`)
    assertRefused(await manage(method, url, 'made-up'), 'invalid_token', 401, `${method} by nobody`)
  }
  assertRefused(await manage('PUT', url, foreign, wanted), 'invalid_token', 401)
  assert.equal((await manage('DELETE', url, latest)).status, 204)
  assertRefused(await manage('GET', url, latest), 'invalid_token', 401, 'after its end')
  const secret = String(json.client_secret)
  const tokenAnswer = await postForm(
    `${identity.issuerUrl}/token`,
    { grant_type: 'client_credentials' },
    basic(String(json.client_id), secret),
  )
  assertRefused(tokenAnswer, 'invalid_client', 401)
})

test('a stranger registers without leave, and gets a token that opens nothing that is not paid for', {
  skip,
}, async () => {
  const { status, json, text } = await register({ client_name: 'Stranger' })
  assert.equal(status, 201, text)
  const answer = await postForm(
    `${identity.issuerUrl}/token`,
    { grant_type: 'client_credentials' },
    basic(String(json.client_id), String(json.client_secret)),
  )
  const token = String(answer.json.access_token)
  const { info } = await identity.issuerRpc.exchange({ token })
  assert.deepEqual([info?.active, info?.selfRegistered], [true, true])
  const headers = { authorization: `Bearer ${token}` }
  assert.equal((await ask(`${points.gatewayUrl}/echo`, { headers })).status, 403)
  assert.equal(await checkStatus(points.check, '/echo', headers), 403)
})

test('without leave nobody gets more than strangers may, and with it nobody gets more than was given', {
  skip,
}, async () => {
  const code = { grant_types: ['authorization_code'], redirect_uris: [CALLBACK], response_types: ['code'] }
  const strange = {
    'a grant for people': code,
    'another scope': { scope: 'orders admin' },
    'a scope of the operator': { scope: 'tollward.admin' },
    'token exchange': { grant_types: ['urn:ietf:params:oauth:grant-type:token-exchange'] },
  }
  for (const [what, metadata] of Object.entries(strange)) {
    assertRefused(await register(metadata), /^invalid_(client_metadata|redirect_uri)$/, 400, what)
  }
  const invited = await initialToken(50)
  const device = { grant_types: ['urn:ietf:params:oauth:grant-type:device_code'] }
  assertRefused(await register(device, invited), 'invalid_client_metadata', 400, 'a grant that was not given')
  for (const uri of [
    'javascript:alert(1)',
    'http://app.example/callback',
    `${CALLBACK}#x`,
    'data:text/html,x',
    '//x',
    '',
  ]) {
    const metadata = { ...code, redirect_uris: [uri] }
    assertRefused(await register(metadata, invited), /^invalid_(client_metadata|redirect_uri)$/, 400, uri)
  }
  for (const [token, what] of [
    ['made-up', 'a made-up token'],
    ['', 'an empty token'],
    [invited.slice(0, -1), 'a shortened token'],
  ] as const) {
    assertRefused(await register({}, token), /^invalid_(token|request)$/, 401, what)
  }
})

test('whatever is posted, the answer is a client or an error, and never how we are built', { skip }, async () => {
  const token = await initialToken(50)
  const bodies = [
    '',
    '{',
    'null',
    '[]',
    '"x"',
    '1',
    '['.repeat(5000),
    `${'{"a":'.repeat(3000)}1${'}'.repeat(3000)}`,
    '{"redirect_uris":{}}',
    '{"redirect_uris":[[]]}',
    '{"grant_types":"client_credentials"}',
    '{"scope":["orders"]}',
    '{"jwks":{"keys":[{}]}}',
    '{"jwks":{"keys":[{"kty":"RSA","d":"x"}]},"token_endpoint_auth_method":"private_key_jwt"}',
    '{"jwks_uri":"http://127.0.0.1:1/","token_endpoint_auth_method":"private_key_jwt"}',
    '{"__proto__":{"admin":true},"client_name":"\\u0000"}',
    `{"client_name":"${'x'.repeat(20_000)}"}`,
  ]
  for (const body of bodies) {
    const answer = await register(body, token)
    assert.ok(answer.status >= 400 && answer.status < 500, `${answer.status} ${body.slice(0, 60)}`)
    assert.equal(typeof answer.json.error, 'string', answer.text)
    assertNoStackTrace(answer.text)
  }
  for (const method of ['GET', 'PUT', 'DELETE', 'PATCH']) {
    const answer = await ask(`${identity.issuerUrl}/reg`, { method })
    assert.ok(answer.status === 405 || answer.status === 404, `${method}: ${answer.status}`)
  }
})

test('registrations without leave are limited by source', { skip }, async () => {
  let refused: Answer | undefined
  for (let count = 0; count <= OPEN.registrationsPerSourceAndHour && refused === undefined; count++) {
    const answer = await register({ client_name: `Many ${count}` })
    if (answer.status !== 201) refused = answer
  }
  assert.ok(refused, 'as many as one likes')
  assert.equal(refused.status, 429, refused.text)
  assert.ok(Number(refused.headers.get('retry-after')) > 0)
})
