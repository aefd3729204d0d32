import { type DescMessage, fromBinary, type MessageShape } from '@bufbuild/protobuf'
import type { ConsumerMessages, JsMsg } from '@nats-io/jetstream'
import { headers } from '@nats-io/transport-node'
import { DEAD_LETTER_SUBJECT, type EventContract } from '@tollward/contracts'
import { toAppError } from '@tollward/errors'
import { ACK_WAIT_MS } from './provision.ts'
import type { Session } from './session.ts'
import { DURABLES } from './topology.ts'

/** How long a message rests after each failed delivery; after one more failure it becomes a dead letter. */
export const REDELIVERY_DELAYS_MS = [250, 1000, 5000, 15_000, 60_000] as const

const LAST_DELAY_MS = 60_000

/** Messages that wait in this process for the handler. */
const PREFETCH = 64

const REOPEN_DELAY_MS = 1000

/** done: handled. retry: deliver it again later. discard: it is not wanted, and counted as such. */
export type Outcome = 'done' | 'retry' | 'discard'

/** What the bus knows of one delivery. */
export interface Delivery {
  readonly subject: string
  /** What follows the event's subject; empty if nothing. */
  readonly key: string
  /** In its stream. */
  readonly sequence: number
  /** 1 for the first. */
  readonly deliveries: number
  readonly publishedAtMs: number
  /** The event id. */
  readonly id: string
  readonly traceparent?: string
}

export interface ConsumeOptions {
  /** How many messages are handled at once. Default 1: in order. */
  readonly concurrency?: number
  /** What fails because something is unavailable or full stays in the queue for however long that takes. Default: as any failure. */
  readonly waitsForOutages?: boolean
}

/** Codes that say nothing against the message itself. */
const OUTAGES: ReadonlySet<string> = new Set(['unavailable', 'deadline_exceeded', 'resource_exhausted'])

export type Handler = (message: JsMsg, delivery: Delivery) => Outcome | Promise<Outcome>

/** Thrown by a handler for bytes that are not what their subject declares: no later delivery can help. */
export class Undecodable extends Error {
  override readonly name = 'Undecodable'
}

/**
 * Handles the messages of a durable consumer, each in one replica. A throw of the handler is a retry, or, if its error code
 * says that no later delivery can help, a dead letter at once. A message is acknowledged only after it was handled or its
 * dead letter was stored, so a crash at any point loses nothing and may repeat one.
 */
export function consumeDurable(
  session: Session,
  durable: string,
  prefix: string,
  handler: Handler,
  options: ConsumeOptions = {},
): AsyncDisposable {
  const consumption = new Consumption(session, durable, prefix, handler, options)
  void consumption.run()
  return consumption
}

/** Handler over decoded messages. */
export function decoding<Desc extends DescMessage>(
  event: EventContract<Desc>,
  handler: (message: MessageShape<Desc>, delivery: Delivery) => Outcome | Promise<Outcome>,
): Handler {
  return (message, delivery) => handler(decode(event.schema, message.data), delivery)
}

/** Decodes or throws Undecodable. */
export function decode<Desc extends DescMessage>(schema: Desc, bytes: Uint8Array): MessageShape<Desc> {
  try {
    return fromBinary(schema, bytes)
  } catch (error) {
    throw new Undecodable(`bytes are no ${schema.typeName}`, { cause: error })
  }
}

/** How long a message rests after its failed delivery of this number; undefined: its retries are used up. */
export function redeliveryDelayMs(deliveries: number, reason: string, waitsForOutages: boolean): number | undefined {
  const stays = waitsForOutages && OUTAGES.has(reason)
  return REDELIVERY_DELAYS_MS[deliveries - 1] ?? (stays ? LAST_DELAY_MS : undefined)
}

/** What the bus knows of a message; prefix is the subject without key. */
export function deliveryOf(message: JsMsg, prefix: string): Delivery {
  const traceparent = message.headers?.get('traceparent')
  return {
    subject: message.subject,
    key: message.subject.startsWith(`${prefix}.`) ? message.subject.slice(prefix.length + 1) : '',
    sequence: message.info.streamSequence,
    deliveries: message.info.deliveryCount,
    publishedAtMs: message.info.timestampNanos / 1e6,
    id: message.headers?.get('Nats-Msg-Id') ?? '',
    ...(traceparent ? { traceparent } : {}),
  }
}

