import type { ExchangeEnd, ExchangeHandler, LossReason, ObservedBytes } from './exchange.ts'
import { HttpObserver, type ObservedDirection } from './http.ts'

/** What a test saw of one exchange. */
export interface Seen {
  line: string
  status: number
  requestBytes: number
  responseBytes: number
  partial: boolean
  tookNs: bigint
  question: string
  answer: string
  fields: string[]
  trailers: string[]
}

/** Keeps what an observer tells. */
class Recorder implements ExchangeHandler<Seen> {
  readonly ended: Seen[] = []
  readonly losses: LossReason[] = []
  /** Told of, and not ended. */
  readonly going = new Set<Seen>()

  request: ExchangeHandler<Seen>['request'] = ({ method, target, protocol, fields }) => {
    const seen: Seen = {
      line: `${method} ${target} ${protocol}`,
      ...{ status: 0, requestBytes: 0, responseBytes: 0, partial: false, tookNs: 0n, question: '', answer: '' },
      ...{ fields: fields.map(([name, value]) => `${name}: ${value}`), trailers: [] },
    }
    this.going.add(seen)
    return seen
  }

  requestContent = (seen: Seen, bytes: Uint8Array): void => {
    seen.question += Buffer.from(bytes).toString('latin1')
  }

  response: ExchangeHandler<Seen>['response'] = (seen, { status, fields }) => {
    seen.status = status
    seen.fields.push(...fields.map(([name, value]) => `< ${name}: ${value}`))
  }

  responseContent = (seen: Seen, bytes: Uint8Array): void => {
    seen.answer += Buffer.from(bytes).toString('latin1')
  }

  trailers: ExchangeHandler<Seen>['trailers'] = (seen, fields) => {
    seen.trailers.push(...fields.map(([name, value]) => `${name}: ${value}`))
  }

  end = (seen: Seen, { beganNs, endedNs, requestBytes, responseBytes, partial }: ExchangeEnd): void => {
    if (!this.going.delete(seen)) throw new Error('ended twice')
    Object.assign(seen, { requestBytes, responseBytes, partial, tookNs: endedNs - beganNs })
    this.ended.push(seen)
  }

  lost = (reason: LossReason): void => void this.losses.push(reason)

  /** In short: "GET /a http/1.1 200 0/5". */
  get lines(): string[] {
    return this.ended.map(
      ({ line, status, requestBytes, responseBytes, partial }) =>
        `${line} ${status} ${requestBytes}/${responseBytes}${partial ? ' partial' : ''}`,
    )
  }
}

/** One read or write: what it carried, how much of it was seen, and what was missed before. */
export interface Step {
  readonly to: 'server' | 'client'
  readonly text: string | Uint8Array
  readonly seen?: number
  readonly skipped?: number
}

/** A server's connection: it receives questions and sends answers. Each step takes a millisecond. */
export class Connection {
  readonly recorder = new Recorder()
  readonly observer: HttpObserver<Seen>
  #atNs = 0n

  constructor(asks: ObservedDirection | undefined = 'received') {
    this.observer = new HttpObserver(this.recorder, asks)
  }

  step({ to, text, seen, skipped = 0 }: Step): this {
    this.#atNs += 1_000_000n
    const whole = typeof text === 'string' ? Buffer.from(text, 'latin1') : text
    // As in the kernel's ring: the next step overwrites what this one lent.
    const bytes = Buffer.from(whole.subarray(0, seen ?? whole.length))
    const observed: ObservedBytes = { bytes, skipped, total: whole.length, atNs: this.#atNs }
    this.observer.push(to === 'server' ? 'received' : 'sent', observed)
    bytes.fill(0)
    return this
  }

  asks(text: string | Uint8Array, how: Omit<Step, 'to' | 'text'> = {}): this {
    return this.step({ to: 'server', text, ...how })
  }

  answers(text: string | Uint8Array, how: Omit<Step, 'to' | 'text'> = {}): this {
    return this.step({ to: 'client', text, ...how })
  }

  close(): this {
    this.observer.close(this.#atNs)
    return this
  }

  get lines(): string[] {
    return this.recorder.lines
  }
}
