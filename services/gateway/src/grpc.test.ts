import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { after, before, describe, test } from 'node:test'
import {
  Client,
  credentials,
  Metadata,
  type MethodDefinition,
  Server,
  ServerCredentials,
  type ServerUnaryCall,
  type ServiceError,
  type sendUnaryData,
  status,
} from '@grpc/grpc-js'
import { requires } from '@tollward/testkit'
import { startTestGateway, type TestGateway } from './test-gateway.ts'

const skip = await requires({ tools: ['nats-server', 'openssl'] })
/** What waits for an end that does not come fails, rather than wait for ever. */
const TEST_TIMEOUT_MS = 20_000

const bytes = (value: Buffer) => value
const method = (name: string, streams: boolean): MethodDefinition<Buffer, Buffer> => ({
  path: `/test.Echo/${name}`,
  requestStream: streams,
  responseStream: streams,
  requestSerialize: bytes,
  requestDeserialize: bytes,
  responseSerialize: bytes,
  responseDeserialize: bytes,
})
const SERVICE = { say: method('Say', false), fail: method('Fail', false), talk: method('Talk', true) }

describe('gateway, gRPC', { skip }, () => {
  let resources: AsyncDisposableStack
  let gateway: TestGateway
  let client: Client
  let heard = new Metadata()

  before(async () => {
    resources = new AsyncDisposableStack()
    const server = new Server()
    server.addService(SERVICE, {
      say: (call: ServerUnaryCall<Buffer, Buffer>, answer: sendUnaryData<Buffer>) => {
        heard = call.metadata
        const trailers = new Metadata()
        trailers.set('x-sum', '42')
        answer(null, call.request, trailers)
      },
      fail: (_call: unknown, answer: (error: object) => void) => answer({ code: status.ABORTED, details: 'is so' }),
      talk: (call: NodeJS.ReadWriteStream) => {
        call.on('data', (chunk) => call.write(chunk))
        call.on('end', () => call.end())
      },
    })
    const port = await new Promise<number>((resolve, reject) =>
      server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
        error ? reject(error) : resolve(bound),
      ),
    )
    resources.defer(() => server.forceShutdown())
    gateway = await startTestGateway(resources, (_request, response) => response.end(), {
      env: { TOLLWARD_UPSTREAM_URL: `http://127.0.0.1:${port}`, TOLLWARD_UPSTREAM_PROTOCOL: 'h2c' },
    })
    const root = readFileSync(gateway.env.TOLLWARD_TLS_CERT_FILE ?? '')
    const checks = { checkServerIdentity: () => undefined }
    client = new Client(`127.0.0.1:${gateway.httpsPort}`, credentials.createSsl(root, null, null, checks), {
      'grpc.default_authority': 'closed.example',
      'grpc.ssl_target_name_override': 'localhost',
    })
    resources.defer(() => client.close())
  })
  after(() => resources.disposeAsync())

  function withToken(): Metadata {
    const metadata = new Metadata()
    metadata.set('authorization', `Bearer ${gateway.neighbours.issue('grpc-client', ['orders'])}`)
    metadata.set('x-tollward-client', 'admin')
    return metadata
  }

  function call(definition: typeof SERVICE.say, metadata: Metadata) {
    const { promise, resolve } = Promise.withResolvers<{
      error: ServiceError | null
      value: string
      trailers: Metadata
    }>()
    const trailing = Promise.withResolvers<Metadata>()
    const sent = client.makeUnaryRequest(
      definition.path,
      bytes,
      bytes,
      Buffer.from('hello'),
      metadata,
      (error, value) => {
        void trailing.promise.then((trailers) => resolve({ error, value: String(value), trailers }))
      },
    )
    sent.on('status', (ended) => trailing.resolve(ended.metadata))
    return promise
  }

  test('calls pass with their trailers and status, and the API hears who calls', {
    timeout: TEST_TIMEOUT_MS,
  }, async () => {
    const { error, value, trailers } = await call(SERVICE.say, withToken())
    assert.deepEqual([error, value, trailers.get('x-sum')], [null, 'hello', ['42']])
    assert.deepEqual(heard.get('x-tollward-client'), ['grpc-client'])
    const failed = await call(SERVICE.fail, withToken())
    assert.deepEqual([failed.error?.code, failed.error?.details], [status.ABORTED, 'is so'])
  })

  test('streams go both ways message by message', { timeout: TEST_TIMEOUT_MS }, async () => {
    const stream = client.makeBidiStreamRequest(SERVICE.talk.path, bytes, bytes, withToken())
    for (const message of ['one', 'two']) {
      stream.write(Buffer.from(message))
      assert.equal(String((await once(stream, 'data'))[0]), message)
    }
    stream.end()
    stream.resume()
    const [ended] = await once(stream, 'status')
    assert.equal(ended.code, status.OK)
  })

  test('a refusal is a status that a client of gRPC understands, with its sentence and decision', {
    timeout: TEST_TIMEOUT_MS,
  }, async () => {
    const { error, trailers } = await call(SERVICE.say, new Metadata())
    assert.equal(error?.code, status.UNAUTHENTICATED)
    assert.match(error?.details ?? '', /Get an access token/)
    assert.match(String(trailers.get('x-tollward-decision')), /^[0-9a-f-]{36}$/)
  })

  test('a stream ends when its caller is revoked', { timeout: TEST_TIMEOUT_MS }, async () => {
    const metadata = withToken()
    const stream = client.makeBidiStreamRequest(SERVICE.talk.path, bytes, bytes, metadata)
    stream.write(Buffer.from('one'))
    await once(stream, 'data')
    const ended = assert.rejects(once(stream, 'status'), { code: status.INTERNAL })
    stream.resume()
    await gateway.neighbours.revokeClient('grpc-client')
    await ended
  })
})
