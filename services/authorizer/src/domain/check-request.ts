import { isUtf8 } from 'node:buffer'

/** What Envoy asks, as far as it is read: envoy.service.auth.v3.CheckRequest. Absent strings are empty, as in protobuf. */
export interface CheckQuestion {
  readonly method: string
  /** Path and query as they came; Envoy decodes nothing. */
  readonly path: string
  readonly host: string
  readonly scheme: string
  /** Name, value, name, value…, without pseudo-headers; of header_map where it was sent, else of the joined map. */
  readonly headers: readonly string[]
  /** There was no header_map: values of one name may have been joined by commas. */
  readonly headersAreJoined: boolean
  /** The peer's address as text; undefined where the peer has none (a pipe), or nothing was said. */
  readonly peer: string | undefined
  /** URI or DNS name of the peer's verified certificate, else its subject. */
  readonly principal: string
  /** URL-encoded PEM. */
  readonly certificate: string
  /** raw_body, or body where that is empty; empty where none was sent. */
  readonly body: Uint8Array
}

/** Wire types (protobuf encoding, "message structure"). */
const VARINT = 0
const FIXED64 = 1
const DELIMITED = 2
const GROUP = 3
const END_GROUP = 4
const FIXED32 = 5

/** Groups within groups of fields that are skipped; as deep as protobuf parsers commonly go. */
const GROUP_DEPTH_MAX = 100
const VARINT_BYTES_MAX = 10
const COLON = 0x3a

const MALFORMED = new Error('not a CheckRequest')
const NOTHING = new Uint8Array(0)
const NOT_ASCII = /[^\0-\x7f]/

/**
 * Reads a CheckRequest; undefined if the bytes are none. Only the fields of CheckQuestion are read, everything else is skipped. By the
 * rules of protobuf: of a scalar the last one counts, messages that come in parts are merged, of a oneof the last one counts, of a map's
 * key the last value; a field of another wire type than declared is unknown. Strings must be UTF-8. Each byte of a path, host or
 * header becomes the character of the same number, as in Node's own headers; names and other strings are decoded.
 */
export function readCheckRequest(bytes: Uint8Array): CheckQuestion | undefined {
  const reader = new Reader(bytes)
  try {
    return reader.question()
  } catch (thrown) {
    if (thrown === MALFORMED) return undefined
    throw thrown
  }
}

