import { create, toBinary } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { contract } from '@tollward/contracts'
import { FlowObservedSchema, type KernelDrop } from '@tollward/contracts/sensor'
import { subjectToken } from '../domain/flow.ts'
import type { Metrics } from '../metrics.ts'
import type { BatchPublisher, Outbox } from './batch-publisher.ts'

/** About 110 bytes a flow, 400 with its container: a batch is below the megabyte that a NATS server takes, and does not hold up a block for long. */
export const BATCH_FLOWS_MAX = 1000
/** 60 bytes each. A second's drops of a flood, as far as the kernel kept them apart. */
const WAITING_DROPS_MAX = 4096
/** Flows outlive captured calls: they are what detectors judge by. */
const RANK = 2

interface PublisherOptions {
  readonly node: string
  readonly outbox: Outbox
  readonly metrics: Metrics
}

/** Publishes flows in batches, each kept until a stream has it or the outbox must shed it. */
export class FlowPublisher {
  readonly #publisher: BatchPublisher
  readonly #drops: KernelDrop[] = []

  constructor({ node, outbox, metrics }: PublisherOptions) {
    this.#publisher = outbox.publisher({
      name: 'flows',
      subject: `${contract(FlowObservedSchema).subject}.${subjectToken(node)}`,
      rank: RANK,
      seal: (place) => toBinary(FlowObservedSchema, create(FlowObservedSchema, { node, ...place })),
      metrics: { items: metrics.flows, lost: metrics.flowsLost, buffered: metrics.flowsBuffered },
    })
  }

  /** Takes flows as FlowBatch encodes them, at most BATCH_FLOWS_MAX; with them go the drops that were added since. */
  add(flows: number, encoded: Uint8Array, drainedAtMs: number): void {
    if (flows === 0) return
    const kernelDrops = this.#drops.splice(0)
    const rest = create(FlowObservedSchema, { kernelDrops, drainedAt: timestampFromMs(drainedAtMs) })
    this.#publisher.add(flows, Buffer.concat([toBinary(FlowObservedSchema, rest), encoded]))
  }

  /** What the kernel threw away; it waits for the next flows, and what was waiting before it goes when there are too many. */
  addDrops(drops: readonly KernelDrop[]): void {
    this.#drops.push(...drops)
    const excess = this.#drops.length - WAITING_DROPS_MAX
    if (excess > 0) this.addLost(this.#drops.splice(0, excess).length, 'kernel_drops')
  }

  /** Flows that were lost before they came here. */
  addLost(flows: number, reason: string): void {
    this.#publisher.addLost(flows, reason)
  }

  /** Why flows do not get to their stream although there is a bus; undefined if they do. */
  fault(): string | undefined {
    return this.#publisher.fault()
  }
}
