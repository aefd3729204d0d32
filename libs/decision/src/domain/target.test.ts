import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import {
  canonicalHost,
  canonicalTarget,
  type Fault,
  methodFault,
  PATH_SEGMENTS_MAX,
  TARGET_BYTES_MAX,
} from './target.ts'

/** What is read in two ways by two servers; most of them let somebody past an authoriser once. */
const REFUSED: readonly (readonly [target: string, fault: Fault])[] = [
  ['', 'target-form'],
  ['*', 'target-form'],
  ['orders', 'target-form'],
  ['http://api.example/public', 'target-form'],
  ['//admin/people', 'path-empty-segment'],
  ['/public//admin', 'path-empty-segment'],
  ['/public//', 'path-empty-segment'],
  ['/public/../admin/secrets', 'path-dot-segment'],
  ['/public/..', 'path-dot-segment'],
  ['/./admin', 'path-dot-segment'],
  ['/public/.', 'path-dot-segment'],
  ['/public/%2e%2e/admin', 'path-dot-segment'],
  ['/public/%2E./admin', 'path-dot-segment'],
  ['/public/.%2e', 'path-dot-segment'],
  ['/public/..%2fadmin', 'path-encoding'],
  ['/public%2Fadmin', 'path-encoding'],
  ['/public/..%5cadmin', 'path-encoding'],
  ['/public%5Cadmin', 'path-encoding'],
  ['/public\\admin', 'target-characters'],
  ['/public;x=/../admin', 'target-characters'],
  ['/public/..;/admin', 'target-characters'],
  ['/public;jsessionid=1', 'target-characters'],
  ['/public%00.png', 'path-encoding'],
  ['/public%0d%0aset-cookie:x', 'path-encoding'],
  ['/public%7f', 'path-encoding'],
  ['/public%1F', 'path-encoding'],
  ['/public\0', 'target-characters'],
  ['/public\tx', 'target-characters'],
  ['/public x', 'target-characters'],
  ['/public\u00e9', 'target-characters'],
  ['/public#/admin', 'target-characters'],
  ['/public?x#/admin', 'target-characters'],
  ['/public?x=\n', 'target-characters'],
  ['/public?x=\u00e9', 'target-characters'],
  ['/public%', 'path-encoding'],
  ['/public%2', 'path-encoding'],
  ['/public%zz', 'path-encoding'],
  ['/public%%32%66admin', 'path-encoding'],
  ['/public/%u002e%u002e/admin', 'path-encoding'],
  ['/public/%c0%ae%c0%ae/admin', 'path-utf8'],
  ['/public/%c0%afadmin', 'path-utf8'],
  ['/public/%e0%80%afadmin', 'path-utf8'],
  ['/public/%ed%a0%80', 'path-utf8'],
  ['/public/%ff', 'path-utf8'],
  ['/public/%e2%82', 'path-utf8'],
  ['/public/%e2%82/%ac', 'path-utf8'],
  ['/pu{b}lic', 'target-characters'],
  ['/public"', 'target-characters'],
  ['/public<x>', 'target-characters'],
  ['/public%252fadmin', 'path-double-encoding'],
  ['/%25%36%31dmin', 'path-double-encoding'],
  ['/public%EF%BC%8Fadmin', 'path-lookalike'],
  ['/public/%E2%80%A5/admin', 'path-lookalike'],
  [`/${'a'.repeat(TARGET_BYTES_MAX)}`, 'target-too-long'],
]

const TAKEN: readonly (readonly [target: string, path: string, query: string])[] = [
  ['/', '/', ''],
  ['/orders', '/orders', ''],
  ['/orders/', '/orders/', ''],
  ['/orders/42?x=1&y=a/../b;c', '/orders/42', '?x=1&y=a/../b;c'],
  ['/orders?', '/orders', '?'],
  ['/orders?a?b', '/orders', '?a?b'],
  ['/%6frders', '/orders', ''],
  ['/%7Eme/%2D%5F', '/~me/-_', ''],
  ['/caf%c3%a9', '/caf%C3%A9', ''],
  ['/%E2%82%AC/%f0%9f%98%80', '/%E2%82%AC/%F0%9F%98%80', ''],
  ['/public|x[0]', '/public%7Cx%5B0%5D', ''],
  ['/100%25-off', '/100%25-off', ''],
  ['/a%3Bb', '/a%3Bb', ''],
  ['/a/...', '/a/...', ''],
  ['/a/..b', '/a/..b', ''],
  ["/a!$&'()*+,=:@b", "/a!$&'()*+,=:@b", ''],
]

