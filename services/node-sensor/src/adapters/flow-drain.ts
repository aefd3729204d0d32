import { setTimeout as delay, setImmediate as othersFirst } from 'node:timers/promises'
import { bootTimeNs, decodeFirstHit, decodeSpilledFlow, FlowDrain, type FlowRecord, RingReader } from '@tollward/libbpf'
import type { Logger } from 'pino'
import { toFlow } from '../domain/flow.ts'
import type { Metrics } from '../metrics.ts'
import { BATCH_FLOWS_MAX, type FlowPublisher } from './flow-publisher.ts'
import type { Hooks } from './hooks.ts'
import type { Kernel } from './kernel.ts'
import type { OwnConnections } from './own-connections.ts'

interface DrainOptions {
  readonly kernel: Kernel
  readonly publisher: FlowPublisher
  readonly own: OwnConnections
  readonly hooks: Hooks
  readonly intervalMs: number
  readonly metrics: Metrics
  readonly log: Logger
  readonly signal: AbortSignal
}

/** Reads the kernel's flows each interval and hands them to the publisher, until the signal is aborted. */
export async function drainFlows(options: DrainOptions): Promise<void> {
  const { kernel, publisher, intervalMs, metrics, log, signal } = options
  const drain = new FlowDrain(kernel.map('active_flows'), kernel.map('flows_a'), kernel.map('flows_b'))
  using spilled = new RingReader(kernel.map('spilled_flows'))
  using firstHits = new RingReader(kernel.map('first_hits'))
  let lostBefore = kernel.count('flowSpillLost')
  while (!signal.aborted) {
    const startedMs = performance.now()
    for await (const records of drain.drain()) await publish(records, options)
    await publish(readSpilled(spilled), options)
    const lost = kernel.count('flowSpillLost')
    publisher.addLost(Number(lost - lostBefore), 'kernel_full')
    lostBefore = lost
    firstHits.read((data, at) => {
      const { ruleId, atNs } = decodeFirstHit(data, at)
      metrics.firstDrops.inc()
      log.debug({ revision: ruleId, atBootNs: String(atNs) }, 'block dropped its first packet')
    })
    const tookMs = performance.now() - startedMs
    metrics.drain.observe(tookMs / 1000)
    await delay(Math.max(0, intervalMs - tookMs), undefined, { signal }).catch(() => undefined)
  }
}

function readSpilled(ring: RingReader): FlowRecord[] {
  const records: FlowRecord[] = []
  ring.read((data, at) => void records.push(decodeSpilledFlow(data, at)))
  return records
}

/**
 * Before each batch whatever else waits has its turn: a block must not wait until a flood is counted, and a connection of the
 * sensor whose packets were just drained must be known as its own.
 */
async function publish(records: readonly FlowRecord[], options: DrainOptions): Promise<void> {
  const { publisher, own, hooks, metrics } = options
  const drainedAtMs = Date.now()
  const interfaceName = (ifindex: number) => hooks.interfaceName(ifindex)
  const context = { interfaceName, bootedAtMs: drainedAtMs - Number(bootTimeNs() / 1_000_000n) }
  for (let from = 0; from < records.length; from += BATCH_FLOWS_MAX) {
    await othersFirst()
    const batch = records.slice(from, from + BATCH_FLOWS_MAX)
    const others = batch.filter((record) => !own.has(record))
    metrics.flows.inc({ result: 'own' }, batch.length - others.length)
    publisher.add(
      others.map((record) => toFlow(record, context)),
      drainedAtMs,
    )
  }
}
