import assert from 'node:assert/strict'
import { once } from 'node:events'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { connect } from 'node:net'
import { after, before, describe, test } from 'node:test'
import { eventually, requires } from '@tollward/testkit'
import { WebSocket, WebSocketServer } from 'ws'
import { startTestGateway, type TestGateway } from './test-gateway.ts'

const skip = await requires({ tools: ['nats-server', 'openssl'] })
/** What waits for an end that does not come fails, rather than wait for ever. */
const TEST_TIMEOUT_MS = 20_000
const WEBSOCKETS_MAX = 5
const IDLE_MS = 1500

describe('gateway, WebSockets', { skip }, () => {
  let resources: AsyncDisposableStack
  let gateway: TestGateway
  let asked: IncomingMessage[] = []

  before(async () => {
    resources = new AsyncDisposableStack()
    const env = {
      TOLLWARD_WEB_SOCKETS_MAX: String(WEBSOCKETS_MAX),
      TOLLWARD_WEB_SOCKET_IDLE_MS: String(IDLE_MS),
    }
    const answer = (request: IncomingMessage, response: ServerResponse) => {
      asked.push(request)
      response.writeHead(200, { 'x-upgrade': request.headers.upgrade ?? 'none' }).end('no socket')
    }
    gateway = await startTestGateway(resources, answer, { env })
    const server = new WebSocketServer({ noServer: true })
    gateway.api.on('upgrade', (request, socket, head) => {
      asked.push(request)
      if (request.url === '/refused') return socket.end('HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnone')
      server.handleUpgrade(request, socket, head, (one) => {
        one.on('error', () => {})
        one.on('message', (data, isBinary) => one.send(data, { binary: isBinary }))
        if (request.url === '/talks') one.send('first')
      })
    })
  })
  after(() => resources.disposeAsync())

  function open(
    stack: DisposableStack,
    { host = 'closed.example', path = '/', token = '', secure = false, from = '127.0.0.1', headers = {} } = {},
  ): WebSocket {
    const authorization = token === '' ? {} : { authorization: `Bearer ${token}` }
    const url = secure ? `wss://127.0.0.1:${gateway.httpsPort}${path}` : `ws://127.0.0.1:${gateway.httpPort}${path}`
    const client = new WebSocket(url, {
      headers: { host, ...authorization, ...headers },
      rejectUnauthorized: false,
      localAddress: from,
    })
    client.on('error', () => {})
    stack.defer(() => client.terminate())
    return client
  }

  async function refusal(client: WebSocket): Promise<{ status: number | undefined; type: string; body: string }> {
    const opened = once(client, 'open').then(() => assert.fail('it was not refused'))
    const refused = once(client, 'unexpected-response') as Promise<[unknown, IncomingMessage]>
    const [, response] = await Promise.race([refused, opened])
    let body = ''
    for await (const chunk of response) body += chunk
    return { status: response.statusCode, type: response.headers['content-type'] ?? '', body }
  }

  test('a WebSocket is decided about like any request, and the API hears who calls', {
    timeout: TEST_TIMEOUT_MS,
  }, async () => {
    using stack = new DisposableStack()
    const refused = await refusal(open(stack))
    assert.deepEqual([refused.status, refused.type], [401, 'application/problem+json'])
    assert.equal(JSON.parse(refused.body).type, 'https://tollward.dev/problems/token-missing')
    asked = []
    const token = gateway.neighbours.issue('socket-client', ['orders'])
    for (const secure of [false, true]) {
      const client = open(stack, { token, secure, path: '/%74alks', headers: { 'x-tollward-client': 'admin' } })
      assert.equal(String((await once(client, 'message'))[0]), 'first')
      for (const message of ['short', 'x'.repeat(200_000)]) {
        client.send(message)
        assert.equal(String((await once(client, 'message'))[0]), message)
      }
      client.close(4001)
      assert.deepEqual((await once(client, 'close'))[0], 4001)
    }
    for (const { url, headers } of asked) {
      assert.equal(url, '/talks')
      assert.equal(headers['x-tollward-client'], 'socket-client')
      assert.equal(headers.authorization, 'Bearer internal.socket-client.jwt')
    }
  })

  test("what the API answers instead of a WebSocket is the client's answer", async () => {
    using stack = new DisposableStack()
    const answer = await refusal(open(stack, { host: 'open.example', path: '/refused' }))
    assert.deepEqual([answer.status, answer.body], [404, 'none'])
  })

  test('other upgrades are not made: the request is answered in HTTP/1.1, and the API does not see one', async () => {
    for (const upgrade of ['h2c', 'websocket, h2c', 'TLS/1.0']) {
      const socket = connect(gateway.httpPort, '127.0.0.1')
      const fields = `Upgrade: ${upgrade}\r\nConnection: Upgrade, close\r\nHTTP2-Settings: AAMAAABk`
      socket.write(`GET / HTTP/1.1\r\nHost: open.example\r\n${fields}\r\n\r\n`)
      let text = ''
      for await (const chunk of socket) text += chunk
      assert.match(text, /^HTTP\/1\.1 200 OK\r\n/)
      assert.match(text, /x-upgrade: none/)
    }
  })

  test('an open WebSocket ends at once when its token or client is revoked, or its source is blocked', {
    timeout: TEST_TIMEOUT_MS,
  }, async () => {
    const { neighbours } = gateway
    const ends: [string, (token: string) => Promise<void>][] = [
      ['token-invalid', (token) => neighbours.revoke(token)],
      ['token-invalid', () => neighbours.revokeClient('ended')],
      ['blocked', () => neighbours.block('127.0.0.88')],
    ]
    for (const [reason, end] of ends) {
      using stack = new DisposableStack()
      const token = neighbours.issue('ended', ['orders'])
      const [client, other] = [open(stack, { token, from: '127.0.0.88' }), open(stack, { host: 'open.example' })]
      await Promise.all([once(client, 'open'), once(other, 'open')])
      const before = await gateway.metric('tollward_gateway_websocket_ends_total', `reason="${reason}"`)
      const closed = once(client, 'close')
      const beganMs = performance.now()
      await end(token)
      await closed
      const tookMs = performance.now() - beganMs
      assert.ok(tookMs < 500, `${reason}: ${tookMs} ms`)
      assert.equal(other.readyState, WebSocket.OPEN)
      const after = await gateway.metric('tollward_gateway_websocket_ends_total', `reason="${reason}"`)
      assert.equal(after, before + 1)
    }
  })

  test('no more WebSockets are open than may be, and idle ones end', { timeout: TEST_TIMEOUT_MS }, async () => {
    using stack = new DisposableStack()
    const none = async () => (await gateway.metric('tollward_gateway_websockets')) === 0
    await eventually(none, { what: 'those of earlier tests are over' })
    const busy = open(stack, { host: 'open.example' })
    await once(busy, 'open')
    const ticking = setInterval(() => busy.send('tick'), IDLE_MS / 10)
    stack.defer(() => clearInterval(ticking))
    const idle = Array.from({ length: WEBSOCKETS_MAX - 1 }, () => open(stack, { host: 'open.example' }))
    await Promise.all(idle.map((client) => once(client, 'open')))
    const { status, body } = await refusal(open(stack, { host: 'open.example' }))
    assert.deepEqual([status, JSON.parse(body).type], [503, 'https://tollward.dev/problems/too-busy'])
    await Promise.all(idle.map((client) => once(client, 'close')))
    assert.equal(busy.readyState, WebSocket.OPEN)
  })

  test('WebSockets end when the gateway does', { timeout: TEST_TIMEOUT_MS }, async () => {
    using stack = new DisposableStack()
    const client = open(stack, { host: 'open.example' })
    await once(client, 'open')
    const closed = once(client, 'close')
    const [stopped] = await Promise.all([gateway.service.stop(), closed])
    assert.equal(stopped, 0)
  })
})
