import assert from 'node:assert/strict'
import { hash, randomBytes } from 'node:crypto'
import { after, before, test } from 'node:test'
import { create } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import type { Client } from '@tollward/bus'
import { bucketContract, contract } from '@tollward/contracts'
import { PassActivatedSchema } from '@tollward/contracts/payment'
import {
  ClientChangedSchema,
  ClientRevokedSchema,
  RegistrationService,
  StoredClientSchema,
} from '@tollward/contracts/token'
import { eventually, requires } from '@tollward/testkit'
import fc from 'fast-check'
import * as oauth from 'oauth4webapi'
import * as openid from 'openid-client'
import { z } from 'zod'
import { IDLE_LIFETIME_MS, PAID_LIFETIME_MS, UNUSED_LIFETIME_MS } from './domain/registration.ts'
import { tokenHash } from './domain/token.ts'
import { basic, filesOf, openTestIssuer, postForm, type Replica, type TestIssuer } from './test-issuer.ts'

const skip = await requires({ tools: ['nats-server'] })

const PER_SOURCE_AND_HOUR = 5
const SELF_REGISTRATION = {
  scopes: ['orders'],
  audience: ['https://api.example'],
  registrationsPerSourceAndHour: PER_SOURCE_AND_HOUR,
}
/** So that each test can come from sources of its own. */
const TRUSTING = { TOLLWARD_TRUSTED_PROXIES: '127.0.0.1' }

/** What the tests read of an answer. */
const AnswerSchema = z.looseObject({
  client_id: z.string().default(''),
  client_secret: z.string().default(''),
  registration_access_token: z.string().default(''),
  registration_client_uri: z.string().default(''),
  access_token: z.string().default(''),
  client_name: z.string().optional(),
  grant_types: z.array(z.string()).optional(),
  scope: z.string().optional(),
  error: z.string().optional(),
  error_description: z.string().optional(),
})
type Body = Record<string, unknown>

let issuer: TestIssuer
let replicas: readonly [Replica, Replica]
let url: string
let otherUrl: string
let closedUrl: string
let registrations: Client<typeof RegistrationService>
const resources = new AsyncDisposableStack()
const secretsSeen = new Set<string>()
let sources = 0

before(async () => {
  if (skip) return
  issuer = resources.use(await openTestIssuer({}))
  replicas = await Promise.all([openReplica(SELF_REGISTRATION), openReplica(SELF_REGISTRATION)])
  ;[url, otherUrl] = [replicas[0].url, replicas[1].url]
  closedUrl = (await issuer.replica(TRUSTING)).url
  registrations = issuer.bus.client(RegistrationService)
})

after(() => resources.disposeAsync())

/** A replica at which anybody can register. */
function openReplica(setting: object): Promise<Replica> {
  return issuer.replica({ ...TRUSTING, TOLLWARD_SELF_REGISTRATION: JSON.stringify(setting) })
}

/** An address that no other test comes from. */
function newSource(): string {
  sources += 1
  return `192.0.2.${sources}`
}

interface Sent {
  readonly method?: string
  readonly token?: string
  readonly source?: string
  readonly body?: Body | string
}

async function send(address: string, { method = 'POST', token, source, body }: Sent) {
  const response = await fetch(address, {
    method,
    headers: {
      'x-forwarded-for': source ?? newSource(),
      ...(body === undefined ? {} : { 'content-type': 'application/json' }),
      ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
    },
    ...(body === undefined ? {} : { body: typeof body === 'string' ? body : JSON.stringify(body) }),
  })
  const text = await response.text()
  const answer = AnswerSchema.parse(text === '' ? {} : JSON.parse(text))
  for (const secret of [answer.client_secret, answer.registration_access_token]) if (secret) secretsSeen.add(secret)
  return { ...answer, status: response.status, headers: response.headers, text }
}

async function register(body: Body = {}, { base = url, ...sent }: Sent & { base?: string } = {}) {
  return await send(`${base}/reg`, { ...sent, body })
}

async function registered(body: Body = {}, sent: Sent & { base?: string } = {}) {
  const answer = await register(body, sent)
  assert.equal(answer.status, 201, answer.text)
  return answer
}

