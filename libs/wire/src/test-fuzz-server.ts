import assert from 'node:assert/strict'
import { Duplex } from 'node:stream'
import type { Conversation } from '@tollward/testkit/fuzz'
import { FrameFlag, FrameReader, FrameType } from './frames.ts'
import { encodeFields, HpackDecoder } from './hpack.ts'
import { type Http2Limits, Http2ServerConnection } from './http2-server.ts'
import type { Http2Stream } from './http2-stream.ts'
import { OutputBuffers } from './output.ts'

/** Small enough for a conversation to reach each of them. */
const LIMITS: Http2Limits = {
  streamsMax: 4,
  headerFieldsMax: 16,
  headerBytesMax: 1024,
  streamWindowBytes: 256,
  connectionWindowBytes: 70_000,
  heldBytesMax: 64 * 1024,
  resetsPerSecondMax: 8,
  idleFramesPerSecondMax: 16,
}
const FRAME_BYTES_MAX = 16_384 + 9
const HEAD = encodeFields([
  [':status', '200'],
  ['x-a', 'b'],
])
const TRAILERS = encodeFields([['x-end', 'yes']])

/** A server's end of a connection, which writes at once, to nobody. */
class Mute extends Duplex {
  readonly said: Buffer[] = []
  isOver = false

  override _read(): void {}

  override write(chunk: Buffer, encodingOrDone?: unknown, done?: unknown): boolean {
    assert(!this.isOver, 'something is said after the end')
    this.said.push(Buffer.from(chunk))
    for (const call of [encodingOrDone, done]) if (typeof call === 'function') call()
    return true
  }

  override end(chunkOrDone?: unknown, encodingOrDone?: unknown, done?: unknown): this {
    this.isOver = true
    for (const call of [chunkOrDone, encodingOrDone, done]) if (typeof call === 'function') call()
    return this
  }

  override destroy(): this {
    if (this.destroyed) return this
    this.isOver = true
    this.emit('close')
    return super.destroy()
  }
}

/** A request, as the server told it. */
interface Asked {
  readonly line: string
  readonly parts: string[]
  isLast: boolean
  isClosed: boolean
}

/** Whatever a client says: nothing is thrown, little is kept, each request is told and answered once, and how it was cut changes nothing. */
export function serveAll(conversation: Conversation): void {
  const chunks = conversation.map(({ bytes }) => bytes).filter(({ length }) => length > 0)
  if (chunks.length === 0) return
  const one = served(chunks)
  const other = served([Buffer.concat(chunks)])
  assert.deepEqual(other.asked, one.asked, 'cut otherwise, the same requests')
  assert.deepEqual(framesOf(other.said), framesOf(one.said), 'cut otherwise, the same answers')
  assertAnswers(framesOf(one.said), one.asked.length)
}

function served(chunks: readonly Buffer[]): { asked: string[]; said: Buffer } {
  const socket = new Mute()
  const all: Asked[] = []
  const request = (
    stream: Http2Stream,
    { method, path, fields }: { method: string; path: string; fields: unknown },
  ) => {
    const asked: Asked = {
      line: `${method} ${path} ${JSON.stringify(fields)}`,
      parts: [],
      isLast: false,
      isClosed: false,
    }
    all.push(asked)
    assert(all.filter(({ isClosed }) => !isClosed).length <= LIMITS.streamsMax, 'more at once than may be')
    return {
      data: (chunk: Buffer, isLast: boolean) => {
        assert(!asked.isLast && !asked.isClosed, 'more of a request that is over')
        asked.isLast = isLast
        asked.parts.push(chunk.toString('latin1'))
        // Every other request is kept until it is whole.
        if (method !== 'PUT') stream.release(chunk.length)
        if (isLast) answer(stream, asked.parts.join(''))
      },
      closed: () => {
        assert(!asked.isClosed, 'closed twice')
        asked.isClosed = true
      },
    }
  }
  const events = { request, closed: () => {} }
  const connection = new Http2ServerConnection(socket, { limits: LIMITS, events, buffers: new OutputBuffers() })
  for (const chunk of chunks) {
    // What was read is overwritten afterwards.
    const lent = Buffer.from(chunk)
    socket.emit('data', lent)
    lent.fill(0)
  }
  connection.destroy()
  assert(
    all.every(({ isClosed }) => isClosed),
    'each request is told to be over',
  )
  return {
    asked: all.map(({ line, parts, isLast }) => [line, parts.join(''), isLast].join('\n')),
    said: Buffer.concat(socket.said),
  }
}

function answer(stream: Http2Stream, body: string): void {
  stream.head(HEAD)
  stream.data([Buffer.from(body, 'latin1')], TRAILERS)
}

interface Frame {
  readonly type: number
  readonly flags: number
  readonly streamId: number
  readonly payload: Buffer
}

function framesOf(said: Buffer): Frame[] {
  const frames: Frame[] = []
  const reader = new FrameReader(FRAME_BYTES_MAX, (type, flags, streamId, payload) => {
    frames.push({ type, flags, streamId, payload: Buffer.from(payload) })
    return true
  })
  assert.equal(reader.push(said), undefined)
  assert.equal(reader.heldBytes, 0, 'what is said consists of frames')
  return frames
}

/** Fields can be read, no stream is answered twice, and nothing follows the end of a stream but its reset. */
function assertAnswers(frames: readonly Frame[], requests: number): void {
  const decoder = new HpackDecoder({ listBytesMax: 4096 })
  const answered = new Set<number>()
  const over = new Set<number>()
  for (const { type, flags, streamId, payload } of frames) {
    if (type !== FrameType.headers && type !== FrameType.data) continue
    assert(!over.has(streamId), 'more on a stream that is over')
    if (type === FrameType.headers) {
      const fields = decoder.decode(payload)?.fields
      assert(fields, 'fields that can be read')
      const isHead = fields.some(([name]) => name === ':status')
      assert.equal(isHead, !answered.has(streamId), 'one head of an answer, then trailers')
      answered.add(streamId)
    } else assert(answered.has(streamId), 'content behind a head')
    if ((flags & FrameFlag.endStream) !== 0) over.add(streamId)
  }
  assert(answered.size <= requests, 'as many answers as questions')
}
