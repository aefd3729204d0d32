import { AckPolicy, type ConsumerConfig, DeliverPolicy, type JsMsg, type PushConsumer } from '@nats-io/jetstream'
import { createInbox, nanos, nuid } from '@nats-io/transport-node'
import { inboxPrefix } from './permissions.ts'
import type { Session } from './session.ts'

/** The server says it is there at least this often, also when there is nothing to deliver. */
const HEARTBEAT_MS = 1000

/** The server forgets a feed whose reader is gone for this long. */
const INACTIVE_MS = 30_000

const RESTART_DELAY_MS = 250

type Messages = Awaited<ReturnType<PushConsumer['consume']>>

/** A reader's hold on a feed. */
export interface Following extends AsyncDisposable {
  /** Milliseconds since this reader had everything that the server had for it, known by a message that was the last or a heartbeat. */
  readonly silentForMs: number
}

export interface FeedReader {
  /** Where to start, asked at each start and restart. */
  readonly from: () => Pick<ConsumerConfig, 'deliver_policy'> &
    Partial<Pick<ConsumerConfig, 'opt_start_seq' | 'opt_start_time'>>
  readonly message: (message: JsMsg) => void
  /** A start or restart begins: what comes until `caughtUp` is from the past. */
  readonly began?: () => void
  readonly caughtUp?: () => void
}

/**
 * Reads a stream in order, without acknowledgements, for as long as it is held; every reader gets everything. A lost
 * message, a missed heartbeat and a reconnection each start it again at `from()`. Resolves when the past has been read.
 *
 * A push consumer with its own inbox: the server then checks the filter against the credential, which for pulling it cannot.
 */
export async function openFeed(
  session: Session,
  stream: string,
  filter: string,
  reader: FeedReader,
): Promise<Following> {
  const feed = new Feed(session, stream, filter, reader)
  await feed.firstCaughtUp
  return feed
}

class Feed implements Following {
  readonly #session: Session
  readonly #stream: string
  readonly #filter: string
  readonly #reader: FeedReader
  readonly #first = Promise.withResolvers<void>()
  #messages: Messages | undefined
  #currentAtMs = performance.now()
  #generation = 0
  #disposed = false
  #restartTimer: NodeJS.Timeout | undefined

  constructor(session: Session, stream: string, filter: string, reader: FeedReader) {
    this.#session = session
    this.#stream = stream
    this.#filter = filter
    this.#reader = reader
    void this.#watchConnection()
    void this.#start()
  }

  get firstCaughtUp(): Promise<void> {
    return this.#first.promise
  }

  get silentForMs(): number {
    return performance.now() - this.#currentAtMs
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#disposed = true
    clearTimeout(this.#restartTimer)
    await this.#messages?.close()
  }

  async #start(): Promise<void> {
    const generation = ++this.#generation
    const current = () => generation === this.#generation && !this.#disposed
    try {
      this.#messages?.stop()
      const { js, manager, name } = this.#session
      const inbox = createInbox(inboxPrefix(name))
      let delivered = 0
      let caughtUp = false
      const finishPast = () => {
        this.#currentAtMs = performance.now()
        if (caughtUp) return
        caughtUp = true
        this.#reader.caughtUp?.()
        this.#first.resolve()
      }
      const receive = (message: JsMsg) => {
        if (!current()) return
        delivered += 1
        if (message.info.deliverySequence !== delivered) return this.#restart('gap')
        this.#reader.message(message)
        if (message.info.pending === 0) finishPast()
      }
      const consumer = await js.consumers.getBoundPushConsumer({
        deliver_subject: inbox,
        idle_heartbeat: nanos(HEARTBEAT_MS),
        callback: receive,
      })
      this.#reader.began?.()
      // Subscribed before the consumer exists, so that its first message finds a listener.
      const messages = await consumer.consume({ callback: receive })
      this.#messages = messages
      void this.#watchHeartbeats(messages, current, () => delivered)
      const info = await manager.consumers.add(this.#stream, {
        ...this.#reader.from(),
        name: nuid.next(),
        filter_subject: this.#filter,
        deliver_subject: inbox,
        ack_policy: AckPolicy.None,
        flow_control: true,
        idle_heartbeat: nanos(HEARTBEAT_MS),
        inactive_threshold: nanos(INACTIVE_MS),
        mem_storage: true,
        num_replicas: 1,
        max_deliver: 1,
      })
      if (current() && info.num_pending === 0 && info.delivered.consumer_seq === 0) finishPast()
    } catch (error) {
      if (!current()) return
      this.#session.log.warn({ err: error, stream: this.#stream }, 'feed could not be opened')
      this.#restart('not opened')
    }
  }

  #restart(cause: string): void {
    if (this.#disposed) return
    this.#generation += 1
    this.#messages?.stop()
    this.#session.metrics.feedRestarts.inc({ feed: this.#filter, cause })
    clearTimeout(this.#restartTimer)
    this.#restartTimer = setTimeout(() => void this.#start(), RESTART_DELAY_MS)
  }

  async #watchHeartbeats(messages: Messages, current: () => boolean, delivered: () => number): Promise<void> {
    for await (const status of messages.status()) {
      if (!current()) return
      if (status.type === 'heartbeat') {
        if (status.lastConsumerSequence > delivered()) return this.#restart('gap')
        this.#currentAtMs = performance.now()
      }
      if (status.type === 'heartbeats_missed' || status.type === 'consumer_deleted') return this.#restart(status.type)
    }
  }

  async #watchConnection(): Promise<void> {
    for await (const status of this.#session.connection.status()) {
      if (this.#disposed) return
      if (status.type === 'reconnect') this.#restart('reconnect')
    }
  }
}

/** Reads from a time on. */
export function fromTime(timeMs: number): ReturnType<FeedReader['from']> {
  return { deliver_policy: DeliverPolicy.StartTime, opt_start_time: new Date(timeMs).toISOString() }
}
