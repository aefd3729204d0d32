import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { BODY_BYTES_MAX, BodyView } from './body.ts'
import { QueryView } from './query.ts'

interface Sent {
  method?: string
  type?: string
  query?: string
  isWhole?: boolean
  headers?: string[]
}

function view(
  body: string | Uint8Array | undefined,
  { method = 'POST', type = 'application/json', ...sent }: Sent = {},
) {
  const bytes = typeof body === 'string' ? Buffer.from(body) : body
  const headers = [...(sent.headers ?? []), ...(type === '' ? [] : ['Content-Type', type])]
  const facts = { method, headers, body: bytes && { bytes, isWhole: sent.isWhole ?? true } }
  return new BodyView(facts, new QueryView(sent.query ?? ''))
}

const calls = (body: string | Uint8Array | undefined, sent?: Sent) => view(body, sent).calls()
const operation = (body: string | undefined, sent?: Sent) => {
  const found = view(body, sent).operation()
  return typeof found === 'string' ? found : (found.name ?? 'none')
}

describe('bodies of JSON-RPC', () => {
  test('say which methods and tools they call, one or many', () => {
    assert.deepEqual(calls('{"jsonrpc":"2.0","id":1,"method":"list"}'), [{ method: 'list', tool: undefined }])
    assert.deepEqual(calls('[{"method":"a"},{"method":"tools/call","params":{"name":"read"}},{"result":1}]'), [
      { method: 'a', tool: undefined },
      { method: 'tools/call', tool: 'read' },
    ])
    assert.deepEqual(calls('{"jsonrpc":"2.0","id":1,"result":{}}'), [], 'an answer calls nothing')
    assert.deepEqual(calls('', { type: '' }), [])
    for (const type of [
      'application/json; charset=UTF-8',
      'Application/vnd.x+json',
      'application/json;charset="utf-8"',
    ]) {
      assert.equal(typeof calls('{"method":"a"}', { type }), 'object', type)
    }
  })

  test('that two readers could take for two things are not read', () => {
    const unreadable = [
      '{"method":"a","method":"b"}',
      '{"method":"a","Method":"b"}',
      '{"Method":"a"}',
      '{"Method":"a","result":1}',
      '{"method":"a","meth\\u006fd":"b"}',
      '{"method":"tools/call","params":{"name":"a","Name":"b"}}',
      '{"method":"tools/call","params":{"name":"a","deep":[{"x":1,"x":2}]}}',
      '{"method":"tools/call","params":["a"]}',
      '{"method":"tools/call"}',
      '{"method":1}',
      '{"params":{}}',
      '[]',
      '[1]',
      'null',
      '{"method":"a"',
      '{"method":"a"} {"method":"b"}',
      '\ufeff{"method":"a"}',
      "{'method':'a'}",
    ]
    for (const body of unreadable) assert.equal(calls(body), 'body-unreadable', body)
    assert.equal(calls(Buffer.from('{"method":"\xff"}', 'latin1')), 'body-unreadable')
    assert.equal(calls(Buffer.from('{"method":"a"}', 'utf16le')), 'body-unreadable')
    for (const type of [
      '',
      'text/plain',
      'application/x-www-form-urlencoded',
      'application/json; charset=utf-16',
      'application/jsonx',
    ]) {
      assert.equal(calls('{"method":"a"}', { type }), 'body-unreadable', type)
    }
    assert.equal(calls('{"method":"a"}', { headers: ['content-encoding', 'gzip'] }), 'body-unreadable')
    assert.equal(calls('{"method":"a"}', { headers: ['Content-Type', 'text/plain'] }), 'body-unreadable')
    // K and ſ become k and s where names are compared in any case.
    assert.equal(calls('{"method":"tools/call","param\u017f":{},"params":{"name":"a"}}'), 'body-unreadable')
  })

  test('that did not come whole are missing, and so is one that may be there and was not sent along', () => {
    assert.equal(calls('{"method":"a"}', { isWhole: false }), 'body-missing')
    assert.equal(calls('', { isWhole: false }), 'body-missing')
    assert.equal(calls(`{"method":"a"}${' '.repeat(BODY_BYTES_MAX)}`), 'body-missing')
    assert.equal(calls(undefined), 'body-missing')
    assert.equal(calls(undefined, { method: 'GET', headers: ['Content-Length', '5'] }), 'body-missing')
    assert.equal(calls(undefined, { method: 'GET', headers: ['transfer-encoding', 'chunked'] }), 'body-missing')
    assert.deepEqual(calls(undefined, { headers: ['content-length', '0'] }), [])
    assert.deepEqual(calls(undefined, { method: 'GET', type: '' }), [])
  })

  test('are read as JSON.parse reads them, whatever they hold', () => {
    fc.assert(
      fc.property(fc.dictionary(fc.string({ unit: 'binary' }), fc.jsonValue()), (params) => {
        const names = new Set(Object.keys(params).map((name) => name.toUpperCase().toLowerCase()))
        fc.pre(names.size === Object.keys(params).length)
        const read = calls(JSON.stringify({ method: 'm', params: { fixed: Object.keys(params) } }))
        assert.deepEqual(read, [{ method: 'm', tool: undefined }])
      }),
      { numRuns: 300 },
    )
  })

  test('of any depth and length are read in time', () => {
    const began = performance.now()
    for (const body of [
      '['.repeat(BODY_BYTES_MAX / 2) + ']'.repeat(BODY_BYTES_MAX / 2),
      `{"method":"${'\\"'.repeat(BODY_BYTES_MAX / 2 - 10)}"}`,
      `{${Array.from({ length: 10_000 }, (_, index) => `"k${index}":1`).join()}}`,
      `"${'a'.repeat(BODY_BYTES_MAX - 10)}`,
    ]) {
      calls(body)
    }
    assert.ok(performance.now() - began < 1000)
  })
})