async function tokenRequest(clientId: string, secret: string, body: Record<string, string> = {}) {
  const form = { grant_type: 'client_credentials', ...body }
  const { status, text } = await postForm(`${url}/token`, form, basic(clientId, secret))
  const answer = AnswerSchema.parse(JSON.parse(text))
  if (answer.access_token) secretsSeen.add(answer.access_token)
  return { ...answer, status }
}

async function tokenOf(client: { client_id: string; client_secret: string }): Promise<string> {
  const answer = await tokenRequest(client.client_id, client.client_secret)
  assert.equal(answer.status, 200, JSON.stringify(answer))
  return answer.access_token
}

async function infoOf(token: string) {
  const { info } = await issuer.rpc.exchange({ token })
  assert(info)
  return info
}

async function initialToken(terms: Parameters<typeof registrations.createInitialAccessToken>[0] = {}): Promise<string> {
  const { token } = await registrations.createInitialAccessToken({ lifetimeSeconds: 600, ...terms })
  secretsSeen.add(token)
  return token
}

function keyOf(clientId: string): string {
  return hash('sha256', clientId, 'base64url')
}

test('without leave nobody registers: no token, a wrong one, one that is used up or over', { skip }, async () => {
  const none = await register({}, { base: closedUrl })
  assert.equal(none.status, 401)
  assert.equal(none.headers.get('www-authenticate'), `Bearer realm="${url}"`)
  for (const base of [url, closedUrl]) {
    const wrong = await register({}, { base, token: randomBytes(32).toString('base64url') })
    assert.deepEqual(
      [wrong.status, wrong.error],
      [401, 'invalid_token'],
      'a wrong token is no reason to let anybody in',
    )
    assert.match(wrong.headers.get('www-authenticate') ?? '', /error="invalid_token"/)
  }
  const once = await initialToken()
  await registered({}, { base: closedUrl, token: once })
  assert.equal((await register({}, { base: closedUrl, token: once })).status, 401)
  const brief = await initialToken({ lifetimeSeconds: 1 })
  await eventually(
    async () => (await register({ grant_types: [] }, { base: closedUrl, token: brief })).status === 401,
    {
      what: 'the token is over',
    },
  )
})

test('openid-client and oauth4webapi register with an initial access token and get tokens', { skip }, async () => {
  const token = await initialToken({
    scopes: ['orders', 'stock'],
    audience: ['https://api.example'],
    registrationsMax: 2,
  })
  const config = await openid.dynamicClientRegistration(new URL(url), { client_name: 'A Shop' }, undefined, {
    initialAccessToken: token,
    execute: [openid.allowInsecureRequests],
  })
  const tokens = await openid.clientCredentialsGrant(config, { scope: 'stock' })
  secretsSeen.add(tokens.access_token)
  const info = await infoOf(tokens.access_token)
  assert.deepEqual([info.active, info.scopes, info.selfRegistered], [true, ['stock'], false])
  assert.match(info.clientId, /^reg_[\w-]{22}$/)

  const insecure = { [oauth.allowInsecureRequests]: true }
  const discovered = await oauth.discoveryRequest(new URL(url), { algorithm: 'oauth2', ...insecure })
  const server = await oauth.processDiscoveryResponse(new URL(url), discovered)
  assert.equal(server.registration_endpoint, `${url}/reg`)
  const sent = await oauth.dynamicClientRegistrationRequest(server, {}, { initialAccessToken: token, ...insecure })
  const client = await oauth.processDynamicClientRegistrationResponse(sent)
  assert.deepEqual([client.grant_types, client.scope], [['client_credentials'], 'orders stock'])
})

test('of many registrations at once with one token as many succeed as it allows', { skip }, async () => {
  const token = await initialToken({ registrationsMax: 3 })
  const answers = await Promise.all(
    Array.from({ length: 8 }, (_, index) => register({}, { token, base: index % 2 === 0 ? url : otherUrl })),
  )
  assert.equal(answers.filter(({ status }) => status === 201).length, 3)
  assert.equal(answers.filter(({ status }) => status === 401).length, 5)
})

