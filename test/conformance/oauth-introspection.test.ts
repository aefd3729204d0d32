import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { eventually, requires } from '@tollward/testkit'
import { createRemoteJWKSet, decodeJwt, exportSPKI, importJWK, type JWK, jwtVerify, SignJWT } from 'jose'
import * as oauth from 'oauth4webapi'
import * as openid from 'openid-client'
import { checkStatus, type DecisionPoints, startDecisionPoints } from '../scenario/decision-points.ts'
import { type Identity, startIdentity } from '../scenario/identity.ts'
import { discovered, fetchWith, INSECURE, openidClient } from './clients.ts'
import { API, type Caller, FOR_PEOPLE, tokensOf } from './code-flow.ts'
import { forged, hs256, makeKeys, nowSeconds } from './jwts.ts'
import { ask, assertNoStackTrace, basic, postForm } from './oauth.ts'
import { Person } from './person.ts'

const skip = await requires({ tools: ['nats-server'] })

const EXACTLY_INACTIVE = '{"active":false}'
const MACHINE = { grants: ['client_credentials'], scopes: ['orders'], audience: [API] }
const TOKEN_EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange'
const ACCESS_TOKEN = 'urn:ietf:params:oauth:token-type:access_token'

let identity: Identity
let points: DecisionPoints
let owner: Caller
/** The API itself: it may introspect what is for it. */
let api: Caller
let stranger: Caller

before(async () => {
  if (skip !== false) return
  identity = await startIdentity()
  points = await startDecisionPoints(identity)
  const register = async (clientId: string, spec: object) => ({
    clientId,
    secret: await identity.register(clientId, spec),
  })
  owner = await register('owner', MACHINE)
  api = await register('api', {
    grants: ['client_credentials', 'token_exchange'],
    scopes: [],
    audience: [API],
    introspects: [API],
  })
  stranger = await register('stranger', { ...MACHINE, audience: ['https://other.example'] })
})
after(async () => {
  await points?.[Symbol.asyncDispose]()
  await identity?.[Symbol.asyncDispose]()
})

async function tokenOf({ clientId, secret = '' }: Caller): Promise<string> {
  const body = { grant_type: 'client_credentials' }
  const { json } = await postForm(`${identity.issuerUrl}/token`, body, basic(clientId, secret))
  assert.equal(typeof json.access_token, 'string')
  return String(json.access_token)
}

async function introspect({ clientId, secret = '' }: Caller, token: string): Promise<string> {
  const { status, text } = await postForm(identity.introspectionUrl, { token }, basic(clientId, secret))
  assert.equal(status, 200, text)
  return text
}

async function internalTokenOf(token: string): Promise<string> {
  const { info } = await identity.introspectorRpc.introspect({ token })
  assert.ok(info?.internalToken)
  return info.internalToken
}

test('discovery names the endpoints for clients with certificates, and nothing else is served there', {
  skip,
}, async () => {
  const path = '/.well-known/openid-configuration'
  const { issuer, mtls_endpoint_aliases: aliases } = (await (await fetch(identity.issuerUrl + path)).json()) as {
    issuer: string
    mtls_endpoint_aliases: Record<string, string>
  }
  assert.equal(issuer, identity.issuerUrl)
  assert.equal(aliases.token_endpoint, `${identity.mtlsUrl}/token`)
  const secure = fetchWith(identity)
  for (const [name, url] of Object.entries(aliases)) assert.notEqual((await secure(url)).status, 200, name)
  for (const other of ['/auth', '/device', '/session/end', '/reg', '/interaction/x']) {
    assert.equal((await secure(identity.mtlsUrl + other)).status, 404, other)
  }
})

test('both libraries introspect; the answer in JSON has what RFC 7662 names', { skip }, async () => {
  const token = await tokenOf(owner)
  const config = await openidClient(identity, api.clientId, openid.ClientSecretBasic(api.secret))
  const { iat, exp, ...answer } = await openid.tokenIntrospection(config, token)
  assert.deepEqual(answer, {
    active: true,
    client_id: owner.clientId,
    sub: owner.clientId,
    scope: 'orders',
    aud: API,
    iss: identity.issuerUrl,
    token_type: 'Bearer',
  })
  assert.equal((exp ?? 0) - (iat ?? 0), 600)
  const server = await discovered(identity)
  const client = { client_id: owner.clientId }
  const authentication = oauth.ClientSecretBasic(owner.secret ?? '')
  const response = await oauth.introspectionRequest(server, client, authentication, token, INSECURE)
  assert.equal((await oauth.processIntrospectionResponse(server, client, response)).active, true)
})

