import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { requires } from '@tollward/testkit'
import * as oauth from 'oauth4webapi'
import * as openid from 'openid-client'
import { type Identity, startIdentity } from '../scenario/identity.ts'
import { discovered, INSECURE, openidClient } from './clients.ts'
import { API, authorizationUrl, type Caller, FOR_PEOPLE, isActive, pkce, tokensOf } from './code-flow.ts'
import { assertOAuthError, postForm } from './oauth.ts'
import { Person } from './person.ts'

const skip = await requires({ tools: ['nats-server'] })

const DEVICE_GRANT = 'urn:ietf:params:oauth:grant-type:device_code'
const TV = {
  grants: ['device_code', 'refresh_token'],
  scopes: ['orders'],
  audience: [API],
  authentication: 'none',
}
const WANTED = { scope: 'openid orders', resource: API }

let identity: Identity
let person: Person

before(async () => {
  if (skip !== false) return
  identity = await startIdentity()
  person = await Person.create(identity)
  await identity.apply('Client', 'tv', TV)
})
after(() => identity?.[Symbol.asyncDispose]())

test('openid-client gets its tokens while a person connects the device', { skip }, async () => {
  const config = await openidClient(identity, 'tv', openid.None())
  const device = await openid.initiateDeviceAuthorization(config, WANTED)
  const polled = openid.pollDeviceAuthorizationGrant(config, device, { resource: API })
  const page = await person.connectDevice(device.verification_uri, device.user_code)
  assert.equal(page.status, 200, page.html)
  const tokens = await polled
  assert.equal(await isActive(identity, tokens.access_token), true)
  assert.equal(tokens.claims()?.sub, person.subject)
  const refreshed = await openid.refreshTokenGrant(config, tokens.refresh_token ?? '')
  assert.equal(await isActive(identity, refreshed.access_token), true)
})

test('oauth4webapi is told to wait, and gets its tokens once the person agreed, once', { skip }, async () => {
  const server = await discovered(identity)
  const client = { client_id: 'tv' }
  const device = await oauth.processDeviceAuthorizationResponse(
    server,
    client,
    await oauth.deviceAuthorizationRequest(server, client, oauth.None(), WANTED, INSECURE),
  )
  const exchange = async () =>
    oauth.processDeviceCodeResponse(
      server,
      client,
      await oauth.deviceCodeGrantRequest(server, client, oauth.None(), device.device_code, INSECURE),
    )
  await assert.rejects(exchange(), { error: 'authorization_pending' })
  await person.connectDevice(device.verification_uri_complete ?? '', device.user_code)
  const tokens = await exchange()
  assert.equal(await isActive(identity, tokens.access_token), true)
  await assert.rejects(exchange(), { error: 'invalid_grant' })
})

test('a device code is nothing in the hands of another client, and user codes cannot be guessed with', {
  skip,
}, async () => {
  await identity.apply('Client', 'thief', TV)
  const answer = await postForm(`${identity.issuerUrl}/device/auth`, { client_id: 'tv', ...WANTED })
  const { device_code: deviceCode, user_code: userCode } = answer.json
  await person.connectDevice(`${identity.issuerUrl}/device`, String(userCode))
  const grant = { grant_type: DEVICE_GRANT, device_code: String(deviceCode) }
  const url = `${identity.issuerUrl}/token`
  assertOAuthError(await postForm(url, { ...grant, client_id: 'thief' }), 'invalid_grant', 400)
  assertOAuthError(await postForm(url, { ...grant, device_code: 'made-up', client_id: 'tv' }), 'invalid_grant', 400)
  const wrong = await person.connectDevice(`${identity.issuerUrl}/device`, 'BBBB-BBBB')
  assert.ok(wrong.status >= 400 && wrong.status < 500)
})

test('signing out at the issuer leads back, ends the session, and not without the person’s word', {
  skip,
}, async () => {
  const back = 'https://app.example/signed-out'
  const secret = await identity.register('web', { ...FOR_PEOPLE, postLogoutRedirectUris: [back] })
  const web: Caller = { clientId: 'web', secret }
  const visitor = await Person.create(identity)
  const { idToken } = await tokensOf(identity, visitor, web)
  const config = await openidClient(identity, 'web', openid.ClientSecretBasic(secret))
  const { challenge } = pkce()
  const silent = authorizationUrl(identity, {
    client_id: 'web',
    code_challenge: challenge,
    code_challenge_method: 'S256',
    prompt: 'none',
  })
  const parameters = { id_token_hint: idToken, post_logout_redirect_uri: back, state: 'where-i-was' }
  const asked = await visitor.browser.open(openid.buildEndSessionUrl(config, parameters))
  assert.ok((await visitor.authorize(silent)).searchParams.get('code'), 'still signed in while asked')
  const [form] = asked.forms
  assert.ok(form)
  const { url } = await visitor.browser.send(form, {}, 'logout=yes')
  assert.equal(url.href, `${back}?state=where-i-was`)
  assert.equal((await visitor.authorize(silent)).searchParams.get('error'), 'login_required')

  const elsewhere = { id_token_hint: idToken, post_logout_redirect_uri: 'https://evil.example/' }
  const page = await visitor.browser.open(openid.buildEndSessionUrl(config, elsewhere))
  assert.equal(page.url.origin, identity.issuerUrl)
  assert.equal(page.status, 400)
})
