import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { requires } from '@tollward/testkit'
import * as oauth from 'oauth4webapi'
import * as openid from 'openid-client'
import { type Identity, startIdentity } from '../scenario/identity.ts'
import { discovered, INSECURE, openidClient } from './clients.ts'
import { Person } from './person.ts'

const skip = await requires({ tools: ['nats-server'] })

const API = 'https://api.example'
const CALLBACK = 'https://app.example/callback'
const SCOPE = 'openid offline_access orders'
const FOR_PEOPLE = {
  grants: ['authorization_code', 'refresh_token'],
  redirectUris: [CALLBACK],
  scopes: ['orders', 'stock'],
  audience: [API],
}

let identity: Identity
let person: Person

before(async () => {
  if (skip !== false) return
  identity = await startIdentity()
  person = await Person.create(identity)
})
after(() => identity?.[Symbol.asyncDispose]())

/** What both libraries are handed for one client. */
interface Both {
  readonly clientId: string
  readonly config: openid.Configuration
  readonly server: oauth.AuthorizationServer
  readonly client: oauth.Client
  readonly authentication: oauth.ClientAuth
}

async function confidential(clientId: string, spec: object = {}): Promise<Both> {
  const secret = await identity.register(clientId, { ...FOR_PEOPLE, ...spec })
  return {
    clientId,
    config: await openidClient(identity, clientId, openid.ClientSecretBasic(secret)),
    server: await discovered(identity),
    client: { client_id: clientId },
    authentication: oauth.ClientSecretBasic(secret),
  }
}

async function open(clientId: string, spec: object = {}): Promise<Both> {
  await identity.apply('Client', clientId, { ...FOR_PEOPLE, authentication: 'none', ...spec })
  return {
    clientId,
    config: await openidClient(identity, clientId, openid.None()),
    server: await discovered(identity),
    client: { client_id: clientId },
    authentication: oauth.None(),
  }
}

const parameters = { redirect_uri: CALLBACK, scope: SCOPE, resource: API, prompt: 'consent' }

/** The code flow as openid-client's manual has it. */
async function openidCodeFlow({ config }: Both, options: openid.AuthorizationCodeGrantOptions = {}) {
  const verifier = openid.randomPKCECodeVerifier()
  const [state, nonce] = [openid.randomState(), openid.randomNonce()]
  const challenge = {
    code_challenge: await openid.calculatePKCECodeChallenge(verifier),
    code_challenge_method: 'S256',
  }
  const back = await person.authorize(
    openid.buildAuthorizationUrl(config, { ...parameters, ...challenge, state, nonce }),
  )
  const checks = { pkceCodeVerifier: verifier, expectedState: state, expectedNonce: nonce, idTokenExpected: true }
  return await openid.authorizationCodeGrant(config, back, checks, { resource: API }, options)
}

/** The same as oauth4webapi's examples have it. */
async function oauthCodeFlow({ server, client, authentication }: Both, DPoP?: oauth.DPoPHandle) {
  const verifier = oauth.generateRandomCodeVerifier()
  const [state, nonce] = [oauth.generateRandomState(), oauth.generateRandomNonce()]
  const url = new URL(server.authorization_endpoint ?? '')
  const challenge = { code_challenge: await oauth.calculatePKCECodeChallenge(verifier), code_challenge_method: 'S256' }
  const request = { ...parameters, ...challenge, client_id: client.client_id, response_type: 'code', state, nonce }
  for (const [name, value] of Object.entries(request)) url.searchParams.set(name, value)
  const answer = oauth.validateAuthResponse(server, client, await person.authorize(url), state)
  const exchange = () =>
    oauth.authorizationCodeGrantRequest(server, client, authentication, answer, CALLBACK, verifier, {
      ...INSECURE,
      ...(DPoP === undefined ? {} : { DPoP }),
      additionalParameters: { resource: API },
    })
  const process = async () =>
    await oauth.processAuthorizationCodeResponse(server, client, await exchange(), {
      expectedNonce: nonce,
      requireIdToken: true,
    })
  return await withNonce(process)
}

/** Repeats a request whose DPoP proof lacked the server's nonce, as oauth4webapi's examples do. */
async function withNonce<T>(request: () => Promise<T>): Promise<T> {
  try {
    return await request()
  } catch (error) {
    if (!oauth.isDPoPNonceError(error)) throw error
    return await request()
  }
}

async function infoOf(token: string) {
  const { info } = await identity.issuerRpc.exchange({ token })
  assert.ok(info)
  return info
}

test('a person signs in and consents, and both libraries get their tokens by code with PKCE', { skip }, async () => {
  for (const both of [await confidential('web'), await open('native')]) {
    const tokens = await openidCodeFlow(both)
    assert.equal(tokens.claims()?.sub, person.subject)
    assert.equal(tokens.claims()?.aud, both.clientId)
    assert.ok(tokens.refresh_token)
    const info = await infoOf(tokens.access_token)
    assert.deepEqual(
      {
        active: info.active,
        subject: info.subject,
        clientId: info.clientId,
        scopes: info.scopes,
        audience: info.audience,
      },
      { active: true, subject: person.subject, clientId: both.clientId, scopes: ['orders'], audience: [API] },
    )
    const others = await oauthCodeFlow(both)
    assert.equal(oauth.getValidatedIdTokenClaims(others)?.sub, person.subject)
    assert.equal((await infoOf(others.access_token)).subject, person.subject)
  }
})