test('oauth4webapi takes the signed answer (RFC 9701), which is no access token', { skip }, async () => {
  const token = await tokenOf(owner)
  const server = await discovered(identity)
  const client: oauth.Client = { client_id: api.clientId, introspection_signed_response_alg: 'ES256' }
  const authentication = oauth.ClientSecretBasic(api.secret ?? '')
  const options = { ...INSECURE, requestJwtResponse: true }
  const response = await oauth.introspectionRequest(server, client, authentication, token, options)
  const jwt = await response.clone().text()
  const answer = await oauth.processIntrospectionResponse(server, client, response)
  await oauth.validateApplicationLevelSignature(server, response, INSECURE)
  assert.equal(answer.active, true)
  assert.equal(answer.client_id, owner.clientId)
  const headers = { authorization: `Bearer ${jwt}` }
  assert.equal((await ask(`${points.gatewayUrl}/echo`, { headers })).status, 401)
  assert.equal(await introspect(api, jwt), EXACTLY_INACTIVE)
})

test('only the token’s own client and those whom its API lets are told anything', { skip }, async () => {
  const token = await tokenOf(owner)
  assert.notEqual(await introspect(owner, token), EXACTLY_INACTIVE)
  assert.notEqual(await introspect(api, token), EXACTLY_INACTIVE)
  assert.equal(await introspect(stranger, token), EXACTLY_INACTIVE)
  const internal = await internalTokenOf(token)
  assert.equal((JSON.parse(await introspect(api, internal)) as { active: boolean }).active, true)
  assert.equal(await introspect(stranger, internal), EXACTLY_INACTIVE)
})

test('JWTs of others, of another kind, forged or over are inactive, and open nothing', { skip }, async () => {
  const internal = await internalTokenOf(await tokenOf(owner))
  const claims = decodeJwt(internal)
  const [head = '', payload = '', signature = ''] = internal.split('.')
  const header = JSON.parse(Buffer.from(head, 'base64url').toString()) as { kid: string }
  const { keys } = (await (await fetch(`${identity.issuerUrl}/jwks`)).json()) as { keys: JWK[] }
  const published = keys.find(({ kid }) => kid === header.kid)
  assert.ok(published)
  const pem = await exportSPKI(
    (await importJWK(published, 'ES256', { extractable: true })) as Parameters<typeof exportSPKI>[0],
  )
  const own = await makeKeys()
  const signed = (changes: object, protectedHeader: object = {}) =>
    new SignJWT({ ...claims, ...changes })
      .setProtectedHeader({ alg: 'ES256', typ: 'at+jwt', kid: header.kid, ...protectedHeader })
      .sign(own.privateKey)
  const person = await Person.create(identity)
  const web = { clientId: 'web', secret: await identity.register('web', FOR_PEOPLE) }
  const { idToken } = await tokensOf(identity, person, web)
  const altered = Buffer.from(JSON.stringify({ ...claims, scope: 'orders admin' })).toString('base64url')
  const forgeries = {
    'another key': await signed({}),
    'another key in the header': await signed({}, { jwk: own.publicJwk }),
    'another key by address': await signed({}, { jku: 'http://127.0.0.1:1/', kid: 'x' }),
    'another issuer': await signed({ iss: 'https://evil.example' }),
    'over for an hour': await signed({ exp: nowSeconds() - 3600 }),
    'not yet valid': await signed({ nbf: nowSeconds() + 3600 }),
    none: forged({ alg: 'none', typ: 'at+jwt' }, claims, ''),
    'none with the right kid': forged({ alg: 'none', typ: 'at+jwt', kid: header.kid }, claims, signature),
    'HS256 under the published key': forged({ alg: 'HS256', typ: 'at+jwt', kid: header.kid }, claims, hs256(pem)),
    'HS256 under its JWK': forged(
      { alg: 'HS256', typ: 'at+jwt', kid: header.kid },
      claims,
      hs256(JSON.stringify(published)),
    ),
    'a kid that is a path': await signed({}, { kid: '../../../../etc/passwd' }),
    'a kid that is a query': await signed({}, { kid: "' OR '1'='1" }),
    'a kid that is long': await signed({}, { kid: 'x'.repeat(1000) }),
    'more scopes under the old signature': `${head}.${altered}.${signature}`,
    'no signature': `${head}.${payload}.`,
    'an ID token': idToken,
  }
  for (const [what, token] of Object.entries(forgeries)) {
    assert.equal(await introspect(api, token), EXACTLY_INACTIVE, what)
    assert.equal(await introspect(owner, token), EXACTLY_INACTIVE, what)
    const headers = { authorization: `Bearer ${token}` }
    const answer = await ask(`${points.gatewayUrl}/echo`, { headers })
    assert.equal(answer.status, 401, what)
    assertNoStackTrace(answer.text)
    assert.equal(await checkStatus(points.check, '/echo', headers), 401, what)
  }
})

