import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { once } from 'node:events'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { after, before, describe, test } from 'node:test'
import { connect as connectTls, type TLSSocket } from 'node:tls'
import { promisify } from 'node:util'
import { eventually, requires } from '@tollward/testkit'
import { askHttp2, connectHttp2, startTestGateway, type TestGateway } from './test-gateway.ts'

const skip = await requires({ tools: ['nats-server', 'openssl', 'curl'] })
const run = promisify(execFile)

const PREFACE = 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'
const [HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION] = [1, 3, 4, 6, 7, 9]
const [END_STREAM, END_HEADERS] = [1, 4]

function frame(type: number, flags: number, stream: number, payload: Buffer = Buffer.alloc(0)): Buffer {
  const head = Buffer.alloc(9)
  head.writeUIntBE(payload.length, 0, 3)
  head[3] = type
  head[4] = flags
  head.writeUInt32BE(stream, 5)
  return Buffer.concat([head, payload])
}

/** Header fields as HPACK literals without indexing and without Huffman codes. */
function literals(...fields: readonly (readonly [string, string])[]): Buffer {
  const text = (value: string) => [Buffer.from([value.length]), Buffer.from(value)]
  return Buffer.concat(fields.flatMap(([name, value]) => [Buffer.from([0]), ...text(name), ...text(value)]))
}

const PSEUDO = [
  [':method', 'GET'],
  [':scheme', 'https'],
  [':path', '/'],
  [':authority', 'open.example'],
] as const