test('an initial access token can allow only what a document could', { skip }, async () => {
  const refused = [
    { scopes: ['tollward.admin'] },
    { grants: ['password'] },
    { scopes: ['a b'] },
    { lifetimeSeconds: 0 },
    { lifetimeSeconds: 365 * 24 * 3600 },
    { registrationsMax: 100_000 },
  ]
  for (const terms of refused) await assert.rejects(initialToken(terms), { code: 'invalid_argument' })
})

test('a self-registered client gets tokens that say so, and nothing but what the setting has', { skip }, async () => {
  const client = await registered({ client_name: 'Stranger' })
  assert.deepEqual(client.grant_types, ['client_credentials'])
  assert.equal(client.headers.get('cache-control'), 'no-store')
  const info = await infoOf(await tokenOf(client))
  assert.deepEqual(
    [info.active, info.selfRegistered, info.scopes, info.audience],
    [true, true, ['orders'], ['https://api.example']],
  )
  assert.equal((await tokenRequest(client.client_id, client.client_secret, { scope: 'tollward.admin' })).status, 400)
  const asked = { clientId: client.client_id, clientSecret: client.client_secret }
  assert.equal(
    (await issuer.rpc.authenticateClient(asked)).authenticated,
    false,
    'it may ask nothing of other services',
  )
  const excessive = [
    { grant_types: ['authorization_code'], redirect_uris: ['https://a.example/'] },
    { grant_types: ['urn:ietf:params:oauth:grant-type:token-exchange'] },
    { scope: 'orders admin' },
  ]
  for (const metadata of excessive) {
    assert.equal((await register(metadata)).error, 'invalid_client_metadata', JSON.stringify(metadata))
  }
  const listed = (await registrations.listRegisteredClients({})).clients
  const found = listed.find(({ clientId }) => clientId === client.client_id)
  assert.deepEqual(
    [found?.selfRegistered, found?.clientName, found?.grants],
    [true, 'Stranger', ['client_credentials']],
  )
})

test('registrations of one source are limited over all replicas', { skip }, async () => {
  const source = newSource()
  for (let count = 0; count < PER_SOURCE_AND_HOUR; count++) {
    await registered({}, { source, base: count % 2 === 0 ? url : otherUrl })
  }
  for (const base of [url, otherUrl]) {
    const refused = await register({}, { source, base })
    assert.deepEqual([refused.status, refused.error], [429, 'temporarily_unavailable'])
    assert(Number(refused.headers.get('retry-after')) > 0)
  }
  await registered({}, { source: newSource() })
  await registered({}, { source, token: await initialToken() })
})

test('no more clients register themselves than may, however many come at once', { skip }, async () => {
  const { clients } = await registrations.listRegisteredClients({})
  const clientsMax = clients.filter(({ selfRegistered }) => selfRegistered).length + 3
  const setting = { ...SELF_REGISTRATION, clientsMax }
  const [one, two] = await Promise.all([openReplica(setting), openReplica(setting)])
  await using _one = one
  await using _two = two
  const answers = await Promise.all(
    Array.from({ length: 12 }, (_, index) => register({}, { base: (index % 2 === 0 ? one : two).url })),
  )
  const taken = answers.filter(({ status }) => status === 201)
  assert.equal(taken.length, 3)
  assert(answers.every(({ status, headers }) => status === 201 || (status === 503 && headers.has('retry-after'))))
  const [first] = taken
  assert(first)
  await send(first.registration_client_uri, { method: 'DELETE', token: first.registration_access_token })
  await eventually(async () => (await register({}, { base: one.url })).status === 201, { what: 'there is room again' })
})

