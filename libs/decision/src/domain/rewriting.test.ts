import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ApiPolicySchema } from '@tollward/documents'
import fc from 'fast-check'
import { compileRewriting, rewrittenTarget } from './rewriting.ts'
import { canonicalTarget } from './target.ts'

function rewritten(match: object, rewrite: object, target: string): string {
  const { spec } = ApiPolicySchema.parse({
    apiVersion: 'tollward.dev/v1',
    kind: 'ApiPolicy',
    metadata: { name: 'p' },
    spec: { hosts: ['*'], rules: [{ name: 'r', match, rewrite, anonymous: true }] },
  })
  const rewriting = spec.rules[0] && compileRewriting(spec.rules[0])
  const before = canonicalTarget('api.example', target)
  assert.ok(rewriting && typeof before === 'object')
  const after = rewrittenTarget(before, rewriting)
  assert.deepEqual(canonicalTarget('api.example', after.path + after.query), after, 'it is canonical again')
  return after.path + after.query
}

test('a path is rewritten with its parameters, as they came', () => {
  const match = { path: '/orders/{id}/items/{item}' }
  assert.equal(rewritten(match, { path: '/{item}/of/{id}' }, '/orders/a%3Ab/items/%20?x=1'), '/%20/of/a%3Ab?x=1')
  assert.equal(rewritten({ path: '/a' }, { path: '/' }, '/a'), '/')
})

test('a prefix is rewritten, and what comes after it stays', () => {
  for (const [match, prefix, sent, expected] of [
    ['/api', '/v2', '/api', '/v2'],
    ['/api', '/v2', '/api/', '/v2/'],
    ['/api', '/v2/x', '/api/a/b', '/v2/x/a/b'],
    ['/api', '/', '/api/a', '/a'],
    ['/api', '/', '/api', '/'],
    ['/api', '/', '/api/', '/'],
    ['/', '/v2', '/', '/v2/'],
    ['/', '/v2', '/a', '/v2/a'],
    ['/{tenant}/api', '/{tenant}', '/t/api/x', '/t/x'],
  ] as const) {
    assert.equal(rewritten({ prefix: match }, { prefix }, sent), expected, `${match} ${prefix} ${sent}`)
  }
})

test('whatever is asked for, what becomes of it is canonical', () => {
  const segment = fc.oneof(
    fc.constantFrom('a', '%3A', '%20', '~', '@', '%E2%82%AC', '%41'),
    fc.stringMatching(/^[a-z0-9._~-]{1,5}$/),
  )
  const path = fc.array(
    segment.filter((text) => text !== '.' && text !== '..'),
    { minLength: 1, maxLength: 4 },
  )
  const change = fc.constantFrom({ prefix: '/v2' }, { prefix: '/' }, { prefix: '/v2/{x}' })
  fc.assert(
    fc.property(path, fc.boolean(), change, (parts, slash, rewrite) => {
      const sent = `/${parts.join('/')}${slash ? '/' : ''}`
      fc.pre(typeof canonicalTarget('api.example', sent) === 'object')
      rewritten({ prefix: '/{x}' }, { ...rewrite, query: { set: { q: '€ &;#' } } }, sent)
    }),
  )
})
