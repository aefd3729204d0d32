import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { type ApiPolicy, ApiPolicySchema } from '@tollward/documents'
import { holdAgainstReference } from '../testing-policy.ts'
import { RequestView } from './conditions.ts'
import { compilePolicies, matchRule, policiesFor } from './policy.ts'
import { canonicalTarget } from './target.ts'

type Request = { method: string; path: string; headers: readonly string[] }

function policy(name: string, hosts: string[], rules: unknown[], spec: object = {}): ApiPolicy {
  return ApiPolicySchema.parse({
    apiVersion: 'tollward.dev/v1',
    kind: 'ApiPolicy',
    metadata: { name },
    spec: { hosts, rules, ...spec },
  })
}

function decide(documents: ApiPolicy[], host: string, { method, path, headers }: Request): string | undefined {
  const target = canonicalTarget(host, path)
  assert.ok(typeof target === 'object', `${path} is ${target}`)
  const policies = policiesFor(compilePolicies(documents), target.host)
  const facts = { method, scheme: undefined, host, target: path, address: new Uint8Array(16), headers }
  const rule = policies && matchRule(policies, target.segments, new RequestView(facts, target))
  return typeof rule === 'object' ? rule.id : rule
}

describe('policies', () => {
  test('the rule that decides is the one that a plain reading of the order finds', () => {
    const { decided, refused } = holdAgainstReference(3000)
    assert.ok(decided > 1000 && refused > 50, `${decided} decided, ${refused} refused`)
  })

  test('a prefix ends on the border of a segment, and a parameter is one segment that is not empty', () => {
    const documents = [
      policy(
        'p',
        ['*'],
        [
          { name: 'prefix', match: { prefix: '/internal' }, deny: { reason: 'no' } },
          { name: 'order', match: { path: '/orders/{id}' }, anonymous: true },
        ],
      ),
    ]
    const ask = (path: string) => decide(documents, 'api.example', { method: 'GET', path, headers: [] })
    assert.equal(ask('/internal'), 'p/prefix')
    assert.equal(ask('/internal/'), 'p/prefix')
    assert.equal(ask('/internal/a/b'), 'p/prefix')
    assert.equal(ask('/internals'), undefined)
    assert.equal(ask('/orders/1'), 'p/order')
    assert.equal(ask('/orders/'), undefined)
    assert.equal(ask('/orders/1/items'), undefined)
    assert.equal(ask('/'), undefined)
  })

  test('only the most specific host pattern counts', () => {
    const open = [{ name: 'open', match: { prefix: '/' }, anonymous: true }]
    const documents = [
      policy('exact', ['api.example'], open),
      policy('wild', ['*.example'], open),
      policy('wilder', ['*.a.example'], open),
      policy('any', ['*'], open),
    ]
    const ask = (host: string) => decide(documents, host, { method: 'GET', path: '/x', headers: [] })
    assert.equal(ask('API.example:8080'), 'exact/open')
    assert.equal(ask('other.example'), 'wild/open')
    assert.equal(ask('b.a.example'), 'wilder/open')
    assert.equal(ask('example'), 'any/open')
    assert.equal(ask('apiXexample'), 'any/open')
  })

  test('a host without policy has no rule at all', () => {
    assert.equal(
      decide(
        [policy('p', ['api.example'], [{ name: 'r', match: { prefix: '/' }, anonymous: true }])],
        'other.example',
        { method: 'GET', path: '/', headers: [] },
      ),
      undefined,
    )
  })

  test('a policy that only observes does not open what another one of the same host closes', () => {
    const documents = [
      policy('closed', ['*'], [{ name: 'r', match: { prefix: '/' }, deny: { reason: 'no' } }]),
      policy('trial', ['*'], [{ name: 'r', match: { path: '/secret' }, anonymous: true }], { mode: 'observe' }),
    ]
    assert.equal(decide(documents, 'api.example', { method: 'GET', path: '/secret', headers: [] }), 'closed/r')
    assert.equal(policiesFor(compilePolicies(documents), 'api.example')?.observes, false)
    assert.equal(policiesFor(compilePolicies(documents.slice(1)), 'api.example')?.observes, true)
  })

  test('a header that decides and came twice is ambiguous', () => {
    const documents = [
      policy('p', ['*'], [{ name: 'r', match: { prefix: '/', headers: { 'X-Kind': 'a' } }, deny: { reason: 'no' } }]),
    ]
    assert.equal(
      decide(documents, 'api.example', { method: 'GET', path: '/', headers: ['x-kind', 'a', 'X-Kind', 'b'] }),
      'header-duplicated',
    )
  })
})