describe('gateway over HTTP/2', { skip }, () => {
  let resources: AsyncDisposableStack
  let gateway: TestGateway
  let arrived: IncomingMessage[] = []
  let answer: (request: IncomingMessage, response: ServerResponse) => void

  before(async () => {
    resources = new AsyncDisposableStack()
    gateway = await startTestGateway(resources, (request, response) => {
      arrived.push(request)
      answer(request, response)
    })
  })
  after(() => resources.disposeAsync())

  function api(handler: typeof answer = (_request, response) => void response.end('answered')): void {
    arrived = []
    answer = handler
  }

  /** A connection of HTTP/2 whose frames the test writes itself. */
  async function rawConnection(
    stack: DisposableStack,
  ): Promise<{ socket: TLSSocket; frames: number[]; ended: Promise<void> }> {
    const socket = connectTls({ port: gateway.httpsPort, ALPNProtocols: ['h2'], rejectUnauthorized: false })
    stack.defer(() => socket.destroy())
    socket.on('error', () => {})
    const frames: number[] = []
    let received: Buffer = Buffer.alloc(0)
    socket.on('data', (chunk: Buffer) => {
      received = Buffer.concat([received, chunk])
      while (received.length >= 9 && received.length >= 9 + received.readUIntBE(0, 3)) {
        frames.push(received[3] ?? -1)
        received = received.subarray(9 + received.readUIntBE(0, 3))
      }
    })
    const { promise: ended, resolve } = Promise.withResolvers<void>()
    socket.once('close', () => resolve())
    await once(socket, 'secureConnect')
    socket.write(Buffer.concat([Buffer.from(PREFACE), frame(SETTINGS, 0, 0)]))
    return { socket, frames, ended }
  }

  /** Writes again and again until the other side ends the connection. */
  async function flood(write: (count: number) => Buffer, writesMax: number): Promise<number[]> {
    using stack = new DisposableStack()
    const { socket, frames, ended } = await rawConnection(stack)
    const closed = { yet: false }
    void ended.then(() => {
      closed.yet = true
    })
    for (let count = 0; count < writesMax && socket.writable; count++) {
      socket.write(write(count))
      if (count % 50 === 0) await new Promise((resolve) => setImmediate(resolve))
    }
    await eventually(() => closed.yet, { what: 'the connection is ended', timeoutMs: 5000 })
    return frames
  }

  test('one port serves HTTP/2 and HTTP/1.1, as the client chooses', async () => {
    api((request, response) => response.end(JSON.stringify(request.headers)))
    for (const [option, version] of [
      ['--http2', '2'],
      ['--http1.1', '1.1'],
    ] as const) {
      const { stdout } = await run('curl', [
        ...['-sk', option, '-w', ' %{http_version} %{http_code}', '-H', 'Host: open.example'],
        `https://127.0.0.1:${gateway.httpsPort}/x?y`,
      ])
      assert.match(stdout, new RegExp(` ${version.replace('.', '\\.')} 200$`))
      const headers = JSON.parse(stdout.slice(0, stdout.lastIndexOf('}') + 1))
      assert.equal(headers['x-forwarded-proto'], 'https')
      assert.equal(headers['x-forwarded-host'], 'open.example')
      assert.equal(headers.host, 'open.example')
    }
    assert.deepEqual(
      arrived.map(({ url }) => url),
      ['/x?y', '/x?y'],
    )
  })

  test('a token counts over HTTP/2 as it does over HTTP/1.1, and cookies arrive as one field', async () => {
    api((request, response) => response.end(JSON.stringify(request.headers)))
    using stack = new DisposableStack()
    const session = await connectHttp2(stack, gateway.httpsPort)
    const token = gateway.neighbours.issue('h2-client', ['orders'])
    const asked = [':path', '/', ':authority', 'closed.example', 'cookie', 'a=1', 'cookie', 'b=2']
    const refused = await askHttp2(session, asked)
    assert.deepEqual([refused.status, refused.headers['content-type']], [401, 'application/problem+json'])
    const { status, headers, body } = await askHttp2(session, [...asked, 'authorization', `Bearer ${token}`])
    assert.equal(status, 200)
    assert.match(String(headers['x-tollward-decision']), /^[0-9a-f-]{36}$/)
    const received = JSON.parse(body)
    assert.equal(received['x-tollward-client'], 'h2-client')
    assert.equal(received.cookie, 'a=1; b=2')
  })

  test('a Host beside another :authority is refused, and no ambiguous request arrives', async () => {
    api()
    using stack = new DisposableStack()
    const session = await connectHttp2(stack, gateway.httpsPort)
    const ask = (...fields: string[]) => askHttp2(session, [':path', '/', ...fields])
    assert.equal((await ask(':authority', 'open.example', 'host', 'closed.example')).status, 400)
    assert.equal(arrived.length, 0)
    assert.equal((await ask(':authority', 'open.example', 'host', 'open.example')).status, 200)
    for (const fields of [
      [...PSEUDO, [':path', '/admin']],
      [...PSEUDO, [':authority', 'closed.example']],
      [...PSEUDO, ['host', 'open.example'], ['host', 'open.example']],
      [...PSEUDO, ['X-Upper', 'case']],
      [['x-early', '1'], ...PSEUDO],
      [...PSEUDO, ['connection', 'close']],
      [...PSEUDO, ['transfer-encoding', 'chunked']],
      PSEUDO.slice(0, 3),
    ] as (readonly [string, string])[][]) {
      using raw = new DisposableStack()
      const count: number = arrived.length
      const { socket, frames } = await rawConnection(raw)
      socket.write(frame(HEADERS, END_STREAM | END_HEADERS, 1, literals(...fields)))
      await eventually(() => frames.some((type) => [HEADERS, RST_STREAM, GOAWAY].includes(type)), { what: 'an answer' })
      assert.equal(arrived.length, count, JSON.stringify(fields))
    }
  })

  test('a field that would be two in HTTP/1.1 does not arrive', async () => {
    api()
    using stack = new DisposableStack()
    const { socket, frames } = await rawConnection(stack)
    const fields = [...PSEUDO, ['x-split', 'a\r\nx-tollward-client: b'], ['x-end', 'a\0b']] as const
    socket.write(frame(HEADERS, END_STREAM | END_HEADERS, 1, literals(...fields)))
    await eventually(() => frames.includes(HEADERS) || frames.includes(RST_STREAM), { what: 'an answer' })
    for (const { headers } of arrived)
      assert.deepEqual(
        [headers['x-split'], headers['x-end'], headers['x-tollward-client']],
        [undefined, undefined, undefined],
      )
  })

  test('header limits are those of HTTP/1.1', async () => {
    api()
    using stack = new DisposableStack()
    const session = await connectHttp2(stack, gateway.httpsPort)
    const base = [':path', '/', ':authority', 'open.example']
    const many = Array.from({ length: 120 }, (_, index) => [`x-${index}`, '1']).flat()
    assert.equal((await askHttp2(session, [...base, ...many])).status, 431)
    assert.equal((await askHttp2(session, [...base, 'x-large', 'x'.repeat(40_000)])).status, 431)
    const tooMany = Array.from({ length: 300 }, (_, index) => [`x-${index}`, '1']).flat()
    await assert.rejects(askHttp2(session, [...base, ...tooMany]))
    assert.equal(arrived.length, 0)
  })

  test('CONNECT, and WebSockets by it, are refused', async () => {
    api()
    using stack = new DisposableStack()
    const session = await connectHttp2(stack, gateway.httpsPort)
    const stream = session.request({ ':method': 'CONNECT', ':authority': 'open.example' })
    const [headers] = await once(stream, 'response')
    assert.ok(Number(headers[':status']) >= 400)
    assert.notEqual(session.remoteSettings.enableConnectProtocol, true)
    assert.equal(arrived.length, 0)
  })

  test('a client that resets its streams again and again is cut off', async () => {
    api(() => {})
    using stack = new DisposableStack()
    const { socket, frames } = await rawConnection(stack)
    // Each request is let through to the API before it is reset: that is the work that the attack makes.
    const together = 20
    for (let sent = 0; sent < 1200 && socket.writable; sent += together) {
      const ids = Array.from({ length: together }, (_, index) => (sent + index) * 2 + 1)
      for (const id of ids) socket.write(frame(HEADERS, END_STREAM | END_HEADERS, id, literals(...PSEUDO)))
      const heard = () => arrived.length >= sent + together || !socket.writable
      await eventually(heard, { what: 'the API hears of them', intervalMs: 2 })
      for (const id of ids) socket.write(frame(RST_STREAM, 0, id, Buffer.from([0, 0, 0, 8])))
    }
    await eventually(() => frames.includes(GOAWAY) && !socket.writable, { what: 'the connection is ended' })
    assert.ok(arrived.length < 600, `${arrived.length} requests arrived`)
  })

  test('header fields that never end cut their connection off', async () => {
    api()
    const part = literals(['x-part', 'y'.repeat(100)])
    await flood(
      (count) => (count === 0 ? frame(HEADERS, END_STREAM, 1, literals(...PSEUDO)) : frame(CONTINUATION, 0, 1, part)),
      20_000,
    )
    assert.equal(arrived.length, 0)
  })

  test('floods of PING and SETTINGS cut their connection off, and are counted', async () => {
    await flood(() => frame(PING, 0, 0, Buffer.alloc(8)), 20_000)
    await flood(() => frame(SETTINGS, 0, 0, Buffer.from([0, 3, 0, 0, 0, 100])), 20_000)
    assert.ok((await gateway.metric('tollward_gateway_floods_total', 'kind="ping"')) >= 1)
    assert.ok((await gateway.metric('tollward_gateway_floods_total', 'kind="settings"')) >= 1)
    api()
    using stack = new DisposableStack()
    const session = await connectHttp2(stack, gateway.httpsPort)
    assert.equal((await askHttp2(session, [':path', '/', ':authority', 'open.example'])).status, 200)
  })

  test('a client is told how many streams it may have at once, and more are refused', async () => {
    const held: ServerResponse[] = []
    api((_request, response) => void held.push(response))
    using stack = new DisposableStack()
    const session = await connectHttp2(stack, gateway.httpsPort)
    await eventually(() => (session.remoteSettings.maxConcurrentStreams ?? 1e9) <= 128, { what: 'the limit is told' })
    const { socket, frames } = await rawConnection(stack)
    for (let index = 0; index < 160; index++)
      socket.write(frame(HEADERS, END_STREAM | END_HEADERS, index * 2 + 1, literals(...PSEUDO)))
    await eventually(() => frames.filter((type) => type === RST_STREAM).length >= 32, { what: 'streams are refused' })
    assert.ok(held.length <= 128)
  })
})
