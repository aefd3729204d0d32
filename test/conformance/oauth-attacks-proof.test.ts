import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { requires } from '@tollward/testkit'
import { exportJWK } from 'jose'
import { selfSigned } from '../scenario/certificates.ts'
import { checkStatus, type DecisionPoints, startDecisionPoints } from '../scenario/decision-points.ts'
import { type Identity, startIdentity } from '../scenario/identity.ts'
import { fetchWith } from './clients.ts'
import {
  type Caller,
  codeGrant,
  codeOf,
  FOR_PEOPLE,
  isActive,
  refreshGrant,
  tokenRequest,
  tokensIn,
} from './code-flow.ts'
import { dpopProof, forged, hs256, type Keys, makeKeys, nowSeconds, type Proof } from './jwts.ts'
import { type Answer, ask, assertNoStackTrace, assertOAuthError, basic, postForm } from './oauth.ts'
import { Person } from './person.ts'

const skip = await requires({ tools: ['nats-server'] })

const MACHINE = { grants: ['client_credentials'], scopes: ['orders'] }

let identity: Identity
let points: DecisionPoints
let tokenUrl: string
let machine: Caller
let keys: Keys
let thiefKeys: Keys
let nonce: string

before(async () => {
  if (skip !== false) return
  identity = await startIdentity()
  points = await startDecisionPoints(identity)
  tokenUrl = `${identity.issuerUrl}/token`
  const secret = await identity.register('bound', { ...MACHINE, senderConstraint: 'dpop' })
  machine = { clientId: 'bound', secret }
  keys = await makeKeys()
  thiefKeys = await makeKeys()
  const refused = await request(await dpopProof(keys, { htu: tokenUrl }))
  assertOAuthError(refused, 'use_dpop_nonce', 400)
  nonce = refused.headers.get('dpop-nonce') ?? ''
  assert.notEqual(nonce, '')
})
after(async () => {
  await points?.[Symbol.asyncDispose]()
  await identity?.[Symbol.asyncDispose]()
})

/** Asks for a token with this proof. */
function request(proof: string | undefined, caller: Caller = machine): Promise<Answer> {
  const grant = { grant_type: 'client_credentials', scope: 'orders' }
  return tokenRequest(identity, caller, grant, proof === undefined ? {} : { dpop: proof })
}

async function boundToken(): Promise<string> {
  const answer = await request(await dpopProof(keys, { htu: tokenUrl, nonce }))
  assert.equal(answer.status, 200, answer.text)
  assert.equal(answer.json.token_type, 'DPoP')
  return String(answer.json.access_token)
}

test('a proof is good once, and with a nonce of the server’s only', { skip }, async () => {
  const proof = await dpopProof(keys, { htu: tokenUrl, nonce })
  assert.equal((await request(proof)).status, 200)
  assertOAuthError(await request(proof), 'invalid_dpop_proof', 400)
  const once = await dpopProof(keys, { htu: tokenUrl, nonce })
  const answers = await Promise.all(Array.from({ length: 8 }, () => request(once)))
  assert.equal(answers.filter(({ status }) => status === 200).length, 1, 'of many uses of one proof at once')
  for (const wrong of [undefined, 'made-up', `${nonce}x`, nonce.slice(1)]) {
    const unknown = await dpopProof(keys, { htu: tokenUrl, ...(wrong === undefined ? {} : { nonce: wrong }) })
    assertOAuthError(await request(unknown), 'use_dpop_nonce', 400)
  }
})

test('a client whose tokens are bound gets none without a proof', { skip }, async () => {
  assertOAuthError(await request(undefined), /^invalid_(request|grant|dpop_proof)$/, 400)
})

