import type { Writable } from 'node:stream'
import { connectBus } from '@tollward/bus'
import { parseAddress } from '@tollward/contracts'
import { createDecider, isTrusted } from '@tollward/decision'
import { aborted, readSecretFile, type ServiceContext } from '@tollward/runtime'
import { openAccessLog } from './adapters/access-log.ts'
import { type Listener, type ListenerOptions, listen } from './adapters/listener.ts'
import { type ProxyContext, pass } from './adapters/proxy.ts'
import { readTlsFiles, type TlsFiles, watchTlsFiles } from './adapters/tls-files.ts'
import { openUpstream } from './adapters/upstream.ts'
import type { Config } from './config.ts'
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
  const files = tlsFiles(config)
  const tls = files && (await readTlsFiles(files))
  const nkey = config.natsNkeyFile === undefined ? {} : { nkeySeed: readSecretFile(config.natsNkeyFile) }
  const bus = resources.use(await connectBus({ servers: config.natsUrl, name, ...nkey, log, registry }))
  const { paymentUrl, guardedAddresses, trustedProxies, upstreamUrl, upstreamTimeoutMs, bodyBytesMax } = config
  const decider = resources.use(
    await createDecider({ bus, log, registry, config: { source: 'gateway', paymentUrl, guardedAddresses } }),
  )
  health.check('decisions', () => decider.notReady())

  const metrics = gatewayMetrics(registry)
  const { accessLog: format, accessLogFile: file } = config
  const accessLog = resources.use(await openAccessLog({ format, file, stdout, metrics, log }))
  onHangup(() => accessLog.reopen())
  const upstream = resources.use(openUpstream(upstreamUrl, upstreamTimeoutMs))
  const context: ProxyContext = { upstream, bodyBytesMax, trustedProxies, decider, metrics, accessLog, log }
  const shared: Omit<ListenerOptions, 'host' | 'port'> = {
    names: { verified: config.tlsClientCaFile !== undefined },
    connectionsMax: config.connectionsMax,
    connectionsPerSourceMax: config.connectionsPerSourceMax,
    isProxy: (peer) => isTrusted(parseAddress(peer) ?? new Uint8Array(), trustedProxies),
    drainMs: config.drainMs,
    decider,
    metrics,
    onExchange: (exchange) => pass(context, exchange),
    onUpgrade: (_request, socket) => socket.destroy(),
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
    const watch = resources.use(watchTlsFiles(files, tls, (read) => https.renew(read), { log, metrics }))
    onHangup(() => void watch.check())
  }
  health.ready()
  await aborted(signal)
  await Promise.all(listeners.map((listener) => listener.drain()))
}

function tlsFiles({ tlsCertFile, tlsKeyFile, tlsClientCaFile }: Config): TlsFiles | undefined {
  if (tlsCertFile === undefined || tlsKeyFile === undefined) return undefined
  return { certFile: tlsCertFile, keyFile: tlsKeyFile, clientCaFile: tlsClientCaFile }
}