/** One pass over the bytes. Methods named after a message read its fields up to `end`; the position is then `end`. */
class Reader {
  readonly #bytes: Uint8Array
  /** The bytes as characters of the same number: slices of it cost no copy. */
  readonly #text: string
  #at = 0
  #method = ''
  #path = ''
  #host = ''
  #scheme = ''
  #peer: string | undefined
  #principal = ''
  #certificate = ''
  #body: Uint8Array = NOTHING
  #rawBody: Uint8Array = NOTHING
  #joined: Map<string, string> | undefined
  #raw: string[] | undefined

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes
    this.#text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('latin1')
  }

  question(): CheckQuestion {
    const end = this.#bytes.length
    while (this.#at < end) {
      if (this.#tag(end) === tagOf(1, DELIMITED)) this.#attributes(this.#length(end))
      else this.#skip(end)
    }
    const rawBody = this.#rawBody
    return {
      method: this.#method,
      path: this.#path,
      host: this.#host,
      scheme: this.#scheme,
      headers: this.#raw ?? joinedHeaders(this.#joined),
      headersAreJoined: this.#raw === undefined,
      peer: this.#peer,
      principal: this.#principal,
      certificate: this.#certificate,
      body: rawBody.length > 0 ? rawBody : this.#body,
    }
  }

  /** envoy.service.auth.v3.AttributeContext. */
  #attributes(end: number): void {
    while (this.#at < end) {
      const tag = this.#tag(end)
      if (tag === tagOf(1, DELIMITED)) this.#source(this.#length(end))
      else if (tag === tagOf(4, DELIMITED)) this.#request(this.#length(end))
      else this.#skip(end)
    }
  }

  /** AttributeContext.Peer. */
  #source(end: number): void {
    while (this.#at < end) {
      const tag = this.#tag(end)
      if (tag === tagOf(1, DELIMITED)) this.#address(this.#length(end))
      else if (tag === tagOf(4, DELIMITED)) this.#principal = this.#string(end)
      else if (tag === tagOf(5, DELIMITED)) this.#certificate = this.#characters(end)
      else this.#skip(end)
    }
  }

  /** envoy.config.core.v3.Address: socket_address, or pipe or envoy_internal_address in its place. */
  #address(end: number): void {
    while (this.#at < end) {
      const tag = this.#tag(end)
      if (tag === tagOf(1, DELIMITED)) {
        this.#peer ??= ''
        this.#socketAddress(this.#length(end))
      } else {
        if (tag === tagOf(2, DELIMITED) || tag === tagOf(3, DELIMITED)) this.#peer = undefined
        this.#skip(end)
      }
    }
  }

  #socketAddress(end: number): void {
    while (this.#at < end) {
      if (this.#tag(end) === tagOf(2, DELIMITED)) this.#peer = this.#characters(end)
      else this.#skip(end)
    }
  }

  /** AttributeContext.Request. */
  #request(end: number): void {
    while (this.#at < end) {
      if (this.#tag(end) === tagOf(2, DELIMITED)) this.#http(this.#length(end))
      else this.#skip(end)
    }
  }

  /** AttributeContext.HttpRequest. */
  #http(end: number): void {
    while (this.#at < end) {
      switch (this.#tag(end)) {
        case tagOf(2, DELIMITED):
          this.#method = this.#characters(end)
          break
        case tagOf(3, DELIMITED):
          this.#joined ??= new Map()
          this.#mapEntry(this.#length(end), this.#joined)
          break
        case tagOf(4, DELIMITED):
          this.#path = this.#characters(end)
          break
        case tagOf(5, DELIMITED):
          this.#host = this.#characters(end)
          break
        case tagOf(6, DELIMITED):
          this.#scheme = this.#characters(end)
          break
        case tagOf(11, DELIMITED):
          this.#body = this.#utf8(end)
          break
        case tagOf(12, DELIMITED):
          this.#rawBody = this.#octets(end)
          break
        case tagOf(13, DELIMITED):
          this.#raw ??= []
          this.#headerMap(this.#length(end), this.#raw)
          break
        default:
          this.#skip(end)
      }
    }
  }

  #mapEntry(end: number, map: Map<string, string>): void {
    let key = ''
    let value = ''
    while (this.#at < end) {
      const tag = this.#tag(end)
      if (tag === tagOf(1, DELIMITED)) key = this.#characters(end)
      else if (tag === tagOf(2, DELIMITED)) value = this.#characters(end)
      else this.#skip(end)
    }
    map.set(key, value)
  }

  /** envoy.config.core.v3.HeaderMap. */
  #headerMap(end: number, list: string[]): void {
    while (this.#at < end) {
      if (this.#tag(end) === tagOf(1, DELIMITED)) this.#headerValue(this.#length(end), list)
      else this.#skip(end)
    }
  }

  /** envoy.config.core.v3.HeaderValue: the bytes of raw_value count where there are any. */
  #headerValue(end: number, list: string[]): void {
    let key = ''
    let value = ''
    let rawValue = ''
    while (this.#at < end) {
      const tag = this.#tag(end)
      if (tag === tagOf(1, DELIMITED)) key = this.#characters(end)
      else if (tag === tagOf(2, DELIMITED)) value = this.#characters(end)
      else if (tag === tagOf(3, DELIMITED)) {
        const past = this.#length(end)
        rawValue = this.#text.slice(this.#at, past)
        this.#at = past
      } else this.#skip(end)
    }
    if (key.charCodeAt(0) !== COLON) list.push(key, rawValue === '' ? value : rawValue)
  }

  /** A string of which each byte becomes a character. */
  #characters(end: number): string {
    const past = this.#length(end)
    const text = this.#text.slice(this.#at, past)
    if (NOT_ASCII.test(text) && !isUtf8(this.#bytes.subarray(this.#at, past))) throw MALFORMED
    this.#at = past
    return text
  }

  #string(end: number): string {
    return Buffer.from(this.#utf8(end)).toString()
  }

  #utf8(end: number): Uint8Array {
    const octets = this.#octets(end)
    if (!isUtf8(octets)) throw MALFORMED
    return octets
  }

  #octets(end: number): Uint8Array {
    const past = this.#length(end)
    const octets = this.#bytes.subarray(this.#at, past)
    this.#at = past
    return octets
  }

  #lastTag = 0

  /** A field's number and wire type; what it holds must then be read or skipped. */
  #tag(end: number): number {
    const tag = this.#varint(end)
    if (tag < 8) throw MALFORMED
    this.#lastTag = tag
    return tag
  }

  /** Where the bytes of a field end that begins with their number. */
  #length(end: number): number {
    const length = this.#varint(end)
    const past = this.#at + length
    if (past > end) throw MALFORMED
    return past
  }

  /** Skips the field whose tag was read last. */
  #skip(end: number, depth = 0): void {
    const tag = this.#lastTag
    const type = tag & 7
    if (type === DELIMITED) this.#at = this.#length(end)
    else if (type === VARINT) this.#skipVarint(end)
    else if (type === FIXED64) this.#at += 8
    else if (type === FIXED32) this.#at += 4
    else if (type === GROUP && depth < GROUP_DEPTH_MAX) this.#skipGroup(end, tag - GROUP + END_GROUP, depth)
    else throw MALFORMED
    if (this.#at > end) throw MALFORMED
  }

  #skipGroup(end: number, endTag: number, depth: number): void {
    while (this.#tag(end) !== endTag) {
      if ((this.#lastTag & 7) === END_GROUP) throw MALFORMED
      this.#skip(end, depth + 1)
    }
  }

  #skipVarint(end: number): void {
    const last = Math.min(end, this.#at + VARINT_BYTES_MAX)
    while (this.#at < last) if ((this.#bytes[this.#at++] ?? 0) < 0x80) return
    throw MALFORMED
  }

  /** A tag or length: at most 32 bits, however many bytes say so. */
  #varint(end: number): number {
    const bytes = this.#bytes
    const last = Math.min(end, this.#at + VARINT_BYTES_MAX)
    let value = 0
    let weight = 1
    while (this.#at < last) {
      const byte = bytes[this.#at++] ?? 0
      value += (byte & 0x7f) * weight
      if (byte < 0x80) {
        if (value > 0xffff_ffff) throw MALFORMED
        return value
      }
      weight *= 128
    }
    throw MALFORMED
  }
}

function tagOf(field: number, wireType: number): number {
  return field * 8 + wireType
}

function joinedHeaders(map: ReadonlyMap<string, string> | undefined): string[] {
  const list: string[] = []
  if (map) for (const [key, value] of map) if (key.charCodeAt(0) !== COLON) list.push(key, value)
  return list
}
