import assert from 'node:assert/strict'
import { once } from 'node:events'
import {
  type ClientHttp2Session,
  type ClientHttp2Stream,
  connect,
  constants,
  type IncomingHttpHeaders,
  type OutgoingHttpHeaders,
} from 'node:http2'
import { connect as connectTcp } from 'node:net'
import { describe, test } from 'node:test'
import { eventually } from '@tollward/testkit'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import { authorizerMetrics } from '../metrics.ts'
import type { Method, OpenCall } from './grpc-calls.ts'
import { type Failure, Status } from './grpc-messages.ts'
import { startGrpcTransport } from './grpc-transport.ts'

const GRPC = { ':method': 'POST', 'content-type': 'application/grpc', te: 'trailers' } as const

interface Answer {
  readonly headers: IncomingHttpHeaders
  readonly trailers: IncomingHttpHeaders
  readonly body: Buffer
}

/** A server whose methods are told here, and a connection to it. */
async function serving(more: readonly Method[] = []) {
  await using resources = new AsyncDisposableStack()
  const failures: Failure[] = []
  const held = Promise.withResolvers<Uint8Array>()
  const methods: Method[] = [
    { path: '/t.T/Echo', handle: (message) => Uint8Array.from(message) },
    { path: '/t.T/Late', handle: async (message) => Uint8Array.from(message) },
    { path: '/t.T/Held', handle: () => held.promise },
    { path: '/t.T/Throws', handle: throwing },
    { path: '/t.T/Rejects', handle: () => Promise.reject(new Error('a secret')) },
    { path: '/t.T/NeverOpens', open: throwing },
    { path: '/t.T/Stumbles', open: () => ({ message: throwing, end: () => {}, closed: () => {} }) },
    ...more,
  ]
  const at = { host: '127.0.0.1', port: 0, tls: undefined }
  const failed = (failure: Failure) => failures.push(failure)
  const { connectionFaults: faults, tlsReloads } = authorizerMetrics(new Registry())
  const server = resources.use(
    await startGrpcTransport({ at, methods, failed, faults, tlsReloads, log: pino({ level: 'silent' }) }),
  )
  const session = resources.adopt(connect(`http://127.0.0.1:${server.port}`), (open) => open.destroy())
  const owned = resources.move()
  /** Of connections, by whose it was. */
  const faultsOf = async () => (await faults.get()).values.map(({ labels, value }) => [labels.fault, value])
  return { server, session, failures, faultsOf, held, [Symbol.asyncDispose]: () => owned.disposeAsync() }
}

function throwing(): never {
  throw new Error('a secret')
}

function frame(message: string | Buffer, flag = 0): Buffer {
  const bytes = Buffer.from(message)
  const prefix = Buffer.from([flag, 0, 0, 0, 0])
  prefix.writeUInt32BE(bytes.length, 1)
  return Buffer.concat([prefix, bytes])
}

function open(session: ClientHttp2Session, path: string, headers: OutgoingHttpHeaders = {}): ClientHttp2Stream {
  const stream = session.request({ ...GRPC, ':path': path, ...headers })
  stream.on('error', () => {})
  return stream
}

/** What comes on a stream until it is closed. */
async function read(stream: ClientHttp2Stream): Promise<Answer> {
  const chunks: Buffer[] = []
  let headers: IncomingHttpHeaders = {}
  let trailers: IncomingHttpHeaders = {}
  stream.on('response', (given) => {
    headers = given
  })
  stream.on('trailers', (given) => {
    trailers = given
  })
  stream.on('data', (chunk: Buffer) => chunks.push(chunk))
  await once(stream, 'close')
  // A call without messages says its status where the headers are.
  return { headers, trailers: 'grpc-status' in headers ? headers : trailers, body: Buffer.concat(chunks) }
}

async function ask(session: ClientHttp2Session, path: string, body: Buffer, headers: OutgoingHttpHeaders = {}) {
  const stream = open(session, path, headers)
  stream.end(body)
  return read(stream)
}

const statusOf = ({ trailers }: Answer) => Number(trailers['grpc-status'])

