import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { parseAddress } from '@tollward/contracts'
import { ApiPolicySchema } from '@tollward/documents'
import { PATTERN_TEXT_MAX, RequestView } from './conditions.ts'
import type { RequestFacts } from './judge.ts'
import { compilePolicies, matchRule, policiesFor } from './policy.ts'
import { canonicalTarget } from './target.ts'

/** Whether a rule that compares this matches: its name, a fault, or undefined. */
function matched(
  compared: object,
  sent: Partial<RequestFacts>,
  claims: Readonly<Record<string, unknown>> | false = false,
) {
  const rules = [{ name: 'rule', match: { prefix: '/', ...compared }, require: { token: {} } }]
  const base = { apiVersion: 'tollward.dev/v1', kind: 'ApiPolicy', metadata: { name: 'p' } }
  const host = policiesFor(compilePolicies([ApiPolicySchema.parse({ ...base, spec: { hosts: ['*'], rules } })]), 'a')
  const facts = {
    method: 'GET',
    scheme: undefined,
    host: 'a',
    target: '/',
    headers: [],
    address: new Uint8Array(16),
    ...sent,
  }
  const target = canonicalTarget(facts.host, facts.target)
  assert.ok(host && typeof target === 'object')
  const view = new RequestView(facts, target)
  view.claims = claims
  const rule = matchRule(host, target.segments, view)
  return typeof rule === 'string' ? rule : rule !== undefined
}

describe('headers', () => {
  const kind = { conditions: [{ header: 'X-Kind', equals: 'a' }] }

  test('that came twice, or under a name that some servers take for the same, are not compared but refused', () => {
    assert.equal(matched(kind, { headers: ['x-kind', 'a'] }), true)
    assert.equal(matched(kind, { headers: ['X-KIND', 'b'] }), false)
    assert.equal(matched(kind, { headers: ['x-kind', 'b', 'X-Kind', 'a'] }), 'header-duplicated')
    assert.equal(matched(kind, { headers: ['x_kind', 'a'] }), 'header-duplicated')
    assert.equal(matched(kind, { headers: ['x-kind', 'b', 'x_kind', 'a'] }), 'header-duplicated')
  })

  test('that Connection has dropped on the way to the API decide nothing', () => {
    const headers = ['x-kind', 'a', 'Connection', 'close, X-Kind']
    assert.equal(matched(kind, { headers }), 'header-connection')
    assert.equal(matched({ conditions: [{ header: 'x-kind', present: true }] }, { headers }), 'header-connection')
    assert.equal(matched(kind, { headers: ['connection', 'x-kind'] }), false)
  })

  test('that a proxy may have joined are refused where one of them is as wanted', () => {
    for (const headers of [
      ['x-kind', 'b,a'],
      ['x-kind', 'a, b'],
    ]) {
      assert.equal(matched(kind, { headers }), false)
      assert.equal(matched(kind, { headers, headersAreJoined: true }), 'header-duplicated')
    }
    assert.equal(matched(kind, { headers: ['x-kind', 'b,c'], headersAreJoined: true }), false)
    const list = { conditions: [{ header: 'accept', matches: '.*json.*' }] }
    assert.equal(matched(list, { headers: ['accept', 'text/html,application/json'], headersAreJoined: true }), true)
  })

  test('are compared as a whole', () => {
    const pattern = { conditions: [{ header: 'x-kind', matches: 'a|bc' }] }
    for (const [value, expected] of [
      ['a', true],
      ['bc', true],
      ['abc', false],
      ['a\n', false],
      ['', false],
    ] as const) {
      assert.equal(matched(pattern, { headers: ['x-kind', value] }), expected, value)
    }
    assert.equal(matched({ conditions: [{ header: 'x-kind', present: false }] }, {}), true)
    assert.equal(matched({ conditions: [{ header: 'x-kind', present: true }] }, { headers: ['x-kind', ''] }), true)
  })
})

test('a value that is too long for a pattern is refused, not taken for another', () => {
  const long = 'a'.repeat(PATTERN_TEXT_MAX + 1)
  const pattern = (subject: object) => ({ conditions: [{ ...subject, matches: 'a+' }] })
  assert.equal(matched(pattern({ header: 'x-kind' }), { headers: ['x-kind', long] }), 'value-too-long')
  assert.equal(matched(pattern({ header: 'x-kind' }), { headers: ['x-kind', long.slice(1)] }), true)
  assert.equal(matched(pattern({ query: 'q' }), { target: `/?q=${long}` }), 'value-too-long')
  assert.equal(matched({ headers: { 'x-kind': 'a' } }, { headers: ['x-kind', long] }), false)
})