test('both libraries refresh, and each refresh token is used once', { skip }, async () => {
  const both = await confidential('refreshing')
  const first = await openidCodeFlow(both)
  const second = await openid.refreshTokenGrant(both.config, first.refresh_token ?? '')
  assert.ok(second.refresh_token && second.refresh_token !== first.refresh_token)
  assert.equal((await infoOf(second.access_token)).active, true)
  const { server, client, authentication } = both
  const response = await oauth.refreshTokenGrantRequest(server, client, authentication, second.refresh_token, INSECURE)
  const third = await oauth.processRefreshTokenResponse(server, client, response)
  assert.ok(third.refresh_token && third.refresh_token !== second.refresh_token)
  assert.equal((await infoOf(third.access_token)).active, true)
})

test('both libraries push their authorization requests, and a client that has to cannot do without', {
  skip,
}, async () => {
  const both = await confidential('pushing', { requirePushedAuthorization: true })
  const { config, server, client, authentication, clientId } = both
  const verifier = openid.randomPKCECodeVerifier()
  const challenge = {
    code_challenge: await openid.calculatePKCECodeChallenge(verifier),
    code_challenge_method: 'S256',
  }
  const url = await openid.buildAuthorizationUrlWithPAR(config, { ...parameters, ...challenge })
  assert.match(url.searchParams.get('request_uri') ?? '', /^urn:ietf:params:oauth:request_uri:/)
  assert.equal(url.searchParams.get('redirect_uri'), null)
  const tokens = await openid.authorizationCodeGrant(config, await person.authorize(url), {
    pkceCodeVerifier: verifier,
  })
  assert.equal((await infoOf(tokens.access_token)).subject, person.subject)

  const pushed = await oauth.processPushedAuthorizationResponse(
    server,
    client,
    await oauth.pushedAuthorizationRequest(
      server,
      client,
      authentication,
      { ...parameters, ...challenge, client_id: clientId, response_type: 'code' },
      INSECURE,
    ),
  )
  const second = new URL(server.authorization_endpoint ?? '')
  second.searchParams.set('client_id', clientId)
  second.searchParams.set('request_uri', pushed.request_uri)
  const answer = oauth.validateAuthResponse(server, client, await person.authorize(second))
  assert.ok(answer.get('code'))

  const direct = openid.buildAuthorizationUrl(config, { ...parameters, ...challenge })
  const back = await person.authorize(direct)
  assert.equal(back.searchParams.get('error'), 'invalid_request')
})

test('both libraries bind their tokens to a DPoP key with the server’s nonces, by code and by refresh', {
  skip,
}, async () => {
  const both = await open('bound', { senderConstraint: 'dpop' })
  const openidKeys = await openid.randomDPoPKeyPair('ES256')
  const handle = openid.getDPoPHandle(both.config, openidKeys)
  const tokens = await openidCodeFlow(both, { DPoP: handle })
  assert.equal(tokens.token_type, 'dpop')
  const jkt = (await infoOf(tokens.access_token)).confirmation?.method
  assert.deepEqual(jkt, { case: 'jkt', value: await handle.calculateThumbprint() })
  const refreshed = await openid.refreshTokenGrant(both.config, tokens.refresh_token ?? '', {}, { DPoP: handle })
  assert.deepEqual((await infoOf(refreshed.access_token)).confirmation?.method, jkt)

  const DPoP = oauth.DPoP(both.client, await oauth.generateKeyPair('ES256'))
  const others = await oauthCodeFlow(both, DPoP)
  assert.equal(others.token_type, 'dpop')
  const { server, client, authentication } = both
  const again = await withNonce(async () =>
    oauth.processRefreshTokenResponse(
      server,
      client,
      await oauth.refreshTokenGrantRequest(server, client, authentication, others.refresh_token ?? '', {
        ...INSECURE,
        DPoP,
      }),
    ),
  )
  assert.equal((await infoOf(again.access_token)).confirmation?.method.case, 'jkt')
})

test('a token for openid alone is good for userinfo, in both libraries', { skip }, async () => {
  const both = await confidential('curious', { scopes: [] })
  const { config, server, client } = both
  const verifier = openid.randomPKCECodeVerifier()
  const url = openid.buildAuthorizationUrl(config, {
    redirect_uri: CALLBACK,
    scope: 'openid',
    code_challenge: await openid.calculatePKCECodeChallenge(verifier),
    code_challenge_method: 'S256',
  })
  const back = await person.authorize(url)
  const tokens = await openid.authorizationCodeGrant(config, back, {
    pkceCodeVerifier: verifier,
    idTokenExpected: true,
  })
  const info = await openid.fetchUserInfo(config, tokens.access_token, person.subject)
  assert.equal(info.sub, person.subject)
  const response = await oauth.userInfoRequest(server, client, tokens.access_token, INSECURE)
  assert.equal((await oauth.processUserInfoResponse(server, client, person.subject, response)).sub, person.subject)
})

test('revoking the refresh token ends the grant with all its tokens', { skip }, async () => {
  const both = await confidential('leaving')
  const tokens = await openidCodeFlow(both)
  await openid.tokenRevocation(both.config, tokens.refresh_token ?? '')
  assert.equal((await infoOf(tokens.access_token)).active, false)
  await assert.rejects(openid.refreshTokenGrant(both.config, tokens.refresh_token ?? ''), { error: 'invalid_grant' })
})
