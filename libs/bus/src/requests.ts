import { JetStreamApiError } from '@nats-io/jetstream'
import { createInbox, errors, type MsgHdrs, type NatsConnection } from '@nats-io/transport-node'
import { AppError } from '@tollward/errors'

/** Requests that wait too long are found at this interval. */
const SWEEP_MS = 100

const NO_RESPONDERS = 503

const decoder = new TextDecoder()

/** An answer as it came. */
export interface Answer {
  readonly data: Uint8Array
  readonly headers: MsgHdrs | undefined
}

interface Waiting {
  readonly subject: string
  readonly deadlineMs: number
  resolve(answer: Answer): void
  reject(error: Error): void
}

/** What JetStream answers; a failure is never returned but thrown. */
type JetStreamAnswer = Record<string, unknown>

/**
 * Requests to JetStream and to other services, of which there are several for each request from outside. They share one
 * subscription and one timer, and make an error only where something fails: nats-core's own make two with their stacks before
 * each request, which takes longer than all the rest.
 */
export class Requests {
  readonly #connection: NatsConnection
  readonly #inbox: string
  readonly #waiting = new Map<string, Waiting>()
  /** What is sent with this turn of the event loop: in one write, since each costs as much as a request itself. */
  #unsent: (() => void)[] = []
  #count = 0
  #timer: NodeJS.Timeout | undefined

  constructor(connection: NatsConnection, inboxPrefix: string) {
    this.#connection = connection
    this.#inbox = createInbox(inboxPrefix)
    connection.subscribe(`${this.#inbox}.*`, {
      callback: (error, { subject, data, headers }) => {
        const key = subject.slice(this.#inbox.length + 1)
        const waiting = this.#waiting.get(key)
        if (!waiting) return
        this.#waiting.delete(key)
        if (error) waiting.reject(error)
        else if (data.length === 0 && headers?.code === NO_RESPONDERS)
          waiting.reject(new errors.NoRespondersError(waiting.subject))
        else waiting.resolve({ data, headers })
      },
    })
  }

  /** Sends a request to JetStream and returns its answer. Throws TimeoutError, NoRespondersError, JetStreamApiError. */
  async request(subject: string, payload: Uint8Array, timeoutMs: number, headers?: MsgHdrs): Promise<JetStreamAnswer> {
    return jetStreamAnswer(await this.ask(subject, payload, timeoutMs, headers))
  }

  /** Sends a request and returns the answer. Throws TimeoutError, NoRespondersError. */
  ask(subject: string, payload: Uint8Array, timeoutMs: number, headers?: MsgHdrs): Promise<Answer> {
    const { promise, resolve, reject } = Promise.withResolvers<Answer>()
    this.#count += 1
    const key = this.#count.toString(36)
    this.#waiting.set(key, { subject, deadlineMs: performance.now() + timeoutMs, resolve, reject })
    this.#timer ??= setInterval(() => this.#sweep(), SWEEP_MS).unref()
    this.send(() => {
      try {
        const reply = `${this.#inbox}.${key}`
        this.#connection.publish(subject, payload, headers === undefined ? { reply } : { reply, headers })
      } catch (error) {
        this.#waiting.delete(key)
        reject(error)
      }
    })
    return promise
  }

  /** Publishes with whatever else is sent in this turn; `publish` must not throw. */
  send(publish: () => void): void {
    if (this.#unsent.length === 0) setImmediate(() => this.flush())
    this.#unsent.push(publish)
  }

  /** Sends at once what waits for the end of this turn. */
  flush(): void {
    const unsent = this.#unsent
    this.#unsent = []
    for (const send of unsent) send()
  }

  /** Ends what waits for a subject that this credential may not publish to. */
  refused(subject: string, error: Error): void {
    for (const [key, waiting] of this.#waiting) {
      if (waiting.subject !== subject) continue
      this.#waiting.delete(key)
      waiting.reject(error)
    }
  }

  #sweep(): void {
    const nowMs = performance.now()
    for (const [key, { deadlineMs, reject }] of this.#waiting) {
      if (deadlineMs > nowMs) continue
      this.#waiting.delete(key)
      reject(new errors.TimeoutError())
    }
    if (this.#waiting.size > 0) return
    clearInterval(this.#timer)
    this.#timer = undefined
  }
}

function jetStreamAnswer({ data }: Answer): JetStreamAnswer {
  let answer: unknown
  try {
    answer = JSON.parse(decoder.decode(data))
    if (typeof answer !== 'object' || answer === null) throw new TypeError('an answer of JetStream is an object')
  } catch (cause) {
    throw new AppError('internal', 'JetStream answered something else than it should.', { cause })
  }
  const { error, ...rest } = answer as { error?: ConstructorParameters<typeof JetStreamApiError>[0] }
  if (error !== undefined) throw new JetStreamApiError(error)
  return rest
}
