import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect, type OutgoingHttpHeaders } from 'node:http2'
import { connect as connectTcp, type Socket } from 'node:net'
import { describe, test } from 'node:test'
import { acquireH2spec } from '@tollward/acquire'
import { eventually, requires, startProcess } from '@tollward/testkit'
import fc from 'fast-check'
import {
  CLIENT_PREFACE,
  ErrorCode,
  FRAME_BYTES,
  FRAME_HEADER_BYTES,
  FrameFlag,
  FrameReader,
  FrameType,
  Setting,
  writeFrameHeader,
} from './frames.ts'
import { encodeFields } from './hpack.ts'
import type { Http2Request } from './http2-fields.ts'
import { type Http2Events, type Http2Fault, type Http2Limits, Http2ServerConnection } from './http2-server.ts'
import type { Http2Stream } from './http2-stream.ts'
import { CountedBuffers, SlowReader } from './test-reader.ts'
import { LIMITS, serve } from './test-server.ts'

/** Whatever a test waits for comes at once, or never. */
const WAIT_MS = 15_000

const REQUEST = encodeFields([
  [':method', 'POST'],
  [':scheme', 'http'],
  [':path', '/'],
])

const OK = encodeFields([[':status', '200']])

/** The head of a connection's request of a number, from 0 on. */
function opening(index: number, flags = 0, block = REQUEST): Buffer {
  return frame(FrameType.headers, FrameFlag.endHeaders | flags, 2 * index + 1, block)
}

function frame(type: number, flags = 0, streamId = 0, payload: Uint8Array = Buffer.alloc(0)): Buffer {
  const head = Buffer.alloc(FRAME_HEADER_BYTES)
  writeFrameHeader(head, 0, { length: payload.length, type, flags, streamId })
  return Buffer.concat([head, payload])
}

function setting(name: number, value: number): Buffer {
  const payload = Buffer.alloc(6)
  payload.writeUInt16BE(name)
  payload.writeUInt32BE(value, 2)
  return frame(FrameType.settings, 0, 0, payload)
}

/** A connection of bytes, and what came on it. */
async function raw(port: number, ...first: Buffer[]) {
  const socket = connectTcp({ port, host: '127.0.0.1' })
  await once(socket, 'connect')
  socket.on('error', () => {})
  const closed = once(socket, 'close', { signal: AbortSignal.timeout(WAIT_MS) })
  closed.catch(() => {})
  const frames: { type: number; flags: number; id: number; payload: Buffer }[] = []
  const reader = new FrameReader(2 ** 24, (type, flags, id, payload) => frames.push({ type, flags, id, payload }) > 0)
  socket.on('data', (chunk) => reader.push(chunk))
  socket.write(Buffer.concat([CLIENT_PREFACE, frame(FrameType.settings), ...first]))
  return {
    socket,
    frames,
    closed,
    /** The code of the server's farewell, once it has closed the connection. */
    farewell: async () => {
      await closed
      const last = frames.findLast(({ type }) => type === FrameType.goAway)
      return last?.payload.readUInt32BE(4)
    },
    [Symbol.dispose]: () => socket.destroy(),
  }
}

/** A connection to a server's end of it, without any network between, and who answers on it. */
function direct(request: Http2Events['request'], limits: Partial<Http2Limits> = {}) {
  const [socket, buffers] = [new SlowReader(), new CountedBuffers()]
  const ended: (Http2Fault | undefined)[] = []
  const events: Http2Events = { request, closed: (_, fault) => ended.push(fault) }
  const connection = new Http2ServerConnection(socket, { limits: { ...LIMITS, ...limits }, events, buffers })
  socket.push(Buffer.concat([CLIENT_PREFACE, frame(FrameType.settings)]))
  return {
    socket,
    buffers,
    connection,
    ended,
    say: (...frames: Buffer[]) => socket.push(Buffer.concat(frames)),
    /** The frames of a type that have come on it. */
    got: (type: number) => {
      const payloads: { id: number; payload: Buffer }[] = []
      const reader = new FrameReader(2 ** 24, (of, _, id, payload) => {
        if (of === type) payloads.push({ id, payload })
        return true
      })
      reader.push(Buffer.concat(socket.got))
      return payloads
    },
    [Symbol.dispose]: () => socket.destroy(),
  }
}

