import { type Bus, connectBus, type Following } from '@tollward/bus'
import { iterate } from '@tollward/libbpf'
import { aborted, readSecretFile, type ServiceContext } from '@tollward/runtime'
import type { Logger } from 'pino'
import { Outbox } from './adapters/batch-publisher.ts'
import { BlockTable } from './adapters/block-table.ts'
import { followBlocks } from './adapters/blocks.ts'
import type { CallSettings } from './adapters/call-kernel.ts'
import { CallCapture } from './adapters/calls.ts'
import { capabilitiesOf } from './adapters/capabilities.ts'
import { drainFlows } from './adapters/flow-drain.ts'
import { FlowPublisher } from './adapters/flow-publisher.ts'
import { Hooks } from './adapters/hooks.ts'
import { type Kernel, loadKernel, removeOutdated } from './adapters/kernel.ts'
import { KernelDrops } from './adapters/kernel-drops.ts'
import { followKernelRules, KernelRules } from './adapters/kernel-rules.ts'
import { addressesToGuard, watchNode } from './adapters/node.ts'
import { objectFile } from './adapters/object-file.ts'
import { OwnConnections } from './adapters/own-connections.ts'
import { holdPins, openPins, takeLinks, takeOrphans } from './adapters/pins.ts'
import { alertOfRules } from './adapters/rule-alerts.ts'
import { reportState } from './adapters/state-report.ts'
import type { Config } from './config.ts'
import { sensorMetrics } from './metrics.ts'

/** The feeds of blocks and rules have a heartbeat every second. */
const SILENCE_MAX_MS = 10_000

/** The whole service: the kernel first, so that it guards and counts whether there is a bus or not. */
export async function run({ name, config, log, registry, health, signal }: ServiceContext<Config>): Promise<void> {
  await using resources = new AsyncDisposableStack()
  const { mode, node, interfaces, managementPorts, guardedAddresses } = config
  resources.use(await holdPins(config.pinDirectory))
  const pins = openPins(config.pinDirectory)
  const kernel = resources.use(loadKernel(await objectFile(config.bpfObject), pins, config, log))
  const guarded = addressesToGuard(guardedAddresses)
  kernel.guard(guarded)
  log.info(
    { mode, managementPorts, guarded: guarded.length, maps: kernel.adopted ? 'adopted' : 'new' },
    'kernel programs loaded',
  )

  const drops = new KernelDrops(kernel)
  const metrics = sensorMetrics(registry, {
    verdicts: () => kernel.verdicts(),
    events: () => kernel.events(),
    drops: () => drops.totals(),
    blocks: () => table.sizes(),
    calls: () => calls?.counts() ?? {},
    callTargets: () => calls?.targetCounts() ?? {},
  })
  // Before the hooks: blocks that were copied are only looked for once the table has seen them.
  const table = new BlockTable({ kernel, guarded, metrics, log })
  const rules = resources.use(new KernelRules({ kernel, metrics, log }))
  takeLinks(pins)
  const orphans = takeOrphans(pins)
  if (orphans > 0) log.warn({ orphans }, 'programs without a pin were found on their hooks and are taken over')
  const hooks = resources.use(new Hooks({ kernel, directory: pins.directory, interfaces, metrics, log }))
  const flowsLeft = removeOutdated(pins, log)
  const listing = listConnections(kernel, log)
  const capabilities = capabilitiesOf({ kernel, hooks })
  log.info({ capabilities }, 'what this kernel offers')
  resources.use(watchNode({ kernel, table, rules, hooks, guardedAddresses, log }))

  const own = resources.use(new OwnConnections())
  const outbox = new Outbox({ log })
  const publisher = new FlowPublisher({ node, outbox, metrics })
  publisher.addLost(flowsLeft, 'replaced')
  const draining = drainFlows({
    kernel,
    publisher,
    drops,
    own,
    hooks,
    intervalMs: config.drainIntervalMs,
    metrics,
    log,
    signal,
  })

  const calls =
    config.calls === 'off'
      ? undefined
      : new CallCapture({ settings: callSettings(config), ranges: config.callsRanges, node, outbox, metrics, log })
  const capturing = calls?.run(signal)

  const alerting = alertOfRules({ kernel, rules, mode, node, outbox, metrics, signal })

  let bus: Bus | undefined
  let blocks: Following | undefined
  let followingRules: Following | undefined
  health.check('kernel', () => hooks.fault())
  health.check('bus', () => whyNoBus(bus))
  health.check('blocks', () => whyNotFollowed(blocks, 'blocks'))
  health.check('rules', () => whyNotFollowed(followingRules, 'rules') ?? rules.fault())
  health.check('flows', () => publisher.fault())
  health.check('calls', () => (config.calls === 'on' ? calls?.fault() : undefined))
  health.ready()
  const nkey = config.natsNkeyFile === undefined ? {} : { nkeySeed: readSecretFile(config.natsNkeyFile) }
  bus = await unless(signal, connectBus({ servers: config.natsUrl, name, ...nkey, log, registry }))
  if (!bus) return capturing
  resources.use(bus)
  const publishing = outbox.run(bus, signal)
  blocks = await unless(signal, followBlocks({ bus, table, metrics, log }))
  if (blocks) resources.use(blocks)
  followingRules = await unless(signal, followKernelRules({ bus, rules, metrics, log }))
  if (followingRules) resources.use(followingRules)
  const faults = () => health.reasons()
  const parts = {
    kernel,
    hooks,
    table,
    rules,
    drops,
    calls,
    capabilities: () => [...capabilities, ...(calls ? [calls.capability()] : [])],
    faults,
  }
  const reporting = reportState({ node, mode, ...parts, bus, metrics, log, signal })
  log.info({ blocks: table.sizes() }, 'ready')
  await listing
  const work = [draining, alerting, publishing, reporting, ...(capturing === undefined ? [] : [capturing])]
  await Promise.race([aborted(signal), ...work])
  await Promise.all(work)
}