describe('canonical target', () => {
  for (const [target, fault] of REFUSED) {
    test(`refuses ${JSON.stringify(target.slice(0, 60))} as ${fault}`, () => {
      assert.equal(canonicalTarget('api.example', target), fault)
    })
  }

  for (const [target, path, query] of TAKEN) {
    test(`reads ${target} as ${path}`, () => {
      const read = canonicalTarget('api.example', target)
      assert.deepEqual(read, { host: 'api.example', path, query, segments: path.slice(1).split('/') })
    })
  }

  test('the canonical form of a canonical form is itself', () => {
    const piece = fc.oneof(
      fc.constantFrom('%2e', '%41', '%c3%a9', '%25', '/', 'a', '.', '~', '%2D', ':'),
      fc.string({ maxLength: 2 }),
    )
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 12 }), (pieces) => {
        const once = canonicalTarget('api.example', `/${pieces.join('')}`)
        if (typeof once === 'string') return
        assert.deepEqual(canonicalTarget(once.host, once.path + once.query), once)
        assert.deepEqual(once.path, new URL(once.path, 'http://api.example').pathname)
      }),
      { numRuns: 2000 },
    )
  })
})

test('rules compare what a path may hold as it is in one spelling, and the API gets the client’s', () => {
  const target = canonicalTarget('a', '/v1%3Ado/a%40b%2C%20%2B/%3B')
  assert.ok(typeof target === 'object')
  assert.deepEqual(target.segments, ['v1:do', 'a@b,%20+', '%3B'])
  assert.equal(target.path, '/v1%3Ado/a%40b%2C%20%2B/%3B')
})

test('a path has a bounded number of segments', () => {
  assert.equal(typeof canonicalTarget('a', '/a'.repeat(PATH_SEGMENTS_MAX)), 'object')
  assert.equal(canonicalTarget('a', '/a'.repeat(PATH_SEGMENTS_MAX + 1)), 'target-too-long')
})

test('a method that differs from a known one by case only is refused', () => {
  for (const method of ['get', 'Delete', 'pOST']) assert.equal(methodFault(method), 'method-case')
  for (const method of ['GET', 'PURGE', 'purge', 'M-SEARCH']) assert.equal(methodFault(method), undefined)
})

describe('canonical host', () => {
  const taken: readonly (readonly [host: string, canonical: string])[] = [
    ['API.Example', 'api.example'],
    ['api.example:8443', 'api.example'],
    ['api.example.', 'api.example'],
    ['api.example.:443', 'api.example'],
    ['127.0.0.1:8080', '127.0.0.1'],
    ['[::1]:8080', '[::1]'],
    ['[2001:DB8:0:0:0:0:0:1]', '[2001:db8::1]'],
    ['my_service', 'my_service'],
  ]
  for (const [host, canonical] of taken) {
    test(`reads ${host} as ${canonical}`, () => assert.equal(canonicalHost(host), canonical))
  }

  const refused = [
    '',
    '.',
    'a..b',
    '.a',
    'a..',
    'a@b',
    'a/b',
    'a b',
    'a,b',
    '[::1',
    '::1',
    '[::1]x',
    '[1.2.3.4]',
    '[fe80::1%25eth0]',
    'a:b',
    'a:1:2',
    'a:123456',
    'caf\u00e9',
    'a\0',
    `${'a'.repeat(254)}`,
  ]
  for (const host of refused) {
    test(`refuses ${JSON.stringify(host.slice(0, 40))}`, () => assert.equal(canonicalHost(host), undefined))
  }

  test('a port changes nothing, whether or not a host is already as names are compared', () => {
    const piece = fc.oneof(
      fc.constantFrom(
        'a',
        'b-c',
        '_',
        '.',
        '..',
        '0',
        'A',
        '-',
        '@',
        ' ',
        '[',
        ']',
        '\n',
        'x'.repeat(63),
        'x'.repeat(125),
      ),
      fc.string({ maxLength: 2 }).filter((text) => !text.includes(':')),
    )
    const host = fc.array(piece, { maxLength: 6 }).map((pieces) => pieces.join(''))
    fc.assert(
      fc.property(host, (name) => assert.equal(canonicalHost(name), canonicalHost(`${name}:80`))),
      { numRuns: 3000 },
    )
  })
})
