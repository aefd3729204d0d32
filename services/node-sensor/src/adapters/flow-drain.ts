import { setTimeout as delay, setImmediate as othersFirst } from 'node:timers/promises'
import {
  type Batch,
  bootTimeNs,
  decodeFirstHit,
  FLOW,
  FLOW_KEY,
  FlowDrain,
  RingReader,
  SPILLED_FLOW,
} from '@tollward/libbpf'
import type { Logger } from 'pino'
import { FlowBatch } from '../domain/flow-encoder.ts'
import type { Metrics } from '../metrics.ts'
import { BATCH_FLOWS_MAX, type FlowPublisher } from './flow-publisher.ts'
import type { Hooks } from './hooks.ts'
import type { Kernel } from './kernel.ts'
import type { KernelDrops } from './kernel-drops.ts'
import type { OwnConnections } from './own-connections.ts'
import { Owners } from './owners.ts'

/** Drops are read less often than flows: turning a generation over costs the kernel a grace period. */
const DROPS_INTERVAL_MS = 1000
/** Of flows with long names of cgroups fewer fit: with the drops, half of the megabyte that a NATS server takes. */
const BATCH_BYTES_MAX = 512 * 1024

interface DrainOptions {
  readonly kernel: Kernel
  /** Undefined: nobody reads flows, and they are only taken out of the kernel. */
  readonly publisher: FlowPublisher | undefined
  readonly drops: KernelDrops
  readonly own: OwnConnections
  readonly hooks: Hooks
  readonly intervalMs: number
  readonly metrics: Metrics
  readonly log: Logger
  readonly signal: AbortSignal
}

/** Reads the kernel's flows each interval and hands them to the publisher, until the signal is aborted. */
export async function drainFlows(options: DrainOptions): Promise<void> {
  const { kernel, publisher, drops, hooks, intervalMs, metrics, log, signal } = options
  const drain = new FlowDrain(kernel.map('active_flows'), kernel.map('flows_a'), kernel.map('flows_b'))
  using spilled = new RingReader(kernel.map('spilled_flows'))
  using firstHits = new RingReader(kernel.map('first_hits'))
  using owners = new Owners()
  const batch = new FlowBatch({
    interfaceName: (ifindex) => hooks.interfaceName(ifindex),
    owner: (values, at) => owners.encoded(values, at),
  })
  let dropsReadMs = performance.now()
  let lostBefore = kernel.count('flowSpillLost')
  while (!signal.aborted) {
    const startedMs = performance.now()
    if (startedMs - dropsReadMs >= DROPS_INTERVAL_MS) {
      dropsReadMs = startedMs
      const read = await drops.read()
      publisher?.addDrops(read)
    }
    for await (const entries of drain.batches()) await publish(entries, batch, options)
    await publishSpilled(spilled, batch, options)
    const lost = kernel.count('flowSpillLost')
    publisher?.addLost(Number(lost - lostBefore), 'kernel_full')
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

/**
 * Before each batch whatever else waits has its turn: a block must not wait until a flood is counted, and a connection of the
 * sensor whose packets were just drained must be known as its own.
 */
async function publish({ count, keys, values }: Batch, batch: FlowBatch, options: DrainOptions): Promise<void> {
  const { publisher } = options
  if (!publisher) return
  for (let from = 0; from < count; from += BATCH_FLOWS_MAX) {
    await othersFirst()
    begin(batch)
    const to = Math.min(from + BATCH_FLOWS_MAX, count)
    for (let index = from; index < to; index++)
      addUnlessOwn(batch, keys, index * FLOW_KEY.bytes, values, index * FLOW.bytes, options)
    publisher.add(batch.flows, batch.take(), Date.now())
  }
}

/** The ring is read in place, a batch at a time. */
async function publishSpilled(ring: RingReader, batch: FlowBatch, options: DrainOptions): Promise<void> {
  const { publisher } = options
  let read: number
  do {
    await othersFirst()
    begin(batch)
    read = ring.read((data, at) => {
      if (publisher) addUnlessOwn(batch, data, at + SPILLED_FLOW.key, data, at + SPILLED_FLOW.flow, options)
    }, BATCH_FLOWS_MAX)
    publisher?.add(batch.flows, batch.take(), Date.now())
  } while (read === BATCH_FLOWS_MAX)
}

function begin(batch: FlowBatch): void {
  batch.bootedAtMs = Date.now() - Number(bootTimeNs() / 1_000_000n)
}

function addUnlessOwn(
  batch: FlowBatch,
  keys: Buffer,
  keyAt: number,
  values: Buffer,
  valueAt: number,
  { own, publisher, metrics }: DrainOptions,
): void {
  if (own.has(keys, keyAt)) {
    metrics.flows.inc({ result: 'own' })
    return
  }
  batch.add(keys, keyAt, values, valueAt)
  if (batch.bytes >= BATCH_BYTES_MAX) publisher?.add(batch.flows, batch.take(), Date.now())
}
