import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import process from 'node:process'
import { after, before, test } from 'node:test'
import { create } from '@bufbuild/protobuf'
import { connect } from '@nats-io/transport-node'
import { type Bus, type Client, connectBus, provision } from '@tollward/bus'
import { bucketContract } from '@tollward/contracts'
import { StoredDocumentSchema } from '@tollward/contracts/document'
import { IntrospectorService, IssuerService, TokenInfoSchema } from '@tollward/contracts/token'
import { INTROSPECTOR_STALE_AFTER_MS } from '@tollward/decision'
import { AppError } from '@tollward/errors'
import { createLog } from '@tollward/runtime'
import {
  eventually,
  freePort,
  type NatsServer,
  requires,
  type Service,
  startNatsServer,
  startService,
  startTcpProxy,
  temporaryDirectory,
} from '@tollward/testkit'
import fc from 'fast-check'
import * as oauth from 'oauth4webapi'
import { Registry } from 'prom-client'
import { BODY_BYTES_MAX } from './adapters/http.ts'

const skip = await requires({ tools: ['nats-server'] })

let nats: NatsServer
let bus: Bus
let issuer: Service
let introspector: Service
let issuerUrl: string
let endpoint: string
let issuerRpc: Client<typeof IssuerService>
let rpc: Client<typeof IntrospectorService>
const resources = new AsyncDisposableStack()

before(async () => {
  if (skip) return
  nats = resources.use(await startNatsServer())
  const provisioner = await connect({ servers: nats.url })
  await provision(provisioner)
  await provisioner.close()
  const { path } = resources.use(await temporaryDirectory('tollward-introspector-'))
  await writeFile(join(path, 'master-secret'), randomBytes(32).toString('base64url'), { mode: 0o600 })
  const [issuerPort, port] = [await freePort(), await freePort()]
  issuerUrl = `http://127.0.0.1:${issuerPort}`
  endpoint = `http://127.0.0.1:${port}/introspect`
  issuer = resources.use(
    await startService('auth-issuer', {
      TOLLWARD_NATS_URL: nats.url,
      TOLLWARD_ISSUER_URL: issuerUrl,
      TOLLWARD_LISTEN_PORT: String(issuerPort),
      TOLLWARD_MASTER_SECRET_FILE: join(path, 'master-secret'),
      TOLLWARD_INTROSPECTION_URL: endpoint,
      TOLLWARD_HEALTH_PORT: String(await freePort()),
    }),
  )
  introspector = resources.use(
    await startService('token-introspector', {
      TOLLWARD_NATS_URL: nats.url,
      TOLLWARD_LISTEN_PORT: String(port),
      TOLLWARD_ISSUER_URL: issuerUrl,
      TOLLWARD_HEALTH_PORT: String(await freePort()),
    }),
  )
  const log = createLog('test', 'silent')
  bus = resources.use(await connectBus({ servers: nats.url, name: 'admin-api', log, registry: new Registry() }))
  issuerRpc = bus.client(IssuerService)
  rpc = bus.client(IntrospectorService)
})

after(() => resources.disposeAsync())

async function register(name: string, audience: string[] = [], introspects: string[] = []): Promise<string> {
  await document(name, audience, introspects)
  return (await issuerRpc.replaceClientSecret({ clientId: name })).clientSecret
}

async function document(name: string, audience: string[], introspects: string[]): Promise<void> {
  const spec = { grants: ['client_credentials'], scopes: ['orders'], audience, introspects }
  const yaml = JSON.stringify({ apiVersion: 'tollward.dev/v1', kind: 'Client', metadata: { name }, spec })
  const value = create(StoredDocumentSchema, { format: 1, kind: 'Client', name, yaml })
  const key = `Client.${Buffer.from(name).toString('base64url')}`
  await bus.bucket(bucketContract(StoredDocumentSchema)).put(key, value)
}

