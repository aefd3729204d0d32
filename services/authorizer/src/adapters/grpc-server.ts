import { create, fromBinary, toBinary } from '@bufbuild/protobuf'
import { type handleUnaryCall, Server, ServerCredentials, type ServiceDefinition } from '@grpc/grpc-js'
import { ReflectionService } from '@grpc/reflection'
import type { AddressRange } from '@tollward/contracts'
import { Authorization, type CheckRequest, CheckRequestSchema, CheckResponseSchema } from '@tollward/contracts/envoy'
import { reflectionPackage } from '@tollward/contracts/grpc'
import type { Decider, Decision } from '@tollward/decision'
import { HealthImplementation } from 'grpc-health-check'
import type { Logger } from 'pino'
import { checkAnswer, checkFacts } from '../domain/check.ts'
import type { AuthorizerMetrics } from '../metrics.ts'

export interface GrpcServerOptions {
  readonly host: string
  readonly port: number
  readonly trustedProxies: readonly AddressRange[]
  readonly decider: Decider
  readonly notReady: () => string | undefined
  readonly metrics: AuthorizerMetrics
  readonly log: Logger
}

export interface ListeningServer extends AsyncDisposable {
  readonly port: number
}

/** A question with its headers; Envoy's limit for them is 60 KiB by default. */
const MESSAGE_BYTES_MAX = 256 * 1024
/** Questions under way on one connection; Envoy opens few connections. */
const STREAMS_MAX = 10_000
/** Calls that are under way at the end get this long. */
const DRAIN_MS = 3000
const HEALTH_EVERY_MS = 500

/** Bytes in and out: what cannot be read must still be answered with a refusal, not with an error that a proxy may admit on. */
const CHECK: ServiceDefinition = {
  check: {
    path: `/${Authorization.typeName}/${Authorization.method.check.name}`,
    requestStream: false,
    responseStream: false,
    requestSerialize: Buffer.from,
    requestDeserialize: (bytes) => bytes,
    responseSerialize: (bytes) => bytes,
    responseDeserialize: (bytes) => bytes,
  },
}

/** Serves envoy.service.auth.v3.Authorization/Check, with health and reflection. Every call ends with gRPC status OK. */
export async function startGrpcServer(options: GrpcServerOptions): Promise<ListeningServer> {
  const { host, port, notReady } = options
  const server = new Server({
    'grpc.max_receive_message_length': MESSAGE_BYTES_MAX,
    'grpc.max_concurrent_streams': STREAMS_MAX,
  })
  const check = answering(options)
  const onCheck: handleUnaryCall<Uint8Array, Buffer> = ({ request }, callback) => {
    const answer = check(request)
    if (answer instanceof Promise) void answer.then((bytes) => callback(null, bytes))
    else callback(null, answer)
  }
  server.addService(CHECK, { check: onCheck })
  new ReflectionService(reflectionPackage([Authorization])).addToServer(server)
  const health = new HealthImplementation({ '': 'SERVING', [Authorization.typeName]: 'SERVING' })
  health.addToServer(server)
  const timer = setInterval(() => {
    const status = notReady() === undefined ? 'SERVING' : 'NOT_SERVING'
    for (const service of ['', Authorization.typeName]) health.setStatus(service, status)
  }, HEALTH_EVERY_MS)
  const bound = await bind(server, `${host.includes(':') ? `[${host}]` : host}:${port}`)
  return {
    port: bound,
    [Symbol.asyncDispose]: async () => {
      clearInterval(timer)
      await shutDown(server)
    },
  }
}

/** Answers one question. Whatever goes wrong on the way is a refusal. */
function answering({ decider, trustedProxies, metrics, log }: GrpcServerOptions) {
  const decide = (bytes: Uint8Array): Decision | Promise<Decision> => {
    metrics.requests.inc({ protocol: 'grpc' })
    const question = decode(bytes)
    const facts = question && checkFacts(question, trustedProxies)
    if (facts) return decider.decide(facts)
    metrics.undecidable.inc({ protocol: 'grpc' })
    return decider.refuse('malformed-request')
  }
  const failed = (error: unknown): Buffer => {
    log.error({ err: error }, 'check failed')
    return encode(checkAnswer(decider.refuse('unavailable')))
  }
  return (bytes: Uint8Array): Buffer | Promise<Buffer> => {
    try {
      const decision = decide(bytes)
      if (!(decision instanceof Promise)) return encode(checkAnswer(decision))
      return decision.then((decided) => encode(checkAnswer(decided))).catch(failed)
    } catch (error) {
      return failed(error)
    }
  }
}

function decode(bytes: Uint8Array): CheckRequest | undefined {
  try {
    return fromBinary(CheckRequestSchema, bytes)
  } catch {
    // Not a CheckRequest: the caller counts and refuses it.
    return undefined
  }
}

function encode(answer: ReturnType<typeof checkAnswer>): Buffer {
  const bytes = toBinary(CheckResponseSchema, create(CheckResponseSchema, answer))
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

function bind(server: Server, address: string): Promise<number> {
  return new Promise((resolve, reject) => {
    server.bindAsync(address, ServerCredentials.createInsecure(), (error, port) =>
      error ? reject(error) : resolve(port),
    )
  })
}

async function shutDown(server: Server): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  const timer = setTimeout(() => server.forceShutdown(), DRAIN_MS)
  server.tryShutdown(() => resolve())
  await promise
  clearTimeout(timer)
}
