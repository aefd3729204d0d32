import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import {
  DOCUMENT_BYTES_MAX,
  DocumentError,
  documentKey,
  parseDocuments,
  parseSources,
  TEXT_BYTES_MAX,
} from './parse.ts'

const PLAN = `apiVersion: tollward.dev/v1
kind: Plan
metadata:
  name: orders
spec:
  priceSats: 10000
  requests: 1000
  confirmations: 1
  payWithin: 15m
  confirmWithin: 2h
`

const POLICY = `apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: example }
spec:
  hosts: ["*"]
  rules:
    - { name: public, match: { methods: [GET], path: /public }, anonymous: true }
`

/** The faults of a text, written as the CLI shows them. */
function faultsOf(yaml: string): string[] {
  return errorOf(yaml).message.split('\n')
}

function errorOf(yaml: string): DocumentError {
  try {
    parseDocuments(yaml, 'f.yaml')
  } catch (error) {
    assert.ok(error instanceof DocumentError, `threw ${String(error)}`)
    return error
  }
  throw new assert.AssertionError({ message: 'the text was taken' })
}

/** A Client document with this spec beside its grants. */
function clientText(grants: string[], spec: Record<string, unknown> = {}): string {
  return `apiVersion: tollward.dev/v1\nkind: Client\nmetadata: { name: shop }\nspec: ${JSON.stringify({ grants, ...spec })}\n`
}

test('a text gives its documents in order, with defaults filled in', () => {
  const [plan, policy] = parseDocuments(`# two\n---\n${PLAN}---\n${POLICY}---\n`, 'f.yaml')
  assert.ok(plan?.kind === 'Plan' && policy?.kind === 'ApiPolicy')
  assert.equal(plan.spec.priceSats, 10000)
  assert.equal(policy.spec.mode, 'enforce')
})