const basic = (clientId: string, secret: string) => ({
  authorization: `Basic ${Buffer.from(`${clientId}:${secret}`).toString('base64')}`,
})

async function tokenOf(clientId: string, secret: string): Promise<string> {
  const response = await fetch(`${issuerUrl}/token`, {
    method: 'POST',
    headers: basic(clientId, secret),
    body: new URLSearchParams({ grant_type: 'client_credentials' }),
  })
  assert.equal(response.status, 200)
  return ((await response.json()) as { access_token: string }).access_token
}

async function introspect(clientId: string, secret: string, token: string, headers: Record<string, string> = {}) {
  const response = await fetch(endpoint, {
    method: 'POST',
    headers: { ...basic(clientId, secret), ...headers },
    body: new URLSearchParams({ token }),
  })
  return { status: response.status, headers: response.headers, text: await response.text() }
}

test('oauth4webapi introspects by discovery, and the answer has what RFC 7662 names', { skip }, async () => {
  const secret = await register('conforming', ['orders-api'])
  const token = await tokenOf('conforming', secret)
  const insecure = { [oauth.allowInsecureRequests]: true }
  const url = new URL(issuerUrl)
  const server = await oauth.processDiscoveryResponse(url, await oauth.discoveryRequest(url, insecure))
  const client = { client_id: 'conforming' }
  const response = await oauth.introspectionRequest(server, client, oauth.ClientSecretBasic(secret), token, insecure)
  assert.equal(response.headers.get('cache-control'), 'no-store')
  const { iat, exp, ...answer } = await oauth.processIntrospectionResponse(server, client, response)
  assert.deepEqual(answer, {
    active: true,
    iss: issuerUrl,
    client_id: 'conforming',
    sub: 'conforming',
    scope: 'orders',
    aud: 'orders-api',
    token_type: 'Bearer',
  })
  assert.equal((exp ?? 0) - (iat ?? 0), 600)
  const post = await oauth.introspectionRequest(server, client, oauth.ClientSecretPost(secret), token, insecure)
  assert.equal((await oauth.processIntrospectionResponse(server, client, post)).active, true)
})

test('whoever asks for it gets the answer as a JWT that the issuer signed for it alone', { skip }, async () => {
  const secret = await register('signed', ['orders-api'])
  const token = await tokenOf('signed', secret)
  const insecure = { [oauth.allowInsecureRequests]: true }
  const url = new URL(issuerUrl)
  const server = await oauth.processDiscoveryResponse(url, await oauth.discoveryRequest(url, insecure))
  const client = { client_id: 'signed', introspection_signed_response_alg: 'ES256' }
  const ask = async (about: string) => {
    const options = { ...insecure, requestJwt: true }
    const response = await oauth.introspectionRequest(server, client, oauth.ClientSecretBasic(secret), about, options)
    assert.equal(response.headers.get('content-type'), 'application/token-introspection+jwt')
    const answer = await oauth.processIntrospectionResponse(server, client, response)
    await oauth.validateApplicationLevelSignature(server, response, insecure)
    return answer
  }
  const { active, aud, client_id } = await ask(token)
  assert.deepEqual({ active, aud, client_id }, { active: true, aud: 'orders-api', client_id: 'signed' })
  assert.deepEqual(await ask('U'.repeat(43)), { active: false })
  const anything = await introspect('signed', secret, token, { accept: '*/*' })
  assert.match(anything.headers.get('content-type') ?? '', /^application\/json/)
})

test('an internal token is told of over HTTP, to those who may know, and lets nobody in', { skip }, async () => {
  const [owner, stranger] = [await register('inside', ['orders-api']), await register('outside')]
  const token = await tokenOf('inside', owner)
  const internal = (await rpc.introspect({ token })).info?.internalToken ?? ''
  const known = JSON.parse((await introspect('inside', owner, internal)).text) as { active: boolean; sub: string }
  assert.deepEqual([known.active, known.sub], [true, 'inside'])
  assert.equal((await introspect('outside', stranger, internal)).text, '{"active":false}')
  for (const pastCache of [false, true]) {
    assert.deepEqual((await rpc.introspect({ token: internal, pastCache })).info, create(TokenInfoSchema))
  }
  await issuerRpc.revoke({ target: { case: 'token', value: token } })
  assert.equal((await introspect('inside', owner, internal)).text, '{"active":false}')
})

