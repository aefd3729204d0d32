import { connectBus } from '@tollward/bus'
import { createDecider } from '@tollward/decision'
import { AppError } from '@tollward/errors'
import { aborted, readSecretFile, readTlsFiles, type ServiceContext } from '@tollward/runtime'
import { startForwardAuthServer } from './adapters/forward-auth-server.ts'
import { startGrpcServer } from './adapters/grpc-server.ts'
import type { GrpcAddress } from './adapters/grpc-transport.ts'
import type { Config } from './config.ts'
import { authorizerMetrics } from './metrics.ts'

/** The whole service: answers proxies from memory that the bus keeps current. */
export async function run({ name, config, log, registry, health, signal }: ServiceContext<Config>): Promise<void> {
  await using resources = new AsyncDisposableStack()
  const nkey = config.natsNkeyFile === undefined ? {} : { nkeySeed: readSecretFile(config.natsNkeyFile) }
  const bus = resources.use(await connectBus({ servers: config.natsUrl, name, ...nkey, log, registry }))
  const { paymentUrl, guardedAddresses, trustedProxies } = config
  const decider = resources.use(
    await createDecider({
      ...{ bus, log, registry, config: { source: 'authorizer', paymentUrl, guardedAddresses } },
      onProgress: (how) => health.starting(how),
    }),
  )
  health.check('decisions', () => decider.notReady())

  const metrics = authorizerMetrics(registry)
  const shared = { decider, metrics, log }
  const grpc = resources.use(
    await startGrpcServer({
      ...shared,
      at: await grpcAddress(config),
      trustedProxies,
      notReady: () => health.reasons()[0],
    }),
  )
  const trust = {
    askers: config.forwardAuthProxies,
    inFront: trustedProxies,
    certificateHeader: config.forwardAuthCertificateHeader,
  }
  const http = resources.use(
    await startForwardAuthServer({ ...shared, host: config.httpHost, port: config.httpPort, trust }),
  )
  health.ready()
  log.info({ grpcPort: grpc.port, httpPort: http.port }, 'ready')
  await aborted(signal)
}

async function grpcAddress(config: Config): Promise<GrpcAddress> {
  const { grpcHost: host, grpcPort: port, grpcSocket: socket } = config
  const { grpcTlsCertFile: certFile, grpcTlsKeyFile: keyFile, grpcClientCaFile: clientCaFile } = config
  if (socket !== undefined) {
    if (certFile ?? keyFile ?? clientCaFile) {
      throw new AppError('invalid_argument', 'GRPC_SOCKET is without TLS: leave out GRPC_TLS_* and GRPC_CLIENT_CA_FILE')
    }
    return { socket }
  }
  if (certFile !== undefined && keyFile !== undefined) {
    const files = { certFile, keyFile, clientCaFile }
    return { host, port, tls: { files, material: await readTlsFiles(files) } }
  }
  if (certFile ?? keyFile ?? clientCaFile) {
    throw new AppError(
      'invalid_argument',
      'GRPC_TLS_CERT_FILE and GRPC_TLS_KEY_FILE belong together; GRPC_CLIENT_CA_FILE needs both',
    )
  }
  return { host, port, tls: undefined }
}
