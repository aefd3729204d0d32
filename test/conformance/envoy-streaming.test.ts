import assert from 'node:assert/strict'
import { once } from 'node:events'
import { request as httpRequest, type IncomingMessage } from 'node:http'
import { connect, createServer, type ServerHttp2Session } from 'node:http2'
import type { AddressInfo } from 'node:net'
import type { Duplex } from 'node:stream'
import { after, before, describe, test } from 'node:test'
import {
  type ClientReadableStream,
  credentials,
  type handleServerStreamingCall,
  type handleUnaryCall,
  Metadata,
  type MethodDefinition,
  makeGenericClientConstructor,
  Server,
  ServerCredentials,
  type ServiceError,
  status,
} from '@grpc/grpc-js'
import { requires } from '@tollward/testkit'
import {
  type AuthorizerStack,
  plainPlaces,
  type ShippedEnvoy,
  startAuthorizerStack,
  startShippedEnvoy,
} from './envoy-stack.ts'

const skip = await requires({ tools: ['nats-server', 'envoy'] })

const DOCUMENTS = `
apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: streaming }
spec:
  hosts: ["*"]
  rules:
    - { name: read, match: { path: /orders.v1.Orders/Read }, require: { token: { scopes: [orders] } } }
    - { name: follow, match: { path: /orders.v1.Orders/Follow }, require: { token: { scopes: [orders] } } }
    - { name: sell, match: { path: /orders.v1.Orders/Sell }, require: { token: { scopes: [orders] }, payment: { plan: orders } } }
    - name: rarely
      match: { path: /orders.v1.Orders/Rarely }
      require: { token: { scopes: [orders] } }
      limit: { requests: 1, perSeconds: 3600, by: client }
    - { name: socket, match: { prefix: /ws }, require: { token: { scopes: [orders] } } }
---
apiVersion: tollward.dev/v1
kind: Plan
metadata: { name: orders }
spec: { priceSats: 10000, requests: 1000, duration: 24h, confirmations: 1, payWithin: 15m, confirmWithin: 2h }
`

const bytes = (bytes: Buffer) => bytes
const method = (name: string, responseStream = false): MethodDefinition<Buffer, Buffer> => ({
  path: `/orders.v1.Orders/${name}`,
  requestStream: false,
  responseStream,
  requestSerialize: bytes,
  requestDeserialize: bytes,
  responseSerialize: bytes,
  responseDeserialize: bytes,
})
const ORDERS = {
  read: method('Read'),
  sell: method('Sell'),
  rarely: method('Rarely'),
  unknown: method('Unknown'),
  follow: method('Follow', true),
} as const

