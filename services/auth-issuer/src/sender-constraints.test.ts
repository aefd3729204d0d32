import assert from 'node:assert/strict'
import { hash, randomBytes, randomUUID } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { create } from '@bufbuild/protobuf'
import { connect } from '@nats-io/transport-node'
import { type Bus, connectBus, provision } from '@tollward/bus'
import { bucketContract } from '@tollward/contracts'
import { StoredDocumentSchema } from '@tollward/contracts/document'
import { KeyService, UserService } from '@tollward/contracts/token'
import { documentKey } from '@tollward/documents'
import { createLog } from '@tollward/runtime'
import { eventually, freePort, requires, startNatsServer, startService, temporaryDirectory } from '@tollward/testkit'
import {
  calculateJwkThumbprint,
  createLocalJWKSet,
  decodeProtectedHeader,
  exportJWK,
  generateKeyPair,
  type JSONWebKeySet,
  type JWK,
  jwtVerify,
  SignJWT,
} from 'jose'
import { Registry } from 'prom-client'

const skip = await requires({ tools: ['nats-server'] })

const PASSWORD = 'correct horse battery'
const REDIRECT_URI = 'http://127.0.0.1/callback'
const STEPS_MAX = 12

const resources = new AsyncDisposableStack()
let bus: Bus
let issuerUrl: string

before(async () => {
  if (skip) return
  const nats = resources.use(await startNatsServer())
  const provisioner = await connect({ servers: nats.url })
  await provision(provisioner)
  await provisioner.close()
  const { path } = resources.use(await temporaryDirectory('tollward-senders-'))
  await writeFile(join(path, 'master-secret'), randomBytes(32).toString('base64url'), { mode: 0o600 })
  const port = await freePort()
  issuerUrl = `http://127.0.0.1:${port}`
  resources.use(
    await startService('auth-issuer', {
      TOLLWARD_NATS_URL: nats.url,
      TOLLWARD_ISSUER_URL: issuerUrl,
      TOLLWARD_MASTER_SECRET_FILE: join(path, 'master-secret'),
      TOLLWARD_LISTEN_PORT: String(port),
      TOLLWARD_HEALTH_PORT: String(await freePort()),
      TOLLWARD_JWKS_MAX_AGE: '1s',
    }),
  )
  const log = createLog('test', 'silent')
  bus = resources.use(await connectBus({ servers: nats.url, name: 'admin-api', log, registry: new Registry() }))
  await bus.client(UserService).createUser({ name: 'ann', password: PASSWORD })
})

after(() => resources.disposeAsync())

async function apply(name: string, spec: Record<string, unknown> = {}): Promise<void> {
  const full = {
    grants: ['authorization_code', 'refresh_token'],
    redirectUris: [REDIRECT_URI],
    authentication: 'none',
    scopes: ['orders'],
    ...spec,
  }
  const yaml = JSON.stringify({ apiVersion: 'tollward.dev/v1', kind: 'Client', metadata: { name }, spec: full })
  const value = create(StoredDocumentSchema, { format: 1, kind: 'Client', name, yaml })
  await bus.bucket(bucketContract(StoredDocumentSchema)).put(documentKey('Client', name), value)
}

/** Signs in and consents as often as it is asked to; returns where the client's browser ends. */
async function browse(parameters: Record<string, string>): Promise<URLSearchParams> {
  const cookies = new Map<string, string>()
  let url = new URL(`${issuerUrl}/auth?${new URLSearchParams(parameters)}`)
  let body: URLSearchParams | undefined
  for (let step = 0; step < STEPS_MAX; step++) {
    const cookie = [...cookies].map(([name, value]) => `${name}=${value}`).join('; ')
    const headers = { accept: 'text/html', origin: issuerUrl, cookie }
    const response = await fetch(url, { redirect: 'manual', headers, ...(body && { method: 'POST', body }) })
    for (const line of response.headers.getSetCookie()) {
      const [, name = '', value = ''] = /^([^=]+)=([^;]*)/.exec(line) ?? []
      if (value === '') cookies.delete(name)
      else cookies.set(name, value)
    }
    const text = await response.text()
    const location = response.headers.get('location')
    body = undefined
    if (location !== null) {
      url = new URL(location, url)
      if (url.href.startsWith(REDIRECT_URI)) return url.searchParams
      continue
    }
    const form = /name="form" value="([^"]+)"/.exec(text)?.[1]
    if (response.status !== 200 || form === undefined) return new URLSearchParams({ error: `page ${response.status}` })
    const fields = text.includes('name="password"') ? { name: 'ann', password: PASSWORD } : { decision: 'allow' }
    body = new URLSearchParams({ form, ...fields })
  }
  throw new Error(`no end of it at ${url}`)
}