describe('gRPC transport', { timeout: 60_000 }, () => {
  test('an answer is headers, one message and a status, in the three frames of the protocol', async () => {
    await using it = await serving()
    for (const path of ['/t.T/Echo', '/t.T/Late']) {
      const answer = await ask(it.session, path, frame('hello'))
      assert.equal(answer.headers[':status'], 200)
      assert.equal(answer.headers['content-type'], 'application/grpc')
      assert.deepEqual(answer.body, frame('hello'))
      assert.equal(statusOf(answer), 0)
    }
    assert.deepEqual((await ask(it.session, '/t.T/Echo', frame(''))).body, frame(''))
    assert.deepEqual(it.failures, [])
  })

  test('a message may come in any parts, and in content types with a subtype or parameters', async () => {
    await using it = await serving()
    const stream = open(it.session, '/t.T/Echo', { 'content-type': 'application/grpc+proto; charset=x' })
    const answer = read(stream)
    for (const byte of frame('in parts')) {
      await new Promise((written) => stream.write(Buffer.of(byte), written))
    }
    stream.end()
    assert.deepEqual((await answer).body, frame('in parts'))
    const large = Buffer.alloc(900_000, 'x')
    assert.deepEqual((await ask(it.session, '/t.T/Echo', frame(large))).body, frame(large))
    assert.equal(statusOf(await ask(it.session, '/t.T/Echo', frame('a'), { te: undefined })), 0, 'without te')
  })

  test('what is no gRPC, or no method here, is told so', async () => {
    await using it = await serving()
    for (const type of ['application/json', 'application/grpc-web+proto', 'application/grpcx', undefined]) {
      const { headers } = await ask(it.session, '/t.T/Echo', frame('a'), { 'content-type': type })
      assert.equal(headers[':status'], 415, type)
    }
    const get = it.session.request({ ':path': '/t.T/Echo', 'content-type': 'application/grpc' })
    assert.equal((await read(get)).headers[':status'], 405)
    for (const path of ['/t.T/None', '/t.t/Echo', '/t.T/Echo/', '/t.T/Echo?x', '/']) {
      const answer = await ask(it.session, path, frame('a'))
      assert.deepEqual([answer.headers[':status'], statusOf(answer), answer.body.length], [200, 12, 0], path)
    }
  })

  test('messages that are compressed, too large, cut off, missing or too many fail with the code that says which', async () => {
    await using it = await serving()
    const cases: [Buffer, number][] = [
      [frame('a', 1), 12],
      [Buffer.from([0, 0x7f, 0xff, 0xff, 0xff]), 8],
      [Buffer.from([0, 0, 0, 0, 5, 1]), 13],
      [Buffer.from([0, 0]), 13],
      [Buffer.alloc(0), 12],
      [Buffer.concat([frame('a'), frame('b')]), 12],
    ]
    for (const [body, code] of cases) {
      const answer = await ask(it.session, '/t.T/Echo', body)
      assert.deepEqual([answer.headers[':status'], statusOf(answer), answer.body.length], [200, code, 0])
    }
    assert.deepEqual(
      it.failures.map(({ code }) => code),
      cases.map(([, code]) => code),
    )
    assert.equal(statusOf(await ask(it.session, '/t.T/Echo', frame('a'))), 0, 'the connection goes on')
  })

  test('a method that fails is INTERNAL, and does not tell why', async () => {
    await using it = await serving()
    for (const path of ['/t.T/Throws', '/t.T/Rejects', '/t.T/NeverOpens', '/t.T/Stumbles']) {
      const { trailers } = await ask(it.session, path, frame('a'))
      assert.deepEqual([trailers['grpc-status'], trailers['grpc-message']], ['13', 'The method failed.'])
    }
  })

  test('a failure whose text is long is told as far as it fits, in whatever script', async () => {
    const texts = ['x', 'é', '€', '𝄞', '\ud800', '%', '\n'].map((letter) => letter.repeat(20_000))
    const failing = (hasBegun: boolean) => ({
      path: `/t.T/Fails${hasBegun ? 'Late' : ''}`,
      open: (call: OpenCall) => ({
        message: (bytes: Uint8Array) => {
          if (hasBegun) call.write(Buffer.from('first'))
          call.end({ code: Status.unavailable, message: texts[bytes[0] ?? 0] ?? '' })
        },
        end: () => {},
        closed: () => {},
      }),
    })
    await using it = await serving([failing(false), failing(true)])
    for (const path of ['/t.T/Fails', '/t.T/FailsLate']) {
      for (const [index, text] of texts.entries()) {
        const answer = await ask(it.session, path, frame(Buffer.of(index)), { 'grpc-timeout': '3S' })
        assert.equal(statusOf(answer), Status.unavailable, `${path} ${text.slice(0, 1)}`)
        const told = decodeURIComponent(String(answer.trailers['grpc-message']))
        assert.ok(told.length >= 1000 && text.toWellFormed().startsWith(told), told.slice(0, 20))
      }
    }
  })

  test('grpc-timeout ends a call that is asked or answered too slowly, and one that is none is refused', async () => {
    await using it = await serving()
    const beganMs = performance.now()
    assert.equal(statusOf(await ask(it.session, '/t.T/Held', frame('a'), { 'grpc-timeout': '30m' })), 4)
    const halfOpen = open(it.session, '/t.T/Echo', { 'grpc-timeout': '30000u' })
    halfOpen.write(frame('a'))
    assert.equal(statusOf(await read(halfOpen)), 4)
    assert.ok(performance.now() - beganMs < 4000, 'sooner than any call ends')
    for (const timeout of ['', '1', '123456789m', '-1m', '1x', '1 m']) {
      const answer = await ask(it.session, '/t.T/Echo', frame('a'), { 'grpc-timeout': timeout })
      assert.equal(statusOf(answer), 13, timeout)
    }
    for (const timeout of ['99999999H', '100m', '1S']) {
      assert.equal(statusOf(await ask(it.session, '/t.T/Echo', frame('a'), { 'grpc-timeout': timeout })), 0, timeout)
    }
    it.held.resolve(Buffer.alloc(0))
  })

  test('a call that is never finished ends all the same', async () => {
    await using it = await serving()
    let code: number | undefined
    const answer = read(open(it.session, '/t.T/Echo')).then((given) => {
      code = statusOf(given)
    })
    await eventually(() => code === 4, { what: 'it ended', timeoutMs: 9000 })
    await answer
  })

  test('a client that gives up is counted, and costs the others nothing', async () => {
    await using it = await serving()
    for (let index = 0; index < 2000; index++) {
      const stream = open(it.session, '/t.T/Held')
      stream.end(frame('a'))
      stream.close(constants.NGHTTP2_CANCEL)
    }
    assert.equal(statusOf(await ask(it.session, '/t.T/Echo', frame('a'))), 0)
    await eventually(() => it.failures.length > 0 && it.failures.every(({ code }) => code === 1), {
      what: 'they are counted as given up',
    })
    it.held.resolve(Buffer.from('late'))
    assert.equal(statusOf(await ask(it.session, '/t.T/Echo', frame('a'))), 0, 'also after the late answers')
  })

  test('it says how many calls it takes at once, and answers pings', async () => {
    await using it = await serving()
    const [settings] = await once(it.session, 'remoteSettings')
    assert.equal(settings.maxConcurrentStreams, 10_000)
    assert.equal(settings.maxHeaderListSize, 16 * 1024)
    await new Promise((resolve, reject) => it.session.ping((error) => (error ? reject(error) : resolve(undefined))))
  })

  test('headers beyond any use end the call, not the server', async () => {
    await using it = await serving()
    const many = Object.fromEntries(Array.from({ length: 80 }, (_, index) => [`x-${index}`, 'x']))
    for (const headers of [many, { 'x-long': 'x'.repeat(100_000) }]) {
      const greedy = connect(`http://127.0.0.1:${it.server.port}`, { maxSendHeaderBlockLength: 200_000 })
      greedy.on('error', () => {})
      const stream = open(greedy, '/t.T/Echo', headers)
      stream.on('response', () => assert.fail('it was answered'))
      stream.end(frame('a'))
      await new Promise((closed) => stream.on('close', closed))
      greedy.destroy()
    }
    assert.equal(statusOf(await ask(it.session, '/t.T/Echo', frame('a'))), 0)
  })

  test('who does not speak HTTP/2 is cut off', async () => {
    await using it = await serving()
    const socket = connectTcp(it.server.port, '127.0.0.1')
    socket.on('error', () => {})
    socket.end('GET / HTTP/1.1\r\nHost: a\r\n\r\n')
    socket.resume()
    await once(socket, 'close')
    assert.equal(statusOf(await ask(it.session, '/t.T/Echo', frame('a'))), 0)
  })

  test('connections that are cut off are counted by whose fault it was, and those that end well are not', async () => {
    await using it = await serving()
    const connected = async (...said: Buffer[]) => {
      const socket = connectTcp(it.server.port, '127.0.0.1').on('error', () => {})
      await once(socket, 'connect')
      socket.write(
        Buffer.concat([Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'), Buffer.alloc(9).fill(4, 3, 4), ...said]),
      )
      await once(socket, 'data')
      return socket
    }
    const good = await connected()
    good.end()
    await once(good, 'close')
    assert.deepEqual(await it.faultsOf(), [])
    const pushing = await connected(Buffer.from([0, 0, 0, 5, 0, 0, 0, 0, 1]))
    await once(pushing, 'close')
    await eventually(async () => (await it.faultsOf()).length > 0, { what: 'the client is counted' })
    assert.deepEqual(await it.faultsOf(), [['client', 1]])
    const broken = await connected()
    broken.resetAndDestroy()
    await eventually(async () => (await it.faultsOf()).length > 1, { what: 'the network is counted' })
    assert.deepEqual(await it.faultsOf(), [
      ['client', 1],
      ['network', 1],
    ])
  })

  test('at the end calls under way are answered, new ones told to go elsewhere, and nobody is waited for too long', async () => {
    const it = await serving()
    const answer = ask(it.session, '/t.T/Held', frame('a'))
    const forgotten = ask(it.session, '/t.T/Late', frame('b'))
    assert.equal(statusOf(await forgotten), 0)
    let goaways = 0
    it.session.on('goaway', () => goaways++)
    const ended = it.server[Symbol.asyncDispose]()
    // First that the end is near, then that it has come.
    await eventually(() => goaways === 2, { what: 'the client was told' })
    it.held.resolve(Buffer.from('still'))
    const { body, trailers } = await answer
    assert.deepEqual([body, trailers['grpc-status']], [frame('still'), '0'])
    await ended
    await it[Symbol.asyncDispose]()

    const stuck = await serving()
    const never = ask(stuck.session, '/t.T/Held', frame('a'))
    await ask(stuck.session, '/t.T/Echo', frame('a'))
    const beganMs = performance.now()
    await stuck.server[Symbol.asyncDispose]()
    assert.ok(performance.now() - beganMs < 10_000)
    await never
    await stuck[Symbol.asyncDispose]()
  })
})