async function ask(port: number, body: Buffer, options: { window?: number; headers?: OutgoingHttpHeaders } = {}) {
  const session = connect(`http://127.0.0.1:${port}`, {
    settings: options.window === undefined ? {} : { initialWindowSize: options.window },
  })
  try {
    const stream = session.request({ ':method': 'POST', ...options.headers }, { signal: AbortSignal.timeout(WAIT_MS) })
    let trailers: unknown
    stream.on('trailers', (given) => {
      trailers = given['x-end']
    })
    stream.end(body)
    const parts: Buffer[] = []
    for await (const part of stream) parts.push(part)
    return { body: Buffer.concat(parts), trailers }
  } finally {
    session.destroy()
  }
}

const needsH2spec = await requires({ tools: ['h2spec'] })

describe('HTTP/2 server', { timeout: 40_000 }, () => {
  test('h2spec finds nothing that it does otherwise than the standard says', { skip: needsH2spec }, async () => {
    await using server = await serve()
    const { command } = await acquireH2spec()
    await using run = await startProcess(command, ['-S', '-h', '127.0.0.1', '-p', String(server.port), '-o', '2'])
    const summary = await run.line(/^\d+ tests, /)
    const [, passed, others] = /^\d+ tests, (\d+) passed, (0 skipped, 0 failed)$/.exec(summary) ?? []
    assert.ok(others !== undefined && Number(passed) >= 146, run.lines.join('\n'))
  })

  test('questions and answers beyond every window arrive whole, also from a client that takes little at once', async () => {
    await using server = await serve({ heldBytesMax: 10_000_000 })
    const body = Buffer.from(Array.from({ length: 400_000 }, (_, index) => index % 251))
    const asked = [undefined, 1, 100, 70_000].map((window) =>
      ask(server.port, window === 1 ? body.subarray(0, 3000) : body, window === undefined ? {} : { window }),
    )
    for (const [index, answer] of (await Promise.all(asked)).entries()) {
      assert.ok(answer.body.equals(index === 1 ? body.subarray(0, 3000) : body))
      assert.equal(answer.trailers, 'yes')
    }
  })

  test('an answer that ends without more data ends also where data waited for windows, and where they are below nothing', async () => {
    const answer = (stream: Http2Stream) => {
      stream.head(OK)
      stream.data([Buffer.from('part')])
      stream.data([], encodeFields([['x-end', 'yes']]))
      return undefined
    }
    using waiting = direct(answer)
    waiting.socket.readOn()
    waiting.say(setting(Setting.initialWindowSize, 2), opening(0, FrameFlag.endStream))
    await eventually(() => waiting.got(FrameType.data).length === 1, { what: 'the first bytes came' })
    waiting.say(setting(Setting.initialWindowSize, 10))
    await eventually(() => waiting.got(FrameType.headers).length === 2, { what: 'the end came' })
    assert.equal(Buffer.concat(waiting.got(FrameType.data).map(({ payload }) => payload)).toString(), 'part')

    const open: Http2Stream[] = []
    using owing = direct((stream) => {
      stream.head(OK)
      stream.data([Buffer.from('part')])
      open.push(stream)
      return undefined
    })
    owing.socket.readOn()
    owing.say(opening(0, FrameFlag.endStream), setting(Setting.initialWindowSize, 1))
    await eventually(() => owing.got(FrameType.settings).length === 3, { what: 'the window is below nothing' })
    open[0]?.data([], encodeFields([['x-end', 'yes']]))
    await eventually(() => owing.got(FrameType.headers).length === 2, { what: 'the end came' })
  })

  test('many requests on one connection are each answered with their own', async () => {
    await using server = await serve({ connectionWindowBytes: 200_000 })
    const session = connect(`http://127.0.0.1:${server.port}`)
    try {
      const bodies = Array.from({ length: 2000 }, (_, index) => `request ${index}`.repeat((index % 50) + 1))
      const signal = AbortSignal.timeout(WAIT_MS)
      let next = 0
      const worker = async () => {
        for (let body = bodies[next++]; body !== undefined; body = bodies[next++]) {
          const stream = session.request({ ':method': 'POST' }, { signal })
          stream.end(body)
          assert.equal(Buffer.concat(await Array.fromAsync(stream)).toString(), body)
        }
      }
      await Promise.all(Array.from({ length: 50 }, worker))
    } finally {
      session.destroy()
    }
  })

  test('floods of what asks for nothing, or is taken back, end the connection and no other', async () => {
    await using server = await serve({ resetsPerSecondMax: 50, idleFramesPerSecondMax: 50 })
    const word = (number: number) => Buffer.from([number >>> 24, number >>> 16, number >>> 8, number])
    const floods: Record<string, (index: number) => Buffer> = {
      pings: () => frame(FrameType.ping, 0, 0, Buffer.alloc(8)),
      settings: () => frame(FrameType.settings),
      priorities: () => frame(FrameType.priority, 0, 1, Buffer.alloc(5)),
      'unknown frames': () => frame(99),
      'empty data': (index) => (index === 0 ? opening(0) : frame(FrameType.data, 0, 1)),
      'resets (CVE-2023-44487)': (index) =>
        Buffer.concat([opening(index), frame(FrameType.resetStream, 0, 2 * index + 1, Buffer.alloc(4))]),
      'continuations (CVE-2024-27983)': (index) =>
        index === 0 ? frame(FrameType.headers, 0, 1, REQUEST) : frame(FrameType.continuation, 0, 1),
      'data of streams that are over': (index) =>
        index === 0
          ? frame(FrameType.headers, FrameFlag.endHeaders | FrameFlag.endStream, 1, REQUEST)
          : frame(FrameType.data, 0, 1, Buffer.alloc(1)),
      // Resets that the client does not send and has us send (CVE-2025-8671).
      'malformed requests': (index) => opening(index, 0, OK),
      'requests that announce what does not come': (index) =>
        opening(index, FrameFlag.endStream, Buffer.concat([REQUEST, encodeFields([['content-length', '1']])])),
      'bodies that are longer than announced': (index) =>
        Buffer.concat([
          opening(index, 0, Buffer.concat([REQUEST, encodeFields([['content-length', '1']])])),
          frame(FrameType.data, 0, 2 * index + 1, Buffer.alloc(2)),
        ]),
      'windows that grow by nothing': (index) =>
        Buffer.concat([opening(index), frame(FrameType.windowUpdate, 0, 2 * index + 1, word(0))]),
      'windows beyond their limit': (index) =>
        Buffer.concat([opening(index), frame(FrameType.windowUpdate, 0, 2 * index + 1, word(2 ** 31 - 1))]),
      'second heads': (index) => Buffer.concat([opening(index), opening(index)]),
    }
    for (const [what, part] of Object.entries(floods)) {
      const bytes = Array.from({ length: 100 }, (_, index) => part(index))
      using client = await raw(server.port, ...bytes)
      assert.equal(await client.farewell(), ErrorCode.enhanceYourCalm, what)
    }
    using calm = await raw(server.port)
    for (const second of [1, 2, 3]) {
      const part = [
        ...Array.from({ length: 40 }, () => frame(99)),
        frame(FrameType.ping, 0, 0, Buffer.alloc(8, second)),
      ]
      calm.socket.write(Buffer.concat(part))
      const isAnswer = ({ type, payload }: { type: number; payload: Buffer }) =>
        type === FrameType.ping && payload[0] === second
      await eventually(() => calm.frames.some(isAnswer), { what: 'as many a second are no flood' })
      for (const connection of server.connections) connection.nextSecond()
    }
  })

  test('requests that end in good order are none that are given up, however early they are answered', async () => {
    const early = (stream: Http2Stream) => {
      stream.head(OK, true)
      return undefined
    }
    using client = direct(early, { resetsPerSecondMax: 5 })
    client.socket.readOn()
    client.say(...Array.from({ length: 50 }, (_, index) => opening(index)))
    await eventually(() => client.got(FrameType.resetStream).length === 50, { what: 'all are over' })
    assert.ok(client.got(FrameType.resetStream).every(({ payload }) => payload.readUInt32BE() === ErrorCode.none))
    assert.ok(client.socket.writable)
  })

  test('who has more requests under way than it may is refused the rest, and at fault once it knows how many', async () => {
    using client = direct(() => ({ data: () => {}, closed: () => {} }), { streamsMax: 5, resetsPerSecondMax: 10 })
    client.socket.readOn()
    client.say(...Array.from({ length: 35 }, (_, index) => opening(index)))
    await eventually(() => client.got(FrameType.resetStream).length === 30, { what: 'the rest are refused' })
    const codes = client.got(FrameType.resetStream).map(({ payload }) => payload.readUInt32BE())
    assert.ok(codes.every((code) => code === ErrorCode.refusedStream))
    assert.ok(client.socket.writable)
    client.say(frame(FrameType.settings, FrameFlag.ack))
    client.say(...Array.from({ length: 10 }, (_, index) => opening(35 + index)))
    await eventually(() => client.got(FrameType.resetStream).length === 40, { what: 'so are some more' })
    assert.ok(client.socket.writable)
    client.say(opening(45))
    await eventually(() => client.got(FrameType.goAway).length === 1, { what: 'it is told' })
    assert.equal(client.got(FrameType.goAway)[0]?.payload.readUInt32BE(4), ErrorCode.enhanceYourCalm)
  })

  test('fields that do not fit into a frame are an error of whoever sends them, and harm nobody', async () => {
    const block = (bytes: number) => {
      const overhead = encodeFields([['x', 'y'.repeat(16_000)]]).length - 16_000
      return encodeFields([['x', 'y'.repeat(bytes - overhead)]])
    }
    const answer = (stream: Http2Stream) => {
      assert.throws(() => stream.head(block(FRAME_BYTES)), RangeError)
      stream.head(block(FRAME_BYTES - 1))
      assert.throws(() => stream.data([], block(FRAME_BYTES)), RangeError)
      stream.data([], block(FRAME_BYTES - 1))
      return undefined
    }
    using client = direct(answer)
    client.socket.readOn()
    client.say(opening(0, FrameFlag.endStream), opening(1, FrameFlag.endStream))
    await eventually(() => client.got(FrameType.headers).length === 4, { what: 'both are answered' })
    assert.ok(client.got(FrameType.headers).every(({ payload }) => payload.length <= FRAME_BYTES))
  })

  test('who sends a stream more than its window has loses the stream, and no other', async () => {
    const ends: number[] = []
    const keeping = (stream: Http2Stream) => ({
      data: (_: Buffer, isLast: boolean) => void (isLast && stream.head(OK, true)),
      closed: () => void ends.push(stream.id),
    })
    using client = direct(keeping, { streamWindowBytes: 40_000 })
    client.socket.readOn()
    const part = (index: number, flags = 0) => frame(FrameType.data, flags, 2 * index + 1, Buffer.alloc(16_000))
    client.say(opening(0), opening(1), part(0), part(0), part(1), part(0))
    await eventually(() => ends.length > 0, { what: 'the stream is over' })
    const resets = client.got(FrameType.resetStream).map(({ id, payload }) => [id, payload.readUInt32BE()])
    assert.deepEqual([ends, resets], [[1], [[1, ErrorCode.flowControl]]])
    client.say(part(1, FrameFlag.endStream))
    await eventually(() => ends.length > 1, { what: 'the other is answered' })
    assert.deepEqual(
      client.got(FrameType.headers).map(({ id }) => id),
      [3],
    )
  })

  test('who sends a connection more than its window has loses the connection', async () => {
    let bytes = 0
    const data = (chunk: Buffer) => {
      bytes += chunk.length
    }
    const keeping = () => ({ data, closed: () => {} })
    using client = direct(keeping, { streamWindowBytes: 100_000, connectionWindowBytes: 70_000 })
    client.socket.readOn()
    const parts = [0, 1, 0, 1, 0].map((index) => frame(FrameType.data, 0, 2 * index + 1, Buffer.alloc(16_000)))
    client.say(opening(0), opening(1), ...parts)
    await eventually(() => client.ended.length > 0, { what: 'the connection is over' })
    assert.equal(client.got(FrameType.goAway)[0]?.payload.readUInt32BE(4), ErrorCode.flowControl)
    assert.equal(bytes, 64_000)
  })

  test('heads of more fields, or larger ones, than may be are refused, and those after them are read', async () => {
    const heads: Http2Request[] = []
    const answer = (stream: Http2Stream, head: Http2Request) => {
      heads.push(head)
      stream.head(OK, true)
      return undefined
    }
    using client = direct(answer, { headerFieldsMax: 10, headerBytesMax: 1000 })
    client.socket.readOn()
    const headOf = (count: number, bytes: number) =>
      Buffer.concat([REQUEST, encodeFields(Array.from({ length: count }, () => ['x', 'y'.repeat(bytes)] as const))])
    const blocks = [headOf(8, 1), headOf(1, 1000), headOf(7, 1), headOf(1, 700)]
    client.say(...blocks.map((block, index) => opening(index, FrameFlag.endStream, block)))
    await eventually(() => client.got(FrameType.headers).length === 2, { what: 'those that may be are answered' })
    const refused = client.got(FrameType.resetStream).map(({ id, payload }) => [id, payload.readUInt32BE()])
    assert.deepEqual(refused, [
      [1, ErrorCode.enhanceYourCalm],
      [3, ErrorCode.enhanceYourCalm],
    ])
    assert.deepEqual(
      heads.map(({ fields }) => fields.length),
      [10, 4],
    )
  })

  test('who does not take its answers holds no more of them than it may', async () => {
    await using server = await serve({ heldBytesMax: 200_000 })
    const bodies = Array.from({ length: 20 }, (_, index) => [
      frame(FrameType.headers, FrameFlag.endHeaders, 2 * index + 1, REQUEST),
      frame(FrameType.data, FrameFlag.endStream, 2 * index + 1, Buffer.alloc(16_000)),
    ]).flat()
    using client = await raw(server.port, setting(Setting.initialWindowSize, 0), ...bodies)
    assert.equal(await client.farewell(), ErrorCode.enhanceYourCalm)
    assert.ok(server.seen.length <= 14, `${server.seen.length} were answered`)
  })

  test('answers that wait for the client to read count as those that wait for its windows', async () => {
    let answered = 0
    const answer = (stream: Http2Stream) => {
      stream.head(OK)
      stream.data([Buffer.alloc(2000)], encodeFields([]))
      answered += 1
      return undefined
    }
    using client = direct(answer, { heldBytesMax: 20_000 })
    client.say(...Array.from({ length: 30 }, (_, index) => opening(index, FrameFlag.endStream)))
    await eventually(() => !client.socket.writable, { what: 'it failed' })
    assert.ok(answered <= 10, `${answered} were answered`)
  })

  test('from who does not read, nothing more is read', async () => {
    await using server = await serve({ idleFramesPerSecondMax: 1e9 })
    using client = await raw(server.port)
    client.socket.pause()
    const pings = Buffer.concat(Array.from({ length: 10_000 }, () => frame(FrameType.ping, 0, 0, Buffer.alloc(8))))
    const sent = 200
    for (let index = 0; index < sent; index++) client.socket.write(pings)
    await eventually(() => server.isPaused(), { what: 'the server waits' })
    assert.ok(server.waitingBytes() < 8_000_000, `${server.waitingBytes()} bytes wait`)
    client.socket.resume()
    await eventually(() => client.socket.writableLength === 0, {
      what: 'it goes on when the client reads',
      timeoutMs: 20_000,
    })
  })

  test('who does not read holds few buffers, however many small things are said to it', async () => {
    using client = direct(() => undefined, { idleFramesPerSecondMax: 1e9 })
    for (let index = 0; index < 5000; index++) {
      client.say(frame(FrameType.ping, 0, 0, Buffer.alloc(8)))
      await new Promise(setImmediate)
    }
    assert.ok(client.buffers.most <= 3, `${client.buffers.most} buffers were held`)
    client.socket.readOn()
    await eventually(() => client.buffers.held === 0, { what: 'all are given back' })
    assert.equal(client.got(FrameType.ping).length, 5000)
  })

  test('who is told of its fault and does not read that is cut off all the same', async () => {
    using client = direct(() => undefined)
    const { connection, socket, ended } = client
    client.say(frame(FrameType.pushPromise, 0, 1))
    await eventually(() => !socket.writable, { what: 'it failed' })
    connection.nextSecond()
    connection.nextSecond()
    assert.equal(socket.destroyed, false, 'it has time to read it')
    connection.nextSecond()
    assert.equal(socket.destroyed, true)
    await eventually(() => ended.length === 1, { what: 'it is told' })
    assert.deepEqual([ended, client.buffers.held], [[{ by: 'client', reason: 'a client pushes' }], 0])
  })

  test('a client that gives no sign of life is cut off, one that does is not', async () => {
    await using server = await serve()
    const session = connect(`http://127.0.0.1:${server.port}`)
    await once(session, 'remoteSettings')
    const silent = connectTcp(server.port, '127.0.0.1')
      .on('error', () => {})
      .resume()
    const cutOff = once(silent, 'close')
    using deaf = await raw(server.port)
    await eventually(() => server.connections.size === 3 && deaf.frames.length > 0, { what: 'they are there' })
    for (const connection of server.connections) connection.checkLife()
    await eventually(() => deaf.frames.some(({ type }) => type === FrameType.ping), { what: 'it was asked' })
    // The other's answer is here when a question of its own is.
    await new Promise((resolve) => session.ping(resolve))
    for (const connection of server.connections) connection.checkLife()
    await Promise.all([deaf.closed, cutOff])
    assert.equal(server.connections.size, 1)
    session.destroy()
  })

  test('a client that has only just connected when signs of life are asked for has until the next time', async () => {
    using client = direct(() => undefined)
    client.socket.readOn()
    // Nothing of what it says has been read yet.
    client.connection.checkLife()
    client.say(
      frame(FrameType.ping, FrameFlag.ack, 0, Buffer.alloc(8)),
      frame(FrameType.ping, 0, 0, Buffer.alloc(8, 1)),
    )
    await eventually(() => client.got(FrameType.ping).length === 2, { what: 'it was asked, and answered' })
    client.connection.checkLife()
    assert.equal(client.socket.destroyed, false)
    client.connection.checkLife()
    assert.equal(client.socket.destroyed, true)
    await eventually(() => client.ended.length > 0, { what: 'it is told' })
    assert.equal(client.ended[0]?.by, 'network')
  })

  test('at the end the client is told, what it asked before is answered, and what it asks after is not', async () => {
    await using server = await serve()
    using client = await raw(server.port, frame(FrameType.headers, FrameFlag.endHeaders, 1, REQUEST))
    await eventually(() => client.frames.length > 0, { what: 'it is connected' })
    const [connection] = server.connections
    assert.ok(connection)
    const known = connection.drain()
    await eventually(() => client.frames.some(({ type }) => type === FrameType.goAway), { what: 'it was told' })
    client.socket.write(frame(FrameType.headers, FrameFlag.endHeaders, 3, REQUEST))
    client.socket.write(frame(FrameType.ping, FrameFlag.ack, 0, Buffer.alloc(8, 1)))
    await known
    connection.finish()
    client.socket.write(
      Buffer.concat([
        frame(FrameType.headers, FrameFlag.endHeaders | FrameFlag.endStream, 5, REQUEST),
        frame(FrameType.data, FrameFlag.endStream, 3),
        frame(FrameType.data, FrameFlag.endStream, 1),
      ]),
    )
    assert.equal(await client.farewell(), ErrorCode.none)
    const answered = client.frames.filter(
      ({ type, flags }) => type === FrameType.headers && flags & FrameFlag.endStream,
    )
    assert.deepEqual(answered.map(({ id }) => id).sort(), [1, 3])
    const last = client.frames.findLast(({ type }) => type === FrameType.goAway)
    assert.equal(last?.payload.readUInt32BE(0), 3)
  })

  test('no bytes make it throw, or harm another connection', async () => {
    await using server = await serve()
    const kind = fc.integer({ min: 0, max: 10 })
    const anyFrame = fc
      .tuple(kind, fc.integer({ min: 0, max: 255 }), fc.integer({ min: 0, max: 9 }), fc.uint8Array({ maxLength: 40 }))
      .map(([type, flags, id, payload]) => frame(type, flags, id, payload))
    const request = fc.constantFrom(
      ...[1, 3, 5, 7].map((id) => frame(FrameType.headers, FrameFlag.endHeaders, id, REQUEST)),
    )
    const parts = fc.sample(fc.array(fc.oneof(anyFrame, request), { maxLength: 30 }), 400)
    const sockets: Socket[] = []
    for (const part of parts) {
      using client = await raw(server.port, ...part)
      client.socket.end()
      sockets.push(client.socket)
    }
    assert.equal((await ask(server.port, Buffer.from('still'))).body.toString(), 'still')
    await eventually(() => server.connections.size === 0, { what: 'every connection is over' })
    assert.ok(sockets.length > 0)
  })
})