test('a proof for another address, method or time, or by no key of its own, is refused', { skip }, async () => {
  const now = nowSeconds()
  const { d: _d, ...publicJwk } = keys.publicJwk
  const privateJwk = await exportJWK(keys.privateKey)
  const right = { htm: 'POST', htu: tokenUrl, nonce, iat: now, jti: crypto.randomUUID() }
  const header = { typ: 'dpop+jwt', jwk: publicJwk }
  const wrong: Record<string, string> = {
    'another address': await dpopProof(keys, { htu: `${identity.issuerUrl}/token/revocation`, nonce }),
    'another host': await dpopProof(keys, { htu: 'https://evil.example/token', nonce }),
    'another method': await dpopProof(keys, { htu: tokenUrl, htm: 'GET', nonce }),
    'another type': await dpopProof(keys, { htu: tokenUrl, nonce, header: { typ: 'jwt' } }),
    'no jti': await dpopProof(keys, { htu: tokenUrl, nonce, claims: { jti: undefined } }),
    'no htu': await dpopProof(keys, { htu: tokenUrl, nonce, claims: { htu: undefined } }),
    'another key than the one in it': await dpopProof(thiefKeys, { htu: tokenUrl, nonce, header: { jwk: publicJwk } }),
    'a private key in it': await dpopProof(keys, { htu: tokenUrl, nonce, header: { jwk: privateJwk } }),
    'no key in it': await dpopProof(keys, { htu: tokenUrl, nonce, header: { jwk: undefined } }),
    none: forged({ ...header, alg: 'none' }, right, ''),
    HS256: forged({ ...header, alg: 'HS256' }, right, hs256(JSON.stringify(publicJwk))),
    'a secret as its key': forged({ ...header, alg: 'HS256', jwk: { kty: 'oct', k: 'AA' } }, right, hs256('\0')),
    'no signature': forged({ ...header, alg: 'ES256' }, right, ''),
    'no JWT': 'x',
  }
  for (const [what, proof] of Object.entries(wrong)) {
    const answer = await request(proof)
    assert.notEqual(answer.status, 200, what)
    assertOAuthError(answer, 'invalid_dpop_proof', 400)
  }
})

/** What each decision point says to a bound token with this proof. */
async function statuses(
  token: string,
  proof: Omit<Proof, 'htu' | 'htm'> & { htu?: string; htm?: string; by?: Keys },
  scheme = 'DPoP',
): Promise<number[]> {
  const { by = keys, ...said } = proof
  const authorization = `${scheme} ${token}`
  const at = (htu: string) => dpopProof(by, { htm: 'GET', htu, ...said })
  const gateway = await ask(`${points.gatewayUrl}/echo`, {
    headers: { authorization, dpop: await at(`${points.gatewayUrl}/echo`) },
  })
  assertNoStackTrace(gateway.text)
  const dpop = await at('http://api.example.com/echo')
  return [gateway.status, await checkStatus(points.check, '/echo', { authorization, dpop })]
}

test('a stolen bound token is worth nothing at gateway and authorizer, and its owner goes on', { skip }, async () => {
  const [token, other] = [await boundToken(), await boundToken()]
  assert.deepEqual(await statuses(token, { token }), [200, 200])
  const refused = {
    'as a bearer token': await statuses(token, { token }, 'Bearer'),
    'by another key': await statuses(token, { token, by: thiefKeys }),
    'by another key that says it is the one': await statuses(token, {
      token,
      by: thiefKeys,
      header: { jwk: keys.publicJwk },
    }),
    'proof for another token': await statuses(token, { token: other }),
    'proof for no token': await statuses(token, {}),
    'proof for another method': await statuses(token, { token, htm: 'POST' }),
    'proof for another address': await statuses(token, { token, htu: 'http://api.example.com/public' }),
    'old proof': await statuses(token, { token, claims: { iat: nowSeconds() - 3600 } }),
    'proof of the future': await statuses(token, { token, claims: { iat: nowSeconds() + 3600 } }),
    'proof of another type': await statuses(token, { token, header: { typ: 'jwt' } }),
  }
  for (const [what, seen] of Object.entries(refused)) assert.deepEqual(seen, [401, 401], what)
  const bare = { authorization: `DPoP ${token}` }
  assert.equal((await ask(`${points.gatewayUrl}/echo`, { headers: bare })).status, 401, 'without a proof')
  assert.equal(await checkStatus(points.check, '/echo', bare), 401, 'without a proof')
  assert.deepEqual(await statuses(token, { token }), [200, 200])
})

test('a proof that was used at the gateway is not good a second time', { skip }, async () => {
  const token = await boundToken()
  const dpop = await dpopProof(keys, { htm: 'GET', htu: `${points.gatewayUrl}/echo`, token })
  const headers = { authorization: `DPoP ${token}`, dpop }
  assert.equal((await ask(`${points.gatewayUrl}/echo`, { headers })).status, 200)
  const again = await ask(`${points.gatewayUrl}/echo`, { headers })
  assert.equal(again.status, 401)
  assert.match(again.headers.get('www-authenticate') ?? '', /DPoP/)
})