test('a caller who authenticated is known while the issuer is away, and not once its secret was replaced', {
  skip,
}, async () => {
  const secret = await register('regular')
  const token = await tokenOf('regular', secret)
  assert.equal((await introspect('regular', secret, token)).status, 200)
  await issuer.stop()
  assert.equal((await introspect('regular', secret, token)).status, 200)
  assert.equal((await introspect('regular', `${secret}x`, token)).status, 503, 'other credentials are not known')
  await issuer.start()
  const { clientSecret } = await issuerRpc.replaceClientSecret({ clientId: 'regular' })
  const refused = async () => (await introspect('regular', secret, token)).status === 401
  await eventually(refused, { what: 'the old secret is forgotten', timeoutMs: 2000, intervalMs: 1 })
  assert.equal((await introspect('regular', clientSecret, token)).text, '{"active":false}')
})

test('a caller whose document was changed may ask about what it says now', { skip }, async () => {
  const [owner, api] = [await register('seller', ['till-api']), await register('till', [], [])]
  const token = await tokenOf('seller', owner)
  assert.equal((await introspect('till', api, token)).text, '{"active":false}')
  await document('till', [], ['till-api'])
  await issuerRpc.noteClientChange({ clientId: 'till' })
  const told = async () => (JSON.parse((await introspect('till', api, token)).text) as { active: boolean }).active
  await eventually(told, { what: 'the change is heard', timeoutMs: 2000, intervalMs: 1 })
})

test('only the token’s client and its resource server are told anything', { skip }, async () => {
  const [owner, api, stranger] = [
    await register('owner', ['stock-api']),
    await register('stock-api', [], ['stock-api']),
    await register('stranger', ['stock-api']),
  ]
  const token = await tokenOf('owner', owner)
  assert.equal((JSON.parse((await introspect('owner', owner, token)).text) as { active: boolean }).active, true)
  assert.equal((JSON.parse((await introspect('stock-api', api, token)).text) as { active: boolean }).active, true)
  const exactly = '{"active":false}'
  assert.equal((await introspect('stranger', stranger, token)).text, exactly)
  assert.equal((await introspect('owner', owner, 'U'.repeat(43))).text, exactly)
  assert.equal((await introspect('owner', owner, 'nonsense')).text, exactly)
})

test('a caller that does not authenticate is refused before the token is looked at', { skip }, async () => {
  const secret = await register('caller')
  const token = await tokenOf('caller', secret)
  const attempts = [
    await introspect('caller', 'wrong', token),
    await introspect('nobody', secret, token),
    await introspect('caller', '', token),
  ]
  for (const { status, headers, text } of attempts) {
    assert.equal(status, 401)
    assert.match(headers.get('www-authenticate') ?? '', /^Basic realm=/)
    assert.equal((JSON.parse(text) as { error: string }).error, 'invalid_client')
  }
  const anonymous = await fetch(endpoint, { method: 'POST', body: new URLSearchParams({ token }) })
  assert.equal(anonymous.status, 401)
})

test('a revoked token and the tokens of a revoked client leave the cache', { skip }, async () => {
  const secret = await register('leaver')
  const [token, other] = [await tokenOf('leaver', secret), await tokenOf('leaver', secret)]
  for (const text of [token, other, token, other]) {
    const { info } = await rpc.introspect({ token: text })
    assert.equal(info?.active, true)
    assert.match(info?.internalToken ?? '', /^ey.*\..*\./)
  }
  await issuerRpc.revoke({ target: { case: 'token', value: token } })
  const heard = async (text: string) => !(await rpc.introspect({ token: text })).info?.active
  await eventually(() => heard(token), { what: 'the revocation is heard', timeoutMs: 2000, intervalMs: 1 })
  assert.equal((await rpc.introspect({ token: other })).info?.active, true)
  await issuerRpc.revoke({ target: { case: 'clientId', value: 'leaver' } })
  await eventually(() => heard(other), { what: 'the revocation is heard', timeoutMs: 2000, intervalMs: 1 })
  assert.deepEqual((await rpc.introspect({ token: other })).info, create(TokenInfoSchema))
})

