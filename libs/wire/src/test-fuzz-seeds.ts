import type { Conversation } from '@tollward/testkit/fuzz'
import { CLIENT_PREFACE, FrameFlag, FrameType } from './frames.ts'
import { encodeFields } from './hpack.ts'
import { frame } from './test-fuzz.ts'

/** Lanes in turn, beginning with who asks. */
function said(...parts: readonly (string | Uint8Array)[]): Conversation {
  return parts.map((part, index) => ({
    ...{ lane: index % 2, bytes: typeof part === 'string' ? Buffer.from(part, 'latin1') : Buffer.from(part) },
    ...{ skipped: 0, unseen: 0 },
  }))
}

const { endHeaders, endStream } = FrameFlag
const QUESTION = encodeFields([
  [':method', 'POST'],
  [':path', '/a'],
  [':scheme', 'https'],
  ['te', 'trailers'],
])
const ANSWER = encodeFields([
  [':status', '200'],
  ['x-a', 'b'],
])
const HTTP2 = said(
  Buffer.concat([
    CLIENT_PREFACE,
    frame(FrameType.settings, 0, 0, Buffer.of(0, 1, 0, 0, 16, 0)),
    frame(FrameType.headers, endHeaders, 1, QUESTION),
    frame(FrameType.data, endStream, 1, Buffer.from('hello')),
  ]),
  Buffer.concat([
    frame(FrameType.settings, 0, 0, Buffer.alloc(0)),
    frame(FrameType.headers, endHeaders, 1, ANSWER),
    frame(FrameType.data, 0, 1, Buffer.from('world')),
    frame(FrameType.headers, endHeaders | endStream, 1, encodeFields([['grpc-status', '0']])),
  ]),
  Buffer.concat([
    frame(FrameType.headers, endStream, 3, QUESTION.subarray(0, 3)),
    frame(FrameType.continuation, endHeaders, 3, QUESTION.subarray(3)),
  ]),
  frame(FrameType.headers, endHeaders | endStream, 3, ANSWER),
)
const HTTP1 = [
  said(
    'GET /a HTTP/1.1\r\nHost: a\r\n\r\n',
    'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello',
    'POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc',
    'HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx: y\r\n\r\n',
    'PUT /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\n\r\n',
    'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n',
    'HEAD /d HTTP/1.1\r\n\r\nGET /e HTTP/1.1\r\n\r\n',
    'HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nHTTP/1.0 200 OK\r\n\r\nuntil the end',
  ),
  said('GET /f HTTP/1.1\r\nUpgrade: websocket\r\n\r\n', 'HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x05hello'),
  // A chunk that comes in two reads.
  said('PUT /g HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe', '', 'llo\r\n0\r\n\r\n'),
]

/** Settings, a window, requests with and without a body, cut in pieces, one that is given up, and signs of life. */
const CLIENT = [
  CLIENT_PREFACE,
  frame(FrameType.settings, 0, 0, Buffer.of(0, 4, 0, 0, 0, 3, 0, 5, 0, 0, 64, 0)),
  frame(FrameType.windowUpdate, 0, 0, Buffer.of(0, 0, 1, 0)),
  frame(FrameType.headers, endHeaders, 1, QUESTION),
  frame(FrameType.data, FrameFlag.padded, 1, Buffer.of(2, 1, 2, 3, 0, 0)),
  frame(FrameType.data, endStream, 1, Buffer.from('hello')),
  frame(FrameType.windowUpdate, 0, 1, Buffer.of(0, 0, 0, 9)),
  frame(FrameType.settings, FrameFlag.ack, 0, Buffer.alloc(0)),
  frame(FrameType.headers, 0, 3, QUESTION.subarray(0, 3)),
  frame(FrameType.continuation, endHeaders, 3, QUESTION.subarray(3)),
  frame(FrameType.resetStream, 0, 3, Buffer.of(0, 0, 0, 8)),
  frame(FrameType.ping, 0, 0, Buffer.alloc(8, 7)),
  frame(FrameType.headers, endHeaders, 5, QUESTION),
  frame(FrameType.headers, endHeaders | endStream, 5, encodeFields([['x-t', 'y']])),
  frame(FrameType.priority, 0, 5, Buffer.of(0, 0, 0, 1, 1)),
  frame(FrameType.goAway, 0, 0, Buffer.alloc(8)),
].map((bytes) => ({ lane: 0, bytes, skipped: 0, unseen: 0 }))

/** Conversations that all others are made of. */
export const SEEDS = {
  observeHttp1: HTTP1,
  observeHttp2: [HTTP2],
  readBlocks: [said(QUESTION, ANSWER, Buffer.of(0x40, 1, 97, 1, 98, 0xbe, 0x41, 0x83, 0x1c, 0x64, 0x9f))],
  readFrames: [HTTP2],
  serveAll: [CLIENT],
} as const