test('a registration is read, replaced and deleted with its token, which each update replaces', { skip }, async () => {
  const changed: string[] = []
  const revoked: string[] = []
  await using _changes = await issuer.bus.follow(contract(ClientChangedSchema), 'now', ({ clientId }) =>
    changed.push(clientId),
  )
  await using _ends = await issuer.bus.follow(contract(ClientRevokedSchema), 'now', ({ clientId }) =>
    revoked.push(clientId),
  )
  const token = await initialToken({
    scopes: ['orders', 'stock'],
    grants: ['client_credentials', 'authorization_code'],
  })
  const client = await registered({ grant_types: ['client_credentials'], client_name: 'First' }, { token })
  const { client_id, client_secret, registration_client_uri: uri, registration_access_token: first } = client
  const access = await tokenOf(client)

  const read = await send(uri, { method: 'GET', token: first })
  assert.deepEqual([read.status, read.client_name, read.scope], [200, 'First', 'orders stock'])
  assert.equal(read.client_secret, '', 'only its hash is kept')
  assert.equal(read.registration_access_token, first)

  const second = await send(uri, { method: 'PUT', token: first, body: { client_id, client_secret, scope: 'stock' } })
  assert.equal(second.status, 400, 'without grant_types it asks for the code flow, which needs a redirect URI')
  const body = { client_id, client_secret, grant_types: ['client_credentials'], scope: 'stock' }
  const updated = await send(uri, { method: 'PUT', token: first, body })
  assert.deepEqual(
    [updated.status, updated.scope, updated.client_name, updated.client_secret],
    [200, 'stock', undefined, ''],
  )
  assert.notEqual(updated.registration_access_token, first)
  assert.equal((await send(uri, { method: 'GET', token: first })).status, 401)
  assert.deepEqual((await infoOf(access)).scopes, ['stock'], 'what it lost is gone from its tokens')
  await eventually(() => changed.includes(client_id), { what: 'the change is announced' })

  const last = updated.registration_access_token
  assert.equal((await send(uri, { method: 'DELETE', token: last })).status, 204)
  assert.equal((await infoOf(access)).active, false)
  assert.equal((await tokenRequest(client_id, client_secret)).error, 'invalid_client')
  assert.equal((await send(uri, { method: 'GET', token: last })).status, 401)
  await eventually(() => revoked.includes(client_id), { what: 'the end is announced' })
})

test('an update never widens what was allowed, and never changes what is not the client’s', { skip }, async () => {
  const client = await registered()
  const { client_id, registration_client_uri: uri, registration_access_token: token } = client
  const put = (body: Body) => send(uri, { method: 'PUT', token, body: { client_id, ...body } })
  const wider = [
    { scope: 'orders stock' },
    { scope: 'tollward.admin' },
    { grant_types: ['client_credentials', 'authorization_code'], redirect_uris: ['https://a.example/'] },
    { token_endpoint_auth_method: 'none' },
    { jwks_uri: 'https://a.example/keys' },
    { client_id: 'reg_AAAAAAAAAAAAAAAAAAAAAA' },
    { client_secret: 'wrong' },
    { registration_access_token: token },
    { client_id_issued_at: 0 },
    { client_secret_expires_at: 0 },
  ]
  for (const body of wider) assert.equal((await put(body)).status, 400, JSON.stringify(body))
  const same = await put({ audience: ['https://other.example'], self_registered: false })
  assert.equal(same.status, 200)
  const info = await infoOf(await tokenOf(client))
  assert.deepEqual([info.selfRegistered, info.scopes, info.audience], [true, ['orders'], ['https://api.example']])
})

test('nobody manages a client with another’s token, its secret or none', { skip }, async () => {
  const [client, thief] = [await registered(), await registered()]
  const tokens = [thief.registration_access_token, client.client_secret, await tokenOf(client), undefined]
  for (const token of tokens) {
    for (const method of ['GET', 'PUT', 'DELETE']) {
      const body = method === 'PUT' ? { body: { client_id: client.client_id } } : {}
      const sent = { method, ...(token === undefined ? {} : { token }), ...body }
      assert.equal((await send(client.registration_client_uri, sent)).status, 401)
    }
  }
  const nobody = `${url}/reg/reg_AAAAAAAAAAAAAAAAAAAAAA`
  assert.equal((await send(nobody, { method: 'GET', token: client.registration_access_token })).status, 401)
  assert.equal((await infoOf(await tokenOf(client))).active, true)
})

