import { create, toBinary } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { contract } from '@tollward/contracts'
import { type Flow, FlowObservedSchema } from '@tollward/contracts/sensor'
import { subjectToken } from '../domain/flow.ts'
import type { Metrics } from '../metrics.ts'
import type { BatchPublisher, Outbox } from './batch-publisher.ts'

/** About 110 bytes a flow: a batch is far below the megabyte that a NATS server takes, and does not hold up a block for long. */
export const BATCH_FLOWS_MAX = 1000
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

  constructor({ node, outbox, metrics }: PublisherOptions) {
    this.#publisher = outbox.publisher({
      name: 'flows',
      subject: `${contract(FlowObservedSchema).subject}.${subjectToken(node)}`,
      rank: RANK,
      seal: (place) => toBinary(FlowObservedSchema, create(FlowObservedSchema, { node, ...place })),
      metrics: { items: metrics.flows, lost: metrics.flowsLost, buffered: metrics.flowsBuffered },
    })
  }

  /** Takes at most BATCH_FLOWS_MAX flows. */
  add(flows: Flow[], drainedAtMs: number): void {
    if (flows.length === 0) return
    const batch = create(FlowObservedSchema, { flows, drainedAt: timestampFromMs(drainedAtMs) })
    this.#publisher.add(flows.length, toBinary(FlowObservedSchema, batch))
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
