import { test } from 'node:test'
import { type Conversation, countBlocks, fuzz, fuzzBudget } from '@tollward/testkit/fuzz'

countBlocks(/\/wire\/src\/|\/domain\/(?:call-assembly|credentials|sensitive)\.ts/)
const { assemble, CHUNK_LANES } = await import('./test-fuzz.ts')
const { encodeFields } = await import('@tollward/wire')

function said(...pieces: readonly (readonly [lane: number, text: string | Uint8Array])[]): Conversation {
  return pieces.map(([lane, text]) => ({
    ...{
      lane,
      bytes: typeof text === 'string' ? Buffer.from(text, 'latin1') : Buffer.from(text),
      skipped: 0,
      unseen: 0,
    },
  }))
}

/** A whole frame with fields. */
function fields(streamId: number, flags: number, ...all: readonly (readonly [string, string])[]): Buffer {
  const block = encodeFields(all)
  return Buffer.concat([Buffer.of(0, 0, block.length, 1, flags, 0, 0, 0, streamId), block])
}

const SEEDS: readonly Conversation[] = [
  said(
    [
      0,
      'POST /Users/bob@example.com?api_key=k#x HTTP/1.1\r\nHost: API.example:8443\r\nAuthorization: Bearer t\r\nContent-Length: 41\r\n\r\n',
    ],
    [0, '{"email":"a@example.com","password":"abc"}'],
    [1, 'HTTP/1.1 201 Created\r\nSet-Cookie: a=b\r\nContent-Length: 22\r\n\r\nDE89370400440532013000'],
    [4, 'GET http://u@h.example/4111-1111-1111-1111 HTTP/1.1\r\nCookie: a\r\nX-Api-Key: b\r\n\r\n'],
    [5, 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: image/png\r\n\r\n5\r\nhello\r\n0\r\n\r\n'],
    [0, ''],
  ),
  said(
    [10, Buffer.concat([Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0', 'latin1')])],
    [
      10,
      fields(1, 5, [':method', 'POST'], [':path', '/s.S/M'], [':authority', 'h'], ['content-type', 'application/grpc']),
    ],
    [11, Buffer.of(0, 0, 0, 4, 0, 0, 0, 0, 0)],
    [11, Buffer.concat([fields(1, 4, [':status', '200']), fields(1, 5, ['grpc-status', '7'])])],
  ),
]
const DICTIONARY = [
  ...[
    'GET /a HTTP/1.1\r\n',
    'HTTP/1.1 200 OK\r\n',
    'Content-Length: 5\r\n',
    'Transfer-Encoding: chunked\r\n\r\n',
    '\r\n\r\n',
  ],
  ...[
    'CONNECT h:1 HTTP/1.1\r\n\r\n',
    'content-encoding: gzip\r\n',
    'Authorization: Basic ',
    '?token=1&sig=2',
    '%40',
    'é',
    '@',
  ],
  ...[
    'eyJhbGciOi.eyJzdWIiOi.x',
    '-----BEGIN PRIVATE KEY-----',
    'AKIAABCDEFGHIJKLMNOP',
    '078-05-1120',
    '4111 1111 1111 1111',
  ],
  ...['GB82 WEST 1234 5698 7654 32', '"password": "x', 'content-type: application/grpc\r\n', 'grpc-status: 7\r\n'],
]

test('whatever the kernel captures, the calls of a connection are its own, and each can be published', (context) => {
  context.diagnostic(
    JSON.stringify(
      fuzz({ target: assemble, seeds: SEEDS, dictionary: DICTIONARY, lanes: CHUNK_LANES, budget: fuzzBudget(6000) }),
    ),
  )
})
