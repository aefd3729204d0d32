import type { DescMessage, DescService, MessageShape } from '@bufbuild/protobuf'
import { DeliverPolicy, jetstream } from '@nats-io/jetstream'
import { connect, errors, type NatsConnection, nkeyAuthenticator } from '@nats-io/transport-node'
import type { BroadcastContract, BucketContract, EventContract } from '@tollward/contracts'
import type { Logger } from 'pino'
import type { Registry } from 'prom-client'
import { type Bucket, type BucketChange, bucketChange, type Codec, openBucket, protoCodec, rawCodec } from './bucket.ts'
import {
  type ConsumeOptions,
  consumeDurable,
  type Delivery,
  decode,
  decoding,
  deliveryOf,
  type Outcome,
  Undecodable,
} from './consume.ts'
import { busError } from './errors.ts'
import { type Following, fromTime, openFeed } from './feed.ts'
import { busMetrics } from './metrics.ts'
import { inboxPrefix } from './permissions.ts'
import { append, broadcast, type Published, type PublishOptions, publish, publishBytes } from './publish.ts'
import { Requests } from './requests.ts'
import { type Client, client, type Implementation, serve } from './rpc.ts'
import type { Session } from './session.ts'
import { storedMessage } from './stored-message.ts'

export interface BusOptions {
  /** nats://host:port, several separated by commas. */
  readonly servers: string
  /** The service's name: its credential, its row in ACCESS and its inbox. */
  readonly name: string
  /** NKEY seed (SU…); without it the server must allow anonymous clients. */
  readonly nkeySeed?: string
  readonly log: Logger
  readonly registry: Registry
}

/** Where a follower of a stream starts. */
export type Since = 'beginning' | 'now' | { readonly timeMs: number }

export interface FollowOptions {
  /** Told of bytes that are not what their subject declares, for whoever counts sequences; they are counted and logged anyway. */
  readonly onUndecodable?: (delivery: Delivery) => void
}

export interface HistoryOptions {
  readonly sinceMs: number
  /** At most so many, the newest. */
  readonly limit: number
}

export interface StoredLetter {
  readonly subject: string
  readonly bytes: Uint8Array
  readonly publishedAtMs: number
}

/** A service's connection to NATS. It reconnects for ever; disposing it finishes what is under way. */
export interface Bus extends AsyncDisposable {
  readonly connected: boolean
  /** 0 while connected. */
  readonly disconnectedForMs: number
  publish<Desc extends DescMessage>(
    event: EventContract<Desc>,
    message: MessageShape<Desc>,
    options?: PublishOptions,
  ): Promise<Published>
  publishBytes(subject: string, bytes: Uint8Array, options?: Omit<PublishOptions, 'key'>): Promise<Published>
  append<Desc extends DescMessage>(
    event: EventContract<Desc>,
    message: MessageShape<Desc>,
    expectedLastSequence: number,
    options?: PublishOptions,
  ): Promise<number>
  /** Handles the events of a durable consumer, each in one replica; see consumeDurable for what is promised. */
  consume<Desc extends DescMessage>(
    durable: string,
    event: EventContract<Desc>,
    handler: (message: MessageShape<Desc>, delivery: Delivery) => Outcome | Promise<Outcome>,
    options?: ConsumeOptions,
  ): Promise<AsyncDisposable>
  /** The same for a durable whose letters are no protobuf. */
  consumeBytes(
    durable: string,
    subject: string,
    handler: (bytes: Uint8Array, delivery: Delivery) => Outcome | Promise<Outcome>,
    options?: ConsumeOptions,
  ): Promise<AsyncDisposable>
  /** Handles every change of a bucket, each in one replica. A revision that was overwritten before it was read shows as its successor only. */
  consumeBucket<Desc extends DescMessage>(
    durable: string,
    bucket: BucketContract<Desc>,
    handler: (change: BucketChange<MessageShape<Desc>>, delivery: Delivery) => Outcome | Promise<Outcome>,
    options?: ConsumeOptions,
  ): Promise<AsyncDisposable>
  /** Reads the events of a stream in order in every replica, without gaps over reconnections. Resolves when caught up. */
  follow<Desc extends DescMessage>(
    event: EventContract<Desc>,
    since: Since,
    onMessage: (message: MessageShape<Desc>, delivery: Delivery) => void,
    options?: FollowOptions,
  ): Promise<Following>
  /**
   * Tells whoever listens now, at once and without waiting for anybody: false if it could not even be sent, as while the server
   * is gone; it is counted then, and lost. Never throws.
   */
  broadcast<Desc extends DescMessage>(told: BroadcastContract<Desc>, message: MessageShape<Desc>): boolean
  /** Hears events live only, whatever is lost meanwhile, or broadcasts, also one's own. */
  listen<Desc extends DescMessage>(
    event: EventContract<Desc> | BroadcastContract<Desc>,
    onMessage: (message: MessageShape<Desc>) => void,
    options?: { readonly key?: string },
  ): AsyncDisposable
  /** What a stream holds under a filter, oldest first, the newest `limit` of it. */
  history(stream: string, filter: string, options: HistoryOptions): Promise<StoredLetter[]>
  /** The bytes of so many events of a stream from a sequence on, as the stream keeps them, as far as it has them. */
  stored(event: EventContract, fromSequence: number, count: number): Promise<Uint8Array[]>
  bucket<Desc extends DescMessage>(contract: BucketContract<Desc>): Bucket<MessageShape<Desc>>
  rawBucket(name: string): Bucket<Uint8Array>
  /** A bucket whose values have no proto schema. What the codec throws on decoding means that a value is damaged. */
  codedBucket<T>(name: string, codec: Codec<T>): Bucket<T>
  serve<S extends DescService>(service: S, implementation: Implementation<S>): AsyncDisposable
  client<S extends DescService>(service: S, options?: { readonly timeoutMs?: number }): Client<S>
}