test('of two updates at once with one token one counts', { skip }, async () => {
  const { client_id, registration_client_uri: uri, registration_access_token: token } = await registered()
  const answers = await Promise.all(
    ['a', 'b', 'c', 'd'].map((client_name, index) =>
      send(index % 2 === 0 ? uri : uri.replace(url, otherUrl), {
        method: 'PUT',
        token,
        body: { client_id, client_name },
      }),
    ),
  )
  assert.deepEqual(answers.map(({ status }) => status).sort(), [200, 401, 401, 401])
})

test('an operator ends a registered client or its tokens alone', { skip }, async () => {
  const client = await registered()
  const access = await tokenOf(client)
  const target = { case: 'clientId', value: client.client_id } as const
  assert.equal((await issuer.rpc.revoke({ target, reason: 'misused' })).revoked, true)
  assert.equal((await infoOf(access)).active, false)
  const newer = await tokenOf(client)
  assert.equal((await infoOf(newer)).active, true)
  assert.deepEqual(await registrations.removeRegisteredClient({ clientId: client.client_id }), {
    $typeName: 'tollward.token.v1.RemoveRegisteredClientResponse',
    removed: true,
  })
  assert.equal((await infoOf(newer)).active, false)
  assert.equal((await tokenRequest(client.client_id, client.client_secret)).status, 401)
  assert.equal((await registrations.removeRegisteredClient({ clientId: client.client_id })).removed, false)
  assert.equal((await registrations.removeRegisteredClient({ clientId: 'shop' })).removed, false)
})

test('an end that nobody was told of is told, and a deletion finished, at the next look', { skip }, async () => {
  const told: string[] = []
  await using _ends = await issuer.bus.follow(contract(ClientRevokedSchema), 'now', ({ clientId }) =>
    told.push(clientId),
  )
  const bucket = issuer.bus.bucket(bucketContract(StoredClientSchema))
  for (const deleted of [false, true]) {
    const client = await registered()
    const key = keyOf(client.client_id)
    const entry = await bucket.get(key)
    assert(entry)
    const unannouncedEndAt = timestampFromMs(Date.now())
    await bucket.update(key, create(StoredClientSchema, { ...entry.value, unannouncedEndAt, deleted }), entry.revision)
    assert.equal((await tokenRequest(client.client_id, client.client_secret)).status, deleted ? 401 : 200)
    await eventually(() => told.includes(client.client_id), { what: 'the end is announced' })
    assert.equal((await bucket.get(key)) === undefined, deleted)
  }
})

test('a client may authenticate with keys of its own; then it gets no secret, and bad keys are refused', {
  skip,
}, async () => {
  const { publicKey } = await crypto.subtle.generateKey({ name: 'ECDSA', namedCurve: 'P-256' }, true, [
    'sign',
    'verify',
  ])
  const key = { ...(await crypto.subtle.exportKey('jwk', publicKey)), key_ops: undefined, ext: undefined }
  const bad = await register({ token_endpoint_auth_method: 'private_key_jwt', jwks: { keys: [{ kty: 'EC' }] } })
  assert.deepEqual([bad.status, bad.error], [400, 'invalid_client_metadata'])
  const fetched = await register({ token_endpoint_auth_method: 'private_key_jwt', jwks_uri: 'http://127.0.0.1/keys' })
  assert.match(fetched.error_description ?? '', /^jwks_uri: is not fetched here/)
  const taken = await register({ token_endpoint_auth_method: 'private_key_jwt', jwks: { keys: [key] } })
  assert.equal(taken.status, 201, taken.text)
  assert.equal(taken.client_secret, '')
})

