import type { Writable } from 'node:stream'
import { connectBus } from '@tollward/bus'
import { parseAddress } from '@tollward/contracts'
import { createDecider, isTrusted } from '@tollward/decision'
import { AppError } from '@tollward/errors'
import {
  aborted,
  readSecretFile,
  readTlsFiles,
  type ServiceContext,
  type TlsFiles,
  watchTlsFiles,
} from '@tollward/runtime'
import { openAccessLog } from './adapters/access-log.ts'
import { type Listener, type ListenerOptions, listen } from './adapters/listener.ts'
import { type ProxyContext, pass } from './adapters/proxy.ts'
import { openUpstream } from './adapters/upstream.ts'
import { openUpstreamHttp2 } from './adapters/upstream-http2.ts'
import { webSockets } from './adapters/websocket.ts'
import { type Config, upstreamFault } from './config.ts'
import { gatewayMetrics } from './metrics.ts'

/** What of the process the gateway uses beside what every service does. */
export interface Surroundings {
  readonly stdout: Writable
  /** SIGHUP: files were moved or changed. */
  onHangup(listener: () => void): void
}

/** The whole service: a reverse proxy that decides in process. */
export async function run(
  { name, config, log, registry, health, signal }: ServiceContext<Config>,
  { stdout, onHangup }: Surroundings,
): Promise<void> {
  await using resources = new AsyncDisposableStack()
  const fault = upstreamFault(config)
  if (fault !== undefined) throw new AppError('invalid_argument', fault)
  const files = tlsFiles(config)
  const tls = files && (await readTlsFiles(files))
  const nkey = config.natsNkeyFile === undefined ? {} : { nkeySeed: readSecretFile(config.natsNkeyFile) }
  const bus = resources.use(await connectBus({ servers: config.natsUrl, name, ...nkey, log, registry }))
  const { paymentUrl, guardedAddresses, trustedProxies, upstreamUrl, upstreamTimeoutMs, bodyBytesMax } = config
  const decider = resources.use(
    await createDecider({
      ...{ bus, log, registry, config: { source: 'gateway', paymentUrl, guardedAddresses } },
      onProgress: (how) => health.starting(how),
    }),
  )
  health.check('decisions', () => decider.notReady())

  const metrics = gatewayMetrics(registry)
  const { accessLog: format, accessLogFile: file } = config
  const accessLog = resources.use(await openAccessLog({ format, file, stdout, metrics, log }))
  onHangup(() => accessLog.reopen())
  const open = config.upstreamProtocol === 'http/1.1' ? openUpstream : openUpstreamHttp2
  const upstream = resources.use(open(upstreamUrl, upstreamTimeoutMs))
  const names = { verified: config.tlsClientCaFile !== undefined }
  const { bodyDecisionBytesMax, webSocketsMax, webSocketIdleMs, webSocketLifetimeMs } = config
  const forwarding = { upstream, bodyBytesMax, bodyDecisionBytesMax, trustedProxies }
  const context: ProxyContext = { ...forwarding, decider, metrics, accessLog, log }
  const lasting = { webSocketsMax, webSocketIdleMs, webSocketLifetimeMs }
  const sockets = webSockets({ ...context, ...lasting, names, upstreamUrl, upstreamTimeoutMs })
  const shared: Omit<ListenerOptions, 'host' | 'port'> = {
    names,
    connectionsMax: config.connectionsMax,
    connectionsPerSourceMax: config.connectionsPerSourceMax,
    isProxy: (peer) => isTrusted(parseAddress(peer) ?? new Uint8Array(), trustedProxies),
    drainMs: config.drainMs,
    decider,
    metrics,
    onExchange: (exchange) => pass(context, exchange),
    onUpgrade: sockets.onUpgrade,
  }
  const listeners: Listener[] = []
  const serve = async (options: Pick<ListenerOptions, 'host' | 'port' | 'tls'>) => {
    const listener = resources.use(await listen({ ...shared, ...options }))
    listeners.push(listener)
    log.info({ port: listener.port, upstreamUrl }, `${options.tls ? 'https' : 'http'} served`)
    return listener
  }
  await serve({ host: config.httpHost, port: config.httpPort })
  if (files && tls) {
    const https = await serve({ host: config.httpsHost, port: config.httpsPort, tls })
    const watch = resources.use(
      watchTlsFiles(files, tls, (read) => https.renew(read), { log, reloads: metrics.tlsReloads }),
    )
    onHangup(() => void watch.check())
  }
  health.ready()
  await aborted(signal)
  sockets.end()
  await Promise.all(listeners.map((listener) => listener.drain()))
}

function tlsFiles({ tlsCertFile, tlsKeyFile, tlsClientCaFile }: Config): TlsFiles | undefined {
  if (tlsCertFile === undefined || tlsKeyFile === undefined) return undefined
  return { certFile: tlsCertFile, keyFile: tlsKeyFile, clientCaFile: tlsClientCaFile }
}