const RECONNECT_WAIT_MS = 250
const PING_INTERVAL_MS = 5000

/** Connects, waiting for the server if it is not there yet. */
export async function connectBus(options: BusOptions): Promise<Bus> {
  const connection = await connect({
    servers: options.servers.split(','),
    name: options.name,
    inboxPrefix: inboxPrefix(options.name),
    maxReconnectAttempts: -1,
    reconnectTimeWait: RECONNECT_WAIT_MS,
    reconnectJitter: 100,
    pingInterval: PING_INTERVAL_MS,
    waitOnFirstConnect: true,
    ignoreAuthErrorAbort: true,
    // Otherwise each request makes an error with its stack in advance, which takes longer than the request.
    noAsyncTraces: true,
    ...(options.nkeySeed === undefined
      ? {}
      : { authenticator: nkeyAuthenticator(new TextEncoder().encode(options.nkeySeed)) }),
  })
  const js = jetstream(connection)
  const session: Session = {
    name: options.name,
    connection,
    js,
    manager: await js.jetstreamManager(false),
    requests: new Requests(connection, inboxPrefix(options.name)),
    log: options.log,
    metrics: busMetrics(options.registry),
  }
  return new NatsBus(session)
}

class NatsBus implements Bus {
  readonly #session: Session
  #disconnectedAtMs: number | undefined

  constructor(session: Session) {
    this.#session = session
    void this.#watch(session.connection)
  }

  get connected(): boolean {
    return this.#disconnectedAtMs === undefined
  }

  get disconnectedForMs(): number {
    return this.#disconnectedAtMs === undefined ? 0 : performance.now() - this.#disconnectedAtMs
  }

