import assert from 'node:assert/strict'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { after, before, test } from 'node:test'
import { requires } from '@tollward/testkit'
import * as openid from 'openid-client'
import { type Identity, startIdentity } from '../scenario/identity.ts'
import { openidClient } from './clients.ts'
import {
  authorizationUrl,
  CALLBACK,
  type Caller,
  codeGrant,
  codeOf,
  FOR_PEOPLE,
  isActive,
  pkce,
  refreshGrant,
  tokenRequest,
  tokensIn,
  tokensOf,
} from './code-flow.ts'
import { ask, assertNoStackTrace, assertOAuthError } from './oauth.ts'
import { Person } from './person.ts'

const skip = await requires({ tools: ['nats-server'] })

let identity: Identity
let person: Person
let victim: Caller
let thief: Caller

before(async () => {
  if (skip !== false) return
  identity = await startIdentity()
  person = await Person.create(identity)
  const register = async (clientId: string) => ({ clientId, secret: await identity.register(clientId, FOR_PEOPLE) })
  victim = await register('victim')
  thief = await register('thief')
})
after(() => identity?.[Symbol.asyncDispose]())

test('a code is good once; used again, what it gave dies', { skip }, async () => {
  const { code, verifier } = await codeOf(identity, person, victim.clientId)
  const grant = codeGrant(code, verifier)
  const { accessToken, refreshToken } = tokensIn(await tokenRequest(identity, victim, grant))
  assert.equal(await isActive(identity, accessToken), true)
  assertOAuthError(await tokenRequest(identity, victim, grant), 'invalid_grant', 400)
  assert.equal(await isActive(identity, accessToken), false, 'the access token outlived the replay')
  assertOAuthError(await tokenRequest(identity, victim, refreshGrant(refreshToken)), 'invalid_grant', 400)
})

test('of many exchanges of one code at once, at most one gives tokens', { skip }, async () => {
  const { code, verifier } = await codeOf(identity, person, victim.clientId)
  const requests = Array.from({ length: 8 }, () => tokenRequest(identity, victim, codeGrant(code, verifier)))
  const answers = await Promise.all(requests)
  assert.ok(answers.filter(({ status }) => status === 200).length <= 1)
  for (const answer of answers) if (answer.status !== 200) assertOAuthError(answer, 'invalid_grant', 400)
})

test('a code without PKCE, with the plain method, or with another verifier gives nothing', { skip }, async () => {
  const { challenge, verifier } = pkce()
  const requests = {
    'no challenge': {},
    'plain by name': { code_challenge: verifier, code_challenge_method: 'plain' },
    'plain by default': { code_challenge: verifier },
    'unknown method': { code_challenge: challenge, code_challenge_method: 'S512' },
    'short challenge': { code_challenge: 'short', code_challenge_method: 'S256' },
  }
  for (const [what, parameters] of Object.entries(requests)) {
    const back = await person.authorize(authorizationUrl(identity, { client_id: victim.clientId, ...parameters }))
    assert.equal(back.searchParams.get('error'), 'invalid_request', what)
    assert.equal(back.searchParams.get('code'), null, what)
  }
  const { code } = await codeOf(identity, person, victim.clientId)
  const missing = { grant_type: 'authorization_code', code, redirect_uri: CALLBACK }
  assertOAuthError(await tokenRequest(identity, victim, missing), 'invalid_grant', 400)
  const other = await codeOf(identity, person, victim.clientId)
  assertOAuthError(await tokenRequest(identity, victim, codeGrant(other.code, pkce().verifier)), 'invalid_grant', 400)
  const third = await codeOf(identity, person, victim.clientId)
  const malformed = codeGrant(third.code, 'too short')
  assertOAuthError(await tokenRequest(identity, victim, malformed), /^invalid_(request|grant)$/, 400)
})

test('a redirect URI that is not the registered one, character by character, is never redirected to', {
  skip,
}, async () => {
  const tricks = [
    'https://app.example/callback/',
    'https://app.example/callback/../evil',
    'https://app.example/callback/%2e%2e/evil',
    'https://app.example/callback.evil',
    'https://app.example/Callback',
    'https://APP.example/callback',
    'https://app.example:443/callback',
    'https://app.example:8443/callback',
    'https://app.example/callback?next=https://evil.example',
    'https://app.example/callback#fragment',
    'https://app.example/call',
    'https://app.example.evil.example/callback',
    'https://app.example@evil.example/callback',
    'https://evil.example/https://app.example/callback',
    'http://app.example/callback',
    '//app.example/callback',
    '/callback',
    'javascript:alert(1)//https://app.example/callback',
    'https://app.example\\@evil.example/callback',
    'https://app.example/callback ',
    'https://app.example/callback%00',
  ]
  const { challenge } = pkce()
  const pairs = { client_id: victim.clientId, code_challenge: challenge, code_challenge_method: 'S256' }
  for (const trick of tricks) {
    const page = await person.browser.open(authorizationUrl(identity, { ...pairs, redirect_uri: trick }))
    assert.equal(page.url.origin, identity.issuerUrl, `redirected for ${trick}`)
    assert.equal(page.status, 400, `${page.status} for ${trick}`)
    assertNoStackTrace(page.html)
  }
  const doubled = authorizationUrl(identity, pairs)
  doubled.searchParams.append('redirect_uri', 'https://evil.example/callback')
  const { url } = await person.browser.open(doubled)
  assert.equal(url.origin + url.pathname, CALLBACK, 'of two redirect URIs, only the registered one is ever used')
  assert.equal(url.searchParams.get('error'), 'invalid_request')
})

