import { release } from 'node:os'
import { setTimeout as delay } from 'node:timers/promises'
import { create, type MessageInitShape } from '@bufbuild/protobuf'
import { timestampFromMs, timestampNow } from '@bufbuild/protobuf/wkt'
import type { Bus } from '@tollward/bus'
import { bucketContract } from '@tollward/contracts'
import {
  type CaptureTargetSchema,
  type CountSchema,
  type RuleStateSchema,
  type SensorState,
  SensorStateSchema,
} from '@tollward/contracts/sensor'
import { bootNsToWallTimeMs, countRuns, type GuardMode, mapBytes, programStats } from '@tollward/libbpf'
import type { Logger } from 'pino'
import type { Counter } from 'prom-client'
import manifest from '../../package.json' with { type: 'json' }
import type { Metrics } from '../metrics.ts'
import type { BlockTable } from './block-table.ts'
import type { CallTarget, UnsupportedTarget } from './call-targets.ts'
import type { CallCapture } from './calls.ts'
import type { Hooks } from './hooks.ts'
import type { Kernel } from './kernel.ts'
import type { KernelDrops } from './kernel-drops.ts'
import type { KernelRules, RuleReading } from './kernel-rules.ts'

const STATE_FORMAT = 1
const REPORT_INTERVAL_MS = 2000
/** So long after a sensor's end operators still see that there was one; a bucket of dead nodes must not grow for ever. */
const KEPT_MS = 3_600_000
/** The kernel counts runs for a while of each period: their average is known, and packets hardly slower. */
const COUNTING_EVERY_MS = 5000
const COUNTING_FOR_MS = 100
const FAULT_LENGTH_MAX = 300

/** What a state is made of. */
interface StateSources {
  readonly node: string
  readonly mode: GuardMode
  readonly kernel: Kernel
  readonly hooks: Hooks
  readonly table: BlockTable
  readonly rules: KernelRules
  readonly metrics: Metrics
  /** Why the sensor is not as it should be. */
  readonly faults: () => readonly string[]
  readonly capabilities: () => SensorInit['capabilities']
  readonly drops: KernelDrops
  /** Undefined: no calls are read. */
  readonly calls: CallCapture | undefined
}

type SensorInit = Required<Exclude<MessageInitShape<typeof SensorStateSchema>, SensorState>>
type CountInit = MessageInitShape<typeof CountSchema>

/** Where states go; not asked while it is away. */
export interface StateDestination {
  readonly connected: boolean
  put(state: SensorState): Promise<void>
}

interface ReportOptions extends StateSources {
  readonly to: StateDestination
  readonly log: Logger
  readonly signal: AbortSignal
}

/** The bucket `sensors`. */
export function stateBucket(bus: Bus, node: string): StateDestination {
  const bucket = bus.bucket(bucketContract(SensorStateSchema))
  const key = Buffer.from(node).toString('base64url')
  return {
    get connected() {
      return bus.connected
    },
    put: async (state) => {
      await bucket.put(key, state, { expiresAtMs: Date.now() + KEPT_MS })
    },
  }
}

/** Says how this sensor is, until the signal is aborted. */
export async function reportState(options: ReportOptions): Promise<void> {
  const { to, metrics, log, signal } = options
  const startedMs = Date.now()
  using _costs = countRunsNowAndThen(log)
  let wasTaken = true
  while (!signal.aborted) {
    try {
      if (to.connected) {
        await to.put(await sensorState(options, startedMs))
        metrics.stateReports.inc({ result: 'published' })
        wasTaken = true
      }
    } catch (error) {
      metrics.stateReports.inc({ result: 'failed' })
      if (wasTaken) log.warn({ err: error }, 'the state of the sensor could not be reported')
      wasTaken = false
    }
    await delay(REPORT_INTERVAL_MS, undefined, { signal }).catch(() => undefined)
  }
}

