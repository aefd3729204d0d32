import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { requires } from '@tollward/testkit'
import fc from 'fast-check'
import { type Identity, startIdentity } from '../scenario/identity.ts'
import { type Answer, ask, assertNoStackTrace, basic, postForm } from './oauth.ts'

const skip = await requires({ tools: ['nats-server'] })

const CLIENT = 'fuzzed'
const RUNS = 150

let identity: Identity
let secret: string
let token: string

before(async () => {
  if (skip !== false) return
  identity = await startIdentity()
  secret = await identity.register(CLIENT, { grants: ['client_credentials'], scopes: ['orders'] })
  const { json } = await postForm(
    `${identity.issuerUrl}/token`,
    { grant_type: 'client_credentials' },
    basic(CLIENT, secret),
  )
  token = String(json.access_token)
})
after(() => identity?.[Symbol.asyncDispose]())

const GRANT_TYPES = [
  'client_credentials',
  'authorization_code',
  'refresh_token',
  'urn:ietf:params:oauth:grant-type:device_code',
  'urn:ietf:params:oauth:grant-type:token-exchange',
  'password',
  'implicit',
]

const NAMES = [
  ...['grant_type', 'client_id', 'client_secret', 'scope', 'resource', 'audience', 'code', 'code_verifier'],
  ...['redirect_uri', 'refresh_token', 'device_code', 'client_assertion', 'client_assertion_type', 'token'],
  ...['token_type_hint', 'subject_token', 'subject_token_type', 'actor_token', 'requested_token_type', 'request'],
  ...['__proto__', 'constructor', 'toString', 'a[b]', 'a[]', ''],
]

const anyText = fc.oneof(
  fc.string({ unit: 'binary', maxLength: 60 }),
  fc.string({ maxLength: 60 }),
  fc.base64String({ maxLength: 80 }),
  fc.constantFrom(
    '',
    '\0',
    '%',
    '%zz',
    '%00',
    '\r\nx: y',
    '{{}}',
    '__proto__',
    '\ud800',
    '../..',
    'eyJhbGciOiJub25lIn0.e30.',
  ),
)

/** Values that go some way into the endpoint before they are refused. */
const value = () =>
  fc.oneof(anyText, fc.constantFrom(...GRANT_TYPES, CLIENT, secret, token, 'orders', `${identity.issuerUrl}/x`))

const parameters = () => fc.array(fc.tuple(fc.oneof(fc.constantFrom(...NAMES), anyText), value()), { maxLength: 12 })

function formEncoded(pairs: readonly (readonly [string, string])[]): string {
  const encoded = new URLSearchParams()
  for (const [name, text] of pairs) encoded.append(name, text)
  return encoded.toString()
}

const contentType = fc.oneof(
  { weight: 4, arbitrary: fc.constant('application/x-www-form-urlencoded') },
  {
    weight: 1,
    arbitrary: fc.constantFrom(
      ...[
        'application/json',
        'text/plain',
        'multipart/form-data',
        'x',
        'a/b; c',
        'application/x-www-form-urlencoded; charset=x',
      ],
    ),
  },
)

const deepJson = fc.integer({ min: 1, max: 2000 }).map((depth) => '['.repeat(depth) + ']'.repeat(depth))

const body = () =>
  fc.oneof(
    {
      weight: 4,
      arbitrary: parameters().map(formEncoded),
    },
    { weight: 2, arbitrary: parameters().map((pairs) => pairs.map((pair) => pair.join('=')).join('&')) },
    { weight: 1, arbitrary: deepJson },
    { weight: 1, arbitrary: fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes)) },
  )

const authorization = () =>
  fc.option(
    fc.oneof(
      fc.constant(basic(CLIENT, secret).authorization),
      fc.constant(`Bearer ${token}`),
      anyText.map((text) => `Basic ${Buffer.from(text).toString('base64')}`),
      fc.base64String({ maxLength: 40 }).map((text) => `DPoP ${text}`),
    ),
    { nil: undefined },
  )

const request = () => fc.record({ type: contentType, body: body(), head: authorization() })

/** Posts whatever it is, and wants an OAuth error or an answer that `isGood`. */
async function holds(url: string, isGood: (answer: Answer) => boolean, { holdsTokens = true } = {}): Promise<void> {
  let good = 0
  let refused = 0
  await fc.assert(
    fc.asyncProperty(request(), async ({ type, body: sent, head }) => {
      const headers = { 'content-type': type, ...(head === undefined ? {} : { authorization: head }) }
      const answer = await ask(url, { method: 'POST', headers, body: sent })
      const seen = `${answer.status} ${answer.text}`
      assertNoStackTrace(answer.text)
      if (answer.status === 200) {
        good += 1
        assert.ok(isGood(answer), seen)
        return
      }
      refused += 1
      assert.ok(answer.status >= 400 && answer.status < 500, seen)
      assert.equal(typeof answer.json.error, 'string', seen)
      if (holdsTokens) assert.match(answer.headers.get('cache-control') ?? '', /no-store/, seen)
    }),
    { numRuns: RUNS },
  )
  assert.ok(refused > 0 && good + refused >= RUNS)
}

test('whatever is posted to the token endpoint, the answer is a token or an OAuth error, and never how we are built', {
  skip,
}, async () => {
  await holds(`${identity.issuerUrl}/token`, ({ json }) => typeof json.access_token === 'string')
})

test('whatever is posted to the introspection endpoint, the answer is one of RFC 7662 or an OAuth error', {
  skip,
}, async () => {
  await holds(identity.introspectionUrl, ({ json }) => typeof json.active === 'boolean')
})

test('whatever is posted to the revocation endpoint, the answer is empty or an OAuth error', { skip }, async () => {
  await holds(`${identity.issuerUrl}/token/revocation`, ({ text }) => text === '', { holdsTokens: false })
})
