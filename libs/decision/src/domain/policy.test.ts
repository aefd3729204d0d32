import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { type ApiPolicy, ApiPolicySchema } from '@tollward/documents'
import fc from 'fast-check'
import { compilePolicies, matchRule, policiesFor } from './policy.ts'
import { canonicalTarget } from './target.ts'

type Rules = ApiPolicy['spec']['rules']
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
  const rule = policies && matchRule(policies, method, target, headers)
  return typeof rule === 'object' ? rule.id : rule
}

/** The same meaning, written as plainly as possible: every rule that matches, the best by comparing them with each other. */
function naive(documents: ApiPolicy[], { method, path, headers }: Request): string | undefined {
  const values = new Map<string, string>()
  for (let index = 0; index < headers.length; index += 2) values.set(headers[index] ?? '', headers[index + 1] ?? '')
  const segments = path.slice(1).split('/')
  const candidates = documents
    .toSorted((a, b) => (a.metadata.name < b.metadata.name ? -1 : 1))
    .flatMap(({ metadata, spec }) => spec.rules.map((rule) => ({ id: `${metadata.name}/${rule.name}`, rule })))
    .filter(({ rule: { match } }) => {
      if (match.methods && !match.methods.some((allowed) => allowed === method)) return false
      if (!Object.entries(match.headers ?? {}).every(([name, value]) => values.get(name.toLowerCase()) === value))
        return false
      const pattern =
        match.path === undefined
          ? match.prefix === '/'
            ? []
            : (match.prefix ?? '').slice(1).split('/')
          : match.path.slice(1).split('/')
      if (match.path === undefined ? pattern.length > segments.length : pattern.length !== segments.length) return false
      return pattern.every((part, index) => (part.startsWith('{') ? segments[index] !== '' : part === segments[index]))
    })
  return candidates.toSorted((a, b) => compare(a.rule, b.rule))[0]?.id
}

function compare(a: Rules[number], b: Rules[number]): number {
  const parts = ({ match }: Rules[number]) =>
    (match.path ?? match.prefix) === '/' && match.path === undefined
      ? []
      : (match.path ?? match.prefix ?? '').slice(1).split('/')
  const [left, right] = [parts(a), parts(b)]
  for (let index = 0; index < Math.max(left.length, right.length); index++) {
    // 0 literal, 1 parameter, 2 the pattern has ended.
    const kind = (part: string | undefined) => (part === undefined ? 2 : Number(part.startsWith('{')))
    const difference = kind(left[index]) - kind(right[index])
    if (difference !== 0) return difference
  }
  const weight = (rule: Rules[number]) => [
    rule.match.path === undefined ? 1 : 0,
    -Object.keys(rule.match.headers ?? {}).length,
    rule.match.methods ? 0 : 1,
    rule.deny ? 0 : 1,
  ]
  const [x, y] = [weight(a), weight(b)]
  return x.map((value, index) => value - (y[index] ?? 0)).find((difference) => difference !== 0) ?? 0
}

const segment = fc.constantFrom('a', 'b', 'orders')
const pattern = fc
  .array(fc.oneof(segment, fc.constantFrom('{id}', '{name}')), { maxLength: 4 })
  .map((parts) => `/${parts.join('/')}`)
const method = fc.constantFrom('GET', 'POST')
const rule = fc.record(
  {
    kind: fc.constantFrom('path', 'prefix'),
    pattern,
    methods: fc.uniqueArray(method, { minLength: 1 }),
    headers: fc.dictionary(fc.constantFrom('x-a', 'X-B'), fc.constantFrom('1', '2'), { maxKeys: 2 }),
    deny: fc.constant({ reason: 'no' }),
  },
  { requiredKeys: ['kind', 'pattern'] },
)
const rules = fc.array(rule, { minLength: 1, maxLength: 8 }).map((made) =>
  made.map(({ kind, pattern: made, methods, headers, deny }, index) => ({
    name: `r${index}`,
    match: { [kind]: made, ...(methods && { methods }), ...(headers && { headers }) },
    ...(deny ? { deny } : { anonymous: true }),
  })),
)
const request = fc.record({
  method,
  path: fc
    .array(segment, { maxLength: 5 })
    .chain((parts) => fc.boolean().map((slash) => `/${parts.join('/')}${slash && parts.length > 0 ? '/' : ''}`)),
  headers: fc.constantFrom([], ['x-a', '1'], ['x-a', '2', 'x-b', '1'], ['x-b', '2']),
})

describe('policies', () => {
  test('the rule that decides is the one that a plain reading of the order finds', () => {
    fc.assert(
      fc.property(rules, rules, request, (first, second, asked) => {
        const documents = [policy('one', ['*'], first), policy('two', ['*'], second)]
        assert.equal(decide(documents, 'api.example', asked), naive(documents, asked))
      }),
      { numRuns: 3000 },
    )
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
      'ambiguous',
    )
  })
})
