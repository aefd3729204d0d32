import assert from 'node:assert/strict'
import { test } from 'node:test'
import { formatAddress, parseRange } from '@tollward/contracts'
import type { Admission, Rejection } from '@tollward/decision'
import {
  forwardAuthAnswer,
  forwardAuthFacts,
  type ProxyTrust,
  unapplied,
  type Wishes,
  wishesOf,
} from './forward-auth.ts'
import { packRefusal, unpackRefusal } from './refusal-header.ts'

const trust: ProxyTrust = { askers: ['127.0.0.1'].map(range), inFront: [], certificateHeader: 'x-client-certificate' }

const plain: Wishes = { for: undefined, applies: [] }
const nginx: Wishes = { for: 'nginx', applies: [] }

const QUESTION = [
  ...['X-Forwarded-Method', 'GET', 'X-Forwarded-Host', 'api.example', 'X-Forwarded-Uri', '/echo?x=1'],
  ...['X-Forwarded-For', '192.0.2.9', 'X-Forwarded-Proto', 'https'],
]

function range(text: string) {
  const parsed = parseRange(text)
  assert.ok(parsed)
  return parsed
}

function facts(...more: string[]) {
  return forwardAuthFacts({ peer: '127.0.0.1', headers: ['Host', 'authorizer:9192', ...QUESTION, ...more] }, trust)
}

function admission(upstream: Admission['upstream'], headers: Admission['headers'] = []): Admission {
  return {
    admitted: true,
    id: 'decision-1',
    target: { host: 'api.example', path: '/orders/1', query: '?x=1', segments: ['orders', '1'] },
    rewritten: { path: false, query: undefined },
    upstream,
    headers: [['x-tollward-decision', 'decision-1'], ...headers],
    metadata: {},
  }
}

test('what a proxy says of the request stands for it, and rules see its Host and not that of the question', () => {
  const asked = facts('Accept', 'x/y')
  assert.ok(typeof asked === 'object')
  const { method, scheme, host, target, address, headers } = asked
  assert.deepEqual([method, scheme, host, target], ['GET', 'https', 'api.example', '/echo?x=1'])
  assert.equal(formatAddress(address), '192.0.2.9')
  const names = headers.filter((_, index) => index % 2 === 0)
  assert.deepEqual(names, ['host', 'X-Forwarded-Host', 'X-Forwarded-For', 'X-Forwarded-Proto', 'Accept'])
  assert.equal(headers[1], 'api.example')
})

test('a question that says something twice is refused', () => {
  for (const name of ['x-forwarded-method', 'X-Forwarded-Host', 'x-forwarded-uri', 'x-forwarded-proto']) {
    assert.equal(facts(name, '/'), 'incomplete', name)
  }
  assert.equal(facts('x-client-certificate', ':QQ==:', 'X-Client-Certificate', ':QUI=:'), 'incomplete')
})

test('a header of ours that a client sent and no proxy overwrites is refused', () => {
  const strays = [
    'x-tollward-future',
    'X_Tollward_Client',
    'x-tollward_client',
    'x-tollward-path',
    'X_Bitcoin-Txid',
    'x_original_url',
  ]
  for (const name of strays) assert.equal(facts(name, '1'), 'incomplete', name)
  for (const name of ['x-tollward-client', 'X-Tollward-Decision', 'x-bitcoin-txid', 'x-tollwardish']) {
    assert.ok(typeof facts(name, '1') === 'object', name)
  }
})

test('a client certificate is read from the configured header, in both ways to write one, and from no other', () => {
  const der = Buffer.from('the DER of a certificate, +/=~')
  const pem = `-----BEGIN CERTIFICATE-----\n${der.toString('base64')}\n-----END CERTIFICATE-----\n`
  const escaped = pem.replace(/[\n+/=]/g, encodeURIComponent).replaceAll(' CERT', '%20CERT')
  const certificate = (...more: string[]) => {
    const asked = facts(...more)
    assert.ok(typeof asked === 'object')
    return asked.certificate?.()
  }
  for (const value of [escaped, `:${der.toString('base64')}:`]) {
    assert.deepEqual(certificate('X-Client-Certificate', value), der)
  }
  for (const value of ['', '::', 'nonsense', '%', pem, der.toString('base64')]) {
    assert.equal(certificate('X-Client-Certificate', value), undefined, value)
  }
  assert.equal(certificate('Client-Cert', `:${der.toString('base64')}:`), undefined)
})

