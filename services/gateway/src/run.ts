import { readFile } from 'node:fs/promises'
import { connectBus } from '@tollward/bus'
import { createDecider } from '@tollward/decision'
import { aborted, readSecretFile, type ServiceContext } from '@tollward/runtime'
import { startProxy } from './adapters/proxy.ts'
import type { Config } from './config.ts'
import { gatewayMetrics } from './metrics.ts'

/** The whole service: a reverse proxy that decides in process. */
export async function run({ name, config, log, registry, health, signal }: ServiceContext<Config>): Promise<void> {
  await using resources = new AsyncDisposableStack()
  const tls = await tlsFiles(config)
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
  const shared = { upstreamUrl, upstreamTimeoutMs, bodyBytesMax, trustedProxies, decider, metrics, log }
  const http = resources.use(await startProxy({ ...shared, host: config.httpHost, port: config.httpPort }))
  log.info({ port: http.port, upstreamUrl }, 'http served')
  if (tls) {
    const https = resources.use(await startProxy({ ...shared, host: config.httpsHost, port: config.httpsPort, tls }))
    log.info({ port: https.port, upstreamUrl }, 'https served')
  }
  health.ready()
  await aborted(signal)
}

async function tlsFiles({ tlsCertFile, tlsKeyFile }: Config): Promise<{ cert: string; key: string } | undefined> {
  if (tlsCertFile === undefined || tlsKeyFile === undefined) return undefined
  return { cert: await readFile(tlsCertFile, 'utf8'), key: readSecretFile(tlsKeyFile) }
}
