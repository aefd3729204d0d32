import { randomUUID } from 'node:crypto'
import { setTimeout as delay } from 'node:timers/promises'
import { toAppError } from '@tollward/errors'
import type { Logger } from 'pino'
import type { Counter, Gauge } from 'prom-client'

/** For all kinds together: two intervals in which the kernel's flow map was full, or minutes of ordinary traffic. */
const BUFFER_BYTES_MAX = 24 * 1024 * 1024
/** What a waiting batch costs beside its bytes: two objects and a place in a list. */
const BATCH_OVERHEAD_BYTES = 256
const RETRY_DELAY_MS = 250
/** A failure that lasts longer is said in readiness. */
const FAULT_AFTER_MS = 5000
/** At the end: as much as the bus takes at once. */
const FLUSH_MAX_MS = 2000

interface OutboxOptions {
  readonly log: Logger
  /** For tests. */
  readonly bufferBytesMax?: number
}

/** What one kind of batch is, and how it is counted. */
export interface BatchKind {
  /** In the plural, for logs: flows, calls. */
  readonly name: string
  readonly subject: string
  /** Of two kinds, the one of the lower rank is shed first. */
  readonly rank: number
  /** The fields of the message that say its place, encoded, which precede the batch's own bytes. Without: each is an event of its own. */
  readonly seal?: (place: Place) => Uint8Array
  readonly metrics: {
    readonly items: Counter<'result'>
    readonly lost: Counter<'reason'>
    readonly buffered: Gauge
  }
}

/** Where batches go: the bus, or on a host without one the journal. */
export interface Destination {
  readonly connected: boolean
  /** Rejects with an AppError if the batch was not taken. */
  publishBytes(subject: string, bytes: Uint8Array, options: { readonly id: string }): Promise<unknown>
}

/** Where a batch stands among those of its kind. */
export interface Place {
  readonly session: string
  /** From 1; a gap in it is a batch that the bus lost, and never one that is counted in `lost`. */
  readonly sequence: bigint
  /** Items that were left out since the batch before. */
  readonly lost: bigint
}

/** Items of one kind, encoded as repeated fields of their message. */
interface Batch {
  readonly items: number
  readonly bytes: Uint8Array
  /** The event's own, where each batch is one. */
  readonly id: string | undefined
}

/** A batch with its place in the session. */
interface Letter {
  readonly items: number
  readonly bytes: Uint8Array
  readonly lost: bigint
  readonly id: string
}

/**
 * What waits for the bus, of all kinds: one bounded buffer, from which the oldest of the lowest rank go first. Kinds are
 * published beside one another, so that none waits until the bus has taken, or refused, another's batch.
 */
export class Outbox {
  readonly #options: OutboxOptions
  readonly #bufferBytesMax: number
  /** Lowest rank first. */
  readonly #publishers: BatchPublisher[] = []
  #bufferedBytes = 0

  constructor(options: OutboxOptions) {
    this.#options = options
    this.#bufferBytesMax = options.bufferBytesMax ?? BUFFER_BYTES_MAX
  }

  /** To be called for each kind before `run`. */
  publisher(kind: BatchKind): BatchPublisher {
    const publisher = new BatchPublisher(kind, this.#options.log, (bytes) => this.#grow(bytes))
    this.#publishers.push(publisher)
    this.#publishers.sort((one, other) => one.rank - other.rank)
    return publisher
  }

  /** Publishes until the signal is aborted, then what the bus takes at once. */
  async run(bus: Destination, signal: AbortSignal): Promise<void> {
    await Promise.all(this.#publishers.map((publisher) => publisher.run(bus, signal)))
  }

  /** By less than nothing, it shrinks. */
  #grow(bytes: number): void {
    this.#bufferedBytes += bytes
    if (bytes < 0) return
    while (this.#bufferedBytes > this.#bufferBytesMax) {
      const lowest = this.#publishers.find((publisher) => publisher.waits)
      if (!lowest) return
      lowest.dropOldest()
    }
  }
}

/**
 * Publishes one kind in order, batch by batch, each kept until a stream has it. While the bus is away the newest are kept,
 * and those that had to go are counted in `lost` of the next batch.
 */
export class BatchPublisher {
  readonly #kind: BatchKind
  readonly #log: Logger
  readonly #grow: (bytes: number) => void
  readonly #session = randomUUID()
  readonly #batches: Batch[] = []
  #bufferedItems = 0
  #lost = 0n
  #sequence = 0n
  /** On its way, or to be sent again. */
  #letter: Letter | undefined
  #failingSinceMs: number | undefined
  #wake: () => void = () => undefined

