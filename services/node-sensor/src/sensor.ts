import { AppError } from '@tollward/errors'
import { isErrno, iterate } from '@tollward/libbpf'
import type { ServiceContext } from '@tollward/runtime'
import type { Logger } from 'pino'
import { Outbox } from './adapters/batch-publisher.ts'
import { BlockTable } from './adapters/block-table.ts'
import type { CallCapture } from './adapters/calls.ts'
import { type Capability, capabilitiesOf } from './adapters/capabilities.ts'
import { drainFlows } from './adapters/flow-drain.ts'
import { FlowPublisher } from './adapters/flow-publisher.ts'
import { Hooks } from './adapters/hooks.ts'
import { type Kernel, loadKernel, removeOutdated } from './adapters/kernel.ts'
import { KernelDrops } from './adapters/kernel-drops.ts'
import { KernelRules } from './adapters/kernel-rules.ts'
import { addressesToGuard, watchNode } from './adapters/node.ts'
import { objectFile } from './adapters/object-file.ts'
import { OwnConnections } from './adapters/own-connections.ts'
import { holdPins, openPins, type Pins, takeLinks, takeOrphans } from './adapters/pins.ts'
import { alertOfRules, type OnGuardEvent } from './adapters/rule-alerts.ts'
import type { SensorConfig } from './config.ts'
import { type Metrics, sensorMetrics } from './metrics.ts'

/** The kernel's side of a sensor, which guards and counts whether there is a bus or not. */
export interface Sensor {
  readonly kernel: Kernel
  readonly hooks: Hooks
  readonly table: BlockTable
  readonly rules: KernelRules
  readonly drops: KernelDrops
  readonly metrics: Metrics
  /** What is to be told; somebody must run it. */
  readonly outbox: Outbox
  readonly calls: CallCapture | undefined
  readonly capabilities: () => Capability[]
  /** Until the signal is aborted. */
  readonly work: readonly Promise<void>[]
  /** Connections that were open before are told. */
  readonly listing: Promise<void>
}

/** Without it nothing is dropped. */
const GUARD = 'xdp_guard'

/** This kernel does not take the programs that guard. */
export class ProgramsRefused extends AppError {
  constructor(why: string, cause?: unknown) {
    super('failed_precondition', why, { cause })
  }
}

interface SensorOptions
  extends Pick<ServiceContext<SensorConfig>, 'config' | 'log' | 'registry' | 'health' | 'signal'> {
  /** What is opened is closed with it. */
  readonly resources: AsyncDisposableStack
  /** Whether anybody reads flows; otherwise they are only taken out of the kernel. */
  readonly tellsFlows: boolean
  /** Whether a kernel that takes everything but the program that drops is none to work with. */
  readonly needsGuard?: boolean
  readonly onGuardEvent?: OnGuardEvent
  readonly callsTo?: (to: { outbox: Outbox; metrics: Metrics }) => CallCapture
}

/** Loads the programs, attaches them and begins to read them. Without a bus or a file, blocks and rules stay as they were. */
export async function openSensor(options: SensorOptions): Promise<Sensor> {
  const { config, log, registry, health, signal, resources, tellsFlows, needsGuard, onGuardEvent, callsTo } = options
  const { mode, node, interfaces, managementPorts, guardedAddresses } = config
  resources.use(await holdPins(config.pinDirectory))
  const pins = openPins(config.pinDirectory)
  const kernel = resources.use(load(await objectFile(config.bpfObject), pins, config, log))
  const refusal = kernel.programs.find(({ name }) => name === GUARD)?.fault
  if (needsGuard && refusal !== undefined) throw new ProgramsRefused(refusal)
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
  adoptOrphans(pins, log)
  const hooks = resources.use(new Hooks({ kernel, directory: pins.directory, interfaces, metrics, log }))
  const flowsLeft = removeOutdated(pins, log)
  const listing = listConnections(kernel, log)
  const capabilities = capabilitiesOf({ kernel, hooks })
  log.info({ capabilities }, 'what this kernel offers')
  resources.use(watchNode({ kernel, table, rules, hooks, guardedAddresses, log }))

  const own = resources.use(new OwnConnections())
  const outbox = new Outbox({ log })
  const publisher = tellsFlows ? new FlowPublisher({ node, outbox, metrics }) : undefined
  publisher?.addLost(flowsLeft, 'replaced')
  const intervalMs = config.drainIntervalMs
  const draining = drainFlows({ kernel, publisher, drops, own, hooks, intervalMs, metrics, log, signal })
  const calls = callsTo?.({ outbox, metrics })
  const capturing = calls?.run(signal)
  const alerting = alertOfRules({
    ...{ kernel, rules, mode, node, outbox, metrics, signal },
    ...(onGuardEvent && { onGuardEvent }),
  })
  health.check('kernel', () => hooks.fault())
  health.check('flows', () => publisher?.fault())
  return {
    ...{ kernel, hooks, table, rules, drops, metrics, outbox, calls, listing },
    capabilities: () => [...capabilities, ...(calls ? [calls.capability()] : [])],
    work: [draining, alerting, ...(capturing === undefined ? [] : [capturing])],
  }
}

function load(path: string, pins: Pins, config: SensorConfig, log: Logger): Kernel {
  try {
    return loadKernel(path, pins, config, log)
  } catch (error) {
    throw new ProgramsRefused(error instanceof Error ? error.message : String(error), error)
  }
}

function adoptOrphans(pins: Pins, log: Logger): void {
  try {
    const orphans = takeOrphans(pins)
    if (orphans > 0) log.warn({ orphans }, 'programs without a pin were found on their hooks and are taken over')
  } catch (error) {
    if (!isErrno(error, 'EPERM')) throw error
    log.info('programs whose pins cannot be found are not looked for: that takes CAP_SYS_ADMIN')
  }
}

/** Connections that were open before the sensor are told whose they are; later ones tell it themselves. */
async function listConnections(kernel: Kernel, log: Logger): Promise<void> {
  try {
    await iterate(kernel.program('list_connections'))
  } catch (error) {
    log.warn({ err: error }, 'connections that were open before have no owner until they are used')
  }
}