test('an admission says what the API is asked for, what it gets, and apart from that what rules set for whom', () => {
  const upstream = {
    set: [
      ['authorization', 'Bearer internal'],
      ['x-tollward-client', 'c'],
      ['x-tenant', 't'],
    ],
    remove: ['x-tollward-pass', 'dpop', 'x-bitcoin-txid', 'x-debug'],
  } as const
  const decision = admission(upstream, [['x-plan', 'gold']])
  const { status, headers, body } = forwardAuthAnswer(decision, ['Authorization', 'Bearer own', 'DPoP', 'proof'], plain)
  assert.deepEqual([status, body], [200, ''])
  assert.deepEqual(Object.fromEntries(headers), {
    'x-tollward-decision': 'decision-1',
    authorization: 'Bearer internal',
    dpop: '',
    'x-tollward-client': 'c',
    'x-tollward-subject': '',
    'x-tollward-scopes': '',
    'x-tollward-pass': '',
    'x-tollward-uri': '/orders/1?x=1',
    'x-tollward-path': '/orders/1',
    'x-tollward-remove': 'x-tollward-pass, dpop, x-bitcoin-txid, x-debug',
    'x-tollward-upstream-x-tenant': 't',
    'x-tollward-answer-x-plan': 'gold',
    'cache-control': 'no-store',
  })
  assert.equal(forwardAuthAnswer(decision, [], nginx).status, 204)
})

test('an Authorization that a policy which only observes leaves alone stays as it is; an identity never does', () => {
  const decision = admission({ set: [], remove: ['x-tollward-client'] })
  const asked = ['Authorization', 'Basic own', 'X-Tollward-Client', 'admin', 'x-tollward-pass', 'free']
  const said = Object.fromEntries(forwardAuthAnswer(decision, asked, plain).headers)
  assert.deepEqual(
    [said.authorization, said['x-tollward-client'], said['x-tollward-pass'], said.dpop],
    ['Basic own', '', '', ''],
  )
})

test('to nginx every refusal is a 403 that holds the whole refusal, which comes out of it as it went in', () => {
  const refusal: Rejection = {
    admitted: false,
    id: 'decision-2',
    reason: 'payment-required',
    status: 402,
    headers: [
      ['content-type', 'application/problem+json'],
      ['x-tollward-decision', 'decision-2'],
    ],
    body: '{"detail":"Zahlen, bitte: 10 000 €"}',
    detail: 'Zahlen, bitte: 10 000 €',
  }
  assert.equal(forwardAuthAnswer(refusal, [], plain), refusal)
  const { status, headers, body } = forwardAuthAnswer(refusal, [], nginx)
  const said = Object.fromEntries(headers)
  assert.deepEqual(
    [status, body, said['x-tollward-status'], said['x-tollward-decision']],
    [403, '', '402', 'decision-2'],
  )
  const whole = { status: 402, headers: refusal.headers, body: refusal.body }
  assert.deepEqual(unpackRefusal(said['x-tollward-refusal'] ?? ''), whole)
})

test('what is no refusal is not taken for one', () => {
  const of = (status: number, name = 'a', value = 'b') => packRefusal({ status, headers: [[name, value]], body: '' })
  assert.ok(unpackRefusal(of(400)))
  for (const packed of ['', '!', 'bnVsbA', of(200), of(302), of(600), of(403, 'a b'), of(403, 'a', 'b\r\nc: d')]) {
    assert.equal(unpackRefusal(packed), undefined, packed)
  }
})

test('a proxy that does not do what a rule wants is told apart from one that does', () => {
  const remove = ['x-tollward-client', 'x-tollward-pass', 'authorization', 'dpop', 'x-bitcoin-txid', 'x-original-url']
  const same = admission({ set: [['authorization', 'Bearer internal']], remove })
  assert.equal(unapplied(same, plain), undefined)
  const query = { set: [], remove: ['secret'] } as const
  const cases = [
    ['path', { ...same, rewritten: { path: true, query: undefined } }],
    ['query', { ...same, rewritten: { path: false, query } }],
    ['headers', admission({ set: [['x-tenant', 't']], remove })],
    ['headers', admission({ set: [], remove: [...remove, 'x-debug'] })],
    ['headers', admission({ set: [], remove }, [['x-plan', 'gold']])],
  ] as const
  for (const [part, decision] of cases) {
    assert.equal(unapplied(decision, { for: undefined, applies: [] }), part)
    assert.equal(unapplied(decision, { for: undefined, applies: [part] }), undefined)
  }
})

test('what a proxy wishes is read whole, or refused', () => {
  assert.deepEqual(wishesOf({}), plain)
  assert.deepEqual(wishesOf({ for: 'nginx', applies: 'path,query' }), { for: 'nginx', applies: ['path', 'query'] })
  const wrong = [
    { for: 'apache' },
    { for: ['nginx', 'nginx'] },
    { applies: 'path,all' },
    { applies: ['path'] },
    { fro: 'nginx' },
  ]
  for (const query of wrong) assert.equal(wishesOf(query), undefined, JSON.stringify(query))
})
