import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Admission } from '@tollward/decision'
import { downstreamFields, downstreamTrailers, hostOf, upstreamFields } from './forwarding.ts'

const ADMISSION = {
  id: 'decision-id',
  upstream: { set: [['x-tollward-client', 'shop']], remove: ['dpop'] },
  headers: [['x-tollward-decision', 'decision-id']],
} as unknown as Admission

const FORWARDED = { peer: '192.0.2.1', scheme: 'https', host: 'api.example', keepFor: false, bodiless: false }

function sent(fields: string[], forwarded = FORWARDED): Record<string, string[]> {
  const list = upstreamFields(fields, ADMISSION, forwarded)
  const found: Record<string, string[]> = {}
  for (let index = 0; index < list.length; index += 2) {
    const [name = '', value = ''] = [list[index], list[index + 1]]
    found[name] = [...(found[name] ?? []), value]
  }
  return found
}

test('what ends here, what Connection names and what only we say does not go to the API, in whatever spelling', () => {
  const fields = [
    ...['Host', 'other', 'Connection', 'close, X-Dropped', 'X-Dropped', '1', 'TE', 'trailers', 'Upgrade', 'h2c'],
    ...['HTTP2-Settings', 'x', 'Transfer-Encoding', 'chunked', 'Forwarded', 'for=1', 'X_Forwarded_For', '10.0.0.1'],
    ...['X-Forwarded-Host', 'forged', 'X_Tollward_Client', 'admin', 'DPoP', 'proof', 'X-Tollward-Decision', 'forged'],
    ...['X-Kept', '1', 'x-kept', '2'],
  ]
  assert.deepEqual(sent(fields), {
    host: ['api.example'],
    'x-kept': ['1', '2'],
    'x-tollward-client': ['shop'],
    'x-forwarded-for': ['192.0.2.1'],
    'x-forwarded-proto': ['https'],
    'x-forwarded-host': ['api.example'],
    'x-tollward-decision': ['decision-id'],
  })
})

test('X-Forwarded-For is continued only behind a trusted proxy, and a request without body has no length', () => {
  const fields = ['x-forwarded-for', '198.51.100.1', 'x-forwarded-for', '203.0.113.1', 'content-length', '3']
  const kept = sent(fields, { ...FORWARDED, keepFor: true })
  assert.deepEqual(kept['x-forwarded-for'], ['198.51.100.1, 203.0.113.1, 192.0.2.1'])
  assert.deepEqual(kept['content-length'], ['3'])
  assert.equal(sent(fields, { ...FORWARDED, bodiless: true })['content-length'], undefined)
})

test('the client gets what the API answers, but for what ends here and what only we say', () => {
  const answered = ['Connection', 'x-hop', 'X-Hop', '1', 'Keep-Alive', 'x', 'Set-Cookie', 'a', 'Set-Cookie', 'b']
  assert.deepEqual(downstreamFields([...answered, 'X-Tollward-Decision', 'forged'], ADMISSION), [
    ...['set-cookie', 'a', 'set-cookie', 'b', 'x-tollward-decision', 'decision-id'],
  ])
  assert.deepEqual(
    downstreamTrailers(['X-Sum', '1', 'Content-Length', '9', 'X-Tollward-Decision', 'x', ':status', '1']),
    [...['x-sum', '1']],
  )
})

test('one host is asked for, or none', () => {
  const host = (authority: string | undefined, ...hosts: string[]) =>
    hostOf({ authority, fields: hosts.flatMap((name) => ['host', name]) })
  assert.deepEqual([host(undefined, 'a'), host('a'), host('a', 'A')], ['a', 'a', 'a'])
  assert.deepEqual([host(undefined), host(undefined, 'a', 'b'), host('a', 'a', 'a')], ['', '', ''])
  assert.equal(host('a', 'b'), undefined)
})