test('what is asked twice is answered from the cache while the issuer is away, and nothing else is', {
  skip,
}, async () => {
  const secret = await register('known')
  const [token, unknown] = [await tokenOf('known', secret), await tokenOf('known', secret)]
  assert.equal((await rpc.introspect({ token })).info?.active, true)
  await issuer.stop()
  assert.equal((await rpc.introspect({ token })).info?.active, true)
  await assert.rejects(rpc.introspect({ token: unknown }), (error) => error instanceof AppError)
  const answer = await introspect('known', secret, token)
  assert.equal(answer.status, 503, 'callers cannot be authenticated')
  assert.equal((JSON.parse(answer.text) as { error: string }).error, 'temporarily_unavailable')
  await issuer.start()
  assert.equal((await rpc.introspect({ token: unknown })).info?.active, true)
})

test('malformed requests get a JSON error and never a stack trace or a server error', { skip }, async () => {
  const secret = await register('fuzzer')
  const types = fc.constantFrom('application/x-www-form-urlencoded', 'application/json', 'text/plain', 'x', 'a/b; c')
  const authorization = fc.oneof(
    fc.constant(basic('fuzzer', secret).authorization),
    fc.string({ maxLength: 40 }).map((text) => `Basic ${Buffer.from(text).toString('base64')}`),
  )
  await fc.assert(
    fc.asyncProperty(types, authorization, fc.string({ unit: 'binary', maxLength: 200 }), async (type, head, body) => {
      const headers = { 'content-type': type, authorization: head }
      const response = await fetch(endpoint, { method: 'POST', headers, body })
      const text = await response.text()
      assert(response.status >= 400 && response.status < 500, `${response.status} ${text}`)
      assert.equal(typeof (JSON.parse(text) as { error?: unknown }).error, 'string')
      assert.doesNotMatch(text, /node_modules|FST_|\bat .*:\d+/)
    }),
    { numRuns: 100 },
  )
  const ask = async (body: string, method = 'POST') => {
    const headers = { ...basic('fuzzer', secret), 'content-type': 'application/x-www-form-urlencoded' }
    return (await fetch(endpoint, method === 'GET' ? { method, headers } : { method, headers, body })).status
  }
  assert.equal(await ask('token=a&token=b'), 400)
  assert.equal(await ask('token=a&client_secret=s&client_id=fuzzer'), 400)
  assert.equal(await ask('token=a&client_id=other'), 400)
  assert.equal(await ask('token='), 400)
  assert.equal(await ask(`token=${'x'.repeat(BODY_BYTES_MAX)}`), 413)
  assert.equal(await ask('', 'GET'), 405)
  assert.equal((await fetch(endpoint.replace('introspect', 'other'))).status, 404)
})

test('a revocation that happened while the process was frozen counts once it goes on', { skip }, async () => {
  const secret = await register('frozen')
  const token = await tokenOf('frozen', secret)
  assert.equal((await rpc.introspect({ token })).info?.active, true)
  process.kill(introspector.pid, 'SIGSTOP')
  try {
    // Connected again is not yet subscribed again.
    await eventually(() => issuerRpc.revoke({ target: { case: 'token', value: token } }), { what: 'the revocation' })
  } finally {
    process.kill(introspector.pid, 'SIGCONT')
  }
  await eventually(async () => !(await rpc.introspect({ token })).info?.active, {
    what: 'the revocation counts',
    timeoutMs: 2000,
    intervalMs: 1,
  })
})

