import { PassThrough, type Readable } from 'node:stream'
import { AppError } from '@tollward/errors'
import type { Metrics } from '../metrics.ts'
import { Problem } from './problem.ts'

/** In all: each costs memory, and a look at its invoice whenever something changed. */
const STREAMS_MAX = 1_000
/** Of one client, with those of its invoices' pages. */
const STREAMS_PER_CLIENT_MAX = 20
const TOO_MANY_RETRY_SECONDS = 10
/** Then whoever reads on comes again, and is asked again who it is. */
const STREAM_LASTS_MS = 5 * 60_000
/** How late a new entry of the ledger or a new block shows. */
const LOOK_EVERY_MS = 500
/** How late that shows which only the clock or the use of a pass changes; proxies hear something at least as often. */
const LOOK_ANYWAY_EVERY_MS = 5_000
/** Some looks have to wait for the node. */
const LOOKS_AT_ONCE = 16
/** Whoever does not read what was sent is let go. */
const UNREAD_BYTES_MAX = 64 * 1024
/** Between the end of a stream and the reader's next try. */
const RECONNECT_MS = 2_000
/** A comment, which readers pass over. */
const ALIVE = ':\n\n'

interface Stream {
  readonly clientId: string
  readonly out: PassThrough
  /** What is to be told now. */
  readonly read: () => Promise<string>
  readonly endsAtMs: number
  told: string
}

/** Invoices as server-sent events (HTML Living Standard, 9.2): each stream tells what is, and again whenever that has changed. */
export class InvoiceStreams implements Disposable {
  readonly #metrics: Metrics
  /** Differs when a look is due. */
  readonly #version: () => string
  readonly #streams = new Set<Stream>()
  readonly #byClient = new Map<string, number>()
  readonly #lastsMs: number
  readonly #timer: NodeJS.Timeout
  #looked = { version: '', atMs: 0 }
  #isLooking = false

  constructor(metrics: Metrics, version: () => string, { lastsMs = STREAM_LASTS_MS } = {}) {
    this.#metrics = metrics
    this.#lastsMs = lastsMs
    this.#version = version
    this.#timer = setInterval(() => void this.#lookIfDue(), LOOK_EVERY_MS)
  }

  get size(): number {
    return this.#streams.size
  }

  /** Begins a stream that counts as the client's. Problem if there are too many; what `read` throws the first time is thrown. */
  async open(clientId: string, read: () => Promise<string>): Promise<Readable> {
    const told = await read()
    const ofClient = this.#byClient.get(clientId) ?? 0
    if (ofClient >= STREAMS_PER_CLIENT_MAX) throw this.#tooMany('client')
    if (this.#streams.size >= STREAMS_MAX) throw this.#tooMany('all')
    const out = new PassThrough()
    const stream = { clientId, out, read, endsAtMs: performance.now() + this.#lastsMs, told }
    this.#streams.add(stream)
    this.#byClient.set(clientId, ofClient + 1)
    out.once('close', () => this.#forget(stream))
    // A reader that is gone is no fault.
    out.on('error', () => undefined)
    out.write(`retry: ${RECONNECT_MS}\n\n${eventOf(told)}`)
    return out
  }

  /** Ends all streams. */
  [Symbol.dispose](): void {
    clearInterval(this.#timer)
    for (const { out } of this.#streams) out.end()
  }

  #tooMany(reason: 'client' | 'all'): Problem {
    this.#metrics.streamsRefused.inc({ reason })
    const extras = { retryAfterSeconds: TOO_MANY_RETRY_SECONDS }
    if (reason === 'all') {
      const message = 'Too many invoices are watched at once: read the invoice without a stream.'
      return new Problem('unavailable', new AppError('unavailable', message), extras)
    }
    const message = 'You watch too many invoices at once: end a stream, or read the invoice without one.'
    return new Problem('too-many-streams', new AppError('resource_exhausted', message), extras)
  }

  #forget(stream: Stream): void {
    if (!this.#streams.delete(stream)) return
    const left = (this.#byClient.get(stream.clientId) ?? 1) - 1
    if (left === 0) this.#byClient.delete(stream.clientId)
    else this.#byClient.set(stream.clientId, left)
  }

  async #lookIfDue(): Promise<void> {
    const version = this.#version()
    const nowMs = performance.now()
    const isDue = version !== this.#looked.version || nowMs - this.#looked.atMs >= LOOK_ANYWAY_EVERY_MS
    if (!isDue || this.#isLooking) return
    this.#looked = { version, atMs: nowMs }
    this.#isLooking = true
    const due = [...this.#streams]
    const lookOn = async () => {
      for (let stream = due.pop(); stream !== undefined; stream = due.pop()) await this.#look(stream, nowMs)
    }
    await Promise.all(Array.from({ length: LOOKS_AT_ONCE }, lookOn))
    this.#isLooking = false
  }

  async #look(stream: Stream, nowMs: number): Promise<void> {
    const { out } = stream
    if (nowMs >= stream.endsAtMs) return void out.end()
    // What cannot be known now is told later; whoever asks without a stream is told why.
    const told = await stream.read().catch(() => stream.told)
    if (!out.writable) return
    out.write(told === stream.told ? ALIVE : eventOf(told))
    stream.told = told
    if (out.writableLength > UNREAD_BYTES_MAX) {
      this.#metrics.streamsUnread.inc()
      out.destroy()
    }
  }
}

function eventOf(text: string): string {
  const lines = text.split('\n').map((line) => `data: ${line}\n`)
  return `event: invoice\n${lines.join('')}\n`
}
