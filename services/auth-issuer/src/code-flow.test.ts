import assert from 'node:assert/strict'
import { hash, randomBytes } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { create } from '@bufbuild/protobuf'
import { connect } from '@nats-io/transport-node'
import { type Bus, type Client, connectBus, provision } from '@tollward/bus'
import { bucketContract, contract } from '@tollward/contracts'
import { StoredDocumentSchema } from '@tollward/contracts/document'
import {
  GrantRevokedSchema,
  GrantService,
  IssuerService,
  RefreshReusedSchema,
  RefreshRotatedSchema,
  UserService,
} from '@tollward/contracts/token'
import { documentKey } from '@tollward/documents'
import { createLog } from '@tollward/runtime'
import {
  eventually,
  freePort,
  type NatsServer,
  requires,
  type Service,
  startNatsServer,
  startService,
  temporaryDirectory,
} from '@tollward/testkit'
import { decodeJwt } from 'jose'
import { Registry } from 'prom-client'
import { REFRESH_GRACE_SECONDS } from './domain/refresh.ts'
import { tokenHash } from './domain/token.ts'

const skip = await requires({ tools: ['nats-server'] })

const PASSWORD = 'correct horse battery'
const REDIRECT_URI = 'http://127.0.0.1/callback'
const STEPS_MAX = 12

interface Answer {
  status: number
  access_token: string
  refresh_token: string
  id_token?: string
  scope?: string
  error?: string
  error_description?: string
}

interface Authorization {
  code: string
  verifier: string
  iss: string | null
}

let nats: NatsServer
let bus: Bus
let first: Service
let second: Service
let urls: [string, string]
let rpc: Client<typeof IssuerService>
let grants: Client<typeof GrantService>
let subject: string
const resources = new AsyncDisposableStack()

before(async () => {
  if (skip) return
  nats = resources.use(await startNatsServer())
  const provisioner = await connect({ servers: nats.url })
  await provision(provisioner)
  await provisioner.close()
  const { path } = resources.use(await temporaryDirectory('tollward-code-flow-'))
  await writeFile(join(path, 'master-secret'), randomBytes(32).toString('base64url'), { mode: 0o600 })
  const ports = [await freePort(), await freePort()] as const
  urls = [`http://127.0.0.1:${ports[0]}`, `http://127.0.0.1:${ports[1]}`]
  const replica = async (port: number) =>
    resources.use(
      await startService('auth-issuer', {
        TOLLWARD_NATS_URL: nats.url,
        TOLLWARD_ISSUER_URL: urls[0],
        TOLLWARD_MASTER_SECRET_FILE: join(path, 'master-secret'),
        TOLLWARD_LISTEN_PORT: String(port),
        TOLLWARD_HEALTH_PORT: String(await freePort()),
        TOLLWARD_TRUSTED_PROXIES: '127.0.0.1',
      }),
    )
  first = await replica(ports[0])
  second = await replica(ports[1])
  const log = createLog('test', 'silent')
  bus = resources.use(await connectBus({ servers: nats.url, name: 'admin-api', log, registry: new Registry() }))
  rpc = bus.client(IssuerService)
  grants = bus.client(GrantService)
  const { user } = await bus.client(UserService).createUser({ name: 'ann', password: PASSWORD })
  assert(user)
  subject = user.subject
  await apply('app')
})

after(() => resources.disposeAsync())

async function apply(name: string, spec: Record<string, unknown> = {}): Promise<void> {
  const full = {
    grants: ['authorization_code', 'refresh_token'],
    redirectUris: [REDIRECT_URI],
    authentication: 'none',
    scopes: ['orders', 'stock'],
    audience: ['orders-api'],
    ...spec,
  }
  const yaml = JSON.stringify({ apiVersion: 'tollward.dev/v1', kind: 'Client', metadata: { name }, spec: full })
  const value = create(StoredDocumentSchema, { format: 1, kind: 'Client', name, yaml })
  await bus.bucket(bucketContract(StoredDocumentSchema)).put(documentKey('Client', name), value)
}