test('cut off from revocations, nothing is active any more within 3 seconds, and what was missed counts afterwards', {
  skip,
}, async () => {
  await using proxy = await startTcpProxy(nats.port)
  const port = await freePort()
  await using replica = await startService('token-introspector', {
    TOLLWARD_NATS_URL: `nats://127.0.0.1:${proxy.port}`,
    TOLLWARD_LISTEN_PORT: String(port),
    TOLLWARD_HEALTH_PORT: String(await freePort()),
  })
  const secret = await register('cut-off')
  const token = await tokenOf('cut-off', secret)
  const ask = async () => {
    const url = `http://127.0.0.1:${port}/introspect`
    const body = new URLSearchParams({ token })
    return (await fetch(url, { method: 'POST', headers: basic('cut-off', secret), body })).text()
  }
  assert.match(await ask(), /"active":true/)
  proxy.pause()
  const cutAtMs = performance.now()
  await issuerRpc.revoke({ target: { case: 'token', value: token } })
  let activeAtMs = cutAtMs
  const refused = async () => {
    const askedAtMs = performance.now()
    const isActive = (await ask()).includes('"active":true')
    if (isActive) activeAtMs = askedAtMs
    return !isActive
  }
  await eventually(refused, { what: 'it is not active any more', timeoutMs: 8000, intervalMs: 5 })
  assert(activeAtMs - cutAtMs <= INTROSPECTOR_STALE_AFTER_MS, `active ${activeAtMs - cutAtMs} ms after the cut`)
  proxy.resume()
  const ready = async () => (await fetch(`${replica.healthUrl}/healthz/ready`)).ok
  await eventually(ready, { what: 'the replica hears again', timeoutMs: 15_000 })
  assert.equal(await ask(), '{"active":false}')
})

test('without the bus nothing is active; when it is back, revocations that were missed count', { skip }, async () => {
  const secret = await register('outlasting')
  const [token, kept] = [await tokenOf('outlasting', secret), await tokenOf('outlasting', secret)]
  assert.equal((await rpc.introspect({ token })).info?.active, true)
  assert.equal((await rpc.introspect({ token: kept })).info?.active, true)
  const ready = async () => (await fetch(`${introspector.healthUrl}/healthz/ready`)).ok
  await nats.stop()
  await eventually(async () => !(await ready()), { what: 'the introspector is not ready' })
  assert.equal((await introspect('outlasting', secret, token)).status, 503)
  process.kill(introspector.pid, 'SIGSTOP')
  try {
    await nats.start()
    const issuerReady = async () => (await fetch(`${issuer.healthUrl}/healthz/ready`)).ok
    await eventually(async () => bus.connected && (await issuerReady()), { what: 'the issuer is back' })
    await issuerRpc.revoke({ target: { case: 'token', value: token } })
  } finally {
    process.kill(introspector.pid, 'SIGCONT')
  }
  await eventually(ready, { what: 'the introspector is ready' })
  await eventually(async () => !(await rpc.introspect({ token })).info?.active, {
    what: 'the missed revocation counts',
    timeoutMs: 5000,
  })
  await eventually(async () => (await rpc.introspect({ token: kept })).info?.active, { what: 'the other token counts' })
})

test('neither tokens nor secrets are in the log', { skip }, async () => {
  const secret = await register('quiet')
  const token = await tokenOf('quiet', secret)
  const { status, text } = await introspect('quiet', secret, token)
  assert.equal(status, 200, text)
  const metrics = await (await fetch(`${introspector.healthUrl}/metrics`)).text()
  assert.match(metrics, /tollward_token_introspector_lookups_total\{from="issuer"\} [1-9]/)
  assert.equal(await introspector.stop(), 0)
  const log = introspector.lines.join('\n')
  assert.match(log, /"ready"/)
  assert(!log.includes(secret) && !log.includes(token))
})
