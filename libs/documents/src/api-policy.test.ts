import assert from 'node:assert/strict'
import { test } from 'node:test'
import { DocumentError, parseDocuments } from './parse.ts'

const RULE = { name: 'r', match: { path: '/a' }, anonymous: true }

/** A policy with one rule; YAML takes JSON. */
function policy(rule: object): string {
  const spec = { hosts: ['*'], rules: [{ ...RULE, ...rule }] }
  return JSON.stringify({ apiVersion: 'tollward.dev/v1', kind: 'ApiPolicy', metadata: { name: 'p' }, spec })
}

/** Its faults as "path: reason". */
function faultsOf(rule: object): string[] {
  try {
    parseDocuments(policy(rule), 'f.yaml')
  } catch (error) {
    assert.ok(error instanceof DocumentError, String(error))
    return error.faults.map(({ path, reason }) => `${path.replace('spec.rules[0]', 'rule')}: ${reason}`)
  }
  return []
}

const known = (rule: object) => ({ anonymous: undefined, require: { token: {} }, ...rule })
const match = (compared: object) => known({ match: { prefix: '/a', ...compared } })

test('what rules may compare, limit and rewrite is taken', () => {
  const good: object[] = [
    ...['/', '/a/*/b', '/**', '/a/**/b*/**', '/*.php', '/a/**/**/b'].map((glob) => ({ match: { glob } })),
    match({ conditions: [{ header: 'X-Kind', oneOf: ['a', 'b'] }] }),
    match({ conditions: [{ query: 'expand', matches: '[a-z]+(,[a-z]+)*' }] }),
    match({ conditions: [{ claim: 'realm_access.roles', equals: 'admin' }] }),
    match({ conditions: [{ header: 'x-debug', present: false }] }),
    match({ sources: ['10.0.0.0/8', '2001:db8::1'] }),
    match({ principals: ['spiffe://example.org/ns/shop/*', 'web.example'], namespaces: ['shop'] }),
    match({ graphqlOperations: ['ReadOrders', '_x'] }),
    match({ rpcMethods: ['tools/*', 'initialize'], tools: ['read_*'] }),
    known({ require: { token: { claims: [{ claim: 'tenant', equals: 't' }], boundTo: 'any' } } }),
    known({
      limits: ['client', 'subject', 'token', 'source', 'route'].map((by) => ({ requests: 1, perSeconds: 1, by })),
    }),
    known({
      limits: [
        { requests: 10, perSeconds: 1, by: 'client' },
        { requests: 1000, perSeconds: 3600, by: 'client' },
      ],
    }),
    { limit: { requests: 1, perSeconds: 1, by: 'route' } },
    { match: { path: '/a/{id}/b' }, rewrite: { path: '/v2/{id}' } },
    { match: { prefix: '/{tenant}/a' }, rewrite: { prefix: '/{tenant}' } },
    { rewrite: { query: { set: { q: 'ü &=' }, remove: ['r'] } } },
    {
      rewrite: { headers: { set: { 'X-Tenant': 't' }, remove: ['cookie'] }, responseHeaders: { set: { 'x-a': '1' } } },
    },
  ]
  for (const rule of good) assert.deepEqual(faultsOf(rule), [], JSON.stringify(rule))
})