/** A browser without scripts: cookies, redirects, and the forms that it is shown. */
async function browse(start: string, cookies = new Map<string, string>()): Promise<URL> {
  let url = new URL(start)
  let form: URLSearchParams | undefined
  for (let step = 0; step < STEPS_MAX; step++) {
    const response = await fetch(url, {
      redirect: 'manual',
      method: form ? 'POST' : 'GET',
      headers: {
        accept: 'text/html',
        origin: urls[0],
        cookie: [...cookies].map(([name, value]) => `${name}=${value}`).join('; '),
      },
      ...(form ? { body: form } : {}),
    })
    for (const line of response.headers.getSetCookie()) {
      const [, name = '', value = ''] = /^([^=]+)=([^;]*)/.exec(line) ?? []
      if (value === '') cookies.delete(name)
      else cookies.set(name, value)
    }
    const text = await response.text()
    const location = response.headers.get('location')
    form = undefined
    if (location !== null) {
      url = new URL(location, url)
      if (url.href.startsWith(REDIRECT_URI)) return url
    } else {
      const token = /name="form" value="([^"]+)"/.exec(text)?.[1]
      assert(response.status === 200 && token !== undefined, `${response.status} ${text}`)
      const fields = text.includes('name="password"') ? { name: 'ann', password: PASSWORD } : { decision: 'allow' }
      form = new URLSearchParams({ form: token, ...fields })
    }
  }
  throw new Error(`no end of it at ${url}`)
}

async function authorize(
  clientId = 'app',
  parameters: Record<string, string> = {},
  cookies?: Map<string, string>,
): Promise<Authorization> {
  const verifier = randomBytes(32).toString('base64url')
  const query = new URLSearchParams({
    client_id: clientId,
    response_type: 'code',
    redirect_uri: REDIRECT_URI,
    scope: 'openid orders',
    state: 's',
    code_challenge: hash('sha256', verifier, 'base64url'),
    code_challenge_method: 'S256',
    ...parameters,
  })
  const { searchParams } = await browse(`${urls[0]}/auth?${query}`, cookies)
  const code = searchParams.get('code')
  assert(code !== null, String(searchParams))
  assert.equal(searchParams.get('state'), 's')
  return { code, verifier, iss: searchParams.get('iss') }
}

async function post(path: string, body: Record<string, string>, base: string): Promise<Response> {
  return fetch(base + path, { method: 'POST', body: new URLSearchParams({ client_id: 'app', ...body }) })
}

async function token(body: Record<string, string>, base = urls[0]): Promise<Answer> {
  const response = await post('/token', body, base)
  return { ...((await response.json()) as Omit<Answer, 'status'>), status: response.status }
}

const redeem = ({ code, verifier }: Authorization, base = urls[0], body: Record<string, string> = {}) =>
  token({ grant_type: 'authorization_code', code, code_verifier: verifier, redirect_uri: REDIRECT_URI, ...body }, base)

const refresh = (value: string, base = urls[0], body: Record<string, string> = {}) =>
  token({ grant_type: 'refresh_token', refresh_token: value, ...body }, base)

async function signedIn(): Promise<Answer> {
  const answer = await redeem(await authorize())
  assert.equal(answer.status, 200, JSON.stringify(answer))
  return answer
}

async function infoOf(value: string) {
  const { info } = await rpc.exchange({ token: value, pastCache: true })
  assert(info)
  return info
}

const isActive = async (value: string) => (await infoOf(value)).active

async function events<T extends { grantHash: string }>(
  schema: Parameters<typeof contract>[0],
  grantHash: string,
): Promise<T[]> {
  const seen: T[] = []
  const following = await bus.follow(contract(schema), 'beginning', (event) => seen.push(event as unknown as T))
  await following[Symbol.asyncDispose]()
  return seen.filter((event) => event.grantHash === grantHash)
}

test('a person’s token says who, what and under which grant, outside and inside', { skip }, async () => {
  const { iss, ...authorization } = await authorize()
  assert.equal(iss, urls[0])
  const answer = await redeem({ iss, ...authorization }, urls[1])
  assert.equal(answer.status, 200, JSON.stringify(answer))
  assert.equal(answer.scope, 'orders')
  assert.equal(decodeJwt(answer.id_token ?? '').sub, subject)
  const info = await infoOf(answer.access_token)
  assert.equal(info.subject, subject)
  assert.equal(info.clientId, 'app')
  assert.deepEqual([info.scopes, info.audience], [['orders'], ['orders-api']])
  assert.match(info.grantHash, /^[0-9a-f]{64}$/)
  assert.equal(decodeJwt(info.internalToken).sub, subject)
  const listed = await grants.listGrants({ subject, clientId: 'app' })
  assert(listed.grants.some(({ grantHash }) => grantHash === info.grantHash))
})