class Consumption implements AsyncDisposable {
  readonly #session: Session
  readonly #durable: string
  readonly #prefix: string
  readonly #handler: Handler
  readonly #concurrency: number
  readonly #waitsForOutages: boolean
  readonly #running = new Set<Promise<void>>()
  readonly #stopped = Promise.withResolvers<void>()
  #messages: ConsumerMessages | undefined
  #disposed = false

  constructor(session: Session, durable: string, prefix: string, handler: Handler, options: ConsumeOptions) {
    this.#session = session
    this.#durable = durable
    this.#prefix = prefix
    this.#handler = handler
    this.#concurrency = options.concurrency ?? 1
    this.#waitsForOutages = options.waitsForOutages ?? false
  }

  async run(): Promise<void> {
    while (!this.#disposed) {
      try {
        await this.#read()
      } catch (error) {
        this.#session.log.warn({ err: error, consumer: this.#durable }, 'consumer could not be read')
      }
      if (!this.#disposed) await Promise.race([delay(REOPEN_DELAY_MS), this.#stopped.promise])
    }
  }

  /** Takes no more messages and waits for those that are being handled. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#disposed = true
    this.#stopped.resolve()
    await this.#messages?.close()
    await Promise.allSettled(this.#running)
  }

  async #read(): Promise<void> {
    const stream = DURABLES[this.#durable]?.stream
    if (stream === undefined) throw new RangeError(`${this.#durable} has no row in DURABLES`)
    const consumer = await this.#session.js.consumers.get(stream, this.#durable)
    const messages = await consumer.consume({ max_messages: PREFETCH, expires: 5000 })
    this.#messages = messages
    if (this.#disposed) return void messages.stop()
    for await (const message of messages) {
      const work = this.#handle(message).finally(() => this.#running.delete(work))
      this.#running.add(work)
      if (this.#running.size >= this.#concurrency) await Promise.race(this.#running)
      if (this.#disposed) return
    }
  }

  async #handle(message: JsMsg): Promise<void> {
    const stillAtIt = setInterval(() => message.working(), ACK_WAIT_MS / 2)
    try {
      const outcome = await this.#handler(message, deliveryOf(message, this.#prefix))
      this.#session.metrics.deliveries.inc({ consumer: this.#durable, outcome })
      if (outcome === 'retry') await this.#retry(message, 'retries used up')
      else message.ack()
    } catch (error) {
      await this.#failed(message, error)
    } finally {
      clearInterval(stillAtIt)
    }
  }

  async #failed(message: JsMsg, error: unknown): Promise<void> {
    const undecodable = error instanceof Undecodable
    const hopeless = undecodable || toAppError(error).meaning.outcome === 'discard'
    this.#session.metrics.deliveries.inc({ consumer: this.#durable, outcome: 'failed' })
    this.#session.log.warn(
      {
        err: error,
        consumer: this.#durable,
        sequence: message.info.streamSequence,
        deliveries: message.info.deliveryCount,
      },
      'message could not be handled',
    )
    if (undecodable) await this.#bury(message, 'undecodable')
    else if (hopeless) await this.#bury(message, toAppError(error).code)
    else await this.#retry(message, toAppError(error).code)
  }

  async #retry(message: JsMsg, reason: string): Promise<void> {
    const delayMs = redeliveryDelayMs(message.info.deliveryCount, reason, this.#waitsForOutages)
    if (delayMs === undefined) await this.#bury(message, reason)
    else message.nak(delayMs)
  }

  /** Stores the dead letter, then acknowledges. If it cannot be stored, the message stays and is delivered again. */
  async #bury(message: JsMsg, reason: string): Promise<void> {
    const { stream, streamSequence, deliveryCount } = message.info
    const head = headers()
    head.set('Nats-Msg-Id', `${this.#durable}:${stream}:${streamSequence}`)
    head.set('Tollward-Reason', reason)
    head.set('Tollward-Subject', message.subject)
    head.set('Tollward-Deliveries', String(deliveryCount))
    try {
      await this.#session.js.publish(`${DEAD_LETTER_SUBJECT}.${this.#durable}`, message.data, { headers: head })
      this.#session.metrics.deadLetters.inc({ consumer: this.#durable, reason })
      message.ack()
    } catch (error) {
      this.#session.log.error(
        { err: error, consumer: this.#durable, sequence: streamSequence },
        'dead letter could not be stored',
      )
      message.nak(LAST_DELAY_MS)
    }
  }
}

function delay(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds).unref())
}