interface Code {
  code: string
  code_verifier: string
}

function requestOf(clientId: string, more: Record<string, string> = {}) {
  const verifier = randomBytes(32).toString('base64url')
  const parameters = {
    client_id: clientId,
    response_type: 'code',
    redirect_uri: REDIRECT_URI,
    scope: 'openid orders',
    code_challenge: hash('sha256', verifier, 'base64url'),
    code_challenge_method: 'S256',
    ...more,
  }
  return { verifier, parameters }
}

async function codeOf(clientId: string, more: Record<string, string> = {}): Promise<Code> {
  const { verifier, parameters } = requestOf(clientId, more)
  const answer = await browse(parameters)
  const code = answer.get('code')
  assert(code !== null, String(answer))
  assert.equal(answer.get('iss'), issuerUrl)
  return { code, code_verifier: verifier }
}

interface Answer {
  status: number
  nonce: string
  body: Record<string, string>
}

async function post(path: string, body: Record<string, string>, dpop?: string): Promise<Answer> {
  const init = { method: 'POST', body: new URLSearchParams(body), ...(dpop && { headers: { dpop } }) }
  const response = await fetch(issuerUrl + path, init)
  const answer = (await response.json()) as Record<string, string>
  return { status: response.status, nonce: response.headers.get('dpop-nonce') ?? '', body: answer }
}

function assertRefused({ status, body }: Answer, why: string, error: string, expected = 400): void {
  assert.equal(body.error, error, `${why}: ${JSON.stringify(body)}`)
  assert.equal(status, expected, why)
}

function assertGiven({ status, body }: Answer): Record<string, string> {
  assert.equal(status, 200, JSON.stringify(body))
  return body
}

type Key = Awaited<ReturnType<typeof generateKeyPair>> & { jwk: JWK }

async function keyPair(): Promise<Key> {
  const pair = await generateKeyPair('ES256')
  return { ...pair, jwk: await exportJWK(pair.publicKey) }
}

/** A request to the token endpoint with a proof by this key, for which the nonce is got first. */
async function withProof(key: Key, body: Record<string, string>): Promise<Answer> {
  const proof = (nonce?: string) =>
    new SignJWT({ htm: 'POST', htu: `${issuerUrl}/token`, jti: randomUUID(), ...(nonce && { nonce }) })
      .setProtectedHeader({ alg: 'ES256', typ: 'dpop+jwt', jwk: key.jwk })
      .setIssuedAt()
      .sign(key.privateKey)
  const first = await post('/token', body, await proof())
  assertRefused(first, 'a proof without nonce', 'use_dpop_nonce')
  return await post('/token', body, await proof(first.nonce))
}

const redeemed = (client_id: string, code: Code) => ({
  grant_type: 'authorization_code',
  redirect_uri: REDIRECT_URI,
  client_id,
  ...code,
})

const refreshed = (client_id: string, refresh_token = '') => ({ grant_type: 'refresh_token', client_id, refresh_token })

test('a refresh token that is bound to a key is worth nothing without it, and a thief ends nothing', {
  skip,
}, async () => {
  // One has to bind its tokens, the other one chose to.
  await apply('must-bind', { senderConstraint: 'dpop' })
  await apply('may-bind')
  for (const name of ['must-bind', 'may-bind']) {
    const [key, thief] = [await keyPair(), await keyPair()]
    const given = assertGiven(await withProof(key, redeemed(name, await codeOf(name))))
    assert.equal(given.token_type, 'DPoP')
    assertRefused(await post('/token', refreshed(name, given.refresh_token)), 'without a proof', 'invalid_grant')
    assertRefused(await withProof(thief, refreshed(name, given.refresh_token)), 'another key', 'invalid_grant')
    const next = assertGiven(await withProof(key, refreshed(name, given.refresh_token)))
    assertRefused(await withProof(thief, refreshed(name, next.refresh_token)), 'the successor', 'invalid_grant')
    assertGiven(await withProof(key, refreshed(name, next.refresh_token)))
  }
})