test('introspection says which key a token is bound to', { skip }, async () => {
  const token = await boundToken()
  const answer = await postForm(identity.introspectionUrl, { token }, basic(machine.clientId, machine.secret ?? ''))
  assert.equal(answer.json.active, true)
  assert.match(String((answer.json.cnf as { jkt?: string } | undefined)?.jkt), /^[\w-]{43}$/)
  assert.equal(answer.json.token_type, 'DPoP')
})

test('a stolen bound refresh token is worth nothing without its key, and the thief ends nothing', {
  skip,
}, async () => {
  await identity.apply('Client', 'native', { ...FOR_PEOPLE, authentication: 'none', senderConstraint: 'dpop' })
  const native: Caller = { clientId: 'native', secret: undefined }
  const person = await Person.create(identity)
  const { code, verifier } = await codeOf(identity, person, native.clientId)
  const prove = async (by: Keys) => ({ dpop: await dpopProof(by, { htu: tokenUrl, nonce }) })
  const first = tokensIn(await tokenRequest(identity, native, codeGrant(code, verifier), await prove(keys)))
  const grant = refreshGrant(first.refreshToken)
  assertOAuthError(await tokenRequest(identity, native, grant), /^invalid_(grant|request|dpop_proof)$/, 400)
  assertOAuthError(await tokenRequest(identity, native, grant, await prove(thiefKeys)), 'invalid_grant', 400)
  assert.equal(await isActive(identity, first.accessToken), true)
  const second = tokensIn(await tokenRequest(identity, native, grant, await prove(keys)))
  assert.equal(await isActive(identity, second.accessToken), true)
  // Within the grace window the used token leads its owner to the same successor, and a thief still nowhere.
  assertOAuthError(await tokenRequest(identity, native, grant, await prove(thiefKeys)), 'invalid_grant', 400)
  const again = tokensIn(await tokenRequest(identity, native, grant, await prove(keys)))
  assert.equal(again.refreshToken, second.refreshToken)
})

test('a token that is bound to a certificate is worth nothing without it', { skip }, async () => {
  const certificate = await selfSigned('CN=bound-by-certificate')
  await identity.apply('Client', 'by-certificate', {
    ...MACHINE,
    authentication: 'self_signed_tls_client_auth',
    jwks: { keys: [{ ...certificate.publicJwk, x5c: [certificate.der] }] },
    senderConstraint: 'certificate',
  })
  const body = new URLSearchParams({ grant_type: 'client_credentials', client_id: 'by-certificate', scope: 'orders' })
  const at = (url: string, fetching: typeof fetch | ReturnType<typeof fetchWith>) =>
    fetching(`${url}/token`, { method: 'POST', body })
  const issued = await at(identity.mtlsUrl, fetchWith(identity, certificate))
  const { access_token: token } = (await issued.json()) as { access_token?: string }
  assert.ok(token)
  const headers = { authorization: `Bearer ${token}` }
  assert.equal((await ask(`${points.gatewayUrl}/echo`, { headers })).status, 401)
  assert.equal(await checkStatus(points.check, '/echo', headers), 401)
  const forgedHeader = encodeURIComponent(certificate.cert)
  const claims = {
    'x-forwarded-client-cert': `Cert="${forgedHeader}"`,
    'x-ssl-client-cert': forgedHeader,
    'client-cert': `:${certificate.der}:`,
  }
  assert.equal((await ask(`${points.gatewayUrl}/echo`, { headers: { ...headers, ...claims } })).status, 401)
  assert.equal(await checkStatus(points.check, '/echo', { ...headers, ...claims }), 401)
  assertOAuthError(await ask(tokenUrl, { method: 'POST', body, headers: claims }), 'invalid_client', 401)
  const another = await selfSigned('CN=bound-by-certificate')
  assert.equal((await at(identity.mtlsUrl, fetchWith(identity, another))).status, 401)
  assert.equal((await at(identity.mtlsUrl, fetchWith(identity))).status, 401)
})
