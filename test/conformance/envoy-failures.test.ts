import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:net'
import { after, before, describe, test } from 'node:test'
import { create, toBinary } from '@bufbuild/protobuf'
import { type handleUnaryCall, Server, ServerCredentials, status } from '@grpc/grpc-js'
import { CheckResponseSchema } from '@tollward/contracts/envoy'
import { EXAMPLE_DOCUMENTS } from '@tollward/decision/testing'
import { eventually, requires } from '@tollward/testkit'
import {
  type Answered,
  type AuthorizerStack,
  ask,
  plainPlaces,
  reasonOf,
  type ShippedEnvoy,
  startAuthorizerStack,
  startShippedEnvoy,
} from './envoy-stack.ts'

const skip = await requires({ tools: ['nats-server', 'envoy'] })
/** What an operator may choose instead of what is shipped. */
const LETS_THROUGH = { 'failure_mode_allow: false': 'failure_mode_allow: true' }
/** Longer than the timeout of the question in the shipped configuration. */
const ANSWER_WITHIN_MS = 3000

describe('a real Envoy whose authorizer is in trouble', { skip }, () => {
  let stack: AuthorizerStack
  let resources: AsyncDisposableStack
  let asShipped: ShippedEnvoy
  let lettingThrough: ShippedEnvoy

  before(async () => {
    resources = new AsyncDisposableStack()
    stack = resources.use(await startAuthorizerStack(EXAMPLE_DOCUMENTS))
    const places = plainPlaces(stack.api.port, stack.authorizerPort)
    asShipped = resources.use(await startShippedEnvoy('envoy.yaml', places))
    lettingThrough = resources.use(await startShippedEnvoy('envoy.yaml', { ...places, ...LETS_THROUGH }))
  })
  after(() => resources.disposeAsync())

  /** What both Envoys make of one request: the shipped one, and the one that lets through when it gets no answer. */
  async function both(asked: Omit<Parameters<typeof ask>[0], 'port'>): Promise<[Answered, Answered]> {
    return await Promise.all([ask({ ...asked, port: asShipped.port }), ask({ ...asked, port: lettingThrough.port })])
  }

  test('an authorizer that answers is obeyed whatever failure_mode_allow says', async () => {
    const { neighbours } = stack
    await neighbours.block('127.0.0.79')
    const token = neighbours.issue('obeyed-client', ['orders'])
    await eventually(async () => (await ask({ port: asShipped.port, from: '127.0.0.79' })).status === 403, {
      what: 'the source is blocked',
    })
    const refused = [
      { path: '/echo', status: 401 },
      { path: '/echo', token: 'nonsense', status: 401 },
      { path: '/nowhere', token, status: 403 },
      { path: '/internal/x', token, status: 403 },
      { path: '/orders', token, status: 402 },
      { path: '/public;x=1', status: 400 },
      { path: '/public', from: '127.0.0.79', status: 403 },
      { path: '/echo', token, headers: { 'x-many': Array.from({ length: 110 }, () => 'x') }, status: 431 },
      { path: '/echo', token, headers: { 'x-long': 'x'.repeat(40_000) }, status: 431 },
    ]
    for (const { status: expected, ...asked } of refused) {
      const before = stack.api.count()
      for (const answered of await both(asked)) assert.equal(answered.status, expected, JSON.stringify(asked))
      assert.equal(stack.api.count(), before, `the API was reached by ${JSON.stringify(asked)}`)
    }
    // As many fields as the authorizer takes leave Envoy room for those that it sets.
    const statuses = []
    for (let count = 80; count <= 100; count += 2) {
      const many = { 'x-many': Array.from({ length: count }, () => 'x') }
      statuses.push(...(await both({ path: '/echo', token, headers: many })).map(({ status }) => status))
    }
    assert.deepEqual([...new Set(statuses)], [200, 431])
  })

  test('a dependency of the authorizer that is gone is its refusal, not a failure that may let through', async () => {
    await stack.neighbours.stopIntrospector()
    const token = stack.neighbours.issue('unasked-client', ['orders'])
    const before = stack.api.count()
    for (const answered of await both({ path: '/echo', token })) {
      assert.equal(answered.status, 503)
      assert.equal(reasonOf(answered), 'unavailable')
      assert.ok(answered.headers['retry-after'])
    }
    assert.equal(stack.api.count(), before)
  })

  test('an authorizer that is frozen refuses within the timeout as shipped, and lets through only where the operator chose it', async () => {
    process.kill(stack.authorizer.pid, 'SIGSTOP')
    try {
      const began = performance.now()
      const [refused, let_] = await both({ path: '/internal/x' })
      assert.ok(performance.now() - began < ANSWER_WITHIN_MS)
      assert.deepEqual([refused.status, let_.status], [503, 200])
    } finally {
      process.kill(stack.authorizer.pid, 'SIGCONT')
    }
    await eventually(async () => (await ask({ port: lettingThrough.port, path: '/internal/x' })).status === 401, {
      what: 'it is obeyed again',
    })
  })

  test('an authorizer that is gone refuses as shipped, lets through where the operator chose it, and is obeyed once it is back', async () => {
    await stack.authorizer.kill()
    const [refused, let_] = await both({ path: '/internal/x' })
    assert.deepEqual([refused.status, let_.status], [503, 200])
    await stack.authorizer.start()
    for (const { port } of [asShipped, lettingThrough]) {
      await eventually(async () => (await ask({ port, path: '/internal/x' })).status === 401, { what: 'it is obeyed' })
    }
  })
})

