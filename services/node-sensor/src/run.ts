import { type Bus, connectBus, type Following } from '@tollward/bus'
import { aborted, readSecretFile, type ServiceContext } from '@tollward/runtime'
import { followBlocks } from './adapters/blocks.ts'
import type { CallSettings } from './adapters/call-kernel.ts'
import { CallCapture } from './adapters/calls.ts'
import { followKernelRules } from './adapters/kernel-rules.ts'
import { reportState, stateBucket } from './adapters/state-report.ts'
import type { Config } from './config.ts'
import { openSensor } from './sensor.ts'

/** The feeds of blocks and rules have a heartbeat every second. */
const SILENCE_MAX_MS = 10_000

/** The whole service: the kernel first, so that it guards and counts whether there is a bus or not. */
export async function run({ name, config, log, registry, health, signal }: ServiceContext<Config>): Promise<void> {
  await using resources = new AsyncDisposableStack()
  const { mode, node } = config
  const sensor = await openSensor({
    ...{ config, log, registry, health, signal, resources, tellsFlows: true },
    ...(config.calls !== 'off' && {
      callsTo: (to) =>
        new CallCapture({ settings: callSettings(config), ranges: config.callsRanges, node, log, ...to }),
    }),
  })
  const { table, rules, metrics, outbox, calls } = sensor

  let bus: Bus | undefined
  let blocks: Following | undefined
  let followingRules: Following | undefined
  health.check('bus', () => whyNoBus(bus))
  health.check('blocks', () => whyNotFollowed(blocks, 'blocks'))
  health.check('rules', () => whyNotFollowed(followingRules, 'rules') ?? rules.fault())
  health.check('calls', () => (config.calls === 'on' ? calls?.fault() : undefined))
  health.ready()
  const nkey = config.natsNkeyFile === undefined ? {} : { nkeySeed: readSecretFile(config.natsNkeyFile) }
  bus = await unless(signal, connectBus({ servers: config.natsUrl, name, ...nkey, log, registry }))
  if (!bus) return void (await Promise.all(sensor.work))
  resources.use(bus)
  const publishing = outbox.run(bus, signal)
  blocks = await unless(signal, followBlocks({ bus, table, metrics, log }))
  if (blocks) resources.use(blocks)
  followingRules = await unless(signal, followKernelRules({ bus, rules, metrics, log }))
  if (followingRules) resources.use(followingRules)
  const faults = () => health.reasons()
  const reporting = reportState({ ...sensor, node, mode, faults, to: stateBucket(bus, node), log, signal })
  log.info({ blocks: table.sizes() }, 'ready')
  await sensor.listing
  const work = [...sensor.work, publishing, reporting]
  await Promise.race([aborted(signal), ...work])
  await Promise.all(work)
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