/** How a sensor is now. */
async function sensorState(sources: StateSources, startedMs: number): Promise<SensorState> {
  const { node, mode, kernel, hooks, table, rules, metrics, faults, capabilities, drops, calls } = sources
  const events = kernel.events()
  const losses = { flows: metrics.flowsLost, calls: metrics.callsLost, alerts: metrics.alertsLost }
  return create(SensorStateSchema, {
    ...{ format: STATE_FORMAT, node, version: manifest.version, kernel: release(), mode },
    ...{ startedAt: timestampFromMs(startedMs), reportedAt: timestampNow() },
    interfaces: interfaceStates(hooks),
    programs: programStates(kernel),
    maps: mapStates(kernel, table),
    counters: counts({ ...kernel.verdicts(), ...events }),
    kernelDrops: counts(drops.totals()),
    capabilities: capabilities(),
    rules: rules.readings().map((reading) => ruleState(reading, mode)),
    losses: [
      ...(await Promise.all(Object.entries(losses).map(([what, counter]) => lossesOf(what, counter)))).flat(),
      ...counts(Object.fromEntries(Object.entries(events).filter(([name]) => name.endsWith('_lost')))),
    ],
    captureTargets: [
      ...(calls?.targets ?? []).map(captureTarget),
      ...(calls?.unsupported ?? []).map(unsupportedTarget),
    ],
    faults: faults().map((fault) => fault.slice(0, FAULT_LENGTH_MAX)),
  })
}

function interfaceStates(hooks: Hooks): SensorInit['interfaces'] {
  return hooks.states().map(({ name, index, ingress, egress, faults }) => {
    const told = Object.entries(faults).flatMap(([hook, fault]) => (fault === undefined ? [] : [`${hook}: ${fault}`]))
    return { name, index, ingress, egress, fault: told.join('; ') }
  })
}

function programStates(kernel: Kernel): SensorInit['programs'] {
  return kernel.programs
    .filter(({ fault }) => fault === undefined)
    .map(({ name, section }) => {
      const { runs, runNs, bytes } = programStats(kernel.program(name))
      return { name, type: section, runs, runNanos: runNs, bytes: BigInt(bytes) }
    })
}

function mapStates(kernel: Kernel, table: BlockTable): SensorInit['maps'] {
  const sizes = table.sizes()
  return [...kernel.maps].map((name) => {
    const map = kernel.map(name)
    const { entries, capacity = map.maxEntries } = sizes[name] ?? {}
    return {
      ...{ name, capacity: BigInt(capacity), bytes: BigInt(mapBytes(map)) },
      ...(entries === undefined ? {} : { entries: BigInt(entries) }),
    }
  })
}

function ruleState(
  { name, spec, matched, over, lastNs, fault }: RuleReading,
  mode: GuardMode,
): MessageInitShape<typeof RuleStateSchema> {
  const isAudited = spec.mode === 'audit' || mode === 'audit'
  return {
    ...{ name, action: spec.action, mode: spec.mode, packets: matched, fault: fault ?? '' },
    ...{ dropped: isAudited ? 0n : over, audited: isAudited ? over : 0n },
    ...(lastNs === 0n ? {} : { lastPacketAt: timestampFromMs(bootNsToWallTimeMs(lastNs)) }),
  }
}

function captureTarget({ path, source, dear }: CallTarget): MessageInitShape<typeof CaptureTargetSchema> {
  return { path, kind: source, fault: dear.length === 0 ? '' : `probed where it costs much: ${dear.join(', ')}` }
}

function unsupportedTarget({ path, source, why }: UnsupportedTarget): MessageInitShape<typeof CaptureTargetSchema> {
  return { path, kind: source, fault: `unsupported: ${why}` }
}

function counts(values: Readonly<Record<string, number>>): CountInit[] {
  return Object.entries(values).map(([name, value]) => ({ name, value: BigInt(value) }))
}

async function lossesOf(what: string, counter: Counter<'reason'>): Promise<CountInit[]> {
  const { values } = await counter.get()
  return values.map(({ labels, value }) => ({ name: `${what}_${labels.reason ?? ''}`, value: BigInt(value) }))
}

function countRunsNowAndThen(log: Logger): Disposable {
  let counting: Disposable | undefined
  let end: NodeJS.Timeout | undefined
  const stop = () => {
    counting?.[Symbol.dispose]()
    counting = undefined
  }
  const timer = setInterval(() => {
    try {
      counting ??= countRuns()
      end = setTimeout(stop, COUNTING_FOR_MS)
    } catch (error) {
      clearInterval(timer)
      log.warn({ err: error }, 'this kernel does not say what its programs cost')
    }
  }, COUNTING_EVERY_MS)
  return {
    [Symbol.dispose]: () => {
      clearInterval(timer)
      clearTimeout(end)
      stop()
    },
  }
}