test('the text of each document alone gives the same document again', () => {
  const sources = parseSources(`---\n# first\n${PLAN}--- # second\n${POLICY}...\n`, 'f.yaml')
  assert.equal(sources.length, 2)
  for (const { document, yaml } of sources) assert.deepEqual(parseDocuments(yaml, 'again'), [document])
  assert.match(sources[0]?.yaml ?? '', /^# first\napiVersion/)
  const [commented] = parseSources(`# head\n${PLAN}# tail\n---\n${POLICY}`, 'f.yaml')
  assert.equal(commented?.yaml, `# head\n${PLAN}# tail\n`)
})

test('every fault of every document is told at once, with its line, column and path', () => {
  const text = `${PLAN.replace('10000', '10.5').replace('15m', 'soon')}---\n${POLICY.replace('hosts', 'hots')}`
  assert.deepEqual(errorOf(text).faults, [
    { file: 'f.yaml', line: 6, column: 14, path: 'spec.priceSats', reason: 'must be a whole number' },
    {
      ...{ file: 'f.yaml', line: 9, column: 14, path: 'spec.payWithin' },
      reason: 'a duration is a whole number and ms, s, m, h or d, such as 15m',
    },
    { file: 'f.yaml', line: 15, column: 1, path: 'spec.hosts', reason: 'is required' },
    { file: 'f.yaml', line: 16, column: 3, path: 'spec.hots', reason: 'is no known field; did you mean hosts?' },
  ])
  assert.equal(errorOf(text).code, 'invalid_argument')
})

test('each kind of fault has a reason that says what to do', () => {
  const cases: [string, string][] = [
    [PLAN.replace('tollward.dev/v1', 'v1'), 'f.yaml:1: apiVersion: must be tollward.dev/v1'],
    [PLAN.replace('Plan', 'plan'), 'f.yaml:2: kind: is no kind of document; did you mean Plan?'],
    [PLAN.replace('kind: Plan\n', ''), 'f.yaml:1: kind: is required'],
    [PLAN.replace('  name: orders', '  name: [orders]'), 'f.yaml:4: metadata.name: must be a text, not a list'],
    [PLAN.replace('10000', '1'), 'f.yaml:6: spec.priceSats: must be at least 546'],
    [PLAN.replace('confirmations: 1', 'confirmations:'), 'f.yaml:8: spec.confirmations: must be a number, not empty'],
    [
      PLAN.replace('confirmations: 1', 'confirmations: "1"'),
      'f.yaml:8: spec.confirmations: must be a number, not a text',
    ],
    [PLAN.replace('2h', '400d'), 'f.yaml:10: spec.confirmWithin: a duration is at most 365d'],
    [PLAN.replace('  requests: 1000\n', ''), 'f.yaml:5: spec: give requests, duration, or both: a pass has to end'],
    [POLICY.replace('["*"]', '[]'), 'f.yaml:5: spec.hosts: must have at least 1 entry'],
    [
      POLICY.replace('[GET]', '[GET, POTS]'),
      'f.yaml:7: spec.rules[0].match.methods[1]: must be one of GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS; did you mean POST?',
    ],
    [
      `${POLICY}    - { name: public, match: { prefix: /a }, anonymous: true }\n`,
      'f.yaml:8: spec.rules[1].name: is the name of an earlier rule',
    ],
    [
      PLAN.replace('Plan', 'DetectorSettings').replace(/spec:[\s\S]*/, 'spec: { allow: [10.0.0.1/8] }\n'),
      'f.yaml:5: spec.allow[0]: must be an address or a CIDR without host bits, such as 10.0.0.0/8',
    ],
  ]
  for (const [text, fault] of cases) assert.deepEqual(faultsOf(text), [fault])
})

test('what is not YAML is told with its place', () => {
  assert.deepEqual(faultsOf(PLAN.replace('  requests: 1000', '  requests: 1\n  requests: 2')), [
    'f.yaml:8: spec.requests: stands twice in its map',
  ])
  assert.match(faultsOf('a: [1\nb: 2').join(), /^f\.yaml:2: .*flow sequence/)
  assert.match(faultsOf('a:\n\tb: 1').join(), /^f\.yaml:2: .*tabs are not allowed/)
  assert.deepEqual(faultsOf(PLAN.replace('10000', '!sats 10000')), ['f.yaml:6: spec.priceSats: unresolved tag: !sats'])
  assert.deepEqual(faultsOf(`%YAML 1.1\n---\n${PLAN}`), [
    'f.yaml:3: directives, lines that begin with %, are not taken',
  ])
  assert.deepEqual(faultsOf('- a'), ['f.yaml:1: a document is a map that begins with apiVersion'])
  for (const empty of ['', '  \n', '# nothing\n', '---\n---\n']) {
    assert.deepEqual(faultsOf(empty), ['f.yaml:1: there is no document in the text'])
  }
})

test('a document that stands in a text twice is refused', () => {
  assert.deepEqual(faultsOf(`${PLAN}---\n${POLICY}---\n${PLAN}`), [
    'f.yaml:23: metadata.name: Plan/orders stands in this text twice, first in line 4',
  ])
  assert.equal(parseDocuments(`${PLAN}---\n${PLAN.replace('name: orders', 'name: other')}`, 'f.yaml').length, 2)
})

test('aliases are followed, and a few lines that stand for billions of values are refused in time', () => {
  const aliased = PLAN.replace('15m', '&while 15m').replace('2h', '*while')
  const [plan] = parseDocuments(aliased, 'f.yaml')
  assert.ok(plan?.kind === 'Plan' && plan.spec.confirmWithin === '15m')
  assert.deepEqual(faultsOf(PLAN.replace('2h', '*nowhere')), [
    'f.yaml:10: unresolved alias (the anchor must be set before the alias): nowhere',
  ])
  const levels = Array.from({ length: 12 }, (_, level) => `l${level}: &l${level} [${`*l${level - 1},`.repeat(9)}]`)
  const started = performance.now()
  const [fault = ''] = faultsOf(`l-1: &l-1 [x]\n${levels.join('\n')}\n`)
  assert.match(fault, /excessive alias count/)
  assert.ok(performance.now() - started < 2000)
})

test('what is too large, too many or too deep is refused', () => {
  const comment = (bytes: number) => `#${'x'.repeat(bytes)}\n`
  assert.match(faultsOf(PLAN + comment(TEXT_BYTES_MAX)).join(), /the text is larger than 1048576 bytes/)
  assert.match(faultsOf(PLAN + comment(DOCUMENT_BYTES_MAX)).join(), /the document is larger than 524288 bytes/)
  assert.match(faultsOf('---\na: 1\n'.repeat(501)).join(), /more than 500 documents/)
  const deep = errorOf(`a: ${'['.repeat(5000)}`)
  assert.ok(deep.message.split('\n').length <= 21 && Buffer.byteLength(deep.message) < 8192)
})

test('a map with very many keys is read in time', () => {
  const started = performance.now()
  const keys = Array.from({ length: 30_000 }, (_, index) => `  k${index}: 1\n`).join('')
  assert.equal(errorOf(PLAN + keys).faults.length, 100)
  assert.ok(performance.now() - started < 3000)
})

test('a long key or message is cut, and unknown keys cannot reach prototypes', () => {
  const [long = ''] = faultsOf(PLAN.replace('  requests', `  ${'k'.repeat(5000)}: 1\n  requests`))
  assert.ok(long.length < 700, `${long.length}`)
  assert.deepEqual(faultsOf(`${PLAN}  __proto__: { requests: 5 }\n`), ['f.yaml:11: spec.__proto__: is no known field'])
})

test('no text makes the parser throw anything but a DocumentError', () => {
  const pieces = fc.constantFrom(
    ...PLAN.split(/(?<=[ \n:])/),
    ...'{}[]&*!|>%@`"\'\t#-?:,\0'.split(''),
    '<<: *a\n',
    '---\n',
  )
  const texts = fc.oneof(
    fc.array(pieces, { maxLength: 60 }).map((parts) => parts.join('')),
    fc.string({ unit: 'binary' }),
  )
  fc.assert(
    fc.property(texts, (text) => {
      try {
        parseDocuments(text, 'f.yaml')
      } catch (error) {
        assert.ok(error instanceof DocumentError, String(error))
        for (const { line, column } of error.faults) assert.ok(line >= 1 && column >= 1)
      }
    }),
    { numRuns: 500 },
  )
})

test('a key of the bucket holds only what NATS allows', () => {
  assert.equal(documentKey('Plan', 'orders'), 'Plan.b3JkZXJz')
  assert.match(documentKey('Plan', 'a:b c*ÿ'), /^[-/_=.a-zA-Z0-9]+$/)
})

test('a Client’s fields fit together, or each fault says which go with which', () => {
  const code = { redirectUris: ['https://shop.example/callback'] }
  const keys = { keys: [{ kty: 'EC', crv: 'P-256', x: 'x'.repeat(43), y: 'y'.repeat(43) }] }
  const certificates = { keys: [{ kty: 'EC', x5c: ['M'.repeat(400)] }] }
  const good: [string[], Record<string, unknown>][] = [
    [['client_credentials'], {}],
    [['authorization_code', 'refresh_token'], { ...code, authentication: 'none', senderConstraint: 'dpop' }],
    [['device_code', 'refresh_token'], { authentication: 'none' }],
    [['client_credentials', 'token_exchange'], { authentication: 'private_key_jwt', jwks: keys }],
    [['client_credentials'], { authentication: 'tls_client_auth', certificateSubject: 'CN=shop' }],
    [
      ['client_credentials'],
      { authentication: 'self_signed_tls_client_auth', jwks: certificates, senderConstraint: 'certificate' },
    ],
  ]
  for (const [grants, spec] of good) assert.equal(parseDocuments(clientText(grants, spec), 'f.yaml').length, 1)

  const bad: [string[], Record<string, unknown>, RegExp][] = [
    [['authorization_code'], {}, /redirectUris: are for the grant authorization_code, and it needs one/],
    [['client_credentials'], code, /redirectUris: are for the grant authorization_code/],
    [['client_credentials', 'refresh_token'], {}, /grants: refresh_token comes with authorization_code or device_code/],
    [['client_credentials'], { authentication: 'none' }, /authentication: a client without authentication cannot act/],
    [['token_exchange'], { authentication: 'none' }, /authentication: a client without authentication cannot act/],
    [['client_credentials'], { authentication: 'private_key_jwt' }, /jwks: is for private_key_jwt and self_signed/],
    [['client_credentials'], { authentication: 'self_signed_tls_client_auth' }, /jwks: is for private_key_jwt/],
    [['client_credentials'], { jwks: keys }, /jwks: is for private_key_jwt and self_signed_tls_client_auth/],
    [['client_credentials'], { authentication: 'tls_client_auth' }, /certificateSubject: is for tls_client_auth/],
    [['client_credentials'], { certificateSubject: 'CN=shop' }, /certificateSubject: is for tls_client_auth/],
    [
      ['client_credentials'],
      { authentication: 'tls_client_auth', certificateSubject: 'CN=shop', introspects: ['https://api.example'] },
      /introspects: needs authentication by secret/,
    ],
    [
      ['client_credentials'],
      { authentication: 'tls_client_auth', certificateSubject: '/O=Example/CN=shop' },
      /RFC 4514/,
    ],
    [['client_credentials'], { senderConstraint: 'certificate' }, /senderConstraint: certificate needs authentication/],
    [['client_credentials'], { scopes: ['tollward.admin'] }, /scopes that begin with "tollward." are the operator's/],
    [[], {}, /grants: must have at least 1 entry/],
  ]
  for (const [grants, spec, fault] of bad) assert.match(faultsOf(clientText(grants, spec)).join('\n'), fault)
})

test('a redirect URI is https, http to the loopback or of a private scheme, and no fragment', () => {
  const withUri = (uri: string) => clientText(['authorization_code'], { redirectUris: [uri] })
  for (const uri of ['https://a.example/cb?x=1', 'http://127.0.0.1/cb', 'http://[::1]:80/', 'com.example.app:/cb']) {
    assert.equal(parseDocuments(withUri(uri), 'f.yaml').length, 1, uri)
  }
  for (const uri of [
    '',
    '/cb',
    'cb',
    'http://a.example/cb',
    'https://a.example/#x',
    'javascript:alert(1)',
    'app:/cb',
  ]) {
    assert.match(faultsOf(withUri(uri)).join('\n'), /spec\.redirectUris\[0\]: /, uri)
  }
})

test('a Client’s keys are public ones that can do what they are for', () => {
  const withKey = (key: Record<string, unknown>, authentication = 'private_key_jwt') =>
    clientText(['client_credentials'], { authentication, jwks: { keys: [key] } })
  const [x, y] = ['x'.repeat(43), 'y'.repeat(43)]
  const ec = { kty: 'EC', crv: 'P-256', x, y }
  const good = [ec, { kty: 'OKP', crv: 'Ed25519', x }, { kty: 'RSA', n: 'n'.repeat(342), e: 'AQAB', kid: 'one' }]
  for (const key of good) assert.equal(parseDocuments(withKey(key), 'f.yaml').length, 1, JSON.stringify(key))
  const bad: [Record<string, unknown>, RegExp][] = [
    [{ ...ec, crv: 'P-384' }, /jwks\.keys\[0\]: has to be of P-256, with x and y/],
    [{ ...ec, y: undefined }, /has to be of P-256, with x and y/],
    [{ kty: 'OKP', crv: 'X25519', x }, /has to be of Ed25519, with x/],
    [{ kty: 'RSA', n: 'n'.repeat(171), e: 'AQAB' }, /has to have n of 2048 bits at least, and e/],
    [{ kty: 'RSA', n: 'n'.repeat(342) }, /has to have n of 2048 bits at least, and e/],
  ]
  for (const [key, fault] of bad) assert.match(faultsOf(withKey(key)).join(), fault)
  for (const x5c of [undefined, 'MII', [], ['-----BEGIN CERTIFICATE-----']]) {
    const text = withKey({ ...ec, ...(x5c && { x5c }) }, 'self_signed_tls_client_auth')
    assert.match(faultsOf(text).join(), /jwks\.keys\[0\]: needs the certificate as x5c/)
  }
  assert.match(faultsOf(withKey({ ...ec, d: 'd' })).join(), /is a private key; give its public part/)
  assert.match(faultsOf(withKey({ kty: 'oct', k: 'k' })).join(), /kty: must be one of EC, OKP, RSA/)
})
