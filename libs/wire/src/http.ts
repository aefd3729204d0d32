import type { ExchangeHandler, ObservedBytes } from './exchange.ts'
import { Http1Connection } from './http1.ts'

export type ObservedDirection = 'sent' | 'received'

/** Reads of a connection after which it is taken for another protocol if it never looked like HTTP. */
const UNDECIDED_READS_MAX = 64
/** What a connection that sends byte by byte needs; the longest beginning that tells. */
const BEGINNING_BYTES = 32

const QUESTION = /^[\r\n]*[A-Z][A-Z-]{0,19} [/*[\w]/
const ANSWER = /^HTTP\/1\.[01] [1-5]/

/**
 * Observes one connection, of which neither the beginning nor every byte need be seen: finds out which HTTP it speaks and
 * which direction asks. Never throws for what it is given.
 */
export class HttpObserver<Call> {
  readonly #handler: ExchangeHandler<Call>
  #asks: ObservedDirection | undefined
  #connection: Http1Connection<Call> | undefined
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

  push(direction: ObservedDirection, observed: ObservedBytes): void {
    if (this.#other) return
    this.#asks ??= askingDirection(direction, observed.bytes)
    if (!this.#connection) this.#decide(direction, observed)
    if (!this.#connection) return
    this.#connection.push(direction === this.#asks ? 'request' : 'response', observed)
    if (this.#connection.fate !== 'http1') {
      this.#connection.close(observed.atNs)
      this.#other = true
    }
  }

  /** The connection is over: what waits is told as it is. */
  close(atNs: bigint): void {
    this.#connection?.close(atNs)
    this.#other = true
  }

  #decide(direction: ObservedDirection, { bytes }: ObservedBytes): void {
    if (this.#asks !== undefined && looksLikeHttp(bytes, direction === this.#asks)) {
      this.#connection = new Http1Connection(this.#handler)
      return
    }
    this.#undecidedReads += 1
    if (this.#undecidedReads > UNDECIDED_READS_MAX) this.#other = true
  }
}

function askingDirection(direction: ObservedDirection, bytes: Uint8Array): ObservedDirection | undefined {
  const beginning = beginningOf(bytes)
  if (QUESTION.test(beginning)) return direction
  if (ANSWER.test(beginning)) return direction === 'sent' ? 'received' : 'sent'
  return undefined
}

function looksLikeHttp(bytes: Uint8Array, question: boolean): boolean {
  const beginning = beginningOf(bytes)
  return (question ? /^[\r\n]*[A-Z]/ : ANSWER).test(beginning)
}

function beginningOf(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, Math.min(bytes.length, BEGINNING_BYTES)).toString('latin1')
}
