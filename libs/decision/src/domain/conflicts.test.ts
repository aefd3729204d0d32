import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { type ApiPolicy, ApiPolicySchema } from '@tollward/documents'
import fc from 'fast-check'
import { COMPARISONS_MAX, CONFLICTS_MAX, policyConflicts } from './conflicts.ts'
import { simulate } from './simulate.ts'

function policy(name: string, rules: unknown[], spec: object = {}): ApiPolicy {
  return ApiPolicySchema.parse({
    apiVersion: 'tollward.dev/v1',
    kind: 'ApiPolicy',
    metadata: { name },
    spec: { hosts: ['*'], rules, ...spec },
  })
}

const OPEN = { anonymous: true }
const CLOSED = { deny: { reason: 'no' } }

function told(...policies: ApiPolicy[]): string[] {
  return policyConflicts(policies).map(({ kind, winner, loser }) => `${kind} ${winner} ${loser}`)
}

const subset = (...values: string[]) => fc.subarray(values, { minLength: 1 })
const compared = fc.oneof(
  fc.constantFrom('1', '2').map((equals) => ({ equals })),
  subset('1', '2').map((oneOf) => ({ oneOf })),
  fc.constant({ present: true }),
)
const condition = fc
  .tuple(fc.constantFrom({ header: 'X-A' }, { header: 'x-b' }, { query: 'q' }, { claim: 'c' }), compared)
  .map(([subject, comparison]) => ({ ...subject, ...comparison }))
/** Few of a rule's parts are there: else hardly a rule would take anything from another. */
const rare = <T>(arbitrary: fc.Arbitrary<T>) =>
  fc.oneof({ weight: 5, arbitrary: fc.constant(undefined) }, { weight: 1, arbitrary })
const match = fc
  .record({
    place: fc.constantFrom({ path: '/a' }, { path: '/a/{x}' }, { path: '/a/{y}' }, { prefix: '/a' }, { glob: '/a/*' }),
    methods: rare(subset('GET', 'POST')),
    headers: rare(fc.constantFrom({ 'x-a': '1' }, { 'X-A': '2' })),
    conditions: rare(fc.array(condition, { minLength: 1, maxLength: 2 })),
    sources: rare(subset('10.0.0.0/8', '10.1.0.0/16', '0.0.0.0/0')),
    principals: rare(subset('spiffe://d/ns/a/*', 'spiffe://d/ns/a/sa/b')),
    namespaces: rare(subset('a', 'b')),
    rpcMethods: rare(subset('tools/*', 'tools/call')),
  })
  .map(({ place, ...rest }) => ({ ...place, ...rest }))
const rules = fc
  .array(fc.tuple(match, fc.constantFrom({ require: { token: {} } }, CLOSED)), { minLength: 1, maxLength: 5 })
  .map((made) => made.map(([match, says], index) => ({ name: `r${index}`, match, ...says })))
const request = fc.record({
  method: fc.constantFrom('GET', 'POST', 'PUT'),
  url: fc
    .tuple(fc.constantFrom('/a', '/a/b', '/a/b/c'), fc.constantFrom('', '?q=1', '?q=2'))
    .map(([path, query]) => `https://api.example${path}${query}`),
  headers: fc.record({ 'x-a': fc.constantFrom('1', '2', '3'), 'x-b': fc.constantFrom('1', '2') }, { requiredKeys: [] }),
  from: fc.constantFrom('10.1.0.1', '10.2.0.1', '192.0.2.1'),
  principal: fc.constantFrom('spiffe://d/ns/a/sa/b', 'spiffe://d/ns/a/sa/c', 'spiffe://d/ns/b/sa/b'),
  body: fc.constantFrom('{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t"}}', '{}'),
  bodyIsWhole: fc.constant(true),
  isBlocked: fc.constant(false),
})
const caller = fc.constantFrom({ c: '1' }, { c: '2' }, {}).map((claims) => {
  return { client: 'c', scopes: [], audience: [], selfRegistered: false, passes: [], isBlocked: false, claims }
})