/** Connections that were open before the sensor are told whose they are; later ones tell it themselves. */
async function listConnections(kernel: Kernel, log: Logger): Promise<void> {
  try {
    await iterate(kernel.program('list_connections'))
  } catch (error) {
    log.warn({ err: error }, 'connections that were open before have no owner until they are used')
  }
}

/** What waits to be read of calls takes this much memory of the kernel: two thousand reads of full payload. */
const CALL_RING_BYTES = 8 * 1024 * 1024
/** A cgroup may take at once what it may take in two seconds. */
const CALL_BURST_SECONDS = 2

function callSettings(config: Config): CallSettings {
  const cgroupBytesPerSecond = config.callsCgroupBytesPerSecond
  return {
    payloadBytesMax: config.callsPayloadBytesMax,
    ...{ cgroupBytesPerSecond, cgroupBurstBytes: cgroupBytesPerSecond * CALL_BURST_SECONDS },
    ...{ sampleOneIn: config.callsSampleOneIn, clearPorts: config.callsClearPorts, ringBytes: CALL_RING_BYTES },
  }
}

/** What the promise gives; undefined if the service is to end before: the first connection may never come. */
function unless<T>(signal: AbortSignal, promise: Promise<T>): Promise<T | undefined> {
  return Promise.race([promise, aborted(signal).then(() => undefined)])
}

function whyNoBus(bus: Bus | undefined): string | undefined {
  if (bus?.connected) return undefined
  const since = bus ? `away for ${Math.round(bus.disconnectedForMs / 1000)} s` : 'not reached yet'
  return `${since}; what the kernel blocks stays blocked, but nothing new is blocked or lifted on this node`
}

function whyNotFollowed(following: Following | undefined, what: string): string | undefined {
  if (!following) return `the list of ${what} was not read yet`
  if (following.silentForMs < SILENCE_MAX_MS) return undefined
  return `nothing was heard of ${what} for ${Math.round(following.silentForMs / 1000)} s`
}
