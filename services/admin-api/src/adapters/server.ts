import { Server, ServerCredentials } from '@grpc/grpc-js'
import { ReflectionService } from '@grpc/reflection'
import { AdminService } from '@tollward/contracts/admin'
import { type GrpcHandlers, grpcDefinition, reflectionPackage } from '@tollward/contracts/grpc'
import { TEXT_BYTES_MAX } from '@tollward/documents'
import { HealthImplementation } from 'grpc-health-check'

/** The largest request is an Apply with the largest text. */
const REQUEST_BYTES_MAX = TEXT_BYTES_MAX + 64 * 1024
/** A list of blocks of a long attack; what is larger is refused by gRPC itself with RESOURCE_EXHAUSTED. */
const RESPONSE_BYTES_MAX = 64 * 1024 * 1024
/** Calls at once over one connection. */
const STREAMS_MAX = 100
/** A caller that vanished without a word is noticed within twice this time. */
const KEEPALIVE_MS = 30_000
/** Calls under way may take this long when the service ends. */
const DRAIN_MS = 5000

export interface GrpcServer extends AsyncDisposable {
  readonly port: number
}

/** Serves AdminService, reflection and health; the last two to anybody. */
export async function listenGrpc(
  handlers: GrpcHandlers<typeof AdminService>,
  { host, port }: { host: string; port: number },
): Promise<GrpcServer> {
  const server = new Server({
    'grpc.max_receive_message_length': REQUEST_BYTES_MAX,
    'grpc.max_send_message_length': RESPONSE_BYTES_MAX,
    'grpc.max_concurrent_streams': STREAMS_MAX,
    'grpc.keepalive_time_ms': KEEPALIVE_MS,
    'grpc.keepalive_timeout_ms': KEEPALIVE_MS,
  })
  server.addService(grpcDefinition(AdminService), handlers)
  const reflection = new ReflectionService(reflectionPackage([AdminService]), { services: [AdminService.typeName] })
  reflection.addToServer(server)
  const health = new HealthImplementation({ '': 'SERVING', [AdminService.typeName]: 'SERVING' })
  health.addToServer(server)
  const address = `${host.includes(':') ? `[${host}]` : host}:${port}`
  const bound = await new Promise<number>((resolve, reject) => {
    server.bindAsync(address, ServerCredentials.createInsecure(), (error, boundPort) =>
      error ? reject(error) : resolve(boundPort),
    )
  })
  return {
    port: bound,
    [Symbol.asyncDispose]: async () => {
      for (const name of ['', AdminService.typeName]) health.setStatus(name, 'NOT_SERVING')
      const timer = setTimeout(() => server.forceShutdown(), DRAIN_MS)
      await new Promise<void>((resolve) => server.tryShutdown(() => resolve()))
      clearTimeout(timer)
    },
  }
}