test('a code that was asked for with a key is good for that key only', { skip }, async () => {
  await apply('keyed')
  const [key, thief] = [await keyPair(), await keyPair()]
  const more = { dpop_jkt: await calculateJwkThumbprint(key.jwk) }
  assertRefused(await withProof(thief, redeemed('keyed', await codeOf('keyed', more))), 'another key', 'invalid_grant')
  assertRefused(await post('/token', redeemed('keyed', await codeOf('keyed', more))), 'no key', 'invalid_grant')
  assertGiven(await withProof(key, redeemed('keyed', await codeOf('keyed', more))))
})

test('a client that has to push its requests gets no code otherwise, and what it pushed is nobody else’s', {
  skip,
}, async () => {
  const key = await keyPair()
  const jwks = { keys: [key.jwk] }
  await apply('pushing', { authentication: 'private_key_jwt', jwks, requirePushedAuthorization: true })
  await apply('stranger')
  const assertion = async () => ({
    client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer',
    client_assertion: await new SignJWT({ jti: randomUUID() })
      .setProtectedHeader({ alg: 'ES256' })
      .setIssuer('pushing')
      .setSubject('pushing')
      .setAudience(issuerUrl)
      .setExpirationTime('1m')
      .sign(key.privateKey),
  })
  const direct = await browse(requestOf('pushing').parameters)
  assert.equal(direct.get('error'), 'invalid_request')
  const { verifier, parameters } = requestOf('pushing')
  assertRefused(await post('/request', parameters), 'not authenticated', 'invalid_client', 401)
  const foreign = await post('/request', {
    ...parameters,
    redirect_uri: 'https://evil.example/cb',
    ...(await assertion()),
  })
  assert.equal(foreign.status, 400, JSON.stringify(foreign.body))
  const pushed = await post('/request', { ...parameters, ...(await assertion()) })
  assert.equal(pushed.status, 201, JSON.stringify(pushed.body))
  const { request_uri = '' } = pushed.body
  const stolen = await browse({ client_id: 'stranger', request_uri })
  assert.equal(stolen.get('code'), null)
  const answer = await browse({ client_id: 'pushing', request_uri })
  const code = answer.get('code')
  assert(code !== null, String(answer))
  const grant = { ...redeemed('pushing', { code, code_verifier: verifier }), ...(await assertion()) }
  assertGiven(await post('/token', grant))
  const again = await browse({ client_id: 'pushing', request_uri })
  assert.equal(again.get('code'), null, 'a pushed request is good once')
})

test('id tokens are signed by the client’s algorithm and verify before, while and after the keys turn', {
  skip,
}, async () => {
  const jwks = async () => (await (await fetch(`${issuerUrl}/jwks`)).json()) as JSONWebKeySet
  const verify = async (token: string, keys: JSONWebKeySet, alg: string, client: string) => {
    await jwtVerify(token, createLocalJWKSet(keys), { algorithms: [alg], issuer: issuerUrl, audience: client })
    return decodeProtectedHeader(token).kid ?? ''
  }
  for (const alg of ['ES256', 'EdDSA']) {
    const name = `id-${alg.toLowerCase()}`
    await apply(name, { idTokenAlgorithm: alg })
    const given = assertGiven(await post('/token', redeemed(name, await codeOf(name))))
    const early = given.id_token ?? ''
    const old = await verify(early, await jwks(), alg, name)
    let { refresh_token } = given
    let kept = { keys: await jwks(), atMs: Date.now() }
    await bus.client(KeyService).rotateKeys({})
    let failure: { error: unknown } | undefined
    const look = async () => {
      const next = assertGiven(await post('/token', refreshed(name, refresh_token)))
      refresh_token = next.refresh_token
      if (Date.now() - kept.atMs > 1000) kept = { keys: await jwks(), atMs: Date.now() }
      return (await verify(next.id_token ?? '', kept.keys, alg, name)) !== old
    }
    // What throws is no "not yet" here: each token has to verify.
    const careful = () =>
      look().catch((error: unknown) => {
        failure = { error }
        return true
      })
    await eventually(careful, { what: 'the new key signs id tokens' })
    if (failure) throw failure.error
    await verify(early, await jwks(), alg, name)
  }
})