  publish: Bus['publish'] = (event, message, options) => publish(this.#session, event, message, options)
  publishBytes: Bus['publishBytes'] = (subject, bytes, options) => publishBytes(this.#session, subject, bytes, options)
  append: Bus['append'] = (event, message, expected, options) =>
    append(this.#session, event, message, expected, options)

  consume: Bus['consume'] = async (durable, event, handler, options) =>
    consumeDurable(this.#session, durable, event.subject, decoding(event, handler), options)

  consumeBytes: Bus['consumeBytes'] = async (durable, subject, handler, options) =>
    consumeDurable(this.#session, durable, subject, (message, delivery) => handler(message.data, delivery), options)

  consumeBucket: Bus['consumeBucket'] = async (durable, bucket, handler, options) =>
    consumeDurable(
      this.#session,
      durable,
      `$KV.${bucket.name}`,
      (message, delivery) => handler(bucketChange(bucket.name, protoCodec(bucket), message), delivery),
      options,
    )

  follow: Bus['follow'] = (event, since, onMessage, options = {}) => {
    let next: number | undefined
    return openFeed(this.#session, event.stream, filterOf(event), {
      from: () => {
        if (next !== undefined) return { deliver_policy: DeliverPolicy.StartSequence, opt_start_seq: next }
        if (since === 'beginning') return { deliver_policy: DeliverPolicy.All }
        return since === 'now' ? { deliver_policy: DeliverPolicy.New } : fromTime(since.timeMs)
      },
      message: (message) => {
        next = message.info.streamSequence + 1
        try {
          onMessage(decode(event.schema, message.data), deliveryOf(message, event.subject))
        } catch (error) {
          this.#session.metrics.undecodable.inc({ feed: event.subject })
          this.#session.log.error({ err: error, sequence: next - 1 }, 'event could not be applied')
          if (error instanceof Undecodable) options.onUndecodable?.(deliveryOf(message, event.subject))
        }
      },
    })
  }

  broadcast: Bus['broadcast'] = (told, message) => broadcast(this.#session, told, message, this.connected)

  listen: Bus['listen'] = (event, onMessage, options = {}) => {
    const subject = 'stream' in event ? `${event.subject}.${options.key ?? '*'}` : event.subject
    const subscription = this.#session.connection.subscribe(subject, {
      callback: (error, message) => {
        if (error) return this.#session.log.error({ err: error, subject: event.subject }, 'subject cannot be heard')
        try {
          onMessage(decode(event.schema, message.data))
        } catch (cause) {
          this.#session.metrics.undecodable.inc({ feed: event.subject })
          this.#session.log.error({ err: cause, subject: event.subject }, 'event could not be applied')
        }
      },
    })
    // Draining needs the server.
    return { [Symbol.asyncDispose]: async () => (this.connected ? subscription.drain() : subscription.unsubscribe()) }
  }

  history: Bus['history'] = async (stream, filter, { sinceMs, limit }) => {
    const letters: StoredLetter[] = []
    await using _following = await openFeed(this.#session, stream, filter, {
      from: () => fromTime(sinceMs),
      began: () => {
        letters.length = 0
      },
      message: (message) => {
        letters.push({
          subject: message.subject,
          bytes: message.data,
          publishedAtMs: message.info.timestampNanos / 1e6,
        })
        if (letters.length > limit) letters.shift()
      },
    })
    return letters
  }

  stored: Bus['stored'] = async ({ stream }, fromSequence, count) => {
    const wanted = Array.from({ length: count }, (_, offset) => fromSequence + offset)
    try {
      const found = await Promise.all(wanted.map((seq) => storedMessage(this.#session, stream, { seq })))
      return found.flatMap((message) => message?.data ?? [])
    } catch (error) {
      throw busError(error, `Reading the stream ${stream}`)
    }
  }

  bucket: Bus['bucket'] = (contract) => openBucket(this.#session, contract.name, protoCodec(contract))
  codedBucket: Bus['codedBucket'] = (name, codec) => openBucket(this.#session, name, codec)
  rawBucket: Bus['rawBucket'] = (name) => openBucket(this.#session, name, rawCodec)
  serve: Bus['serve'] = (service, implementation) => serve(this.#session, service, implementation)
  client: Bus['client'] = (service, options = {}) => client(this.#session, service, options.timeoutMs)

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#session.connection.isClosed()) return
    this.#session.requests.flush()
    // Draining needs the server; without it there is nothing left to finish.
    if (this.connected) await this.#session.connection.drain()
    else await this.#session.connection.close()
  }

  async #watch(connection: NatsConnection): Promise<void> {
    for await (const status of connection.status()) {
      if (status.type === 'disconnect') {
        this.#disconnectedAtMs ??= performance.now()
        this.#session.log.warn('bus lost')
      } else if (status.type === 'reconnect') {
        this.#disconnectedAtMs = undefined
        this.#session.log.info('bus found again')
      } else if (status.type === 'error') {
        const { error } = status
        this.#session.log.error({ err: error }, 'bus refused something')
        if (error instanceof errors.PermissionViolationError) this.#session.requests.refused(error.subject, error)
      }
    }
  }
}

/** Subjects under which an event can arrive: with and without key, whatever the schema's publisher does. */
function filterOf(event: EventContract): string {
  return KEYED.has(event.subject) ? `${event.subject}.*` : event.subject
}

/** Events that carry a key; a feed has one filter, which cannot say "with or without". */
const KEYED: ReadonlySet<string> = new Set([
  'tollward.sensor.v1.flow.observed',
  'tollward.sensor.v1.call.observed',
  'tollward.sensor.v1.call.captured',
])
