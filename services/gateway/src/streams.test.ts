import assert from 'node:assert/strict'
import { once } from 'node:events'
import { request as httpRequest, type IncomingMessage, type RequestOptions, type ServerResponse } from 'node:http'
import { connect } from 'node:net'
import { after, before, describe, test } from 'node:test'
import { eventually, requires } from '@tollward/testkit'
import { askHttp2, connectHttp2, startTestGateway, type TestGateway, textOf } from './test-gateway.ts'

const skip = await requires({ tools: ['nats-server', 'openssl'] })
/** What waits for an end that does not come fails, rather than wait for ever. */
const TEST_TIMEOUT_MS = 20_000

/** Many times what may be on the way. */
const LARGE = 256 * 1024 * 1024
const PIECE = Buffer.alloc(256 * 1024, 'x')
/** What sockets, kernels and streams on the way may hold. */
const ON_THE_WAY_MAX = 32 * 1024 * 1024

describe('gateway, streams', { skip }, () => {
  let resources: AsyncDisposableStack
  let gateway: TestGateway
  let api: (request: IncomingMessage, response: ServerResponse) => void = () => {}

  before(async () => {
    resources = new AsyncDisposableStack()
    const env = { TOLLWARD_BODY_BYTES_MAX: String(2 * LARGE) }
    gateway = await startTestGateway(resources, (request, response) => api(request, response), { env })
    for (const event of ['checkContinue', 'checkExpectation'])
      gateway.api.on(event, (request, response) => api(request, response))
  })
  after(() => resources.disposeAsync())

  function send(options: RequestOptions = {}) {
    const { headers, ...others } = options
    const where = { host: '127.0.0.1', port: gateway.httpPort, agent: false } as const
    return httpRequest({ ...where, headers: { host: 'open.example', ...headers }, ...others })
  }

  async function get(options: RequestOptions = {}): Promise<IncomingMessage> {
    const sent = send(options)
    sent.end()
    const [response] = (await once(sent, 'response')) as [IncomingMessage]
    return response
  }

  async function nextData(stream: {
    once(event: 'data', listener: (chunk: Buffer) => void): unknown
  }): Promise<string> {
    const { promise, resolve } = Promise.withResolvers<string>()
    stream.once('data', (chunk) => resolve(String(chunk)))
    return await promise
  }

  /** Waits until a count goes up no more. */
  async function settled(count: () => number, what: string): Promise<void> {
    let last = -1
    const stays = () => {
      const before = last
      last = count()
      return last === before
    }
    await eventually(stays, { what, intervalMs: 300 })
  }

  test('server-sent events arrive one by one, headers first, over both versions', {
    timeout: TEST_TIMEOUT_MS,
  }, async () => {
    let say: (event: string) => void = () => {}
    api = (_request, response) => {
      response.writeHead(200, { 'content-type': 'text/event-stream' }).flushHeaders()
      say = (event) => void response.write(`data: ${event}\n\n`)
    }
    const response = await get()
    for (const event of ['one', 'two']) {
      const next = nextData(response)
      say(event)
      assert.equal(await next, `data: ${event}\n\n`)
    }
    response.destroy()
    using stack = new DisposableStack()
    const session = await connectHttp2(stack, gateway.httpsPort)
    const stream = session.request({ ':path': '/', ':authority': 'open.example' })
    await once(stream, 'response')
    for (const event of ['one', 'two']) {
      const next = nextData(stream)
      say(event)
      assert.equal(await next, `data: ${event}\n\n`)
    }
    stream.close()
  })

  test('a large answer waits for a slow client, and memory does not grow', async () => {
    let written = 0
    api = async (_request, response) => {
      while (written < LARGE && !response.destroyed) {
        written += PIECE.length
        if (!response.write(PIECE)) await once(response, 'drain').catch(() => {})
      }
      response.end()
    }
    const beforeBytes = await gateway.metric('process_resident_memory_bytes')
    const response = await get()
    await settled(() => written, 'the API waits')
    assert.ok(written < ON_THE_WAY_MAX, `${written} bytes were taken`)
    let received = 0
    for await (const chunk of response) received += chunk.length
    assert.equal(received, LARGE)
    const grown = (await gateway.metric('process_resident_memory_bytes')) - beforeBytes
    assert.ok(grown < LARGE / 2, `memory grew by ${grown} bytes`)
  })

  test('a large request waits for a slow API, and memory does not grow', async () => {
    const going = Promise.withResolvers<void>()
    api = async (request, response) => {
      await going.promise
      let received = 0
      for await (const chunk of request) received += chunk.length
      response.end(String(received))
    }
    const beforeBytes = await gateway.metric('process_resident_memory_bytes')
    const sent = send({ method: 'POST', headers: { 'content-length': String(LARGE) } })
    let written = 0
    const sending = (async () => {
      while (written < LARGE) {
        written += PIECE.length
        if (!sent.write(PIECE)) await once(sent, 'drain')
      }
      sent.end()
    })()
    await settled(() => written, 'the client waits')
    assert.ok(written < ON_THE_WAY_MAX, `${written} bytes were taken`)
    going.resolve()
    await sending
    const [response] = (await once(sent, 'response')) as [IncomingMessage]
    assert.equal(await textOf(response), String(LARGE))
    const grown = (await gateway.metric('process_resident_memory_bytes')) - beforeBytes
    assert.ok(grown < LARGE / 2, `memory grew by ${grown} bytes`)
  })

  test('trailers of an answer pass, and none that says who answers', async () => {
    api = (_request, response) => {
      response.writeHead(200, { trailer: 'x-sum' })
      response.write('part')
      response.addTrailers({ 'x-sum': '42', 'x-tollward-decision': 'forged' })
      response.end()
    }
    const response = await get()
    assert.equal(await textOf(response), 'part')
    assert.deepEqual({ ...response.trailers }, { 'x-sum': '42' })
    using stack = new DisposableStack()
    const session = await connectHttp2(stack, gateway.httpsPort)
    const answer = await askHttp2(session, { ':path': '/', ':authority': 'open.example' })
    assert.deepEqual([answer.body, answer.trailers['x-sum']], ['part', '42'])
  })

  test('103 passes, and 100 is only said to whom is admitted', async () => {
    api = (_request, response) => {
      response.writeEarlyHints({ link: '</a.css>; rel=preload' })
      response.end('late')
    }
    const hinted = send()
    // Both may come in one packet, so both are listened for before anything is sent.
    const hint = once(hinted, 'information')
    const lateBody = once(hinted, 'response').then(([late]) => textOf(late as IncomingMessage))
    hinted.end()
    const [information] = await hint
    assert.deepEqual([information.statusCode, information.headers.link], [103, '</a.css>; rel=preload'])
    assert.equal(await lateBody, 'late')

    api = (request, response) => {
      assert.equal(request.headers.expect, undefined)
      request.pipe(response)
    }
    const waiting = { method: 'POST', headers: { expect: '100-continue', 'content-length': '4' } }
    const sent = send(waiting)
    sent.flushHeaders()
    await once(sent, 'continue')
    sent.end('body')
    const [echoed] = (await once(sent, 'response')) as [IncomingMessage]
    assert.equal(await textOf(echoed), 'body')
    const refused = send({ ...waiting, headers: { ...waiting.headers, host: 'closed.example' } })
    let goesOn = false
    refused.on('continue', () => {
      goesOn = true
    })
    refused.flushHeaders()
    const [refusal] = (await once(refused, 'response')) as [IncomingMessage]
    assert.deepEqual([refusal.statusCode, refusal.headers.connection, goesOn], [401, 'close', false])
    refused.destroy()
  })

  test('HEAD, 204, 304 and ranges come through as they are', async () => {
    const answers: Record<string, (response: ServerResponse) => void> = {
      '/head': (response) => response.writeHead(200, { 'content-length': '1000' }).end(),
      '/204': (response) => response.writeHead(204).end(),
      '/304': (response) => response.writeHead(304, { etag: '"a"' }).end(),
      '/range': (response) => response.writeHead(206, { 'content-range': 'bytes 2-4/10' }).end('cde'),
    }
    api = (request, response) => answers[request.url ?? '']?.(response)
    using stack = new DisposableStack()
    const session = await connectHttp2(stack, gateway.httpsPort)
    const both = async (path: string, method = 'GET') => {
      const first = await get({ path, method })
      const body = await textOf(first)
      const second = await askHttp2(session, { ':path': path, ':method': method, ':authority': 'open.example' })
      assert.deepEqual([second.status, second.body], [first.statusCode, body])
      return { status: first.statusCode, body, headers: [first.headers, second.headers] }
    }
    const head = await both('/head', 'HEAD')
    assert.deepEqual([head.status, head.body], [200, ''])
    for (const headers of head.headers) assert.equal(headers['content-length'], '1000')
    assert.deepEqual([(await both('/204')).status, (await both('/304')).status], [204, 304])
    const range = await both('/range')
    assert.deepEqual([range.status, range.body, range.headers[1]?.['content-range']], [206, 'cde', 'bytes 2-4/10'])
  })

  test('a client that goes away takes its request to the API with it', { timeout: TEST_TIMEOUT_MS }, async () => {
    for (const version of ['1.1', '2']) {
      const ended = Promise.withResolvers<void>()
      const began = Promise.withResolvers<void>()
      api = (request, response) => {
        response.write('begun')
        request.socket.once('close', () => ended.resolve())
        began.resolve()
      }
      using stack = new DisposableStack()
      if (version === '1.1') {
        const response = await get()
        await began.promise
        response.destroy()
      } else {
        const session = await connectHttp2(stack, gateway.httpsPort)
        const stream = session.request({ ':path': '/', ':authority': 'open.example' })
        await once(stream, 'response')
        stream.close(8)
      }
      await ended.promise
    }
    const before = await gateway.metric('tollward_gateway_broken_answers_total', 'by="client"')
    assert.ok(before >= 2)
  })

  test('an answer that the API breaks off is no whole answer for the client either', {
    timeout: TEST_TIMEOUT_MS,
  }, async () => {
    for (const headers of [{ 'content-length': '100' }, {}]) {
      api = (_request, response) => {
        response.writeHead(200, headers).write('some', () => response.destroy())
      }
      const response = await get()
      await assert.rejects(textOf(response), /aborted/)
      using stack = new DisposableStack()
      const session = await connectHttp2(stack, gateway.httpsPort)
      await assert.rejects(askHttp2(session, { ':path': '/', ':authority': 'open.example' }))
    }
  })

  test('bytes that are no request are not answered in the middle of another answer', async () => {
    api = (_request, response) => void response.writeHead(200, { 'content-length': '100' }).write('half an answer;')
    const socket = connect(gateway.httpPort, '127.0.0.1')
    let received = ''
    socket.on('data', (chunk) => {
      if (received === '' || !received.includes('half')) socket.write('NONSENSE\r\n\r\n')
      received += chunk
    })
    socket.write('GET / HTTP/1.1\r\nHost: open.example\r\n\r\n')
    await once(socket, 'close')
    assert.match(received, /half an answer;$/)
    assert.equal(received.match(/HTTP\/1\.1/g)?.length, 1)
  })

  test('a stream ends when its token is revoked or its source is blocked', { timeout: TEST_TIMEOUT_MS }, async () => {
    api = (_request, response) => void response.writeHead(200).write('open;')
    for (const end of [
      (token: string) => gateway.neighbours.revoke(token),
      () => gateway.neighbours.block('127.0.0.77'),
    ]) {
      const token = gateway.neighbours.issue('streamer', ['orders'])
      const headers = { host: 'closed.example', authorization: `Bearer ${token}` }
      const response = await get({ headers, localAddress: '127.0.0.77' })
      const text = textOf(response)
      await end(token)
      await assert.rejects(text, /aborted/)
    }
    assert.ok((await gateway.metric('tollward_gateway_broken_answers_total', 'by="gateway"')) >= 2)
  })
})
