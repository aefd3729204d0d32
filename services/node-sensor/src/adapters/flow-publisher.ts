import { randomUUID } from 'node:crypto'
import { setTimeout as delay } from 'node:timers/promises'
import { create, toBinary } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import type { Bus } from '@tollward/bus'
import { contract } from '@tollward/contracts'
import { type Flow, FlowObservedSchema } from '@tollward/contracts/sensor'
import { toAppError } from '@tollward/errors'
import type { Logger } from 'pino'
import { subjectToken } from '../domain/flow.ts'
import type { Metrics } from '../metrics.ts'

/** About 110 bytes a flow: a batch is far below the megabyte that a NATS server takes, and does not hold up a block for long. */
export const BATCH_FLOWS_MAX = 1000
/** Encoded, some 17 MB: two intervals in which the kernel's flow map was full, or minutes of ordinary traffic. */
const BUFFER_FLOWS_MAX = 150_000
const RETRY_DELAY_MS = 250
/** A failure that lasts longer is said in readiness. */
const FAULT_AFTER_MS = 5000
/** At the end: as much as the bus takes at once. */
const FLUSH_MAX_MS = 2000

interface PublisherOptions {
  readonly node: string
  readonly metrics: Metrics
  readonly log: Logger
  /** Flows that the buffer holds; for tests. */
  readonly bufferFlowsMax?: number
}

/** Flows and the moment of their drain, encoded. */
interface Batch {
  readonly flows: number
  readonly bytes: Uint8Array
}

/** A batch with its place in the session. */
interface Letter extends Batch {
  readonly lost: bigint
  readonly id: string
}

/**
 * Publishes flows in order, batch by batch, each kept until a stream has it. While the bus is away the newest are kept, and
 * those that had to go are counted in `lost` of the next batch.
 */
export class FlowPublisher {
  readonly #options: PublisherOptions
  readonly #subject: string
  readonly #session = randomUUID()
  readonly #bufferFlowsMax: number
  readonly #batches: Batch[] = []
  #bufferedFlows = 0
  #lost = 0n
  #sequence = 0n
  /** On its way, or to be sent again. */
  #letter: Letter | undefined
  #failingSinceMs: number | undefined
  #wake: () => void = () => undefined

  constructor(options: PublisherOptions) {
    this.#options = options
    this.#subject = `${contract(FlowObservedSchema).subject}.${subjectToken(options.node)}`
    this.#bufferFlowsMax = options.bufferFlowsMax ?? BUFFER_FLOWS_MAX
  }

  /** Takes at most BATCH_FLOWS_MAX flows. */
  add(flows: Flow[], drainedAtMs: number): void {
    if (flows.length === 0) return
    const batch = create(FlowObservedSchema, { flows, drainedAt: timestampFromMs(drainedAtMs) })
    this.#batches.push({ flows: flows.length, bytes: toBinary(FlowObservedSchema, batch) })
    this.#bufferedFlows += flows.length
    while (this.#bufferedFlows > this.#bufferFlowsMax) this.#dropOldest()
    this.#options.metrics.flowsBuffered.set(this.#bufferedFlows)
    this.#wake()
  }

  /** Flows that were lost before they came here. */
  addLost(flows: number, reason: string): void {
    if (flows === 0) return
    this.#lost += BigInt(flows)
    this.#options.metrics.flowsLost.inc({ reason }, flows)
    this.#wake()
  }

  /** Why flows do not get to their stream although there is a bus; undefined if they do. */
  fault(): string | undefined {
    if (this.#failingSinceMs === undefined) return undefined
    const failingForMs = performance.now() - this.#failingSinceMs
    if (failingForMs < FAULT_AFTER_MS) return undefined
    return `none could be published for ${Math.round(failingForMs / 1000)} s; does the bus have its streams?`
  }

  /** Publishes until the signal is aborted, then what the bus takes at once. */
  async run(bus: Bus, signal: AbortSignal): Promise<void> {
    signal.addEventListener('abort', () => this.#wake(), { once: true })
    while (!signal.aborted) {
      if (!this.#hasWork()) await this.#work()
      else if (!(await this.#sendNext(bus))) await delay(RETRY_DELAY_MS, undefined, { signal }).catch(() => undefined)
    }
    const end = AbortSignal.timeout(FLUSH_MAX_MS)
    while (this.#hasWork() && !end.aborted && (await this.#sendNext(bus)));
    const left = this.#bufferedFlows + (this.#letter?.flows ?? 0)
    if (left > 0) this.#options.log.warn({ flows: left }, 'flows were not published')
  }

  #hasWork(): boolean {
    return this.#letter !== undefined || this.#batches.length > 0 || this.#lost > 0n
  }

  #work(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve
    })
  }

  #dropOldest(): void {
    const oldest = this.#batches.shift()
    if (!oldest) return
    this.#bufferedFlows -= oldest.flows
    this.addLost(oldest.flows, 'buffer_full')
  }

  /** Whether a stream has the oldest batch, or never will. Otherwise the same bytes are sent again, under the same id. */
  async #sendNext(bus: Bus): Promise<boolean> {
    this.#letter ??= this.#seal()
    const { flows, lost, bytes, id } = this.#letter
    if (!bus.connected) return false
    try {
      await bus.publishBytes(this.#subject, bytes, { id })
      this.#options.metrics.flows.inc({ result: 'published' }, flows)
      this.#failingSinceMs = undefined
    } catch (thrown) {
      const error = toAppError(thrown)
      if (this.#failingSinceMs === undefined)
        this.#options.log.warn({ err: error, flows }, 'flows could not be published')
      if (error.meaning.outcome === 'retry') {
        this.#failingSinceMs ??= performance.now()
        return false
      }
      this.#lost += lost
      this.addLost(flows, 'refused')
    }
    this.#letter = undefined
    return true
  }

  /** The sequence is given here: a gap in it is a batch that the bus lost, and never one that is counted in `lost`. */
  #seal(): Letter {
    const { flows, bytes } = this.#batches.shift() ?? { flows: 0, bytes: new Uint8Array() }
    this.#bufferedFlows -= flows
    this.#options.metrics.flowsBuffered.set(this.#bufferedFlows)
    const lost = this.#lost
    this.#lost = 0n
    this.#sequence += 1n
    const { node } = this.#options
    const head = create(FlowObservedSchema, { node, session: this.#session, sequence: this.#sequence, lost })
    return {
      ...{ flows, lost },
      id: `${this.#session}-${this.#sequence}`,
      // Encoded messages that follow one another are one message: nothing is encoded twice.
      bytes: Buffer.concat([toBinary(FlowObservedSchema, head), bytes]),
    }
  }
}