test('claims compare as text, one element of a list is enough, and nobody’s claims are none', () => {
  const wants = (claim: string, comparison: object) => ({ conditions: [{ claim, ...comparison }] })
  const claims = {
    tenant: 't',
    level: 3,
    admin: true,
    roles: ['a', 7],
    nothing: null,
    deep: { er: { x: 'y' }, list: ['z'] },
    'https://x.example/team': 'blue',
    'deep.flat': 'f',
  }
  for (const [claim, equals] of [
    ['tenant', 't'],
    ['level', '3'],
    ['admin', 'true'],
    ['roles', 'a'],
    ['roles', '7'],
    ['deep.er.x', 'y'],
    ['deep.list', 'z'],
    ['https://x.example/team', 'blue'],
    ['deep.flat', 'f'],
  ] as const) {
    assert.equal(matched(wants(claim, { equals }), {}, claims), true, claim)
    assert.equal(matched(wants(claim, { equals: 'other' }), {}, claims), false, claim)
    assert.equal(matched(wants(claim, { present: true }), {}, claims), true, claim)
    assert.equal(matched(wants(claim, { equals }), {}, false), false)
  }
  for (const claim of ['nothing', 'deep.er.x.y', 'toString', 'deep.toString', '__proto__']) {
    assert.equal(matched(wants(claim, { present: true }), {}, claims), false, claim)
    assert.equal(matched(wants(claim, { present: false }), {}, claims), true, claim)
    assert.equal(matched(wants(claim, { present: false }), {}, false), false, claim)
  }
  assert.equal(matched(wants('deep', { matches: '.*' }), {}, claims), false, 'an object is no text')
})

test('sources and workloads', () => {
  const from = (text: string) => ({ address: parseAddress(text) ?? assert.fail() })
  const sources = { sources: ['10.0.0.0/8', '192.0.2.1', '2001:db8::/33'] }
  for (const inside of ['10.255.0.1', '192.0.2.1', '2001:db8:7fff::1'])
    assert.equal(matched(sources, from(inside)), true)
  for (const outside of ['11.0.0.1', '192.0.2.2', '2001:db8:8000::1', '::1']) {
    assert.equal(matched(sources, from(outside)), false)
  }
  const shop = 'spiffe://example.org/ns/shop/sa/web'
  assert.equal(matched({ principals: ['spiffe://example.org/ns/shop/*'] }, { principal: shop }), true)
  assert.equal(matched({ principals: ['spiffe://example.org/ns/shop/'] }, { principal: shop }), false)
  assert.equal(matched({ namespaces: ['shop'] }, { principal: shop }), true)
  for (const principal of [
    undefined,
    'spiffe://example.org/ns/bank/sa/web',
    'x/ns/shop/sa/web',
    `${shop}/ns/shop/sa/x`,
  ]) {
    assert.equal(matched({ namespaces: ['shop'] }, { principal }), false, principal)
  }
})

test('globs', () => {
  const matches = (glob: string, path: string) => matched({ prefix: undefined, glob }, { target: path })
  for (const [glob, yes, no] of [
    ['/a/*', ['/a/b'], ['/a', '/a/', '/a/b/c']],
    ['/ab*ba', ['/abba', '/abXba'], ['/aba', '/ab', '/abbac']],
    ['/*.p*f', ['/a.pdf', '/.pf', '/a.p.f'], ['/a.pd', '/pdf']],
    ['/a/**', ['/a', '/a/', '/a/b/c'], ['/ab', '/']],
    ['/**/b', ['/b', '/a/b', '/b/b'], ['/b/', '/bb', '/b/c']],
    ['/a/**/b/**/c', ['/a/b/c', '/a/x/b/y/z/c', '/a/b/b/c/c'], ['/a/c', '/a/c/b', '/a/b/c/']],
    ['/**/a/b/**', ['/a/b', '/x/a/b/y', '/a/a/b'], ['/a/x/b', '/b/a']],
  ] as const) {
    for (const path of yes) assert.equal(matches(glob, path), true, `${glob} ${path}`)
    for (const path of no) assert.equal(matches(glob, path), false, `${glob} ${path}`)
  }
  const began = performance.now()
  matches('/**/*a*a*a*a*b/**/*c', `/${'a'.repeat(4000)}${'/aaaaaaaaa'.repeat(250)}`)
  assert.ok(performance.now() - began < 500)
})