describe('a real Envoy whose authorizer speaks nonsense', { skip }, () => {
  const nonsense: Record<string, () => Promise<AsyncDisposable & { port: number }>> = {
    'bytes that are no answer': () =>
      startAnswering((_call, callback) => callback(null, Buffer.from([0xff, 0xff, 0xff]))),
    'a gRPC error': () =>
      startAnswering((_call, callback) => callback({ code: status.PERMISSION_DENIED, details: 'no' })),
    'a refusal of which Envoy cannot set a header': () =>
      startAnswering((_call, callback) => callback(null, withUnsettableHeader())),
    'no HTTP at all': startMumbling,
  }
  for (const [what, start] of Object.entries(nonsense)) {
    test(`${what} is no admission`, async () => {
      await using authorizer = await start()
      await using envoy = await startShippedEnvoy('envoy.yaml', plainPlaces(1, authorizer.port))
      const { status: answered } = await ask({ port: envoy.port, path: '/public' })
      assert.ok(answered === 503 || answered === 500, String(answered))
    })
  }
})

const CHECK = {
  check: {
    path: '/envoy.service.auth.v3.Authorization/Check',
    requestStream: false,
    responseStream: false,
    requestSerialize: (bytes: Buffer) => bytes,
    requestDeserialize: (bytes: Buffer) => bytes,
    responseSerialize: (bytes: Buffer) => bytes,
    responseDeserialize: (bytes: Buffer) => bytes,
  },
} as const

async function startAnswering(answer: handleUnaryCall<Buffer, Buffer>): Promise<AsyncDisposable & { port: number }> {
  const server = new Server()
  server.addService(CHECK, { check: answer })
  const { promise, resolve, reject } = Promise.withResolvers<number>()
  server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, port) =>
    error ? reject(error) : resolve(port),
  )
  return { port: await promise, [Symbol.asyncDispose]: async () => server.forceShutdown() }
}

function withUnsettableHeader(): Buffer {
  const headers = [{ header: { key: 'x\r\ny', value: 'z' }, append: false }]
  const answer = { status: { code: 0 }, httpResponse: { case: 'okResponse', value: { headers } } } as const
  return Buffer.from(toBinary(CheckResponseSchema, create(CheckResponseSchema, answer)))
}

async function startMumbling(): Promise<AsyncDisposable & { port: number }> {
  const server = createServer((socket) => socket.on('error', () => socket.destroy()).end('mumble mumble\r\n\r\n'))
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  if (address === null || typeof address === 'string') throw new Error('no port')
  return { port: address.port, [Symbol.asyncDispose]: async () => void server.close() }
}
