import type { ExchangeHandler, ObservedBytes } from './exchange.ts'
import { CLIENT_PREFACE, FrameFlag, FrameType } from './frames.ts'
import { Http1Connection } from './http1.ts'
import { Http2Connection } from './http2.ts'
import { consistsOfFrames, firstFields } from './http2-reader.ts'

export type ObservedDirection = 'sent' | 'received'

/** Reads of a connection after which it is taken for another protocol if it never looked like HTTP. */
const UNDECIDED_READS_MAX = 64
/** What a connection that sends byte by byte needs; the longest beginning that tells. */
const BEGINNING_BYTES = 32

const QUESTION = /^[\r\n]*[A-Z][A-Z-]{0,19} [/*[\w]/
/** As little of one as a read may hold. */
const MAYBE_QUESTION = /^[\r\n]*[A-Z][A-Z-]{0,19}(?: |$)/
const ANSWER = /^HTTP\/1\.[01] [1-5]/

/**
 * Observes one connection, of which neither the beginning nor every byte need be seen: finds out which HTTP it speaks and
 * which direction asks. Never throws for what it is given.
 */
export class HttpObserver<Call> {
  readonly #handler: ExchangeHandler<Call>
  #asks: ObservedDirection | undefined
  #connection: Http1Connection<Call> | Http2Connection<Call> | undefined
  #undecidedReads = 0
  #other = false

  /** `asks`: the direction of questions, where it is known. */
  constructor(handler: ExchangeHandler<Call>, asks: ObservedDirection | undefined) {
    this.#handler = handler
    this.#asks = asks
  }

  /** The direction of questions; undefined while it is not known. */
  get asks(): ObservedDirection | undefined {
    return this.#asks
  }

  /** It is no HTTP, or not any more: nothing more will be told. */
  get other(): boolean {
    return this.#other
  }

  /** Exchanges of which more is to come. */
  get waiting(): number {
    return this.#connection?.waiting ?? 0
  }

  /** What it keeps of what it was given. */
  get heldBytes(): number {
    return this.#connection?.heldBytes ?? 0
  }

  push(direction: ObservedDirection, observed: ObservedBytes): void {
    if (this.#other) return
    if (!this.#connection) this.#decide(direction, observed)
    const connection = this.#connection
    if (!connection) return
    connection.push(direction === this.#asks ? 'request' : 'response', observed)
    if (connection instanceof Http1Connection && connection.fate !== 'http1') {
      connection.close(observed.atNs)
      this.#other = true
    }
  }

  /** The connection is over: what waits is told as it is. */
  close(atNs: bigint): void {
    this.#connection?.close(atNs)
    this.#other = true
  }

  #decide(direction: ObservedDirection, { bytes }: ObservedBytes): void {
    const spoken = this.#spokenIn(direction, Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length))
    if (spoken === 'http1') this.#connection = new Http1Connection(this.#handler)
    else if (spoken === 'http2') this.#connection = new Http2Connection(this.#handler, isPreface(bytes))
    else this.#undecidedReads += 1
    if (this.#undecidedReads > UNDECIDED_READS_MAX) this.#other = true
  }

  /** What the beginning of a read shows, also of who asks. */
  #spokenIn(direction: ObservedDirection, bytes: Buffer): 'http1' | 'http2' | undefined {
    const beginning = bytes.toString('latin1', 0, BEGINNING_BYTES)
    if (isPreface(bytes)) {
      this.#asks ??= direction
      return 'http2'
    }
    if (ANSWER.test(beginning)) {
      this.#asks ??= otherThan(direction)
      return 'http1'
    }
    if (QUESTION.test(beginning)) this.#asks ??= direction
    if (direction === this.#asks && MAYBE_QUESTION.test(beginning)) return 'http1'
    return this.#showsFrames(direction, bytes) ? 'http2' : undefined
  }

  /** Of a connection whose beginning was not seen, only fields that must be there show what it is. */
  #showsFrames(direction: ObservedDirection, bytes: Buffer): boolean {
    if (!consistsOfFrames(bytes)) return false
    if (direction !== this.#asks && this.#asks !== undefined && isSettings(bytes)) return true
    const fields = firstFields(bytes)
    const isQuestion = fields?.some(([name]) => name === ':method') ?? false
    const isAnswer = fields?.some(([name, value]) => name === ':status' && /^[1-5]\d\d$/.test(value)) ?? false
    if (isQuestion === isAnswer) return false
    this.#asks ??= isQuestion ? direction : otherThan(direction)
    return isQuestion === (direction === this.#asks)
  }
}

function isPreface(bytes: Uint8Array): boolean {
  return Buffer.compare(bytes.subarray(0, CLIENT_PREFACE.length), CLIENT_PREFACE) === 0
}

/** A server's first frame. */
function isSettings(bytes: Buffer): boolean {
  return bytes[3] === FrameType.settings && ((bytes[4] ?? 0) & FrameFlag.ack) === 0
}

function otherThan(direction: ObservedDirection): ObservedDirection {
  return direction === 'sent' ? 'received' : 'sent'
}