test('another port of the loopback is another redirect URI', { skip }, async () => {
  const redirectUris = ['http://127.0.0.1:8765/callback']
  await identity.apply('Client', 'desktop', { ...FOR_PEOPLE, authentication: 'none', redirectUris })
  const { challenge } = pkce()
  const pairs = { client_id: 'desktop', code_challenge: challenge, code_challenge_method: 'S256' }
  for (const uri of ['http://127.0.0.1:8766/callback', 'http://localhost:8765/callback', 'http://127.0.0.1/callback']) {
    const page = await person.browser.open(authorizationUrl(identity, { ...pairs, redirect_uri: uri }))
    assert.equal(page.url.origin, identity.issuerUrl, uri)
    assert.equal(page.status, 400, uri)
  }
})

test('the redirect URI of the exchange has to be that of the request', { skip }, async () => {
  for (const uri of ['https://app.example/other', `${CALLBACK}/`, 'https://evil.example']) {
    const { code, verifier } = await codeOf(identity, person, victim.clientId)
    const answer = await tokenRequest(identity, victim, { ...codeGrant(code, verifier), redirect_uri: uri })
    assertOAuthError(answer, /^invalid_(grant|request)$/, 400)
  }
})

test('answers name their issuer, and a client notices one of another (RFC 9207)', { skip }, async () => {
  const config = await openidClient(identity, victim.clientId, openid.ClientSecretBasic(victim.secret))
  assert.equal(config.serverMetadata().authorization_response_iss_parameter_supported, true)
  const { challenge, verifier } = pkce()
  const request = { client_id: victim.clientId, code_challenge: challenge, code_challenge_method: 'S256' }
  const back = await person.authorize(authorizationUrl(identity, request))
  assert.equal(back.searchParams.get('iss'), identity.issuerUrl)
  for (const iss of ['https://evil.example', undefined]) {
    const mixedUp = new URL(back)
    mixedUp.searchParams.delete('iss')
    if (iss !== undefined) mixedUp.searchParams.set('iss', iss)
    await assert.rejects(openid.authorizationCodeGrant(config, mixedUp, { pkceCodeVerifier: verifier }))
  }
  const refusal = await person.authorize(authorizationUrl(identity, { ...request, response_type: 'token' }))
  assert.equal(
    refusal.searchParams.get('iss') ?? new URLSearchParams(refusal.hash.slice(1)).get('iss'),
    identity.issuerUrl,
  )
})

test('code and refresh token of one client are nothing in the hands of another, and go on for the one', {
  skip,
}, async () => {
  const { code, verifier } = await codeOf(identity, person, victim.clientId)
  assertOAuthError(await tokenRequest(identity, thief, codeGrant(code, verifier)), 'invalid_grant', 400)
  const { refreshToken, accessToken } = await tokensOf(identity, person, victim)
  assertOAuthError(await tokenRequest(identity, thief, refreshGrant(refreshToken)), 'invalid_grant', 400)
  assert.equal(await isActive(identity, accessToken), true, 'a thief ended the grant of another client')
  const { accessToken: next } = tokensIn(await tokenRequest(identity, victim, refreshGrant(refreshToken)))
  assert.equal(await isActive(identity, next), true)
  const named = { ...refreshGrant(refreshToken), client_id: victim.clientId }
  assertOAuthError(await tokenRequest(identity, thief, named), /^invalid_(client|request|grant)$/)
  const nobody: Caller = { clientId: victim.clientId, secret: undefined }
  assertOAuthError(await tokenRequest(identity, nobody, refreshGrant(refreshToken)), 'invalid_client', 401)
})

test('a refresh token asks for no more than was granted', { skip }, async () => {
  const { refreshToken } = await tokensOf(identity, person, victim)
  const more = { ...refreshGrant(refreshToken), scope: 'openid orders stock' }
  assertOAuthError(await tokenRequest(identity, victim, more), 'invalid_scope', 400)
  const elsewhere = { ...refreshGrant(refreshToken), resource: 'https://other.example' }
  assertOAuthError(await tokenRequest(identity, victim, elsewhere), 'invalid_target', 400)
})

test('pages for nobody, forged and doubled requests end on a page that says so, with nothing of ours in it', {
  skip,
}, async () => {
  const addresses = [
    '/auth',
    '/auth?client_id=nobody',
    `/auth?client_id=${'x'.repeat(5000)}`,
    `/auth?client_id=${victim.clientId}&client_id=${thief.clientId}`,
    '/auth/not-an-interaction',
    '/interaction/not-an-interaction',
    '/auth?client_id=%zz',
    '/auth?request=eyJhbGciOiJub25lIn0.e30.',
  ]
  for (const address of addresses) {
    const answer = await ask(identity.issuerUrl + address, { headers: { accept: 'text/html' } })
    assert.ok(answer.status >= 400 && answer.status < 500, `${address}: ${answer.status} ${answer.text}`)
    assertNoStackTrace(answer.text)
  }
})

test('a request by reference is not fetched', { skip }, async () => {
  let fetched = 0
  const server = createServer((_request, response) => {
    fetched += 1
    response.end()
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  const reference = { client_id: victim.clientId, request_uri: `http://127.0.0.1:${port}/` }
  const back = await person.authorize(authorizationUrl(identity, reference))
  assert.equal(back.searchParams.get('error'), 'request_uri_not_supported')
  const madeUp = { ...reference, request_uri: 'urn:ietf:params:oauth:request_uri:made-up' }
  const again = await person.authorize(authorizationUrl(identity, madeUp))
  assert.equal(again.searchParams.get('error'), 'invalid_request_uri')
  assert.equal(fetched, 0)
  server.close()
})
