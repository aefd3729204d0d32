import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type Access, accessLine } from './access-line.ts'

const ACCESS: Access = {
  atMs: Date.UTC(2026, 0, 2, 3, 4, 5, 678),
  address: '192.0.2.1',
  method: 'GET',
  target: '/a/b?token=secret',
  version: '1.1',
  host: 'api.example',
  referer: 'https://a.example/?secret',
  userAgent: 'curl/8',
  status: 200,
  bytesSent: 2326,
  bytesReceived: 0,
  durationMs: 1.23456,
  decisionMs: 0.1,
  upstreamMs: undefined,
  decision: '018f',
  reason: '',
  rule: 'orders/list',
  client: 'shop',
  subject: 'frank',
  complete: true,
}

test('a line of the Common Log Format is as every reader of it expects', () => {
  assert.equal(
    accessLine(ACCESS, 'common'),
    '192.0.2.1 - frank [02/Jan/2026:03:04:05 +0000] "GET /a/b HTTP/1.1" 200 2326',
  )
  const unknown = { ...ACCESS, subject: '', bytesSent: 0, referer: '', userAgent: '' }
  assert.equal(
    accessLine(unknown, 'combined'),
    '192.0.2.1 - - [02/Jan/2026:03:04:05 +0000] "GET /a/b HTTP/1.1" 200 - "-" "-"',
  )
})

test('no value ends its field or its line, in any format', () => {
  const hostile = '" 200 1\n127.0.0.1 - root [x] "\r\u2028\u0085\u001b[31m\\'
  const forged = { ...ACCESS, method: hostile, target: `/${hostile}`, userAgent: hostile, subject: `a b${hostile}` }
  for (const format of ['common', 'combined', 'json'] as const) {
    const line = accessLine(forged, format)
    assert.match(line, /^[\x20-\x7e]*$/)
  }
  const quotes = accessLine(forged, 'combined').match(/(?<!\\)"/g)
  assert.equal(quotes?.length, 6)
  assert.equal(accessLine(forged, 'common').split(' ')[2]?.startsWith('a\\x20b'), true)
  assert.equal(JSON.parse(accessLine(forged, 'json')).userAgent, hostile)
})

test('no query is in any line, and long values are cut', () => {
  for (const format of ['common', 'combined', 'json'] as const) {
    const line = accessLine({ ...ACCESS, userAgent: 'u'.repeat(100_000) }, format)
    assert.doesNotMatch(line, /secret/)
    assert.ok(line.length < 5000)
  }
})