test('a token for openid alone is for userinfo and for no API', { skip }, async () => {
  const answer = await redeem(await authorize('app', { scope: 'openid' }))
  const me = await fetch(`${urls[1]}/me`, { headers: { authorization: `Bearer ${answer.access_token}` } })
  assert.deepEqual(await me.json(), { sub: subject, preferred_username: 'ann' })
  assert.equal(await isActive(answer.access_token), false)
  const { access_token: forApi } = await signedIn()
  const refused = await fetch(`${urls[1]}/me`, { headers: { authorization: `Bearer ${forApi}` } })
  assert.equal(refused.status, 403)
})

test('no code is given without PKCE by S256, nor for a scope or API that is not the client’s', { skip }, async () => {
  const attempt = async (parameters: Record<string, string>) => {
    const base = { client_id: 'app', response_type: 'code', redirect_uri: REDIRECT_URI, scope: 'orders' }
    const { searchParams } = await browse(`${urls[0]}/auth?${new URLSearchParams({ ...base, ...parameters })}`)
    assert.equal(searchParams.get('code'), null)
    return searchParams.get('error')
  }
  const challenge = { code_challenge: 'a'.repeat(43), code_challenge_method: 'S256' }
  assert.equal(await attempt({}), 'invalid_request')
  assert.equal(await attempt({ code_challenge: 'a'.repeat(43), code_challenge_method: 'plain' }), 'invalid_request')
  assert.equal(await attempt({ ...challenge, scope: 'orders admin' }), 'invalid_scope')
  assert.equal(await attempt({ ...challenge, resource: 'https://other.example' }), 'invalid_target')
})

test('a code is good once: of 16 uses at two replicas one gets tokens at most, and these end', { skip }, async () => {
  const authorization = await authorize()
  const wrong = await redeem({ ...authorization, verifier: 'b'.repeat(43) }, urls[1])
  assert.equal(wrong.error, 'invalid_grant')
  const answers = await Promise.all(
    Array.from({ length: 16 }, (_, index) => redeem(authorization, index % 2 === 0 ? urls[0] : urls[1])),
  )
  const given = answers.filter(({ status }) => status === 200)
  assert(given.length <= 1)
  for (const { status, error } of answers) if (status !== 200) assert.equal(error, 'invalid_grant')
  for (const { access_token, refresh_token } of given) {
    assert.equal(await isActive(access_token), false)
    assert.equal((await refresh(refresh_token)).error, 'invalid_grant')
  }
})

test('16 uses of one refresh token at two replicas get one successor, which goes on; one event tells of it', {
  skip,
}, async () => {
  const { refresh_token: old } = await signedIn()
  const answers = await Promise.all(
    Array.from({ length: 16 }, (_, index) => refresh(old, index % 2 === 0 ? urls[0] : urls[1])),
  )
  for (const answer of answers) assert.equal(answer.status, 200, JSON.stringify(answer))
  const successors = new Set(answers.map(({ refresh_token }) => refresh_token))
  assert.equal(successors.size, 1)
  const [successor = ''] = successors
  const { grantHash } = await infoOf(answers[0]?.access_token ?? '')
  const rotated = await events<{ grantHash: string; successorHash: string }>(RefreshRotatedSchema, grantHash)
  assert.deepEqual(
    rotated.map(({ successorHash }) => successorHash),
    [tokenHash(successor)],
  )
  assert.equal((await refresh(successor, urls[1])).status, 200)
  assert.equal((await refresh(old)).error, 'invalid_grant', 'its successor was used')
  assert.equal(await isActive(answers[15]?.access_token ?? ''), true, 'and nothing ended for that')
})

test('a refresh token that comes back after the grace window ends its grant with all its tokens, and is told of', {
  skip,
}, async () => {
  const { refresh_token: old, access_token: token } = await signedIn()
  const { grantHash } = await infoOf(token)
  const next = await refresh(old)
  await age(old)
  const replays = await Promise.all([refresh(old), refresh(old, urls[1])])
  for (const replay of replays) assert.equal(replay.error, 'invalid_grant')
  for (const value of [token, next.access_token]) assert.equal(await isActive(value), false)
  assert.equal((await refresh(next.refresh_token, urls[1])).error, 'invalid_grant')
  const reused = await events<{ grantHash: string; tokenHash: string }>(RefreshReusedSchema, grantHash)
  assert.deepEqual(
    reused.map(({ tokenHash }) => tokenHash),
    [tokenHash(old)],
  )
  assert.equal((await events(GrantRevokedSchema, grantHash)).length, 1)
})

