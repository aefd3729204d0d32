import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { createPublicKey, generateKeyPairSync, hash, randomBytes, randomUUID, sign, X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { readFile, writeFile } from 'node:fs/promises'
import { request as httpRequest, type RequestOptions } from 'node:http'
import { request as httpsRequest } from 'node:https'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { connect as connectTls } from 'node:tls'
import { promisify } from 'node:util'
import { freePort, requires } from '@tollward/testkit'
import { CompactSign, calculateJwkThumbprint, exportJWK, generateKeyPair, type JWK, SignJWT } from 'jose'
import { openTestIssuer, type TestIssuer } from './test-issuer.ts'

const skip = await requires({ tools: ['nats-server', 'openssl'] })

const resources = new AsyncDisposableStack()
const run = promisify(execFile)

let issuer: TestIssuer
let mtlsUrl: string
let otherUrl: string

before(async () => {
  if (skip) return
  issuer = resources.use(await openTestIssuer({ grants: ['client_credentials'], scopes: ['orders'] }))
  await authority('ca')
  await authority('other-ca')
  await certificate('server', 'ca', '/CN=auth', 'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth')
  const mtlsPort = await freePort()
  mtlsUrl = `https://127.0.0.1:${mtlsPort}`
  await issuer.replica({
    TOLLWARD_MTLS_URL: mtlsUrl,
    TOLLWARD_MTLS_LISTEN_PORT: String(mtlsPort),
    TOLLWARD_MTLS_CERT_FILE: file('server.pem'),
    TOLLWARD_MTLS_KEY_FILE: file('server.key'),
    TOLLWARD_MTLS_CLIENT_CA_FILE: file('ca.pem'),
  })
  otherUrl = (await issuer.replica()).url
})

after(() => resources.disposeAsync())

const file = (name: string) => join(issuer.directory, name)

async function authority(name: string): Promise<void> {
  const subject = ['-subj', `/CN=${name}`, '-days', '2', '-addext', 'keyUsage=critical,keyCertSign']
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', file(`${name}.key`)]
  await run('openssl', ['req', '-x509', ...key, ...subject, '-out', file(`${name}.pem`)])
}

/** Makes name.key and name.pem, signed by an authority or, without one, by itself. */
async function certificate(name: string, caName: string | undefined, subject: string, extensions = '', days = '2') {
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', file(`${name}.key`)]
  if (caName === undefined) {
    await run('openssl', ['req', '-x509', ...key, '-subj', subject, '-days', days, '-out', file(`${name}.pem`)])
    return
  }
  await run('openssl', ['req', ...key, '-subj', subject, '-out', file(`${name}.csr`)])
  await writeFile(file(`${name}.ext`), extensions || 'extendedKeyUsage=clientAuth')
  const serial = `0x${randomBytes(8).toString('hex')}`
  const signer = ['-CA', file(`${caName}.pem`), '-CAkey', file(`${caName}.key`), '-set_serial', serial]
  const made = ['-in', file(`${name}.csr`), '-extfile', file(`${name}.ext`), '-days', days, '-out', file(`${name}.pem`)]
  await run('openssl', ['x509', '-req', ...signer, ...made])
}

interface Answer {
  status: number
  headers: Record<string, string | string[] | undefined>
  body: Record<string, string>
}

interface Call {
  base?: string
  path?: string
  method?: string
  /** Name of the certificate to show. */
  certificate?: string
  headers?: Record<string, string>
}

/** A request of its own connection, with a certificate if one is named. */
async function call(parameters: Record<string, string>, options: Call = {}): Promise<Answer> {
  const { base = issuer.url, path = '/token', method = 'POST', certificate: shown, headers = {} } = options
  const tls = base.startsWith('https:') && {
    ca: await readFile(file('ca.pem')),
    ...(shown && { cert: await readFile(file(`${shown}.pem`)), key: await readFile(file(`${shown}.key`)) }),
  }
  const form = { 'content-type': 'application/x-www-form-urlencoded', ...headers }
  const target: RequestOptions = { method, headers: form, agent: false, ...tls }
  const sent = (tls ? httpsRequest : httpRequest)(base + path, target)
  sent.end(method === 'POST' ? new URLSearchParams({ grant_type: 'client_credentials', ...parameters }).toString() : '')
  const [response] = await once(sent, 'response')
  const text = Buffer.concat(await response.toArray()).toString()
  return { status: response.statusCode, headers: response.headers, body: text === '' ? {} : JSON.parse(text) }
}

function assertToken({ status, body }: Answer, type = 'Bearer'): string {
  assert.equal(status, 200, JSON.stringify(body))
  assert.equal(body.token_type, type)
  assert(body.access_token)
  return body.access_token
}

function assertRefused({ status, body }: Answer, why: string, error = 'invalid_client', expected = 401): void {
  assert.equal(body.error, error, `${why}: ${JSON.stringify(body)}`)
  assert.equal(status, expected, why)
  assert.equal(body.access_token, undefined)
}

interface Signer {
  alg: string
  privateKey: Awaited<ReturnType<typeof generateKeyPair>>['privateKey']
  jwk: JWK
}

async function signer(alg: string): Promise<Signer> {
  const { privateKey, publicKey } = await generateKeyPair(alg, { extractable: true })
  return { alg, privateKey, jwk: await exportJWK(publicKey) }
}

const inSeconds = (seconds: number) => Math.floor(Date.now() / 1000) + seconds

const BEARER = 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer'

async function assertionOf(
  clientId: string,
  { alg, privateKey }: Signer,
  claims: Record<string, unknown> = {},
  header: Record<string, unknown> = {},
): Promise<Record<string, string>> {
  const whole = { iss: clientId, sub: clientId, aud: issuer.url, jti: randomUUID(), exp: inSeconds(60), ...claims }
  const given = Object.fromEntries(Object.entries(whole).filter(([, value]) => value !== undefined))
  const jwt = await new SignJWT(given).setProtectedHeader({ alg, ...header }).sign(privateKey)
  return { client_assertion_type: BEARER, client_assertion: jwt }
}

test('private_key_jwt: the client’s key is enough, with every algorithm that is offered', { skip }, async () => {
  for (const alg of ['ES256', 'EdDSA', 'Ed25519', 'RS256', 'PS256']) {
    const name = `assert-${alg.toLowerCase()}`
    const key = await signer(alg)
    await issuer.apply(name, { authentication: 'private_key_jwt', jwks: { keys: [{ ...key.jwk, kid: 'one' }] } })
    assert.equal((await issuer.rpc.replaceClientSecret({ clientId: name })).clientSecret, '', 'it has no secret')
    const token = assertToken(await call(await assertionOf(name, key)))
    assertToken(await call(await assertionOf(name, key, {}, { kid: 'one' })))
    assert.equal((await issuer.rpc.exchange({ token })).info?.clientId, name)
  }
})

test('private_key_jwt: an assertion of another key, audience, client or time is refused', { skip }, async () => {
  const key = await signer('ES256')
  const name = 'asserting'
  await issuer.apply(name, { authentication: 'private_key_jwt', jwks: { keys: [{ ...key.jwk, kid: 'one' }] } })
  await issuer.apply('victim', { authentication: 'private_key_jwt', jwks: { keys: [(await signer('ES256')).jwk] } })
  assertToken(await call(await assertionOf(name, key)))
  const cases: [string, Record<string, unknown>][] = [
    ['the token endpoint as audience', { aud: `${issuer.url}/token` }],
    ['another issuer as audience', { aud: 'https://other.example' }],
    ['another audience besides', { aud: [issuer.url, 'https://other.example'] }],
    ['no audience', { aud: undefined }],
    ['expired', { exp: inSeconds(-30) }],
    ['not yet valid', { nbf: inSeconds(120) }],
    ['without end', { exp: undefined }],
    ['good for a year', { exp: inSeconds(31_536_000) }],
    ['without jti', { jti: undefined }],
    ['another issuer', { iss: 'victim' }],
    ['another subject', { sub: 'victim' }],
    ['as somebody else', { iss: 'victim', sub: 'victim' }],
  ]
  for (const [why, claims] of cases) assertRefused(await call(await assertionOf(name, key, claims)), why)
  assertRefused(await call(await assertionOf(name, await signer('ES256'))), 'another key')
  const small = smallRsa()
  await issuer.apply('small', { authentication: 'private_key_jwt', jwks: { keys: [small.jwk] } })
  assertRefused(
    await call({ client_assertion_type: BEARER, client_assertion: small.assertion }),
    'an RSA key of 1024 bits',
  )
})

/** jose refuses to sign with such a key, as it should. */
function smallRsa() {
  const { privateKey, publicKey } = generateKeyPairSync('rsa', { modulusLength: 1024 })
  const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url')
  const claims = { iss: 'small', sub: 'small', aud: issuer.url, jti: randomUUID(), exp: inSeconds(60) }
  const data = `${encode({ alg: 'RS256' })}.${encode(claims)}`
  const signature = sign('sha256', Buffer.from(data), privateKey).toString('base64url')
  return { jwk: publicKey.export({ format: 'jwk' }), assertion: `${data}.${signature}` }
}

test('private_key_jwt: no header makes another key, or none, good enough', { skip }, async () => {
  const name = 'confused'
  const [key, attacker] = [await signer('RS256'), await signer('RS256')]
  await issuer.apply(name, { authentication: 'private_key_jwt', jwks: { keys: [{ ...key.jwk, kid: 'one' }] } })
  const claims = { iss: name, sub: name, aud: issuer.url, exp: inSeconds(60) }
  const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url')
  const assertion = (text: string) => ({ client_assertion_type: BEARER, client_assertion: text })
  for (const alg of ['none', 'None', 'NONE', '']) {
    const unsigned = `${encode({ alg })}.${encode({ ...claims, jti: randomUUID() })}.`
    assertRefused(await call(assertion(unsigned)), `alg ${alg}`)
  }
  const published = [JSON.stringify(key.jwk), key.jwk.n ?? '', rsaPem(key)]
  for (const text of published) {
    const payload = new TextEncoder().encode(JSON.stringify({ ...claims, jti: randomUUID() }))
    const secret = Buffer.concat([Buffer.from(text), Buffer.alloc(32)])
    const signed = await new CompactSign(payload).setProtectedHeader({ alg: 'HS256', kid: 'one' }).sign(secret)
    assertRefused(await call(assertion(signed)), 'HS256 with the public key')
  }
  const jwksUri = 'https://attacker.example/jwks'
  const headers = [
    { jwk: attacker.jwk },
    { jku: jwksUri },
    { x5u: jwksUri },
    { kid: '../../../../dev/null' },
    { kid: "one' OR '1'='1" },
    { kid: '' },
  ]
  for (const header of headers) {
    assertRefused(await call(await assertionOf(name, attacker, {}, header)), JSON.stringify(header))
  }
  for (const text of ['', 'x', 'a.b.c', 'a'.repeat(9000), `${encode({ alg: 'RS256' })}..`, '..']) {
    const { status, body } = await call(assertion(text))
    assert(status >= 400 && status < 500, `${status} ${JSON.stringify(body)}`)
  }
})

function rsaPem({ jwk }: Signer): string {
  return createPublicKey({ key: { ...jwk }, format: 'jwk' })
    .export({ format: 'pem', type: 'spki' })
    .toString()
}

test('an assertion is good once, on whichever replicas and however many at once', { skip }, async () => {
  const key = await signer('EdDSA')
  await issuer.apply('once', { authentication: 'private_key_jwt', jwks: { keys: [key.jwk] } })
  const used = await assertionOf('once', key)
  assertToken(await call(used))
  assertRefused(await call(used), 'the same again')
  assertRefused(await call(used, { base: otherUrl }), 'the same on another replica')
  for (let round = 0; round < 5; round++) {
    const contested = await assertionOf('once', key)
    const bases = Array.from({ length: 16 }, (_, index) => (index % 2 === 0 ? issuer.url : otherUrl))
    const answers = await Promise.all(bases.map((base) => call(contested, { base })))
    assert.equal(answers.filter(({ status }) => status === 200).length, 1)
    for (const answer of answers) if (answer.status !== 200) assertRefused(answer, 'at the same time')
  }
})

test('each client authenticates in its own way only', { skip }, async () => {
  const key = await signer('ES256')
  await issuer.apply('by-key', { authentication: 'private_key_jwt', jwks: { keys: [key.jwk] } })
  const clientSecret = await issuer.register('by-secret')
  assert.notEqual(clientSecret, '')
  assertRefused(await call({ client_id: 'by-key' }), 'without anything')
  assertRefused(await call({ client_id: 'by-key', client_secret: clientSecret }), 'a secret instead of a key')
  assertRefused(await call({ client_id: 'by-key', client_secret: '' }), 'an empty secret')
  assertRefused(await call({ client_id: 'by-secret' }), 'no secret')
  assertRefused(await call(await assertionOf('by-secret', key)), 'a key instead of a secret')
  assert.equal((await issuer.rpc.authenticateClient({ clientId: 'by-key', clientSecret: '' })).authenticated, false)
  const both = await call({ ...(await assertionOf('by-key', key)), client_id: 'by-key', client_secret: 'x' })
  assertRefused(both, 'two ways at once', 'invalid_request', 400)
  const mixed = await call({ ...(await assertionOf('by-key', key)), client_id: 'by-secret' })
  assertRefused(mixed, 'somebody else’s id beside', 'invalid_request', 400)
})

test('a client without secret ends and begins like any other; what it had as a secret is over', { skip }, async () => {
  const key = await signer('ES256')
  const clientSecret = await issuer.register('changing')
  const early = assertToken(await call({ client_id: 'changing', client_secret: clientSecret }))
  await issuer.apply('changing', { authentication: 'private_key_jwt', jwks: { keys: [key.jwk] } })
  assert.equal((await issuer.rpc.replaceClientSecret({ clientId: 'changing', onlyIfMissing: true })).clientSecret, '')
  assertRefused(await call({ client_id: 'changing', client_secret: clientSecret }), 'the old secret')
  assert.equal((await issuer.rpc.exchange({ token: early, pastCache: true })).info?.active, false)
  const token = assertToken(await call(await assertionOf('changing', key)))
  assert.equal((await issuer.rpc.exchange({ token, pastCache: true })).info?.active, true)
  assert.equal((await issuer.rpc.revoke({ target: { case: 'clientId', value: 'changing' } })).revoked, true)
  assert.equal((await issuer.rpc.exchange({ token, pastCache: true })).info?.active, false)
  const later = assertToken(await call(await assertionOf('changing', key)))
  await issuer.rpc.forgetClient({ clientId: 'changing' })
  assertToken(await call(await assertionOf('changing', key)))
  assert.equal(
    (await issuer.rpc.exchange({ token: later, pastCache: true })).info?.active,
    false,
    'it was another client of this name',
  )
  await issuer.apply('changing', {})
  assertRefused(await call({ client_id: 'changing', client_secret: clientSecret }), 'the secret of long ago')
})

test('tls_client_auth: a certificate of the authority with the exact subject, and no other', { skip }, async () => {
  await issuer.apply('machine', { authentication: 'tls_client_auth', certificateSubject: 'CN=machine,O=Shop' })
  await Promise.all([
    certificate('machine', 'ca', '/O=Shop/CN=machine'),
    certificate('longer', 'ca', '/C=CH/O=Shop/CN=machine'),
    certificate('other-subject', 'ca', '/O=Shop/CN=other'),
    certificate('swapped', 'ca', '/CN=machine/O=Shop'),
    certificate('for-servers', 'ca', '/O=Shop/CN=machine', 'extendedKeyUsage=serverAuth'),
    certificate('other-issuer', 'other-ca', '/O=Shop/CN=machine'),
    certificate('own-issuer', undefined, '/O=Shop/CN=machine'),
  ])
  // A lifetime of no days at all: it ended when it was made.
  await certificate('over', 'ca', '/O=Shop/CN=machine', '', '0')
  const ask = (shown?: string) =>
    call({ client_id: 'machine' }, { base: mtlsUrl, ...(shown && { certificate: shown }) })
  assertToken(await ask('machine'))
  for (const shown of ['longer', 'other-subject', 'swapped', 'for-servers', 'other-issuer', 'own-issuer', 'over']) {
    assertRefused(await ask(shown), shown)
  }
  assertRefused(await ask(), 'no certificate')
  assertRefused(await call({ client_id: 'machine' }), 'no TLS')
  const forged = {
    'x-client-cert': 'x',
    'x-forwarded-client-cert': 'Subject="CN=machine,O=Shop"',
    'ssl-client-verify': '0',
  }
  assertRefused(await call({ client_id: 'machine' }, { headers: forged }), 'headers of a proxy')
})

test('self_signed_tls_client_auth: the registered certificate, and no other', { skip }, async () => {
  await Promise.all([
    certificate('own', undefined, '/CN=own'),
    certificate('own-again', undefined, '/CN=own'),
    certificate('verified', 'ca', '/CN=own'),
  ])
  const der = (await readFile(file('own.pem'), 'utf8')).replace(/-----[^-]+-----|\s/g, '')
  const jwk = new X509Certificate(await readFile(file('own.pem'))).publicKey.export({ format: 'jwk' })
  await issuer.apply('own', { authentication: 'self_signed_tls_client_auth', jwks: { keys: [{ ...jwk, x5c: [der] }] } })
  assertToken(await call({ client_id: 'own' }, { base: mtlsUrl, certificate: 'own' }))
  for (const shown of ['own-again', 'verified']) {
    assertRefused(await call({ client_id: 'own' }, { base: mtlsUrl, certificate: shown }), shown)
  }
  assertRefused(await call({ client_id: 'own' }, { base: mtlsUrl }), 'no certificate')
})

test('the listener for certificates is advertised by aliases, and serves clients only', { skip }, async () => {
  const { body } = await call({}, { method: 'GET', path: '/.well-known/openid-configuration' })
  const { mtls_endpoint_aliases: aliases, ...rest } = body as Record<string, unknown>
  const { token_endpoint: alias } = aliases as Record<string, string>
  assert.equal(alias, `${mtlsUrl}/token`)
  assert.equal(rest.tls_client_certificate_bound_access_tokens, true)
  assert((rest.token_endpoint_auth_methods_supported as string[]).includes('tls_client_auth'))
  const other = await call({}, { method: 'GET', path: '/.well-known/openid-configuration', base: otherUrl })
  assert.equal(other.body.mtls_endpoint_aliases, undefined)
  assert(!String(other.body.token_endpoint_auth_methods_supported).includes('tls_client_auth'))
  for (const path of ['/auth', '/.well-known/openid-configuration', '/jwks', '/x']) {
    assert.equal((await call({}, { method: 'GET', base: mtlsUrl, path })).status, 404, path)
  }
})

test('every connection shows its certificate anew: sessions are not resumed', { skip }, async () => {
  await certificate('resuming', 'ca', '/CN=resuming')
  const [ca, cert, key] = await Promise.all(
    ['ca.pem', 'resuming.pem', 'resuming.key'].map((name) => readFile(file(name))),
  )
  const target = { host: '127.0.0.1', port: Number(new URL(mtlsUrl).port), ca, cert, key }
  for (const version of ['TLSv1.2', 'TLSv1.3'] as const) {
    const tls = { ...target, minVersion: version, maxVersion: version }
    let session: Buffer | undefined
    for (let round = 0; round < 2; round++) {
      const socket = connectTls({ ...tls, ...(session && { session }) })
      socket.on('session', (made) => {
        session = made
      })
      await once(socket, 'secureConnect')
      assert.equal(socket.isSessionReused(), false, version)
      // TLS 1.3 sends what a session could be resumed with after the handshake, so before the answer.
      socket.write('GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n')
      await socket.toArray()
    }
  }
})

interface ProofClaims {
  htm?: unknown
  htu?: unknown
  nonce?: unknown
  jti?: unknown
  iat?: unknown
}

async function proofOf(key: Signer, claims: ProofClaims = {}, header: Record<string, unknown> = {}): Promise<string> {
  const whole = { htm: 'POST', htu: `${issuer.url}/token`, jti: randomUUID(), iat: inSeconds(0), ...claims }
  return await new SignJWT(whole as Record<string, string>)
    .setProtectedHeader({ alg: key.alg, typ: 'dpop+jwt', jwk: key.jwk, ...header })
    .sign(key.privateKey)
}

async function dpopClient(name: string) {
  const clientSecret = await issuer.register(name, { senderConstraint: 'dpop' })
  const ask = (proof?: string, base?: string) =>
    call(
      { client_id: name, client_secret: clientSecret },
      { ...(base && { base }), ...(proof && { headers: { dpop: proof } }) },
    )
  const first = await ask(await proofOf(await signer('ES256')))
  assertRefused(first, 'a proof without nonce', 'use_dpop_nonce', 400)
  const nonce = first.headers['dpop-nonce']
  assert(typeof nonce === 'string')
  return { ask, nonce }
}

test('DPoP: a token is bound to the key of a proof that has a nonce of ours', { skip }, async () => {
  const { ask, nonce } = await dpopClient('bound')
  for (const alg of ['ES256', 'EdDSA', 'Ed25519']) {
    const key = await signer(alg)
    const token = assertToken(await ask(await proofOf(key, { nonce })), 'DPoP')
    const info = (await issuer.rpc.exchange({ token })).info
    assert.deepEqual(info?.confirmation?.method, { case: 'jkt', value: await calculateJwkThumbprint(key.jwk) })
  }
  assertRefused(await ask(), 'no proof', 'invalid_grant', 400)
  const there = await ask(await proofOf(await signer('ES256'), { nonce }), otherUrl)
  assertToken(there, 'DPoP')
})

test('DPoP: a proof for something else, of another time or of no key is refused', { skip }, async () => {
  const { ask, nonce } = await dpopClient('proving')
  const key = await signer('ES256')
  const invalid = 'invalid_dpop_proof'
  const cases: [string, ProofClaims][] = [
    ['another method', { htm: 'GET' }],
    ['another address', { htu: `${issuer.url}/token/revocation` }],
    ['another host', { htu: 'http://evil.example/token' }],
    ['the other replica’s own address', { htu: `${otherUrl}/token` }],
    ['no address', { htu: undefined }],
    ['no jti', { jti: undefined }],
    ['no time', { iat: undefined }],
  ]
  for (const [why, claims] of cases)
    assertRefused(await ask(await proofOf(key, { nonce, ...claims })), why, invalid, 400)
  for (const [why, wrong] of Object.entries({ forged: 'a'.repeat(43), empty: '', longer: `${nonce}x` })) {
    assertRefused(await ask(await proofOf(key, { nonce: wrong })), why, 'use_dpop_nonce', 400)
  }
  const mine = await proofOf(key, { nonce }, { jwk: (await signer('ES256')).jwk })
  assertRefused(await ask(mine), 'the key of somebody else', invalid, 400)
  assertRefused(await ask(await proofOf(key, { nonce }, { typ: 'JWT' })), 'another type', invalid, 400)
  assertRefused(await ask(await proofOf(await signer('RS256'), { nonce })), 'an algorithm not offered', invalid, 400)
  const encode = (value: unknown) => Buffer.from(JSON.stringify(value)).toString('base64url')
  const claims = { htm: 'POST', htu: `${issuer.url}/token`, jti: randomUUID(), iat: inSeconds(0), nonce }
  const unsigned = `${encode({ alg: 'none', typ: 'dpop+jwt', jwk: key.jwk })}.${encode(claims)}.`
  assertRefused(await ask(unsigned), 'alg none', invalid, 400)
  const oct = { kty: 'oct', k: Buffer.alloc(32).toString('base64url') }
  const keyed = await new SignJWT(claims)
    .setProtectedHeader({ alg: 'HS256', typ: 'dpop+jwt', jwk: oct })
    .sign(Buffer.alloc(32))
  assertRefused(await ask(keyed), 'a key that both would have', invalid, 400)
  for (const text of ['x', 'a.b.c', '{}']) assertRefused(await ask(text), text, invalid, 400)
})

test('DPoP: a proof is good once, on whichever replica', { skip }, async () => {
  const { ask, nonce } = await dpopClient('replaying')
  const key = await signer('EdDSA')
  const proof = await proofOf(key, { nonce })
  assertToken(await ask(proof), 'DPoP')
  assertRefused(await ask(proof), 'the same again', 'invalid_dpop_proof', 400)
  assertRefused(await ask(proof, otherUrl), 'the same on another replica', 'invalid_dpop_proof', 400)
  for (let round = 0; round < 5; round++) {
    const contested = await proofOf(key, { nonce })
    const bases = Array.from({ length: 16 }, (_, index) => (index % 2 === 0 ? issuer.url : otherUrl))
    const answers = await Promise.all(bases.map((base) => ask(contested, base)))
    assert.equal(answers.filter(({ status }) => status === 200).length, 1)
  }
})

test('a token of a client that is bound to its certificate has the certificate’s SHA-256', { skip }, async () => {
  await issuer.apply('tied', {
    authentication: 'tls_client_auth',
    certificateSubject: 'CN=tied',
    senderConstraint: 'certificate',
  })
  await certificate('tied', 'ca', '/CN=tied')
  const token = assertToken(await call({ client_id: 'tied' }, { base: mtlsUrl, certificate: 'tied' }))
  const thumbprint = hash('sha256', new X509Certificate(await readFile(file('tied.pem'))).raw, 'base64url')
  const info = (await issuer.rpc.exchange({ token })).info
  assert.deepEqual(info?.confirmation?.method, { case: 'x5tS256', value: thumbprint })
})

test('DPoP: a proof over the listener for certificates names the address of that listener', { skip }, async () => {
  await issuer.apply('both', { authentication: 'tls_client_auth', certificateSubject: 'CN=both' })
  await certificate('both', 'ca', '/CN=both')
  const key = await signer('ES256')
  const ask = async (htu: string, nonce?: string) => {
    const headers = { dpop: await proofOf(key, { htu, ...(nonce && { nonce }) }) }
    return call({ client_id: 'both' }, { base: mtlsUrl, certificate: 'both', headers })
  }
  const nonce = String((await ask(`${mtlsUrl}/token`)).headers['dpop-nonce'])
  assertRefused(await ask(`${issuer.url}/token`, nonce), 'the other address', 'invalid_dpop_proof', 400)
  assertToken(await ask(`${mtlsUrl}/token`, nonce), 'DPoP')
})
