import type { ExchangeHandler, ObservedBytes, ResponseHead } from './exchange.ts'
import type { Field } from './hpack.ts'
import { type Framing, type Head, Http1Reader } from './http1-reader.ts'

/** Questions on one connection that wait for their answers; more than clients that send ahead do. */
const WAITING_MAX = 64
const SWITCHING_PROTOCOLS = 101
const NO_CONTENT = 204
const NOT_MODIFIED = 304
/** Digits that a double holds exactly; no content is larger. */
const CONTENT_LENGTH = /^\d{1,15}$/

/** A question and what was seen of its answer. */
interface Exchange<Call> {
  readonly call: Call
  readonly method: string
  readonly beganNs: bigint
  requestBytes: number
  responseBytes: number
  requestOver: boolean
  answered: boolean
  responseOver: boolean
  partial: boolean
  endedNs: bigint
}

/** An answer that was seen just before its question: threads that read and write are told of in any order. */
interface EarlyAnswer {
  readonly head: ResponseHead
  readonly framing: Framing | undefined
  bytes: number
  endedNs: bigint
}

/** What a connection became. upgraded: HTTP/2 or another protocol, from the next byte on. */
export type Http1Fate = 'http1' | 'preface' | 'upgraded'

/**
 * Observes one HTTP/1 connection (RFC 9112): pairs answers with questions, sent ahead or not. Where missing bytes make it
 * doubtful which question an answer belongs to, both are told apart rather than together. Never throws for what it is given;
 * keeps at most WAITING_MAX questions and a line of each direction.
 */
export class Http1Connection<Call> {
  readonly #handler: ExchangeHandler<Call>
  readonly #requests: Http1Reader
  readonly #responses: Http1Reader
  /** Oldest first. Those before the one that is being answered have their answers, but their questions go on. */
  #exchanges: Exchange<Call>[] = []
  #early: EarlyAnswer | undefined
  /** Who waited for the answer whose head is being read. */
  #due: Exchange<Call> | 'early' | 'nobody' = 'nobody'
  /** The answer that is being read belongs to nothing that is known. */
  #unasked = false
  /** Since the last pair something was missed, or an answer came without a question: the next may be off by one. */
  #doubt = false
  #fate: Http1Fate = 'http1'
  #atNs = 0n