describe('a gRPC API and WebSockets behind a real Envoy', { skip }, () => {
  let stack: AuthorizerStack
  let resources: AsyncDisposableStack
  let envoy: ShippedEnvoy
  let orders: OrdersApi
  let client: InstanceType<ReturnType<typeof makeGenericClientConstructor>>

  before(async () => {
    resources = new AsyncDisposableStack()
    stack = resources.use(await startAuthorizerStack(DOCUMENTS))
    orders = resources.use(await startOrders())
    const places = {
      ...plainPlaces(stack.api.port, stack.authorizerPort),
      'port_value: 50051': `port_value: ${orders.port}`,
    }
    envoy = resources.use(await startShippedEnvoy('streaming.yaml', places))
    const Orders = makeGenericClientConstructor(ORDERS, 'Orders')
    client = new Orders(`127.0.0.1:${envoy.port}`, credentials.createInsecure())
    resources.defer(() => client.close())
  })
  after(() => resources.disposeAsync())

  async function call({ path }: MethodDefinition<Buffer, Buffer>, token?: string, more: Record<string, string> = {}) {
    const { promise, resolve } = Promise.withResolvers<{ error?: ServiceError; answer?: Buffer }>()
    client.makeUnaryRequest(path, bytes, bytes, Buffer.from('tea'), metadataOf(token, more), (error, answer) =>
      resolve(error ? { error } : { answer: answer ?? Buffer.alloc(0) }),
    )
    return await promise
  }

  test('an admitted call reaches the API with the identity of its token, and its answer the client', async () => {
    const token = stack.neighbours.issue('grpc-client', ['orders'])
    const { answer, error } = await call(ORDERS.read, token, { 'x-tollward-client': 'admin' })
    assert.equal(error, undefined)
    assert.equal(String(answer), 'read tea')
    assert.deepEqual(orders.last?.get('x-tollward-client'), ['grpc-client'])
    assert.deepEqual(orders.last?.get('authorization'), ['Bearer internal.grpc-client.jwt'])
  })

  test('a stream that was admitted goes on for as long as the API sends', async () => {
    const token = stack.neighbours.issue('follower', ['orders'])
    const stream: ClientReadableStream<Buffer> = client.makeServerStreamRequest(
      ORDERS.follow.path,
      bytes,
      bytes,
      Buffer.from('3'),
      metadataOf(token),
    )
    const received: string[] = []
    for await (const message of stream) received.push(String(message))
    assert.deepEqual(received, ['0', '1', '2'])
  })

  test('an upgrade to WebSocket is refused as any request, and when admitted, bytes go both ways', async () => {
    const before = stack.api.count()
    assert.equal((await upgrade('/ws/prices')).status, 401)
    assert.equal((await upgrade('/ws/prices', stack.neighbours.issue('no-scope', []))).status, 403)
    assert.equal(stack.api.count(), before, 'none of them reached the API')
    const { status: answered, socket } = await upgrade(
      '/ws/prices',
      stack.neighbours.issue('socket-client', ['orders']),
    )
    assert.equal(answered, 101)
    assert.ok(socket)
    socket.write('ping')
    const [echoed] = await once(socket, 'data')
    assert.equal(String(echoed), 'ping')
    socket.destroy()
  })

  test('what trailers of a request say of the caller does not reach the API', async () => {
    await using api = await startHearingTrailers()
    const places = {
      ...plainPlaces(stack.api.port, stack.authorizerPort),
      'port_value: 50051': `port_value: ${api.port}`,
    }
    await using hearing = await startShippedEnvoy('streaming.yaml', places)
    const session = connect(`http://127.0.0.1:${hearing.port}`)
    const authorization = `Bearer ${stack.neighbours.issue('trailing-client', ['orders'])}`
    const head = { ':path': ORDERS.read.path, ':method': 'POST', 'content-type': 'application/grpc', authorization }
    const sent = session.request(head, { waitForTrailers: true })
    const trailers = { 'x-tollward-client': 'admin', authorization: 'Bearer x', 'x-kept': '1' }
    sent.on('wantTrailers', () => sent.sendTrailers(trailers))
    sent.end('body')
    await once(sent.resume(), 'close')
    assert.deepEqual(
      api.trailers().map((arrived) => Object.keys(arrived)),
      [['x-kept']],
    )
    session.close()
  })

  test('each refusal is a status that gRPC clients understand, with a sentence and the decision', async () => {
    const { neighbours } = stack
    const token = neighbours.issue('refused-client', ['orders'])
    const before = orders.calls()
    const refusals = [
      { what: await call(ORDERS.read), code: status.UNAUTHENTICATED, says: /^Get an access token / },
      { what: await call(ORDERS.read, 'nonsense'), code: status.UNAUTHENTICATED, says: /^The token is unknown/ },
      { what: await call(ORDERS.unknown, token), code: status.PERMISSION_DENIED, says: /^No rule of this API / },
      {
        what: await call(ORDERS.read, neighbours.issue('scopeless', [])),
        code: status.PERMISSION_DENIED,
        says: /^Get an access token that has every scope/,
      },
      { what: await call(ORDERS.sell, token), code: status.FAILED_PRECONDITION, says: /^Ask for an invoice / },
      {
        what: await call(ORDERS.read, token, { 'x-bitcoin-txid': 'short' }),
        code: status.INVALID_ARGUMENT,
        says: /^[A-Z][^{]+\.$/,
      },
    ]
    for (const { what, code, says } of refusals) refusedWith(what, code, says)
    assert.equal(orders.calls(), before, 'none of them reached the API')

    const busy = neighbours.issue('busy-client', ['orders'])
    assert.equal((await call(ORDERS.rarely, busy)).error, undefined)
    const limited = await call(ORDERS.rarely, busy)
    refusedWith(limited, status.RESOURCE_EXHAUSTED, /^Wait as long as /)
    assert.ok(Number(limited.error?.metadata.get('retry-after')[0]) > 1)

    await neighbours.stopIntrospector()
    const unknown = await call(ORDERS.read, neighbours.issue('unasked', ['orders']))
    refusedWith(unknown, status.UNAVAILABLE, /^A part that decides /)
  })

  test('an authorizer that is gone is UNAVAILABLE to gRPC clients', async () => {
    await stack.authorizer.kill()
    const { error } = await call(ORDERS.read)
    assert.equal(error?.code, status.UNAVAILABLE)
  })

  async function upgrade(path: string, token?: string): Promise<{ status: number; socket?: Duplex }> {
    const sent = httpRequest({
      host: '127.0.0.1',
      port: envoy.port,
      path,
      agent: false,
      headers: {
        ...(token !== undefined && { authorization: `Bearer ${token}` }),
        connection: 'upgrade',
        upgrade: 'websocket',
        'sec-websocket-version': '13',
        'sec-websocket-key': Buffer.alloc(16, 1).toString('base64'),
      },
    })
    sent.end()
    return await Promise.race([
      once(sent, 'upgrade').then(([response, socket]) => ({
        status: (response as IncomingMessage).statusCode ?? 0,
        socket,
      })),
      once(sent, 'response').then(([response]) => {
        response.resume()
        return { status: (response as IncomingMessage).statusCode ?? 0 }
      }),
    ])
  }
})

function metadataOf(token?: string, more: Readonly<Record<string, string>> = {}): Metadata {
  const metadata = new Metadata()
  if (token !== undefined) metadata.set('authorization', `Bearer ${token}`)
  for (const [name, value] of Object.entries(more)) metadata.set(name, value)
  return metadata
}

function refusedWith({ error }: { error?: ServiceError }, code: status, says: RegExp): void {
  assert.equal(status[error?.code ?? 0], status[code], error?.details)
  assert.match(error?.details ?? '', says)
  assert.match(String(error?.metadata.get('x-tollward-decision')[0]), /^[0-9a-f-]{36}$/)
}

interface OrdersApi extends AsyncDisposable {
  readonly port: number
  readonly calls: () => number
  /** Of the last call. */
  readonly last: Metadata | undefined
}

async function startOrders(): Promise<OrdersApi> {
  let calls = 0
  let last: Metadata | undefined
  const server = new Server()
  const unary: handleUnaryCall<Buffer, Buffer> = ({ request, metadata }, callback) => {
    calls += 1
    last = metadata
    callback(null, Buffer.from(`read ${request}`))
  }
  const follow: handleServerStreamingCall<Buffer, Buffer> = (call) => {
    calls += 1
    for (let index = 0; index < Number(call.request); index += 1) call.write(Buffer.from(String(index)))
    call.end()
  }
  server.addService(ORDERS, { read: unary, sell: unary, rarely: unary, unknown: unary, follow })
  const { promise, resolve, reject } = Promise.withResolvers<number>()
  server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, port) =>
    error ? reject(error) : resolve(port),
  )
  return {
    port: await promise,
    calls: () => calls,
    get last() {
      return last
    },
    [Symbol.asyncDispose]: async () => server.forceShutdown(),
  }
}

/** A server that remembers the trailers of requests. */
async function startHearingTrailers(): Promise<AsyncDisposable & { port: number; trailers: () => object[] }> {
  const heard: object[] = []
  const sessions = new Set<ServerHttp2Session>()
  const server = createServer()
  server.on('session', (session) => sessions.add(session))
  server.on('stream', (stream) => {
    stream.on('trailers', (trailers: object) => heard.push(trailers))
    stream.resume().on('end', () => {
      stream.respond({ ':status': 200 })
      stream.end()
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  return {
    port,
    trailers: () => heard,
    [Symbol.asyncDispose]: async () => {
      for (const session of sessions) session.destroy()
      const closed = once(server, 'close')
      server.close()
      await closed
    },
  }
}
