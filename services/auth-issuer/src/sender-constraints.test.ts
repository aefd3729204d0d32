import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { after, before, test } from 'node:test'
import { KeyService } from '@tollward/contracts/token'
import { eventually, requires } from '@tollward/testkit'
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
import { openTestIssuer, postForm, type TestIssuer } from './test-issuer.ts'
import {
  authorizationRequest,
  authorize,
  browse,
  CODE_CLIENT,
  createPerson,
  redemption,
  refreshing,
} from './test-person.ts'

const skip = await requires({ tools: ['nats-server'] })

const resources = new AsyncDisposableStack()
let issuer: TestIssuer

before(async () => {
  if (skip) return
  issuer = resources.use(await openTestIssuer(CODE_CLIENT))
  await issuer.replica({ TOLLWARD_JWKS_MAX_AGE: '1s' })
  await createPerson(issuer.bus)
})

after(() => resources.disposeAsync())

const codeOf = (clientId: string, more: Record<string, string> = {}) => authorize(issuer.url, clientId, more)

interface Answer {
  status: number
  nonce: string
  body: Record<string, string>
}

async function post(path: string, body: Record<string, string>, dpop?: string): Promise<Answer> {
  const { status, headers, text } = await postForm(issuer.url + path, body, dpop === undefined ? {} : { dpop })
  return { status, nonce: headers.get('dpop-nonce') ?? '', body: JSON.parse(text) }
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
    new SignJWT({ htm: 'POST', htu: `${issuer.url}/token`, jti: randomUUID(), ...(nonce && { nonce }) })
      .setProtectedHeader({ alg: 'ES256', typ: 'dpop+jwt', jwk: key.jwk })
      .setIssuedAt()
      .sign(key.privateKey)
  const first = await post('/token', body, await proof())
  assertRefused(first, 'a proof without nonce', 'use_dpop_nonce')
  return await post('/token', body, await proof(first.nonce))
}

test('a refresh token that is bound to a key is worth nothing without it, and a thief ends nothing', {
  skip,
}, async () => {
  // One has to bind its tokens, the other one chose to.
  await issuer.apply('must-bind', { senderConstraint: 'dpop' })
  await issuer.apply('may-bind')
  for (const name of ['must-bind', 'may-bind']) {
    const [key, thief] = [await keyPair(), await keyPair()]
    const given = assertGiven(await withProof(key, redemption(name, await codeOf(name))))
    assert.equal(given.token_type, 'DPoP')
    assertRefused(await post('/token', refreshing(name, given.refresh_token)), 'without a proof', 'invalid_grant')
    assertRefused(await withProof(thief, refreshing(name, given.refresh_token)), 'another key', 'invalid_grant')
    const next = assertGiven(await withProof(key, refreshing(name, given.refresh_token)))
    assertRefused(await withProof(thief, refreshing(name, next.refresh_token)), 'the successor', 'invalid_grant')
    assertGiven(await withProof(key, refreshing(name, next.refresh_token)))
  }
})

test('a code that was asked for with a key is good for that key only', { skip }, async () => {
  await issuer.apply('keyed')
  const [key, thief] = [await keyPair(), await keyPair()]
  const more = { dpop_jkt: await calculateJwkThumbprint(key.jwk) }
  assertRefused(
    await withProof(thief, redemption('keyed', await codeOf('keyed', more))),
    'another key',
    'invalid_grant',
  )
  assertRefused(await post('/token', redemption('keyed', await codeOf('keyed', more))), 'no key', 'invalid_grant')
  assertGiven(await withProof(key, redemption('keyed', await codeOf('keyed', more))))
})

test('a client that has to push its requests gets no code otherwise, and what it pushed is nobody else’s', {
  skip,
}, async () => {
  const key = await keyPair()
  const jwks = { keys: [key.jwk] }
  await issuer.apply('pushing', { authentication: 'private_key_jwt', jwks, requirePushedAuthorization: true })
  await issuer.apply('stranger')
  const assertion = async () => ({
    client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer',
    client_assertion: await new SignJWT({ jti: randomUUID() })
      .setProtectedHeader({ alg: 'ES256' })
      .setIssuer('pushing')
      .setSubject('pushing')
      .setAudience(issuer.url)
      .setExpirationTime('1m')
      .sign(key.privateKey),
  })
  const direct = await browse(issuer.url, authorizationRequest('pushing').parameters)
  assert.equal(direct.get('error'), 'invalid_request')
  const { verifier, parameters } = authorizationRequest('pushing')
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
  const stolen = await browse(issuer.url, { client_id: 'stranger', request_uri })
  assert.equal(stolen.get('code'), null)
  const answer = await browse(issuer.url, { client_id: 'pushing', request_uri })
  const code = answer.get('code')
  assert(code !== null, String(answer))
  const grant = { ...redemption('pushing', { code, verifier }), ...(await assertion()) }
  assertGiven(await post('/token', grant))
  const again = await browse(issuer.url, { client_id: 'pushing', request_uri })
  assert.equal(again.get('code'), null, 'a pushed request is good once')
})

test('id tokens are signed by the client’s algorithm and verify before, while and after the keys turn', {
  skip,
}, async () => {
  const jwks = async () => (await (await fetch(`${issuer.url}/jwks`)).json()) as JSONWebKeySet
  const verify = async (token: string, keys: JSONWebKeySet, alg: string, client: string) => {
    await jwtVerify(token, createLocalJWKSet(keys), { algorithms: [alg], issuer: issuer.url, audience: client })
    return decodeProtectedHeader(token).kid ?? ''
  }
  for (const alg of ['ES256', 'EdDSA']) {
    const name = `id-${alg.toLowerCase()}`
    await issuer.apply(name, { idTokenAlgorithm: alg })
    const given = assertGiven(await post('/token', redemption(name, await codeOf(name))))
    const early = given.id_token ?? ''
    const old = await verify(early, await jwks(), alg, name)
    let { refresh_token } = given
    let kept = { keys: await jwks(), atMs: Date.now() }
    await issuer.bus.client(KeyService).rotateKeys({})
    let failure: { error: unknown } | undefined
    const look = async () => {
      const next = assertGiven(await post('/token', refreshing(name, refresh_token)))
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