test('a token is worth nothing after its end', { skip }, async () => {
  const brief = { clientId: 'brief', secret: await identity.register('brief', { ...MACHINE, tokenLifetime: '3s' }) }
  const token = await tokenOf(brief)
  const headers = { authorization: `Bearer ${token}` }
  assert.equal((await ask(`${points.gatewayUrl}/echo`, { headers })).status, 200)
  await eventually(async () => (await introspect(brief, token)) === EXACTLY_INACTIVE, { what: 'the token ends' })
  assert.equal((await ask(`${points.gatewayUrl}/echo`, { headers })).status, 401)
  assert.equal(await checkStatus(points.check, '/echo', headers), 401)
})

test('a token from inside opens nothing outside', { skip }, async () => {
  const headers = { authorization: `Bearer ${await internalTokenOf(await tokenOf(owner))}` }
  assert.equal((await ask(`${points.gatewayUrl}/echo`, { headers })).status, 401)
  assert.equal(await checkStatus(points.check, '/echo', headers), 401)
})

test('both libraries exchange their caller’s token for an internal one that verifies', { skip }, async () => {
  const token = await tokenOf(owner)
  const parameters = { subject_token: token, subject_token_type: ACCESS_TOKEN, audience: API }
  const config = await openidClient(identity, api.clientId, openid.ClientSecretBasic(api.secret))
  const first = await openid.genericGrantRequest(config, TOKEN_EXCHANGE, parameters)
  const server = await discovered(identity)
  const client = { client_id: api.clientId }
  const response = await oauth.genericTokenEndpointRequest(
    server,
    client,
    oauth.ClientSecretBasic(api.secret ?? ''),
    TOKEN_EXCHANGE,
    parameters,
    INSECURE,
  )
  const second = await oauth.processGenericTokenEndpointResponse(server, client, response)
  const jwks = createRemoteJWKSet(new URL(server.jwks_uri ?? ''))
  for (const { access_token: jwt } of [first, second]) {
    const checks = { issuer: identity.issuerUrl, audience: API, typ: 'at+jwt', algorithms: ['ES256'] }
    const { payload } = await jwtVerify(jwt, jwks, checks)
    assert.equal(payload.sub, owner.clientId)
    assert.equal(payload.client_id, owner.clientId)
    assert.deepEqual(payload.act, { sub: api.clientId })
  }
  const refused = {
    'of a client that may not exchange': [owner, parameters],
    'for an audience that the token has not': [api, { ...parameters, audience: 'https://other.example' }],
    'for a scope that the token has not': [api, { ...parameters, scope: 'admin' }],
    'of a made-up token': [api, { ...parameters, subject_token: 'x'.repeat(43) }],
    'of a token from inside': [api, { ...parameters, subject_token: first.access_token }],
  } as const
  for (const [what, [{ clientId, secret = '' }, body]] of Object.entries(refused)) {
    const answer = await postForm(
      `${identity.issuerUrl}/token`,
      { grant_type: TOKEN_EXCHANGE, ...body },
      basic(clientId, secret),
    )
    assert.equal(answer.status, 400, `${what}: ${answer.text}`)
    assert.match(String(answer.json.error), /^(unauthorized_client|invalid_(target|scope|request|grant))$/, what)
  }
})
