import { randomBytes } from 'node:crypto'
import { connectBus } from '@tollward/bus'
import { aborted, readSecretFile, type ServiceContext } from '@tollward/runtime'
import { auditBlocks } from './adapters/block-audit.ts'
import { followBlocks } from './adapters/block-feed.ts'
import { consumeFlows, type Pending } from './adapters/flow-consumer.ts'
import { followSettings } from './adapters/settings-feed.ts'
import type { Config } from './config.ts'
import { Detection } from './domain/detection.ts'
import { ingestMetrics } from './metrics.ts'

/** Flows in, blocks and alerts out; and the audit of the bucket `blocks`. */
export async function run({ name, config, log, registry, health, signal }: ServiceContext<Config>): Promise<void> {
  await using resources = new AsyncDisposableStack()
  const { natsUrl: servers, natsNkeyFile, guardedAddresses: guarded, machineBlocksMax } = config
  const nkeySeed = natsNkeyFile === undefined ? {} : { nkeySeed: readSecretFile(natsNkeyFile) }
  const bus = resources.use(await connectBus({ servers, name, ...nkeySeed, log, registry }))
  health.check('bus', () => (bus.connected ? undefined : 'the connection to NATS is lost'))

  const detection = new Detection({ guarded, machineBlocksMax, scanSeed: randomBytes(4).readInt32LE() })
  const pending: Pending = new Map()
  const metrics = ingestMetrics(registry, {
    evictions: () => detection.evictions,
    machineBlocks: () => detection.ledger.machineBlocks(Date.now()),
    pendingActions: () => pending.size,
  })

  const apply = (settings: Detection['settings']) => {
    detection.settings = settings
  }
  resources.use(await followSettings(bus, { log, metrics, apply }))
  for (const feed of await followBlocks(bus, detection.ledger, Date.now())) resources.use(feed)
  resources.use(await auditBlocks(bus, metrics))
  resources.use(await consumeFlows(bus, { detection, pending, metrics }))

  health.ready()
  log.info('ready')
  await aborted(signal)
}
