import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect } from 'node:net'
import { after, before, test } from 'node:test'
import { eventually, requires } from '@tollward/testkit'
import { type Identity, startIdentity } from '../scenario/identity.ts'
import { API, CALLBACK, FOR_PEOPLE, pkce } from './code-flow.ts'
import { type Answer, ask, assertNoStackTrace, assertOAuthError, basic, postForm } from './oauth.ts'

const skip = await requires({ tools: ['nats-server'] })

const CLIENT = 'malformed'
const ANSWER_MAX_MS = 10_000

let identity: Identity
let secret: string
let token: string
/** Each endpoint that takes a form, with one that it takes. */
let forms: Readonly<Record<string, Readonly<Record<string, string>>>>

before(async () => {
  if (skip !== false) return
  identity = await startIdentity()
  const spec = { ...FOR_PEOPLE, grants: ['client_credentials', 'device_code', ...FOR_PEOPLE.grants] }
  secret = await identity.register(CLIENT, spec)
  const own = basic(CLIENT, secret)
  const answer = await postForm(`${identity.issuerUrl}/token`, { grant_type: 'client_credentials' }, own)
  token = String(answer.json.access_token)
  const pushed = {
    response_type: 'code',
    client_id: CLIENT,
    redirect_uri: CALLBACK,
    scope: 'openid orders',
    resource: API,
    code_challenge: pkce().challenge,
    code_challenge_method: 'S256',
  }
  forms = {
    [`${identity.issuerUrl}/token`]: { grant_type: 'client_credentials' },
    [`${identity.issuerUrl}/token/revocation`]: { token: 'x'.repeat(43) },
    [`${identity.issuerUrl}/request`]: pushed,
    [`${identity.issuerUrl}/device/auth`]: { client_id: CLIENT, scope: 'openid orders', resource: API },
    [identity.introspectionUrl]: { token },
  }
})
after(() => identity?.[Symbol.asyncDispose]())

/** Posts a body as it is, with the right credentials. */
function post(url: string, body: string, type = 'application/x-www-form-urlencoded'): Promise<Answer> {
  return ask(url, { method: 'POST', body, headers: { ...basic(CLIENT, secret), 'content-type': type } })
}

async function assertAllRefuse(
  what: string,
  bodyOf: (form: Readonly<Record<string, string>>) => string,
  { type = 'application/x-www-form-urlencoded', among = forms } = {},
): Promise<void> {
  for (const [url, form] of Object.entries(among)) {
    const answer = await post(url, bodyOf(form), type)
    assert.notEqual(answer.status, 200, `${what}: ${url}`)
    assertOAuthError(answer, 'invalid_request')
  }
}

const encoded = (form: Readonly<Record<string, string>>) => new URLSearchParams(form).toString()

test('each endpoint takes the form that the others here are made of', { skip }, async () => {
  for (const [url, form] of Object.entries(forms)) {
    const { status, text } = await post(url, encoded(form))
    assert.ok(status === 200 || status === 201, `${url}: ${status} ${text}`)
  }
})

test('a parameter that is there twice is refused', { skip }, async () => {
  await assertAllRefuse('doubled', (form) => {
    const [name = '', value = ''] = Object.entries(form).find(([key]) => key !== 'resource') ?? []
    return `${encoded(form)}&${encoded({ [name]: value })}`
  })
})

test('a body that is no form is refused', { skip }, async () => {
  const json = (form: object) => JSON.stringify(form)
  // An authenticated device may ask for whatever its client may have.
  const { [`${identity.issuerUrl}/device/auth`]: _device, ...others } = forms
  await assertAllRefuse('JSON', json, { type: 'application/json' })
  await assertAllRefuse('JSON that says it is a form', json, { among: others })
  await assertAllRefuse('text', encoded, { type: 'text/plain' })
  await assertAllRefuse('nothing', () => '', { among: others })
  await assertAllRefuse('deep brackets', () => `a${'[a]'.repeat(500)}=1`, { among: others })
})

test('a body that is too long is refused, also where it does not say how long it is', { skip }, async () => {
  for (const [url, form] of Object.entries(forms)) {
    const answer = await post(url, `${encoded(form)}&x=${'y'.repeat(1_000_000)}`).catch((error: unknown) => error)
    // Some servers close before everything was sent: then there is no answer to read.
    if (answer instanceof Error) continue
    assertOAuthError(answer as Answer, 'invalid_request', 413)
  }
  for (const url of Object.keys(forms)) {
    const request = () =>
      rawRequest(url, [
        ...['transfer-encoding: chunked', 'content-type: application/x-www-form-urlencoded'],
        `authorization: ${basic(CLIENT, secret).authorization}`,
      ])
    // Of a connection that is closed while we send, the answer may be lost on the way.
    const text = await eventually(async () => (await request()) || undefined, { what: 'an answer' })
    assert.match(text, /^HTTP\/1\.1 4(00|13) /, url)
    assertNoStackTrace(text)
  }
})