describe('bodies of GraphQL', () => {
  const query = (text: string, operationName?: unknown) => JSON.stringify({ query: text, operationName })

  test('say which operation would be executed', () => {
    assert.equal(operation(query('query Read { a }')), 'Read')
    assert.equal(operation(query('{ a }')), 'none')
    assert.equal(operation(query('query A { a } mutation B { b }', 'B')), 'B')
    assert.equal(operation(query('query A { s(t: "mutation B { b }") } # mutation C { c }', null)), 'A')
    assert.equal(operation(query('fragment F on T { a } query A { ...F }')), 'A')
    assert.equal(operation(undefined, { method: 'GET', type: '', query: '?query=query+A%7Ba%7D' }), 'A')
    assert.equal(operation(undefined, { method: 'GET', type: '', query: '?x=1' }), 'none')
    assert.equal(operation('', { type: '', query: '?query={a}' }), 'none')
  })

  test('of which that cannot be told are unclear', () => {
    const unclear: [string | undefined, Sent?][] = [
      [query('query A { a } query B { b }')],
      [query('query A { a }', 'B')],
      [query('query A { a }', 1)],
      [query('query A { a } query A { b }', 'A')],
      [query('query A { a')],
      [query('fragment F on T { a }')],
      [query(`{ ${'a '.repeat(5000)} }`)],
      [query('{a'.repeat(1900))],
      ['{"extensions":{"persistedQuery":{"sha256Hash":"x"}}}'],
      ['{"operationName":"A"}'],
      [query('query A { a }'), { query: '?query=query+B{b}' }],
      [query('query A { a }'), { query: '?operationName=B' }],
      [undefined, { method: 'GET', type: '', query: '?query={a}&query={b}' }],
      [undefined, { method: 'GET', type: '', query: '?documentId=1' }],
      [undefined, { method: 'GET', type: '', query: '?query=%ff' }],
    ]
    for (const [body, sent] of unclear) assert.equal(operation(body, sent), 'graphql-unclear', `${body} ${sent?.query}`)
    assert.equal(operation('[{"query":"{a}"}]'), 'body-unreadable')
    assert.equal(operation('{"Query":"{a}"}'), 'body-unreadable')
  })
})
