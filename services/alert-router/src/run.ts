import { connectBus } from '@tollward/bus'
import { aborted, readSecretFile, type ServiceContext } from '@tollward/runtime'
import { consumeAlerts } from './adapters/alert-consumer.ts'
import { FindingsFile } from './adapters/findings-file.ts'
import type { Config } from './config.ts'
import { routerMetrics } from './metrics.ts'

/** Alerts in; OCSF findings out, on the bus and in a file. */
export async function run({ name, config, log, registry, health, signal }: ServiceContext<Config>): Promise<void> {
  await using resources = new AsyncDisposableStack()
  const metrics = routerMetrics(registry)
  const file = resources.use(
    new FindingsFile({
      path: config.findingsFile,
      bytesMax: config.findingsFileBytesMax,
      keep: config.findingsFilesKept,
      onRemoved: () => metrics.filesRemoved.inc(),
    }),
  )
  await file.openNow()
  health.check('findings file', () => file.fault)

  const { natsUrl: servers, natsNkeyFile } = config
  const nkeySeed = natsNkeyFile === undefined ? {} : { nkeySeed: readSecretFile(natsNkeyFile) }
  const bus = resources.use(await connectBus({ servers, name, ...nkeySeed, log, registry }))
  health.check('bus', () => (bus.connected ? undefined : 'the connection to NATS is lost'))
  resources.use(await consumeAlerts(bus, { file, metrics }))

  health.ready()
  log.info('ready')
  await aborted(signal)
}