/** Moves the use of a refresh token into the past, as if the grace window were over. */
async function age(value: string): Promise<void> {
  const issuerBus = await connectBus({
    servers: nats.url,
    name: 'auth-issuer',
    log: createLog('test', 'silent'),
    registry: new Registry(),
  })
  await using _ = issuerBus
  const bucket = issuerBus.rawBucket('oidc-RefreshToken')
  const entry = await bucket.get(hash('sha256', value, 'base64url'))
  assert(entry)
  const record = JSON.parse(Buffer.from(entry.value).toString())
  record.usedAtMs -= REFRESH_GRACE_SECONDS * 1000 + 1
  await bucket.update(entry.key, Buffer.from(JSON.stringify(record)), entry.revision)
}

test('a replica that is killed amid refreshes loses none: a retry at the other gets the one successor', {
  skip,
}, async () => {
  for (let round = 0; round < 2; round++) {
    const olds = (await Promise.all(Array.from({ length: 4 }, signedIn))).map(({ refresh_token }) => refresh_token)
    const cut = olds.map((old) => refresh(old, urls[1]).catch(() => undefined))
    await Promise.race(cut)
    await second.kill()
    const before = await Promise.all(cut)
    for (const [index, old] of olds.entries()) {
      const answer = await refresh(old, urls[0])
      assert.equal(answer.status, 200, JSON.stringify(answer))
      const answered = before[index]
      if (answered?.status === 200) assert.equal(answer.refresh_token, answered.refresh_token)
      assert.equal((await refresh(old, urls[0])).refresh_token, answer.refresh_token)
      assert.equal((await refresh(answer.refresh_token, urls[0])).status, 200)
      const { grantHash } = await infoOf(answer.access_token)
      assert.equal((await events(RefreshRotatedSchema, grantHash)).length, 2)
    }
    await second.start()
  }
})

test('a restart of NATS loses no grant, and what was used or ended before stays so', { skip }, async () => {
  const [kept, ended] = [await signedIn(), await signedIn()]
  const authorization = await authorize()
  assert.equal((await redeem(authorization)).status, 200)
  const next = await refresh(kept.refresh_token)
  const { grantHash } = await infoOf(ended.access_token)
  assert.equal((await rpc.revoke({ target: { case: 'grantHash', value: grantHash }, reason: 'test' })).revoked, true)
  await nats.stop()
  await nats.start()
  for (const { healthUrl } of [first, second]) {
    await eventually(async () => (await fetch(`${healthUrl}/healthz/ready`)).ok, { what: 'the issuer is ready' })
  }
  await eventually(() => bus.connected, { what: 'the test is connected' })
  assert.equal(await isActive(next.access_token), true)
  assert.equal((await refresh(kept.refresh_token, urls[1])).refresh_token, next.refresh_token)
  assert.equal((await refresh(next.refresh_token, urls[1])).status, 200)
  assert.equal(await isActive(ended.access_token), false)
  assert.equal((await refresh(ended.refresh_token, urls[1])).error, 'invalid_grant')
  assert.equal((await redeem(authorization, urls[1])).error, 'invalid_grant')
})

test('the end of a grant, of a person and of a client each ends what belongs to it, at every replica', {
  skip,
}, async () => {
  const [one, other] = [await signedIn(), await signedIn()]
  const { grantHash } = await infoOf(one.access_token)
  const byHash = { target: { case: 'grantHash', value: grantHash }, reason: 'test' } as const
  assert.equal((await rpc.revoke(byHash)).revoked, true)
  assert.equal((await rpc.revoke(byHash)).revoked, false)
  assert.equal(await isActive(one.access_token), false)
  assert.equal((await refresh(one.refresh_token, urls[1])).error, 'invalid_grant')
  assert.equal(await isActive(other.access_token), true)

  const found = await signedIn()
  const byToken = { target: { case: 'token', value: found.refresh_token }, reason: 'a refresh token' } as const
  assert.equal((await rpc.revoke(byToken)).revoked, true)
  assert.equal(await isActive(found.access_token), false)
  assert.equal((await rpc.revoke(byToken)).revoked, false)

  await apply('brief')
  const brief = await redeem(await authorize('brief'), urls[0], { client_id: 'brief' })
  assert.equal(await isActive(brief.access_token), true)
  assert.equal((await rpc.revoke({ target: { case: 'clientId', value: 'brief' } })).revoked, true)
  assert.equal(await isActive(brief.access_token), false)
  assert.equal((await refresh(brief.refresh_token, urls[1], { client_id: 'brief' })).error, 'invalid_grant')

  const cookies = new Map<string, string>()
  const last = await redeem(await authorize('app', {}, cookies))
  const { sessions } = await grants.listSessions({ subject })
  assert(sessions.length > 0)
  assert.equal((await rpc.revoke({ target: { case: 'subject', value: subject }, reason: 'test' })).revoked, true)
  for (const { access_token, refresh_token } of [other, last]) {
    assert.equal(await isActive(access_token), false)
    assert.equal((await refresh(refresh_token, urls[1])).error, 'invalid_grant')
  }
  assert.deepEqual((await grants.listSessions({ subject })).sessions, [])
  assert.deepEqual((await grants.listGrants({ subject })).grants, [])
  const silent = new URLSearchParams({
    client_id: 'app',
    response_type: 'code',
    redirect_uri: REDIRECT_URI,
    scope: 'openid',
    prompt: 'none',
    code_challenge: 'a'.repeat(43),
    code_challenge_method: 'S256',
  })
  const back = await browse(`${urls[0]}/auth?${silent}`, cookies)
  assert.equal(back.searchParams.get('error'), 'login_required')
  assert.equal((await rpc.revoke({ target: { case: 'subject', value: 'nobody' } })).revoked, false)
})

