import type { HeaderField, Metadata } from '@tollward/decision'

/** What Envoy is told: envoy.service.auth.v3.CheckResponse. */
export type CheckAnswer = AllowAnswer | DenyAnswer

export interface AllowAnswer {
  /** To upstream, each in the place of what the client sent; ":path" replaces path and query. */
  readonly set: readonly HeaderField[]
  readonly remove: readonly string[]
  /** To the client, in the place of what the API says under these names. */
  readonly responseHeaders: readonly HeaderField[]
  readonly metadata: Metadata
}

export interface DenyAnswer {
  /** google.rpc.Code; never 0, on which Envoy admits. */
  readonly code: number
  /** For Envoy's log. */
  readonly message: string
  /** One of Envoy's own list of HTTP status codes. */
  readonly status: number
  readonly headers: readonly HeaderField[]
  readonly body: string
  readonly metadata: Metadata
}

/** Answers are some hundred bytes; what does not fit grows it, once. */
const INITIAL_BYTES = 16 * 1024

/** `append` there and false, and append_action OVERWRITE_IF_EXISTS_OR_ADD: which one counts differs between versions of Envoy. */
const OVERWRITING = Uint8Array.of(0x12, 0, 0x18, 2)
/** And keep_empty_value, without which an empty value might leave what the client sent. */
const OVERWRITING_EMPTY = Uint8Array.of(0x12, 0, 0x18, 2, 0x20, 1)
/** status: an empty google.rpc.Status, whose code is 0. */
const ADMITTED = Uint8Array.of(0x0a, 0)

const NOT_PRINTABLE = /[^\t\x20-\x7e]/
const NOT_PRINTABLES = /[^\t\x20-\x7e]+/g

const writer = { bytes: Buffer.allocUnsafeSlow(INITIAL_BYTES), at: INITIAL_BYTES }

/** Writes a CheckResponse. Whatever a value holds, the bytes are well-formed, and no header value ends a line. */
export function writeCheckResponse(answer: CheckAnswer): Uint8Array {
  writer.at = writer.bytes.length
  // Written from the end to the beginning: so the length of each message is known when it is written before it.
  metadata(answer.metadata)
  if ('code' in answer) deny(answer)
  else allow(answer)
  return Buffer.from(writer.bytes.subarray(writer.at))
}

function allow({ set, remove, responseHeaders }: AllowAnswer): void {
  const end = mark()
  headers(6, responseHeaders)
  for (let index = remove.length - 1; index >= 0; index--) string(5, remove[index] ?? '')
  headers(2, set)
  close(3, end)
  octets(ADMITTED)
}

function deny({ code, message, status, headers: list, body }: DenyAnswer): void {
  const denied = mark()
  if (body !== '') string(3, body)
  headers(2, list)
  const httpStatus = mark()
  number(1, status)
  close(1, httpStatus)
  close(2, denied)
  const rpcStatus = mark()
  string(2, message)
  number(1, code)
  close(1, rpcStatus)
}

/** dynamic_metadata: a google.protobuf.Struct of strings. */
function metadata(fields: Metadata): void {
  const end = mark()
  const names = Object.keys(fields)
  for (let index = names.length - 1; index >= 0; index--) {
    const name = names[index] ?? ''
    const entry = mark()
    string(3, fields[name] ?? '')
    close(2, entry)
    string(1, name)
    close(1, entry)
  }
  if (names.length > 0) close(4, end)
}

/** envoy.config.core.v3.HeaderValueOption. */
function headers(field: number, list: readonly HeaderField[]): void {
  for (let index = list.length - 1; index >= 0; index--) {
    const [name, value] = list[index] ?? ['', '']
    const option = mark()
    octets(value === '' ? OVERWRITING_EMPTY : OVERWRITING)
    const header = mark()
    string(2, printable(value))
    string(1, name)
    close(1, header)
    close(field, option)
  }
}

/** Field values are visible ASCII; anything else would have Envoy refuse the whole answer. */
function printable(value: string): string {
  if (!NOT_PRINTABLE.test(value)) return value
  return value.toWellFormed().replace(NOT_PRINTABLES, encodeURIComponent)
}

/** Where the message ends that is about to be written; counted from the end, since there may be more room later. */
function mark(): number {
  return writer.bytes.length - writer.at
}

/** Completes a message: its length and its tag. */
function close(field: number, end: number): void {
  const length = mark() - end
  room(6)
  varint(length)
  writer.bytes[--writer.at] = field * 8 + 2
}

function string(field: number, text: string): void {
  const length = Buffer.byteLength(text)
  room(length + 6)
  writer.at -= length
  writer.bytes.write(text, writer.at, length, length === text.length ? 'latin1' : 'utf8')
  varint(length)
  writer.bytes[--writer.at] = field * 8 + 2
}

function number(field: number, value: number): void {
  room(6)
  varint(value)
  writer.bytes[--writer.at] = field * 8
}

function octets(bytes: Uint8Array): void {
  room(bytes.length)
  writer.at -= bytes.length
  writer.bytes.set(bytes, writer.at)
}

/** At most 32 bits; its room is there. */
function varint(value: number): void {
  let bytes = 1
  for (let rest = value >>> 7; rest > 0; rest >>>= 7) bytes++
  writer.at -= bytes
  let at = writer.at
  let rest = value
  while (rest > 0x7f) {
    writer.bytes[at++] = (rest & 0x7f) | 0x80
    rest >>>= 7
  }
  writer.bytes[at] = rest
}

function room(length: number): void {
  if (length <= writer.at) return
  const used = mark()
  const grown = Buffer.allocUnsafeSlow((used + length) * 2)
  writer.bytes.copy(grown, grown.length - used, writer.at)
  writer.bytes = grown
  writer.at = grown.length - used
}