test('a self-registered client lapses soon if it is never used, later after its last token, and much later if it paid', {
  skip,
}, async () => {
  const bucket = issuer.bus.bucket(bucketContract(StoredClientSchema))
  const client = await registered()
  const lapsesIn = async () => {
    return ((await bucket.get(keyOf(client.client_id)))?.expiresAtMs ?? 0) - Date.now()
  }
  const unused = await lapsesIn()
  assert(unused <= UNUSED_LIFETIME_MS && unused > UNUSED_LIFETIME_MS - 60_000, String(unused))
  await tokenOf(client)
  await eventually(async () => (await lapsesIn()) > IDLE_LIFETIME_MS - 60_000, { what: 'the lapse is put off' })
  assert((await lapsesIn()) <= IDLE_LIFETIME_MS)
  const bought = { clientId: client.client_id, passId: 'p', plan: 'orders' }
  await issuer.bus.publish(contract(PassActivatedSchema), create(PassActivatedSchema, bought))
  await eventually(async () => (await lapsesIn()) > PAID_LIFETIME_MS - 60_000, { what: 'what was paid for is kept' })
  const { registration_client_uri, registration_access_token: token, client_id } = client
  const body = { client_id, client_name: 'Buyer' }
  assert.equal((await send(registration_client_uri, { method: 'PUT', token, body })).status, 200)
  assert((await lapsesIn()) > PAID_LIFETIME_MS - 60_000, 'an update does not change that')
})

test('malformed registrations get a JSON error and never a stack trace or a server error', { skip }, async () => {
  const bodies = fc.oneof(
    fc.string({ unit: 'binary', maxLength: 200 }),
    fc.json({ maxDepth: 4 }),
    fc.record({ client_name: fc.string({ unit: 'binary' }), scope: fc.string() }).map((body) => JSON.stringify(body)),
    fc.constantFrom('[]', 'null', '{"__proto__": {"x": 1}}', `{"client_name": "${'x'.repeat(9000)}"}`),
  )
  const { registration_client_uri: uri, registration_access_token: token } = await registered()
  await fc.assert(
    fc.asyncProperty(fc.boolean(), bodies, async (isUpdate, body) => {
      const sent = isUpdate ? await send(uri, { method: 'PUT', token, body }) : await register({}, { body } as Sent)
      if (sent.status === 201) return
      assert(sent.status >= 400 && sent.status < 500, `${sent.status} ${sent.text}`)
      assert.equal(typeof sent.error, 'string')
      assert.doesNotMatch(sent.text, /node_modules|\bat .*:\d+/)
    }),
    { numRuns: 100 },
  )
  const big = `{"client_name": "${'x'.repeat(20_000)}"}`
  assert.equal((await send(`${url}/reg`, { body: big })).status, 413)
  assert.equal((await send(`${url}/reg`, { method: 'GET' })).status, 405)
  const form = await fetch(`${url}/reg`, { method: 'POST', body: new URLSearchParams({ client_name: 'x' }) })
  assert.equal(form.status, 400)
})

test('without the bus nothing is registered or managed; with it everything goes on', { skip }, async () => {
  const { registration_client_uri: uri, registration_access_token: token, client_id } = await registered()
  await issuer.nats.stop()
  const requests = [
    register(),
    send(uri, { method: 'GET', token }),
    send(uri, { method: 'PUT', token, body: { client_id } }),
    send(uri, { method: 'DELETE', token }),
  ]
  for (const { status, error, headers } of await Promise.all(requests)) {
    assert.deepEqual([status, error], [503, 'temporarily_unavailable'])
    assert(Number(headers.get('retry-after')) > 0)
  }
  await issuer.nats.start()
  await eventually(async () => (await send(uri, { method: 'GET', token })).status === 200, {
    what: 'it is there again',
  })
  await eventually(async () => (await register()).status === 201, { what: 'registrations are counted again' })
})

test('secrets of registered clients are in the store and in logs only as hashes', { skip }, async () => {
  const client = await registered()
  await tokenOf(client)
  await Promise.all(replicas.map((replica) => replica.stop()))
  await issuer.nats.stop()
  const store = await filesOf(issuer.nats)
  assert(store.includes(Buffer.from(tokenHash(client.client_secret), 'hex')), 'the scan finds hashes')
  assert(store.includes(client.client_id), 'the scan finds values')
  const log = replicas.flatMap(({ lines }) => lines).join('\n')
  assert.match(log, /client registered/)
  assert(secretsSeen.size >= 3)
  for (const text of secretsSeen) {
    assert(!store.includes(text), 'a secret is in the store')
    assert(!log.includes(text), 'a secret is in the log')
  }
})