/** Sends a chunked body without end until the server answers, and gives the answer; empty if it closed without one. */
async function rawRequest(url: string, headers: readonly string[]): Promise<string> {
  const { port, pathname, host } = new URL(url)
  const socket = connect({ host: '127.0.0.1', port: Number(port) })
  await once(socket, 'connect')
  socket.write(`POST ${pathname} HTTP/1.1\r\nhost: ${host}\r\n${headers.join('\r\n')}\r\n\r\n`)
  const chunk = `1000\r\n${'x'.repeat(0x1000)}\r\n`
  const send = () => {
    if (socket.writable && received === '') socket.write(chunk, () => setImmediate(send))
  }
  let received = ''
  socket.on('error', () => socket.destroy())
  socket.setTimeout(ANSWER_MAX_MS, () => socket.destroy())
  const ended = new Promise((resolve) => socket.on('close', resolve))
  socket.on('data', (bytes) => {
    received += bytes.toString()
    if (received.includes('\r\n\r\n')) socket.destroy()
  })
  send()
  await ended
  return received
}

test('odd bytes in names and values are refused or mean nothing', { skip }, async () => {
  const odd = ['%zz=%zz', 'a=%', '%00=%00', '=', '&&&', 'a=b=c', '+=+', '__proto__=x&constructor=y', '%F0%28%8C%28=x']
  for (const [url, form] of Object.entries(forms)) {
    for (const text of odd) {
      const answer = await post(url, `${encoded(form)}&${text}`)
      assert.ok(answer.status < 500, `${url} ${text}: ${answer.status} ${answer.text}`)
      assertNoStackTrace(answer.text)
    }
  }
  const many = Array.from({ length: 1500 }, (_, index) => `p${index}=1`).join('&')
  for (const [url, form] of Object.entries(forms)) {
    const answer = await post(url, `${encoded(form)}&${many}`)
    assert.ok(answer.status < 500, `${url}: ${answer.status} ${answer.text}`)
  }
})

test('credentials that are none, or two, are refused', { skip }, async () => {
  const right = basic(CLIENT, secret).authorization
  const wrong = [
    'Basic',
    'Basic ',
    'Basic %%%',
    `Basic ${Buffer.from('nocolon').toString('base64')}`,
    `Basic ${Buffer.from(`${CLIENT}:%zz`).toString('base64')}`,
    `Basic ${Buffer.from(`:${secret}`).toString('base64')}`,
    `Basic ${Buffer.from(`${CLIENT}:`).toString('base64')}`,
    `Basic ${Buffer.from(`${CLIENT}:${secret} `).toString('base64')}`,
    `Basic ${Buffer.from(`${CLIENT.toUpperCase()}:${secret}`).toString('base64')}`,
    `Bearer ${token}`,
    `${right}, ${right}`,
    `${right} x`,
    'x'.repeat(8000),
  ]
  const tokenUrl = `${identity.issuerUrl}/token`
  for (const url of [tokenUrl, identity.introspectionUrl]) {
    for (const authorization of wrong) {
      const answer = await postForm(url, forms[url] ?? {}, { authorization })
      assertOAuthError(answer, /^invalid_(client|request)$/)
    }
  }
  const twice = { ...forms[tokenUrl], client_id: CLIENT, client_secret: secret }
  assertOAuthError(await postForm(tokenUrl, twice, basic(CLIENT, secret)), 'invalid_request', 400)
})

test('other methods and paths are refused without a word too much', { skip }, async () => {
  for (const url of Object.keys(forms)) {
    for (const method of ['GET', 'PUT', 'DELETE', 'PATCH', 'OPTIONS']) {
      const answer = await ask(url, { method, headers: basic(CLIENT, secret) })
      assert.ok(answer.status >= 400 && answer.status < 500, `${method} ${url}: ${answer.status}`)
      assertNoStackTrace(answer.text)
    }
  }
  const paths = [
    '/token/',
    '//token',
    '/token/x',
    '/%2e%2e/token',
    '/jwks/../token',
    '/..',
    '/%00',
    '/.git/config',
    '/me',
  ]
  for (const path of paths) {
    const answer = await ask(identity.issuerUrl + path)
    assert.ok(answer.status >= 400 && answer.status < 500, `${path}: ${answer.status} ${answer.text.slice(0, 100)}`)
    assertNoStackTrace(answer.text)
  }
})

test('after all of it, the servers are ready and answer', { skip }, async () => {
  for (const { healthUrl } of [identity.issuer, identity.introspector]) {
    assert.equal((await fetch(`${healthUrl}/healthz/ready`)).status, 200)
  }
  const { json } = await postForm(identity.introspectionUrl, { token }, basic(CLIENT, secret))
  assert.equal(json.active, true)
})
