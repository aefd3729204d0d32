import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { requires } from '@tollward/testkit'
import { exportJWK, generateKeyPair } from 'jose'
import * as oauth from 'oauth4webapi'
import * as openid from 'openid-client'
import { type Identification, selfSigned } from '../scenario/certificates.ts'
import { type Identity, startIdentity } from '../scenario/identity.ts'
import { discovered, fetchWith, INSECURE, openidClient } from './clients.ts'

const skip = await requires({ tools: ['nats-server'] })

const API = 'https://api.example'
const MACHINE = { grants: ['client_credentials'], scopes: ['orders', 'stock'], audience: [API] }

let identity: Identity

before(async () => {
  if (skip === false) identity = await startIdentity()
})
after(() => identity?.[Symbol.asyncDispose]())

/** A way to authenticate, as each library has it. */
interface Way {
  readonly clientId: string
  readonly openid: openid.ClientAuth
  readonly oauth: oauth.ClientAuth
  readonly certificate?: Identification
}

const ways: Readonly<Record<string, () => Promise<Way>>> = {
  client_secret_basic: async () => {
    const secret = await identity.register('by-basic', { ...MACHINE, authentication: 'client_secret_basic' })
    return { clientId: 'by-basic', openid: openid.ClientSecretBasic(secret), oauth: oauth.ClientSecretBasic(secret) }
  },
  client_secret_post: async () => {
    const secret = await identity.register('by-post', { ...MACHINE, authentication: 'client_secret_post' })
    return { clientId: 'by-post', openid: openid.ClientSecretPost(secret), oauth: oauth.ClientSecretPost(secret) }
  },
  'private_key_jwt with ES256': () => byKey('by-es256', 'ES256'),
  'private_key_jwt with EdDSA': () => byKey('by-eddsa', 'EdDSA'),
  tls_client_auth: async () => {
    await identity.apply('Client', 'by-tls', {
      ...MACHINE,
      authentication: 'tls_client_auth',
      certificateSubject: 'CN=by-tls,O=Conformance',
      senderConstraint: 'certificate',
    })
    const certificate = await identity.authority.issue('O=Conformance,CN=by-tls', 'client')
    return { clientId: 'by-tls', openid: openid.TlsClientAuth(), oauth: oauth.TlsClientAuth(), certificate }
  },
  self_signed_tls_client_auth: async () => {
    const certificate = await selfSigned('CN=by-itself')
    await identity.apply('Client', 'by-itself', {
      ...MACHINE,
      authentication: 'self_signed_tls_client_auth',
      jwks: { keys: [{ ...certificate.publicJwk, x5c: [certificate.der] }] },
      senderConstraint: 'certificate',
    })
    return { clientId: 'by-itself', openid: openid.TlsClientAuth(), oauth: oauth.TlsClientAuth(), certificate }
  },
}

async function byKey(clientId: string, alg: 'ES256' | 'EdDSA'): Promise<Way> {
  const { publicKey, privateKey } = await generateKeyPair(alg)
  const jwk = { ...(await exportJWK(publicKey)), kid: clientId }
  await identity.apply('Client', clientId, { ...MACHINE, authentication: 'private_key_jwt', jwks: { keys: [jwk] } })
  const key = { key: privateKey, kid: clientId }
  return { clientId, openid: openid.PrivateKeyJwt(key), oauth: oauth.PrivateKeyJwt(key) }
}

for (const [what, way] of Object.entries(ways)) {
  test(`openid-client and oauth4webapi get, use and revoke a token: ${what}`, { skip }, async () => {
    const { clientId, openid: openidAuth, oauth: oauthAuth, certificate } = await way()
    const aliases = certificate === undefined ? {} : { use_mtls_endpoint_aliases: true }
    const secureFetch = certificate === undefined ? undefined : fetchWith(identity, certificate)

    const config = await openidClient(identity, clientId, openidAuth, aliases)
    if (secureFetch) config[openid.customFetch] = secureFetch
    const tokens = await openid.clientCredentialsGrant(config, { scope: 'orders', resource: API })
    assert.equal(tokens.scope, 'orders')
    await assertActive(tokens.access_token, clientId, certificate !== undefined)
    await openid.tokenRevocation(config, tokens.access_token)
    await assertInactive(tokens.access_token)

    const server = await discovered(identity)
    const client: oauth.Client = { client_id: clientId, ...aliases }
    const options = { ...INSECURE, ...(secureFetch === undefined ? {} : { [oauth.customFetch]: secureFetch }) }
    const response = await oauth.clientCredentialsGrantRequest(server, client, oauthAuth, { scope: 'stock' }, options)
    const { access_token: token } = await oauth.processClientCredentialsResponse(server, client, response)
    await assertActive(token, clientId, certificate !== undefined)
    const revocation = await oauth.revocationRequest(server, client, oauthAuth, token, options)
    assert.equal(await oauth.processRevocationResponse(revocation), undefined)
    await assertInactive(token)
  })
}

async function assertActive(token: string, clientId: string, bound: boolean): Promise<void> {
  const { info } = await identity.issuerRpc.exchange({ token })
  assert.equal(info?.active, true)
  assert.equal(info.clientId, clientId)
  assert.deepEqual(info.audience, [API])
  assert.equal(info.confirmation?.method.case, bound ? 'x5tS256' : undefined)
}

async function assertInactive(token: string): Promise<void> {
  assert.equal((await identity.issuerRpc.exchange({ token })).info?.active, false)
}
