import type { MessageInitShape } from '@bufbuild/protobuf'
import { create } from '@bufbuild/protobuf'
import type { Bus } from '@tollward/bus'
import { contract } from '@tollward/contracts'
import { CallObservedSchema } from '@tollward/contracts/sensor'
import type { Logger } from 'pino'
import { CallFolder } from '../domain/call-folder.ts'
import { RECORD_DRAIN_MS, RECORD_QUEUE_MAX, RECORD_WINDOW_MS, RECORDS_AT_ONCE_MAX } from '../edges.ts'
import type { DecisionMetrics } from '../metrics.ts'

export type CallRecord = MessageInitShape<typeof CallObservedSchema> & { decisionId: string }

const CALL_OBSERVED = contract(CallObservedSchema)

/** Publishes what was decided, without letting a request wait for it. What the bus doesn't take in time is lost and counted. */
export class Recorder implements AsyncDisposable {
  readonly #bus: Bus
  readonly #source: string
  readonly #log: Logger
  readonly #metrics: DecisionMetrics
  readonly #folder = new CallFolder<CallRecord>()
  readonly #queue: CallRecord[] = []
  readonly #publishing = new Set<Promise<void>>()
  readonly #timer: NodeJS.Timeout
  readonly #abandonment = Promise.withResolvers<void>()
  #abandoned = false

  constructor(bus: Bus, source: string, log: Logger, metrics: DecisionMetrics) {
    this.#bus = bus
    this.#source = source
    this.#log = log
    this.#metrics = metrics
    this.#timer = setInterval(() => this.#closeWindow(), RECORD_WINDOW_MS)
  }

  /** Records a call, by itself or folded into another one of the same source. */
  record(sourceKey: string, call: CallRecord): void {
    if (this.#folder.add(sourceKey, call)) this.#enqueue(call)
    else this.#metrics.records.inc({ result: 'folded' })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#timer)
    this.#closeWindow()
    const timer = setTimeout(() => this.#abandon(), RECORD_DRAIN_MS)
    while (this.#publishing.size > 0 && !this.#abandoned) {
      await Promise.race([Promise.all(this.#publishing), this.#abandonment.promise])
    }
    clearTimeout(timer)
  }

  /** What waits is lost; what is under way is left to itself. */
  #abandon(): void {
    this.#abandoned = true
    this.#metrics.records.inc({ result: 'lost' }, this.#queue.length)
    this.#queue.length = 0
    this.#abandonment.resolve()
  }

  #closeWindow(): void {
    for (const { first, count } of this.#folder.close()) this.#enqueue({ ...first, count })
  }

  #enqueue(call: CallRecord): void {
    if (this.#queue.length >= RECORD_QUEUE_MAX) {
      this.#metrics.records.inc({ result: 'lost' })
      return
    }
    this.#queue.push(call)
    this.#publishNext()
  }

  #publishNext(): void {
    while (this.#publishing.size < RECORDS_AT_ONCE_MAX) {
      const call = this.#queue.shift()
      if (!call) return
      const publishing = this.#publish(call).finally(() => {
        this.#publishing.delete(publishing)
        this.#publishNext()
      })
      this.#publishing.add(publishing)
    }
  }

  async #publish(call: CallRecord): Promise<void> {
    try {
      const message = create(CallObservedSchema, { ...call, source: this.#source })
      await this.#bus.publish(CALL_OBSERVED, message, { id: call.decisionId, key: this.#source })
      this.#metrics.records.inc({ result: 'published' })
    } catch (error) {
      this.#metrics.records.inc({ result: 'lost' })
      this.#log.debug({ err: error }, 'call not recorded')
    }
  }
}
