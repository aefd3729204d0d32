import assert from 'node:assert/strict'
import { test } from 'node:test'
import { create, type MessageInitShape } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { CallCapturedSchema, type CapturedCallSchema, Side } from '@tollward/contracts/sensor'
import { ApiCatalogue } from './api-catalogue.ts'
import { templateOf } from './path-template.ts'

const NODE = 'node-1'

function batch(...calls: MessageInitShape<typeof CapturedCallSchema>[]) {
  const defaults = { host: 'api', method: 'GET', path: '/', status: 200, side: Side.SERVER, protocol: 'http/1.1' }
  const dated = calls.map((call, index) => ({ ...defaults, beganAt: timestampFromMs(1000 + index), ...call }))
  return create(CallCapturedSchema, { node: NODE, calls: dated })
}

test('segments that are told apart by their type become it, and words stay', () => {
  const cases = [
    ['/orders/17/items/-3', '/orders/{int}/items/{int}'],
    ['/users/550e8400-e29b-41d4-a716-446655440000', '/users/{uuid}'],
    ['/users/me/search/v1/v2beta', '/users/me/search/v1/v2beta'],
    ['/reports/2026-11-22/2026-11-22T01:02:03Z', '/reports/{date}/{date}'],
    ['/blobs/da39a3ee5e6b4b0d3255bfef95601890afd80709', '/blobs/{hex}'],
    ['/objects/507f1f77bcf86cd799439011/facade/decade', '/objects/{hex}/facade/decade'],
    ['/events/01ARZ3NDEKTSV4RRFFQ69G5FAV', '/events/{ulid}'],
    ['/files/dGhpc19pc19hX3Rva2Vu1234', '/files/{id}'],
    ['/hosts/10.0.0.1/load/0.75', '/hosts/{ip}/load/{number}'],
    ['/users/{email}', '/users/{email}'],
    ['/internationalization-of-everything', '/internationalization-of-everything'],
    [`/${'a/'.repeat(40)}`, `/${'a/'.repeat(15)}…`],
    [`/x${'1'.repeat(5000)}`, '/{id}'],
    ['*', '*'],
  ] as const
  for (const [path, template] of cases) assert.equal(templateOf(path), template)
})

test('calls of one endpoint are one entry, with what was ever seen of it', () => {
  const catalogue = new ApiCatalogue()
  const changed: string[] = []
  catalogue.add(
    batch(
      { path: '/orders/1', status: 200, credentials: ['bearer'], took: { seconds: 0n, nanos: 2_000_000 } },
      { path: '/orders/2', status: 401, sensitive: ['email'], took: { seconds: 0n, nanos: 4_000_000 } },
      { path: '/orders/3', status: 0, credentials: ['cookie', 'bearer'], protocol: 'h2' },
      { path: '/orders/4', status: 503, side: Side.CLIENT, owner: { processName: 'curl' } },
    ),
    (key) => changed.push(key),
  )
  const [served, asked, ...others] = catalogue.list('')
  assert.deepEqual(others, [])
  assert.equal(new Set(changed).size, 2)
  assert.deepEqual(
    [served?.path, served?.calls, served?.successful, served?.clientErrors, served?.unanswered, served?.anonymous],
    ['/orders/{int}', 3n, 1n, 1n, 1n, 1n],
  )
  assert.deepEqual(
    [served?.credentials, served?.sensitive, served?.protocols, served?.nodes, served?.meanMicros],
    [['bearer', 'cookie'], ['email'], ['h2', 'http/1.1'], [NODE], 3000],
  )
  assert.deepEqual([asked?.side, asked?.serverErrors, asked?.processes], [Side.CLIENT, 1n, ['curl']])
})

test('what is not found makes no endpoint, and is counted where there is one', () => {
  const catalogue = new ApiCatalogue()
  catalogue.add(batch({ path: '/wp-login.php', status: 404 }, { path: '/a', status: 405 }, { method: '', path: '/b' }))
  assert.deepEqual(catalogue.list(''), [])
  catalogue.add(batch({ path: '/a' }, { path: '/a', status: 404 }))
  assert.deepEqual(
    catalogue.list('').map(({ path, calls }) => [path, calls]),
    [['/a', 2n]],
  )
  assert.equal(catalogue.totals.unplaced, 3n)
})

test('of too many endpoints the one that was silent for longest goes, and is counted', () => {
  const catalogue = new ApiCatalogue(3)
  for (const path of ['/a', '/b', '/c', '/a', '/d', '/e']) catalogue.add(batch({ path }))
  assert.deepEqual(
    catalogue.list('').map(({ path }) => path),
    ['/a', '/d', '/e'],
  )
  assert.equal(catalogue.totals.forgotten, 2n)
  assert.deepEqual(catalogue.list('elsewhere'), [])
})