  constructor(handler: ExchangeHandler<Call>) {
    this.#handler = handler
    this.#requests = new Http1Reader('request', {
      begin: () => undefined,
      head: (head, beganNs) => this.#onRequest(head, beganNs),
      content: (bytes) => this.#onRequestContent(bytes),
      missing: (bytes) => this.#onRequestMissing(bytes),
      trailers: () => undefined,
      end: (whole, atNs) => this.#onRequestEnd(whole, atNs),
      opened: () => this.#onRequestOpened(),
      lost: (why) => this.#onRequestsLost(why),
      preface: () => {
        this.#fate = 'preface'
      },
    })
    this.#responses = new Http1Reader('response', {
      begin: () => this.#onResponseBegin(),
      head: (head) => this.#onResponse(head),
      content: (bytes) => this.#onResponseContent(bytes),
      missing: (bytes) => this.#onResponseMissing(bytes),
      trailers: (fields) => this.#onTrailers(fields),
      end: (whole, atNs) => this.#onResponseEnd(whole, atNs),
      opened: () => this.#onResponseOpened(),
      lost: (why) => this.#onResponsesLost(why),
      preface: () => undefined,
    })
  }

  get fate(): Http1Fate {
    return this.#fate
  }

  /** Questions that wait for their answer or its end. */
  get waiting(): number {
    return this.#exchanges.length
  }

  /** What it keeps of what it was given, beside the fields of an answer that came before its question. */
  get heldBytes(): number {
    return this.#requests.heldBytes + this.#responses.heldBytes
  }

  push(direction: 'request' | 'response', observed: ObservedBytes): void {
    this.#atNs = observed.atNs
    if (direction === 'request') this.#requests.push(observed)
    else this.#responses.push(observed)
  }

  /** The connection is over; everything that waits is told as it is. */
  close(atNs: bigint): void {
    this.#atNs = atNs
    this.#requests.close(atNs)
    this.#responses.close(atNs)
    this.#dropEarly()
    this.#giveUpAll()
  }

  #onRequest(head: Head, beganNs: bigint): Framing {
    // An answer without an end that anybody could see is over when the next question comes.
    this.#responses.closeOpen(beganNs)
    for (const exchange of this.#exchanges.filter(({ responseOver }) => responseOver)) this.#finish(exchange)
    if (this.#exchanges.length > 0 && (this.#doubt || this.#cutAhead())) {
      this.#giveUpAll()
      this.#doubt = false
    }
    if (this.#exchanges.length >= WAITING_MAX) {
      this.#handler.lost('overflow')
      this.#giveUpAll()
    }
    const { method, target, minor, fields } = head
    const call = this.#handler.request(
      { protocol: `http/1.${minor}`, method, target, authority: undefined, fields },
      beganNs,
    )
    const framing = requestFraming(head)
    this.#exchanges.push({
      ...{ call, method, beganNs, requestBytes: 0, responseBytes: 0 },
      ...{ requestOver: false, answered: false, responseOver: false },
      partial: head.cut || framing.kind === 'malformed',
      endedNs: beganNs,
    })
    this.#takeEarly()
    return framing
  }

  /** A question whose end was not seen waits for its answer: what else was asked there nobody knows. */
  #cutAhead(): boolean {
    return this.#exchanges.some(({ requestOver }) => !requestOver)
  }

  /** The question that is being read. */
  #asking(): Exchange<Call> | undefined {
    const last = this.#exchanges.at(-1)
    return last && !last.requestOver ? last : undefined
  }

  #onRequestContent(bytes: Uint8Array): void {
    const exchange = this.#asking()
    if (!exchange) return
    exchange.requestBytes += bytes.length
    this.#handler.requestContent(exchange.call, bytes)
  }

  #onRequestMissing(bytes: number): void {
    const exchange = this.#asking()
    if (!exchange) return
    exchange.requestBytes += bytes
    exchange.partial = true
  }

  #onRequestEnd(whole: boolean, atNs: bigint): void {
    const exchange = this.#asking()
    if (!exchange) return
    exchange.requestOver = true
    if (!whole) exchange.partial = true
    if (exchange.responseOver) {
      exchange.endedNs = atNs
      this.#finish(exchange)
    }
  }

  #doubts(): void {
    this.#doubt = true
    // Whatever answer has begun may be of before.
    if (this.#due === 'early') this.#due = 'nobody'
  }

  #onRequestOpened(): void {
    this.#doubts()
    const exchange = this.#asking()
    if (exchange) exchange.partial = true
  }

  /** Which questions are missing nobody knows, so no answer can be tied to the ones before. */
  #onRequestsLost(why: 'gap' | 'malformed'): void {
    this.#doubts()
    this.#handler.lost(why)
    this.#dropEarly()
    for (const exchange of this.#exchanges) {
      exchange.partial = true
      exchange.requestOver = true
    }
    // Unless an answer is being read, which is the first one's for sure.
    const [first] = this.#exchanges
    if (first?.answered && !first.responseOver) this.#giveUp(this.#exchanges.slice(1))
    else this.#giveUpAll()
  }

  /** Whose answer it is, is settled by what was asked when its first byte came. */
  #onResponseBegin(): void {
    const due = this.#exchanges.find(({ answered }) => !answered)
    const early = this.#requests.aligned && !this.#early && !this.#doubt
    this.#due = due ?? (early ? 'early' : 'nobody')
  }

  #onResponse(head: Head): Framing {
    const interim = head.status < 200 && head.status !== SWITCHING_PROTOCOLS
    if (interim) return { kind: 'none' }
    const first = this.#exchanges.find(({ answered }) => !answered)
    const due = this.#due === 'early' ? first : this.#due
    if (due === 'nobody' || due !== first || (!first && head.cut)) return this.#onUnasked()
    if (!first) return this.#onEarly(head)
    first.answered = true
    this.#doubt = false
    if (head.cut) first.partial = true
    this.#handler.response(first.call, { status: head.status, fields: head.fields })
    return this.#responseFraming(head, first.method)
  }

  /** It may belong to any question that was missed. */
  #onUnasked(): Framing {
    this.#handler.lost('unasked')
    this.#dropEarly()
    this.#unasked = true
    this.#doubts()
    // Whether content follows depends on the question.
    return { kind: 'unknown' }
  }

  /** Kept for the question that comes next. */
  #onEarly(head: Head): Framing {
    const { status, fields } = head
    this.#early = { head: { status, fields }, framing: lengthFraming(head), bytes: 0, endedNs: this.#atNs }
    // Whether content follows depends on the question.
    return { kind: 'unknown' }
  }

  #takeEarly(): void {
    const early = this.#early
    const exchange = this.#exchanges[0]
    this.#early = undefined
    if (!early || !exchange) return
    exchange.answered = true
    const bytes = early.framing?.kind === 'length' ? early.framing.bytes : early.bytes
    exchange.responseBytes = exchange.method === 'HEAD' ? 0 : bytes
    // Its content was not looked at.
    exchange.partial ||= exchange.responseBytes > 0
    exchange.endedNs = early.endedNs
    // The question's own end comes later, and finishes both.
    exchange.responseOver = true
    this.#handler.response(exchange.call, early.head)
  }

  #dropEarly(): void {
    if (!this.#early) return
    this.#unasked = true
    this.#early = undefined
    this.#doubts()
    this.#handler.lost('unasked')
  }

  /** The exchange whose answer is being read. */
  #answering(): Exchange<Call> | undefined {
    if (this.#unasked) return undefined
    return this.#exchanges.find(({ answered, responseOver }) => answered && !responseOver)
  }

  #onResponseContent(bytes: Uint8Array): void {
    const exchange = this.#answering()
    if (exchange) {
      exchange.responseBytes += bytes.length
      this.#handler.responseContent(exchange.call, bytes)
    } else if (this.#early) this.#early.bytes += bytes.length
  }

  #onResponseMissing(bytes: number): void {
    const exchange = this.#answering()
    if (exchange) {
      exchange.responseBytes += bytes
      exchange.partial = true
    } else if (this.#early) this.#early.bytes += bytes
  }

  #onTrailers(fields: readonly Field[]): void {
    const exchange = this.#answering()
    if (exchange) this.#handler.trailers(exchange.call, fields)
  }

  #onResponseEnd(whole: boolean, atNs: bigint): void {
    const exchange = this.#answering()
    if (!exchange) {
      if (this.#early) this.#early.endedNs = atNs
      this.#unasked = false
      return
    }
    exchange.responseOver = true
    exchange.endedNs = atNs
    if (!whole) exchange.partial = true
    if (exchange.requestOver || this.#requests.open) this.#finish(exchange)
  }

  /** How many answers the missing bytes hold nobody knows, if several are due. */
  #onResponseOpened(): void {
    this.#doubts()
    const answering = this.#answering()
    if (answering) answering.partial = true
    const others = this.#exchanges.filter((exchange) => exchange !== answering)
    if (others.length === 0) return
    this.#handler.lost('gap')
    this.#giveUp(others)
  }

  /** Answers are missing; to which question the next one belongs nobody knows. */
  #onResponsesLost(why: 'gap' | 'malformed'): void {
    this.#doubts()
    this.#handler.lost(why)
    this.#dropEarly()
    const answering = this.#answering()
    if (answering) answering.partial = true
    this.#giveUp(this.#exchanges.filter((exchange) => exchange !== answering))
  }

  #giveUpAll(): void {
    this.#giveUp(this.#exchanges)
  }

  #giveUp(exchanges: readonly Exchange<Call>[]): void {
    for (const exchange of exchanges) {
      exchange.partial = true
      if (!exchange.responseOver) exchange.endedNs = this.#atNs
      this.#finish(exchange)
    }
  }

  #finish(exchange: Exchange<Call>): void {
    this.#exchanges = this.#exchanges.filter((other) => other !== exchange)
    const { call, beganNs, endedNs, requestBytes, responseBytes } = exchange
    const partial = exchange.partial || !exchange.requestOver
    this.#handler.end(call, { beganNs, endedNs, requestBytes, responseBytes, partial })
  }

  /** RFC 9112, 6.3. */
  #responseFraming(head: Head, method: string): Framing {
    const { status, transferEncoding } = head
    if (status === SWITCHING_PROTOCOLS || (method === 'CONNECT' && status < 300)) {
      this.#requests.stop()
      this.#fate = 'upgraded'
      return { kind: 'tunnel' }
    }
    if (method === 'HEAD' || status === NO_CONTENT || status === NOT_MODIFIED) return { kind: 'none' }
    if (transferEncoding !== undefined) return isChunked(transferEncoding) ? { kind: 'chunked' } : { kind: 'close' }
    return lengthFraming(head) ?? { kind: 'close' }
  }
}

function requestFraming(head: Head): Framing {
  if (head.transferEncoding !== undefined)
    return isChunked(head.transferEncoding) ? { kind: 'chunked' } : { kind: 'malformed' }
  return lengthFraming(head) ?? { kind: 'none' }
}

/** Undefined where there is no length; malformed where there are several. */
function lengthFraming({ contentLength }: Head): Framing | undefined {
  if (contentLength === undefined) return undefined
  const [length = '', ...others] = new Set(contentLength.split(',').map((one) => one.trim()))
  if (others.length > 0 || !CONTENT_LENGTH.test(length)) return { kind: 'malformed' }
  return { kind: 'length', bytes: Number(length) }
}

function isChunked(transferEncoding: string): boolean {
  return transferEncoding.split(',').at(-1)?.trim().toLowerCase() === 'chunked'
}
