import type { ExchangeHandler, ObservedBytes, ResponseHead } from './exchange.ts'
import type { Field } from './hpack.ts'
import { Http2Reader } from './http2-reader.ts'

/** Streams at once; servers allow some hundreds. */
const STREAMS_MAX = 1024
const STATUS = /^[1-5]\d\d$/

/** A question and what was seen of its answer. Without a call: the question was not seen, or not yet. */
interface Stream<Call> {
  readonly id: number
  call: Call | undefined
  beganNs: bigint
  endedNs: bigint
  early: ResponseHead | undefined
  requestBytes: number
  responseBytes: number
  requestOver: boolean
  answered: boolean
  responseOver: boolean
  partial: boolean
}

/**
 * Observes one HTTP/2 connection (RFC 9113), from its beginning or late. Answers belong to questions by the number of their stream, so
 * that missing bytes cost calls but never mix them. Never throws for what it is given; keeps at most STREAMS_MAX streams and two
 * tables of compression.
 */
export class Http2Connection<Call> {
  readonly #handler: ExchangeHandler<Call>
  readonly #requests: Http2Reader
  readonly #responses: Http2Reader
  readonly #streams = new Map<number, Stream<Call>>()
  #atNs = 0n

  /** `isNew`: the client's preface comes now, and the server has said nothing yet. */
  constructor(handler: ExchangeHandler<Call>, isNew: boolean) {
    this.#handler = handler
    this.#requests = new Http2Reader(true, {
      fields: (id, fields, endsStream) => this.#onRequestFields(id, fields, endsStream),
      content: (id, bytes) => this.#onRequestContent(id, bytes),
      missing: (id, bytes) => this.#onRequestMissing(id, bytes),
      end: (id) => this.#onRequestEnd(id),
      reset: (id) => this.#onReset(id),
      lost: (why) => this.#onRequestsLost(why),
    })
    this.#responses = new Http2Reader(false, {
      fields: (id, fields, endsStream) => this.#onResponseFields(id, fields, endsStream),
      content: (id, bytes) => this.#onResponseContent(id, bytes),
      missing: (id, bytes) => this.#onResponseMissing(id, bytes),
      end: (id) => this.#onResponseEnd(id),
      reset: (id) => this.#onReset(id),
      lost: (why) => this.#onResponsesLost(why),
    })
    if (isNew) this.#responses.begin()
  }

  /** Streams that are not over. */
  get waiting(): number {
    return this.#streams.size
  }

  /** What it keeps of what it was given. */
  get heldBytes(): number {
    return this.#requests.heldBytes + this.#responses.heldBytes
  }

  push(direction: 'request' | 'response', observed: ObservedBytes): void {
    this.#atNs = observed.atNs
    if (direction === 'request') this.#requests.push(observed)
    else this.#responses.push(observed)
  }

  close(atNs: bigint): void {
    this.#atNs = atNs
    for (const stream of [...this.#streams.values()]) this.#giveUp(stream)
  }

  #stream(id: number): Stream<Call> {
    const known = this.#streams.get(id)
    if (known) return known
    const stream: Stream<Call> = {
      ...{ id, call: undefined, beganNs: this.#atNs, endedNs: this.#atNs, early: undefined },
      ...{
        requestBytes: 0,
        responseBytes: 0,
        requestOver: false,
        answered: false,
        responseOver: false,
        partial: false,
      },
    }
    this.#streams.set(id, stream)
    if (this.#streams.size > STREAMS_MAX) {
      const [oldest] = this.#streams.values()
      this.#handler.lost('overflow')
      if (oldest) this.#giveUp(oldest)
    }
    return stream
  }

  #onRequestFields(id: number, fields: readonly Field[], endsStream: boolean): void {
    const stream = this.#stream(id)
    // Fields after the content of a question say nothing that is told.
    if (stream.call === undefined) {
      const [method = '', target = ''] = [pseudo(fields, ':method'), pseudo(fields, ':path')]
      const authority = pseudo(fields, ':authority')
      stream.call = this.#handler.request(
        {
          protocol: 'h2',
          method,
          target: method === 'CONNECT' ? (authority ?? '') : target,
          authority,
          fields: plain(fields),
        },
        this.#atNs,
      )
      stream.beganNs = this.#atNs
      if (stream.early) this.#handler.response(stream.call, stream.early)
    }
    if (endsStream) this.#onRequestEnd(id)
  }

  #onRequestContent(id: number, bytes: Uint8Array): void {
    const stream = this.#streams.get(id)
    if (!stream || stream.call === undefined) return
    stream.requestBytes += bytes.length
    this.#handler.requestContent(stream.call, bytes)
  }

  #onRequestMissing(id: number, bytes: number): void {
    const stream = this.#streams.get(id)
    if (!stream) return
    stream.requestBytes += bytes
    stream.partial = true
  }

  #onRequestEnd(id: number): void {
    const stream = this.#streams.get(id)
    if (!stream) return
    stream.requestOver = true
    if (stream.responseOver) this.#finish(stream)
  }

  #onRequestsLost(why: 'gap' | 'malformed'): void {
    this.#handler.lost(why)
    for (const stream of [...this.#streams.values()]) {
      stream.partial = true
      stream.requestOver = true
      if (stream.responseOver) this.#finish(stream)
    }
  }

  #onResponseFields(id: number, fields: readonly Field[], endsStream: boolean): void {
    const stream = this.#stream(id)
    const text = pseudo(fields, ':status')
    const status = text !== undefined && STATUS.test(text) ? Number(text) : 0
    if (!stream.answered) {
      if (status >= 100 && status < 200) return
      stream.answered = true
      const head = { status, fields: plain(fields) }
      if (stream.call === undefined) stream.early = head
      else this.#handler.response(stream.call, head)
    } else if (stream.call !== undefined) this.#handler.trailers(stream.call, plain(fields))
    if (endsStream) this.#onResponseEnd(id)
  }

  #onResponseContent(id: number, bytes: Uint8Array): void {
    const stream = this.#streams.get(id)
    if (!stream) return
    stream.responseBytes += bytes.length
    if (stream.call !== undefined) this.#handler.responseContent(stream.call, bytes)
    else stream.partial = true
  }

  #onResponseMissing(id: number, bytes: number): void {
    const stream = this.#streams.get(id)
    if (!stream) return
    stream.responseBytes += bytes
    stream.partial = true
  }

  #onResponseEnd(id: number): void {
    const stream = this.#streams.get(id)
    if (!stream) return
    stream.responseOver = true
    stream.endedNs = this.#atNs
    // Whose question was not seen by now was asked before anybody looked, or is told of in a moment.
    if (stream.requestOver) this.#finish(stream)
  }

  /** RST_STREAM with NO_ERROR after a whole answer only ends the question. */
  #onReset(id: number): void {
    const stream = this.#streams.get(id)
    if (stream) this.#giveUp(stream)
  }

  /** What became of the streams nobody knows; those that go on are told as far as they were seen. */
  #onResponsesLost(why: 'gap' | 'malformed'): void {
    this.#handler.lost(why)
    for (const stream of [...this.#streams.values()]) this.#giveUp(stream)
  }

  #giveUp(stream: Stream<Call>): void {
    if (!stream.responseOver) {
      stream.partial = true
      stream.endedNs = this.#atNs
    }
    this.#finish(stream)
  }

  #finish(stream: Stream<Call>): void {
    this.#streams.delete(stream.id)
    const { call, beganNs, endedNs, requestBytes, responseBytes, partial } = stream
    if (call === undefined) this.#handler.lost('unasked')
    else this.#handler.end(call, { beganNs, endedNs, requestBytes, responseBytes, partial })
  }
}

function pseudo(fields: readonly Field[], wanted: string): string | undefined {
  return fields.find(([name]) => name === wanted)?.[1]
}

/** Without pseudo-fields; the others stay, also those whose name is not known. */
function plain(fields: readonly Field[]): readonly Field[] {
  return fields.filter(([name]) => !name.startsWith(':'))
}