test('each fault of a rule has its place and a reason that says what to do', () => {
  const limit = { requests: 1, perSeconds: 1 }
  const cases: [object, string][] = [
    [{ match: {} }, 'rule.match: give exactly one of path, prefix and glob'],
    [{ match: { path: '/a', glob: '/a' } }, 'rule.match: give exactly one of path, prefix and glob'],
    [{ match: { path: '/a/../b' } }, 'rule.match.path: has a segment of one or two dots, which no request has'],
    [{ match: { glob: '/a/./b' } }, 'rule.match.glob: has a segment of one or two dots, which no request has'],
    [{ match: { glob: '/a**' } }, 'rule.match.glob: ** stands for whole segments: write /a/**/b'],
    [{ match: { glob: '/**/a/**/b/**' } }, 'rule.match.glob: a glob has at most 2 segments **'],
    [{ match: { glob: '/a'.repeat(33) } }, 'rule.match.glob: a glob has at most 32 segments'],
    [
      { match: { glob: '/a//b' } },
      'rule.match.glob: a glob starts with / and has segments of plain characters and *, or **, none of them empty',
    ],
    [match({ headers: { 'x y': '1' } }), 'rule.match.headers["x y"]: is no name of a header field'],
    [match({ conditions: [{ equals: '1' }] }), 'rule.match.conditions[0]: give exactly one of header, query, claim'],
    [
      match({ conditions: [{ header: 'a', query: 'b', equals: '1' }] }),
      'rule.match.conditions[0]: give exactly one of header, query, claim',
    ],
    [
      match({ conditions: [{ header: 'a' }] }),
      'rule.match.conditions[0]: give exactly one of equals, oneOf, matches, present',
    ],
    [
      match({ conditions: [{ header: 'a', equals: '1', present: true }] }),
      'rule.match.conditions[0]: give exactly one of equals, oneOf, matches, present',
    ],
    [
      match({ sources: ['10.0.0.1/8'] }),
      'rule.match.sources[0]: must be an address or a CIDR without host bits, such as 10.0.0.0/8',
    ],
    [
      match({ principals: ['spiffe://*/a'] }),
      'rule.match.principals[0]: is the name of a workload, such as spiffe://example.org/ns/shop/sa/web',
    ],
    [match({ graphqlOperations: ['a b'] }), 'rule.match.graphqlOperations[0]: is no name of a GraphQL operation'],
    [match({ graphqlOperations: ['A'], tools: ['b'] }), 'rule.match: a body is GraphQL or JSON-RPC, not both'],
    [
      { match: { path: '/a', conditions: [{ claim: 'c', equals: '1' }] } },
      'rule.match.conditions: compare a claim, but nobody is known where a rule is anonymous: give require',
    ],
    [
      known({ require: { token: { claims: [{ claim: 'c' }] } } }),
      'rule.require.token.claims[0]: give exactly one of equals, oneOf, matches, present',
    ],
    [
      known({ require: { token: { boundTo: 'key' } } }),
      'rule.require.token.boundTo: must be one of dpop, certificate, any',
    ],
    [
      known({ limit: { ...limit, by: 'address' } }),
      'rule.limit.by: must be one of client, subject, token, source, route',
    ],
    [
      known({ limit: { ...limit, by: 'route' }, limits: [{ ...limit, by: 'route' }] }),
      'rule: give either limit or limits',
    ],
    [
      known({
        limits: [
          { ...limit, by: 'token' },
          { ...limit, requests: 9, by: 'token' },
        ],
      }),
      'rule.limits: two of them count by the same in the same time',
    ],
    [{ limit: { ...limit, by: 'subject' } }, 'rule: nobody is known here: limit by source or route'],
    [
      { anonymous: undefined, deny: { reason: 'no' }, rewrite: { path: '/b' } },
      'rule: a rule that denies admits nothing that could be limited or rewritten',
    ],
    [{ rewrite: { path: '/{id}' } }, 'rule.rewrite.path: has a {parameter} that match.path does not have'],
    [{ rewrite: { prefix: '/b' } }, 'rule.rewrite.prefix: is for rules that match a prefix'],
    [
      { match: { prefix: '/a' }, rewrite: { prefix: '/{id}' } },
      'rule.rewrite.prefix: has a {parameter} that match.prefix does not have',
    ],
    [{ rewrite: { path: '/b', prefix: '/c' } }, 'rule.rewrite: give either path or prefix'],
    [{ rewrite: { path: '/../b' } }, 'rule.rewrite.path: has a segment of one or two dots, which no request has'],
    [
      { rewrite: { headers: { set: { 'X-A': '1' }, remove: ['x-a'] } } },
      'rule.rewrite.headers: a header is either set or removed',
    ],
    [
      { rewrite: { headers: { set: { 'x-a': '1\r\nx-b: 2' } } } },
      'rule.rewrite.headers.set.x-a: has characters that no header may have',
    ],
    [{ rewrite: { query: { set: { a: '\ud800' } } } }, 'rule.rewrite.query.set.a: is not well-formed Unicode'],
  ]
  for (const [rule, fault] of cases) assert.ok(faultsOf(rule).includes(fault), `${fault}\n${faultsOf(rule).join('\n')}`)
})

test('no rule sets or removes a header that says who calls or where a message ends', () => {
  for (const name of [
    'Authorization',
    'x-tollward-client',
    'X_Tollward_Client',
    'Host',
    'content-length',
    'x-bitcoin_txid',
  ]) {
    for (const headers of [{ set: { [name]: '1' } }, { remove: [name] }]) {
      assert.match(faultsOf({ rewrite: { headers } }).join(), /is a header that no rule may set or remove/, name)
    }
    assert.match(
      faultsOf({ rewrite: { responseHeaders: { set: { [name]: '1' } } } }).join(),
      /is a header that no rule may set or remove/,
    )
  }
})

test('regular expressions are those of RE2, which take time in proportion to the text', () => {
  const faults = (matches: string) => faultsOf(match({ conditions: [{ query: 'q', matches }] })).join()
  for (const taken of ['[a-z]+', '(?i)abc', '(a+)+$']) assert.equal(faults(taken), '')
  for (const refused of ['(', '(?=a)', '(a)\\1', '']) {
    assert.match(
      faults(refused),
      /rule\.match\.conditions\[0\]\.matches: (is no regular expression of RE2|must have)/,
      refused,
    )
  }
})
