import assert from 'node:assert/strict'
import { hash } from 'node:crypto'
import { after, before, test } from 'node:test'
import type { Client } from '@tollward/bus'
import { contract } from '@tollward/contracts'
import { GrantRevokedSchema, GrantService, RefreshReusedSchema, RefreshRotatedSchema } from '@tollward/contracts/token'
import { eventually, requires } from '@tollward/testkit'
import { decodeJwt } from 'jose'
import { REFRESH_GRACE_SECONDS } from './domain/refresh.ts'
import { tokenHash } from './domain/token.ts'
import {
  askForToken,
  openTestIssuer,
  postForm,
  type Replica,
  type TestIssuer,
  type TokenAnswer,
} from './test-issuer.ts'
import {
  type Authorization,
  authorizationRequest,
  authorize as authorizeAt,
  browse,
  CODE_CLIENT,
  createPerson,
  REDIRECT_URI,
  redemption,
  refreshing,
} from './test-person.ts'

const skip = await requires({ tools: ['nats-server'] })

let issuer: TestIssuer
let first: Replica
let second: Replica
let urls: [string, string]
let grants: Client<typeof GrantService>
let subject: string
const resources = new AsyncDisposableStack()

before(async () => {
  if (skip) return
  const client = { ...CODE_CLIENT, scopes: ['orders', 'stock'], audience: ['orders-api'] }
  issuer = resources.use(await openTestIssuer(client))
  const settings = { TOLLWARD_TRUSTED_PROXIES: '127.0.0.1' }
  first = await issuer.replica(settings)
  second = await issuer.replica(settings)
  urls = [first.url, second.url]
  grants = issuer.bus.client(GrantService)
  subject = await createPerson(issuer.bus)
  await issuer.apply('app')
})

after(() => resources.disposeAsync())

const authorize = (clientId = 'app', more: Record<string, string> = {}, cookies?: Map<string, string>) =>
  authorizeAt(issuer.url, clientId, more, cookies)

const redeem = (authorization: Authorization, base = urls[0], clientId = 'app') =>
  askForToken(base, redemption(clientId, authorization))

const refresh = (value: string, base = urls[0], clientId = 'app') => askForToken(base, refreshing(clientId, value))

async function signedIn(): Promise<TokenAnswer> {
  const answer = await redeem(await authorize())
  assert.equal(answer.status, 200, JSON.stringify(answer))
  return answer
}

const infoOf = (value: string) => issuer.infoOf(value)

const isActive = async (value: string) => (await infoOf(value)).active

async function events<T extends { grantHash: string }>(
  schema: Parameters<typeof contract>[0],
  grantHash: string,
): Promise<T[]> {
  const seen: T[] = []
  const following = await issuer.bus.follow(contract(schema), 'beginning', (event) => seen.push(event as unknown as T))
  await following[Symbol.asyncDispose]()
  return seen.filter((event) => event.grantHash === grantHash)
}

test('a person’s token says who, what and under which grant, outside and inside', { skip }, async () => {
  const answer = await redeem(await authorize(), urls[1])
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
    const answer = await browse(issuer.url, { ...base, ...parameters })
    assert.equal(answer.get('code'), null)
    return answer.get('error')
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
  const issuerBus = await issuer.connected()
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
  assert.equal(
    (await issuer.rpc.revoke({ target: { case: 'grantHash', value: grantHash }, reason: 'test' })).revoked,
    true,
  )
  await issuer.nats.stop()
  await issuer.nats.start()
  for (const { healthUrl } of [first, second]) {
    await eventually(async () => (await fetch(`${healthUrl}/healthz/ready`)).ok, { what: 'the issuer is ready' })
  }
  await eventually(() => issuer.bus.connected, { what: 'the test is connected' })
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
  assert.equal((await issuer.rpc.revoke(byHash)).revoked, true)
  assert.equal((await issuer.rpc.revoke(byHash)).revoked, false)
  assert.equal(await isActive(one.access_token), false)
  assert.equal((await refresh(one.refresh_token, urls[1])).error, 'invalid_grant')
  assert.equal(await isActive(other.access_token), true)

  const found = await signedIn()
  const byToken = { target: { case: 'token', value: found.refresh_token }, reason: 'a refresh token' } as const
  assert.equal((await issuer.rpc.revoke(byToken)).revoked, true)
  assert.equal(await isActive(found.access_token), false)
  assert.equal((await issuer.rpc.revoke(byToken)).revoked, false)

  await issuer.apply('brief')
  const brief = await redeem(await authorize('brief'), urls[0], 'brief')
  assert.equal(await isActive(brief.access_token), true)
  assert.equal((await issuer.rpc.revoke({ target: { case: 'clientId', value: 'brief' } })).revoked, true)
  assert.equal(await isActive(brief.access_token), false)
  assert.equal((await refresh(brief.refresh_token, urls[1], 'brief')).error, 'invalid_grant')

  const cookies = new Map<string, string>()
  const last = await redeem(await authorize('app', {}, cookies))
  const { sessions } = await grants.listSessions({ subject })
  assert(sessions.length > 0)
  assert.equal((await issuer.rpc.revoke({ target: { case: 'subject', value: subject }, reason: 'test' })).revoked, true)
  for (const { access_token, refresh_token } of [other, last]) {
    assert.equal(await isActive(access_token), false)
    assert.equal((await refresh(refresh_token, urls[1])).error, 'invalid_grant')
  }
  assert.deepEqual((await grants.listSessions({ subject })).sessions, [])
  assert.deepEqual((await grants.listGrants({ subject })).grants, [])
  const silent = authorizationRequest('app', { scope: 'openid', prompt: 'none' })
  const back = await browse(issuer.url, silent.parameters, cookies)
  assert.equal(back.get('error'), 'login_required')
  assert.equal((await issuer.rpc.revoke({ target: { case: 'subject', value: 'nobody' } })).revoked, false)
})

test('a client ends its own refresh token with the whole grant, its own access token alone, and no other’s', {
  skip,
}, async () => {
  const [mine, again] = [await signedIn(), await signedIn()]
  await issuer.apply('other')
  const revoke = async (value: string, body: Record<string, string> = {}) =>
    (await postForm(`${urls[1]}/token/revocation`, { client_id: 'app', token: value, ...body })).status
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
  const { info } = await issuer.rpc.exchange({ token: internalToken, acceptInternal: true })
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
    assert.equal((await issuer.rpc.exchange({ token: text, acceptInternal: true })).info?.active, false, text)
  }
  assert.equal(
    (await issuer.rpc.revoke({ target: { case: 'tokenHash', value: tokenHash(token) }, reason: 'test' })).revoked,
    true,
  )
  assert.equal((await issuer.rpc.exchange({ token: internalToken, acceptInternal: true })).info?.active, false)
})

test('nobody can make us keep the beginnings of sign-ins without end', { skip }, async () => {
  const begin = async (from: string) => {
    const query = new URLSearchParams(authorizationRequest('app', { scope: 'orders' }).parameters)
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