test('a client ends its own refresh token with the whole grant, its own access token alone, and no other’s', {
  skip,
}, async () => {
  const [mine, again] = [await signedIn(), await signedIn()]
  await apply('other')
  const revoke = async (value: string, body: Record<string, string> = {}) =>
    (await post('/token/revocation', { token: value, ...body }, urls[1])).status
  assert.equal(await revoke(mine.refresh_token, { client_id: 'other' }), 200)
  assert.equal(await isActive(mine.access_token), true)
  assert.equal(await revoke(mine.access_token), 200)
  assert.equal(await isActive(mine.access_token), false)
  const next = await refresh(mine.refresh_token)
  assert.equal(next.status, 200, JSON.stringify(next))
  assert.equal(await revoke(next.refresh_token), 200)
  assert.equal(await isActive(next.access_token), false)
  assert.equal((await refresh(next.refresh_token)).error, 'invalid_grant')
  assert.equal(await isActive(again.access_token), true)
})

test('an internal token is looked up where that is asked for, and is worth nothing once its origin is', {
  skip,
}, async () => {
  const { access_token: token } = await signedIn()
  const { internalToken } = await infoOf(token)
  assert.equal(await isActive(internalToken), false, 'inside tokens stay inside')
  const { info } = await rpc.exchange({ token: internalToken, acceptInternal: true })
  assert.equal(info?.active, true)
  assert.equal(info?.tokenHash, tokenHash(token))
  assert.equal(info?.subject, subject)
  assert.equal(info?.internalToken, '')
  const [header = '', payload = '', signature = ''] = internalToken.split('.')
  const forged = Buffer.from(JSON.stringify({ ...decodeJwt(internalToken), scope: 'orders stock' })).toString(
    'base64url',
  )
  const none = Buffer.from('{"alg":"none","typ":"at+jwt"}').toString('base64url')
  for (const text of [`${header}.${forged}.${signature}`, `${none}.${payload}.`, `${header}.${payload}.`]) {
    assert.equal((await rpc.exchange({ token: text, acceptInternal: true })).info?.active, false, text)
  }
  assert.equal(
    (await rpc.revoke({ target: { case: 'tokenHash', value: tokenHash(token) }, reason: 'test' })).revoked,
    true,
  )
  assert.equal((await rpc.exchange({ token: internalToken, acceptInternal: true })).info?.active, false)
})

test('nobody can make us keep the beginnings of sign-ins without end', { skip }, async () => {
  const begin = async (from: string) => {
    const query = new URLSearchParams({
      client_id: 'app',
      response_type: 'code',
      redirect_uri: REDIRECT_URI,
      scope: 'orders',
      code_challenge: 'a'.repeat(43),
      code_challenge_method: 'S256',
    })
    const headers = { accept: 'text/html', 'x-forwarded-for': from }
    const response = await fetch(`${urls[1]}/auth?${query}`, { redirect: 'manual', headers })
    await response.body?.cancel()
    return response
  }
  const answers: Response[] = []
  for (let round = 0; round < 20; round++) {
    answers.push(...(await Promise.all(Array.from({ length: 40 }, () => begin('192.0.2.1')))))
  }
  const begun = answers.filter(({ status }) => status === 303).length
  const refused = answers.filter(({ status }) => status === 429)
  assert.equal(begun + refused.length, answers.length)
  assert(begun >= 600 && begun < 700, String(begun))
  assert.match(refused[0]?.headers.get('content-type') ?? '', /html/)
  assert.equal(refused[0]?.headers.get('retry-after'), '1')
  assert.equal((await begin('2001:db8::1')).status, 303, 'another source goes on')
})