  /** Made by an Outbox, which is told by how many bytes the buffer grows, and makes room then. */
  constructor(kind: BatchKind, log: Logger, grow: (bytes: number) => void) {
    this.#kind = kind
    this.#log = log
    this.#grow = grow
  }

  get rank(): number {
    return this.#kind.rank
  }

  /** Whether there is a batch that could be dropped. */
  get waits(): boolean {
    return this.#batches.length > 0
  }

  /** Takes items, encoded as they stand in a message that the bus takes; or one event with its id. */
  add(items: number, bytes: Uint8Array, id?: string): void {
    this.#batches.push({ items, bytes, id })
    this.#bufferedItems += items
    this.#grow(sizeOf(bytes))
    this.#kind.metrics.buffered.set(this.#bufferedItems)
    this.#wake()
  }

  /** Items that were lost before they came here. */
  addLost(items: number, reason: string): void {
    if (items === 0) return
    if (this.#kind.seal) this.#lost += BigInt(items)
    this.#kind.metrics.lost.inc({ reason }, items)
    this.#wake()
  }

  dropOldest(): void {
    const oldest = this.#takeOldest()
    if (oldest) this.addLost(oldest.items, 'buffer_full')
  }

  /** Why items do not get to their stream although there is a bus; undefined if they do. */
  fault(): string | undefined {
    if (this.#failingSinceMs === undefined) return undefined
    const failingForMs = performance.now() - this.#failingSinceMs
    if (failingForMs < FAULT_AFTER_MS) return undefined
    return `none could be published for ${Math.round(failingForMs / 1000)} s; does the bus have its streams?`
  }

  /** Publishes until the signal is aborted, then what the bus takes at once. */
  async run(bus: Destination, signal: AbortSignal): Promise<void> {
    signal.addEventListener('abort', () => this.#wake(), { once: true })
    while (!signal.aborted) {
      if (!this.#hasWork()) await this.#work()
      else if (!(await this.#sendNext(bus))) await delay(RETRY_DELAY_MS, undefined, { signal }).catch(() => undefined)
    }
    const end = AbortSignal.timeout(FLUSH_MAX_MS)
    while (this.#hasWork() && !end.aborted && (await this.#sendNext(bus)));
    const left = this.#bufferedItems + (this.#letter?.items ?? 0)
    if (left > 0) this.#log.warn({ [this.#kind.name]: left }, `${this.#kind.name} were not published`)
  }

  #hasWork(): boolean {
    return this.#letter !== undefined || this.#batches.length > 0 || this.#lost > 0n
  }

  #work(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve
    })
  }

  #takeOldest(): Batch | undefined {
    const oldest = this.#batches.shift()
    if (!oldest) return undefined
    this.#bufferedItems -= oldest.items
    this.#kind.metrics.buffered.set(this.#bufferedItems)
    this.#grow(-sizeOf(oldest.bytes))
    return oldest
  }

  /** Whether a stream has the oldest batch, or never will. Otherwise the same bytes are sent again, under the same id. */
  async #sendNext(bus: Destination): Promise<boolean> {
    this.#letter ??= this.#seal()
    const { items, lost, bytes, id } = this.#letter
    if (!bus.connected) return false
    const { name, subject, metrics } = this.#kind
    try {
      await bus.publishBytes(subject, bytes, { id })
      metrics.items.inc({ result: 'published' }, items)
      this.#failingSinceMs = undefined
    } catch (thrown) {
      const error = toAppError(thrown)
      if (this.#failingSinceMs === undefined)
        this.#log.warn({ err: error, [name]: items }, `${name} could not be published`)
      if (error.meaning.outcome === 'retry') {
        this.#failingSinceMs ??= performance.now()
        return false
      }
      this.#lost += lost
      this.addLost(items, 'refused')
    }
    this.#letter = undefined
    return true
  }

  #seal(): Letter {
    const { items, bytes, id } = this.#takeOldest() ?? { items: 0, bytes: new Uint8Array(), id: undefined }
    const lost = this.#lost
    this.#lost = 0n
    this.#sequence += 1n
    const head = this.#kind.seal?.({ session: this.#session, sequence: this.#sequence, lost })
    return {
      ...{ items, lost },
      id: id ?? `${this.#session}-${this.#sequence}`,
      // Encoded messages that follow one another are one message: nothing is encoded twice.
      bytes: head ? Buffer.concat([head, bytes]) : bytes,
    }
  }
}

function sizeOf(bytes: Uint8Array): number {
  return bytes.byteLength + BATCH_OVERHEAD_BYTES
}