describe('conflicts of policies', () => {
  test('a rule that is reported as never reached decides about no request', () => {
    let reported = 0
    fc.assert(
      fc.property(rules, rules, fc.array(request, { minLength: 3, maxLength: 3 }), caller, (one, two, asked, who) => {
        const policies = [policy('one', one), policy('two', two)]
        const silent = policyConflicts(policies)
          .filter(({ kind }) => kind === 'never-reached' || kind === 'duplicate' || kind === 'contradiction')
          .map(({ loser }) => loser)
        reported += silent.length
        for (const each of asked) {
          const { rule } = simulate(policies, each, who)
          assert.ok(rule === undefined || !silent.includes(rule), `${rule} decides`)
        }
      }),
      { numRuns: 500 },
    )
    assert.ok(reported > 100, `only ${reported} rules were reported`)
  })

  test('rules that match the same requests are told, and which of them holds', () => {
    const path = { path: '/a' }
    assert.deepEqual(told(policy('p', [rule('x', path, OPEN), rule('y', path, OPEN)])), ['duplicate p/x p/y'])
    assert.deepEqual(told(policy('p', [rule('x', path, OPEN), rule('y', path, CLOSED)])), ['contradiction p/y p/x'])
    const [{ detail } = { detail: '' }] = policyConflicts([
      policy('b', [rule('x', { path: '/a/{id}' }, OPEN)]),
      policy('a', [rule('y', { path: '/a/{name}' }, { require: { token: {} } })]),
    ])
    assert.equal(
      detail,
      'At *: Rules a/y and b/x match the same requests and say different things; a/y holds, because a comes before b in the alphabet, and b/x is never reached. Remove one of them.',
    )
  })

  test('a rule whose requests others take together is told, and methods about which two rules differ', () => {
    const many = policy('p', [
      rule('get', { path: '/a', methods: ['GET'] }, OPEN),
      rule('post', { path: '/a', methods: ['POST'] }, CLOSED),
      rule('late', { path: '/a', methods: ['GET', 'POST'] }, OPEN),
    ])
    assert.deepEqual(told(many), ['never-reached p/get p/late'])
    const some = policy('p', [
      rule('x', { path: '/a', methods: ['GET', 'POST'] }, OPEN),
      rule('y', { path: '/a', methods: ['GET', 'PUT'] }, { require: { token: {} } }),
    ])
    const [conflict] = policyConflicts([some])
    assert.deepEqual([conflict?.kind, conflict?.winner], ['overlap', 'p/x'])
    assert.match(conflict?.detail ?? '', /say different things about GET; p\/x holds, because it stands first\./)
  })

  test('a policy that is tried beside one that enforces is told once, with its hosts', () => {
    const hosts = ['a.example', 'b.example', 'c.example', 'd.example']
    const enforcing = policy('old', [rule('x', { path: '/a' }, OPEN)], { hosts })
    const tried = policy('new', [rule('x', { path: '/a' }, CLOSED)], { hosts, mode: 'observe' })
    assert.deepEqual(told(enforcing, tried), ['left-out old new'])
    assert.match(
      policyConflicts([enforcing, tried])[0]?.detail ?? '',
      /^At a\.example, b\.example, c\.example and 1 more hosts: Policy new only observes and is left out/,
    )
  })

  test('ordinary policies have none: general rules with exceptions, and policies of different hosts', () => {
    const ordinary = [
      policy('api', [
        rule('all', { prefix: '/' }, { require: { token: {} } }),
        rule('open', { path: '/public' }, OPEN),
        rule('order', { path: '/orders/{id}' }, { require: { token: { scopes: ['orders'] } } }),
        rule('change', { path: '/orders/{id}', methods: ['PUT', 'DELETE'] }, { require: { token: {} } }),
        rule('new', { path: '/orders', methods: ['POST'] }, { require: { token: {} } }),
        rule('list', { path: '/orders', methods: ['GET'] }, { require: { token: {} } }),
        rule('inside', { path: '/orders', methods: ['GET'], sources: ['10.0.0.0/8'] }, OPEN),
        rule('beta', { path: '/orders', methods: ['GET'], headers: { 'x-beta': '1' } }, OPEN),
      ]),
      policy('other', [rule('all', { prefix: '/' }, OPEN)], { hosts: ['other.example'] }),
      policy('tried', [rule('all', { prefix: '/' }, CLOSED)], { hosts: ['new.example'], mode: 'observe' }),
    ]
    assert.deepEqual(told(...ordinary), [])
  })

  test('what there is too much of to compare or to tell is said, in little time', () => {
    const hosts = Array.from({ length: 1000 }, (_, index) => `h${index}.example`)
    const many = Array.from({ length: 3000 }, (_, index) => rule(`r${index}`, { path: '/a' }, OPEN))
    const startMs = performance.now()
    const conflicts = policyConflicts([policy('p', many, { hosts })])
    assert.equal(conflicts.length, CONFLICTS_MAX + 1)
    assert.equal(conflicts.at(-1)?.kind, 'not-compared')
    assert.match(conflicts.at(-1)?.detail ?? '', new RegExp(`More than ${COMPARISONS_MAX} pairs`))
    assert.ok(performance.now() - startMs < 5000)
  })
})

function rule(name: string, match: object, says: object): object {
  return { name, match, ...says }
}
