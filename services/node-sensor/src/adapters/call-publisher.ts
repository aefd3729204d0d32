import { create, toBinary } from '@bufbuild/protobuf'
import { contract } from '@tollward/contracts'
import { CallCapturedSchema, type CapturedCall } from '@tollward/contracts/sensor'
import { subjectToken } from '../domain/flow.ts'
import type { Metrics } from '../metrics.ts'
import type { BatchPublisher, Outbox } from './batch-publisher.ts'

/** Far below the megabyte that a NATS server takes, with room for one more call: the largest takes some 20 KiB. */
const BATCH_BYTES_MAX = 256 * 1024
/** Of all that a sensor tells, calls can be done without first: detectors judge by flows, people by alerts. */
const RANK = 1

interface PublisherOptions {
  readonly node: string
  readonly outbox: Outbox
  readonly metrics: Metrics
}

/** Publishes captured calls in batches, each kept until a stream has it or the outbox must shed it. */
export class CallPublisher {
  readonly #publisher: BatchPublisher
  #batch: Uint8Array[] = []
  #batchBytes = 0

  constructor({ node, outbox, metrics }: PublisherOptions) {
    this.#publisher = outbox.publisher({
      name: 'calls',
      subject: `${contract(CallCapturedSchema).subject}.${subjectToken(node)}`,
      rank: RANK,
      seal: (place) => toBinary(CallCapturedSchema, create(CallCapturedSchema, { node, ...place })),
      metrics: { items: metrics.calls, lost: metrics.callsLost, buffered: metrics.callsBuffered },
    })
  }

  /** It goes with the next flush, or at once with those before it if they are many. */
  add(call: CapturedCall): void {
    const bytes = toBinary(CallCapturedSchema, create(CallCapturedSchema, { calls: [call] }))
    this.#batch.push(bytes)
    this.#batchBytes += bytes.length
    if (this.#batchBytes >= BATCH_BYTES_MAX) this.flush()
  }

  /** Calls that were lost before they came here. */
  addLost(calls: number, reason: string): void {
    this.#publisher.addLost(calls, reason)
  }

  flush(): void {
    if (this.#batch.length === 0) return
    this.#publisher.add(this.#batch.length, Buffer.concat(this.#batch))
    this.#batch = []
    this.#batchBytes = 0
  }

  /** Why calls do not get to their stream although there is a bus; undefined if they do. */
  fault(): string | undefined {
    return this.#publisher.fault()
  }
}
