import type { Field } from './hpack.ts'

/** What observers of HTTP tell of, whichever version is spoken. */

/** Beyond this a field is cut: what is needed of long ones, such as a scheme or whether they are there, stands at their beginning. */
export const FIELD_BYTES_MAX = 8192
/** More fields than this are read for framing, but not told. */
export const FIELDS_MAX = 128

export interface RequestHead {
  /** http/1.0, http/1.1 or h2. */
  readonly protocol: string
  /** Empty where compression hides it. */
  readonly method: string
  /** As it was sent, with query; at most FIELD_BYTES_MAX. Empty where compression hides it. */
  readonly target: string
  /** Of h2's pseudo-header; for HTTP/1 it is in `fields`, whose names are in lower case. */
  readonly authority: string | undefined
  readonly fields: readonly Field[]
}

export interface ResponseHead {
  /** The final one: 101 or at least 200. 0 where compression hides it. */
  readonly status: number
  readonly fields: readonly Field[]
}

/** What became of an exchange. */
export interface ExchangeEnd {
  /** When the first byte of the question and the last of the answer were seen. */
  readonly beganNs: bigint
  readonly endedNs: bigint
  /** Content, without the framing of chunks or frames. */
  readonly requestBytes: number
  readonly responseBytes: number
  /** Some bytes of it were not seen, or it was cut off. */
  readonly partial: boolean
}

/**
 * Who is told. `Call` is what it makes of a question, and is given back with all that belongs to it; `end` comes last and
 * exactly once for each. Bytes are lent for the time of the call.
 */
export interface ExchangeHandler<Call> {
  readonly request: (head: RequestHead, beganNs: bigint) => Call
  readonly requestContent: (call: Call, bytes: Uint8Array) => void
  readonly response: (call: Call, head: ResponseHead) => void
  readonly responseContent: (call: Call, bytes: Uint8Array) => void
  /** Fields after the content of an answer. */
  readonly trailers: (call: Call, fields: readonly Field[]) => void
  readonly end: (call: Call, end: ExchangeEnd) => void
  /** Something of an exchange had to be left out. */
  readonly lost: (reason: LossReason) => void
}

/**
 * unasked: an answer to a question that was not seen. gap: bytes are missing where the next message began. malformed: a message that
 * nobody could delimit. overflow: more at once than is kept.
 */
export type LossReason = 'unasked' | 'gap' | 'malformed' | 'overflow'

/** A read or write as it was observed. */
export interface ObservedBytes {
  /** The first bytes of it. Lent. */
  readonly bytes: Uint8Array
  /** Bytes that were not observed, between the one before in this direction and this one. */
  readonly skipped: number
  /** How many bytes it carried. */
  readonly total: number
  readonly atNs: bigint
}
