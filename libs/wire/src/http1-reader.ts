import { FIELD_BYTES_MAX, FIELDS_MAX, type ObservedBytes } from './exchange.ts'
import type { Field } from './hpack.ts'

/** More than any server takes; a head beyond it is none. */
const HEAD_BYTES_MAX = 256 * 1024
/** Size and extensions of a chunk. */
const CHUNK_LINE_BYTES_MAX = 256
/** Size of the last chunk and the empty trailer. */
const LAST_CHUNK = '0\r\n\r\n'
const AFTER_CHUNK = `\r\n${LAST_CHUNK}`
const CRLF_BYTES = 2
const LF = 10
const CR = 13
const SPACE = 32
const TAB = 9

const REQUEST_LINE = /^([A-Z][A-Z-]{0,19}) (\S+) HTTP\/1\.([01])$/
/** Of lines whose end is not seen: the path at least must be whole. */
const REQUEST_LINE_BEGUN = /^([A-Z][A-Z-]{0,19}) ([^\s?]+(?:\?\S*$|(?:\?\S*)?(?= H?T?T?P?\/?1?\.?[01]?$)))/
/** Those that are used; others are believed where a question is due, but not where content could be as well. */
const METHODS: ReadonlySet<string> = new Set(
  [
    'GET HEAD POST PUT PATCH DELETE OPTIONS CONNECT TRACE QUERY LINK UNLINK PURGE',
    'ACL COPY LOCK MKCALENDAR MKCOL MOVE PROPFIND PROPPATCH REPORT SEARCH UNLOCK',
  ].flatMap((names) => names.split(' ')),
)
const REQUEST_BEGINNING = /^[A-Z][A-Z-]{0,19}(?: (?:[/*[\w].*)?)?$/s
const STATUS_LINE = /^HTTP\/1\.([01]) ([1-5]\d\d)(?: .*)?$/s
/** Some clients send an empty line too much after a question. */
const EMPTY_LINES = /^[\r\n]+/
const STATUS_BEGINNING = 'HTTP/1.'
/** Enough to tell whether a message begins. */
const BEGINNING_BYTES = 32
const PREFACE = 'PRI * HTTP/2.0'
const NAME = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,128}$/
const CHUNK_SIZE = /^([0-9A-Fa-f]{1,13})[ \t]*(?:;.*)?$/s

/** First line of a message. */
export interface FirstLine {
  /** 0 or 1 of HTTP/1.x. */
  readonly minor: number
  readonly method: string
  readonly target: string
  /** 0 in requests. */
  readonly status: number
}

export interface Head extends FirstLine {
  readonly fields: readonly Field[]
  /** Content-Length and Transfer-Encoding of all their fields, separated by commas; undefined where there is none. */
  readonly contentLength: string | undefined
  readonly transferEncoding: string | undefined
  /** Its end was not seen. */
  readonly cut: boolean
}

/** How the content of a message is delimited. tunnel: what follows is no HTTP. unknown: by the message after it, and the question. */
export type Framing =
  | { readonly kind: 'none' | 'chunked' | 'close' | 'tunnel' | 'malformed' | 'unknown' }
  | { readonly kind: 'length'; readonly bytes: number }

/** What the reader of one direction tells. */
export interface ReaderEvents {
  /** The first byte of what may be a head was seen; `head` or `lost` follows. */
  readonly begin: () => void
  /** A head was read, and what follows it is asked for. Of a head that was cut, the answer does not matter. */
  readonly head: (head: Head, beganNs: bigint) => Framing
  readonly content: (bytes: Uint8Array) => void
  /** Content that was not seen. */
  readonly missing: (bytes: number) => void
  readonly trailers: (fields: readonly Field[]) => void
  /** The message whose head was told is over; whole: as far as its framing says. */
  readonly end: (whole: boolean, atNs: bigint) => void
  /** The message that is being read goes on for nobody knows how long: the rest of a read was missed. */
  readonly opened: () => void
  /** Where the next message begins is not known: whole reads were missed (gap), or what is there is no HTTP. */
  readonly lost: (why: 'gap' | 'malformed') => void
  /** HTTP/2's preface stands where a request should. */
  readonly preface: () => void
}

/**
 * idle: a message must begin here. seek: one may begin with the next read. open: likewise, and until then it is content of a
 * message whose framing was lost.
 */
type State = 'idle' | 'seek' | 'open' | 'head' | 'length' | 'size' | 'data' | 'dataEnd' | 'trailer' | 'close' | 'tunnel'

/**
 * Reads the messages of one direction of an HTTP/1 connection (RFC 9112) out of what was observed of it. It never throws and keeps
 * at most one line and FIELDS_MAX fields. After bytes are missing it goes on where framing still tells, otherwise with the next
 * read that begins like a message: one inside of content is not taken for one.
 */
export class Http1Reader {
  readonly #kind: 'request' | 'response'
  readonly #events: ReaderEvents
  #state: State = 'seek'
  /** Of length and data: content to come. */
  #left = 0
  #atNs = 0n
  /** The message was found where content could be as well. */
  #sought = false
  /** When the message's first byte was seen. */
  #beganNs = 0n

  #line = ''
  #lineCut = false
  #headBytes = 0
  #first: FirstLine | undefined
  #fields: Field[] = []
  #contentLength: string | undefined
  #transferEncoding: string | undefined
  #lastFramingName: string | undefined

  constructor(kind: 'request' | 'response', events: ReaderEvents) {
    this.#kind = kind
    this.#events = events
  }

  /** Whether the message that is told of lasts until nobody knows when. */
  get open(): boolean {
    return this.#state === 'open'
  }

  /** Whether it is known where the next message begins. */
  get aligned(): boolean {
    return this.#state !== 'seek' && this.#state !== 'open'
  }

  get tunnel(): boolean {
    return this.#state === 'tunnel'
  }

  /** What it keeps of what it was given: a line and fields. */
  get heldBytes(): number {
    const framing = (this.#contentLength ?? '').length + (this.#transferEncoding ?? '').length
    return this.#line.length + framing + sumOfLengths(this.#fields)
  }

  push({ bytes, skipped, total, atNs }: ObservedBytes): void {
    if (skipped > 0 && !this.#missedLastChunk(skipped, bytes)) {
      this.#atNs = atNs
      this.#miss(skipped, true)
    }
    this.#atNs = atNs
    if (this.#state === 'seek' || this.#state === 'open') this.#seek(bytes)
    this.#consume(bytes)
    if (total > bytes.length) this.#miss(total - bytes.length, false)
  }

  /** No more comes. */
  close(atNs: bigint): void {
    this.#atNs = atNs
    if (this.#state === 'close') this.#end(true)
    else if (this.#state === 'head' && this.#first) {
      this.#tellHead(true)
      this.#end(false)
    } else if (this.#inContent()) this.#end(false)
    this.#state = 'tunnel'
  }

  /** An open message is over, as other events have shown. */
  closeOpen(atNs: bigint): void {
    if (this.#state !== 'open') return
    this.#atNs = atNs
    this.#end(false)
    this.#state = 'seek'
  }

  /** From here on it is another protocol. */
  stop(): void {
    this.#state = 'tunnel'
  }

  #inContent(): boolean {
    return !['idle', 'seek', 'head', 'tunnel'].includes(this.#state)
  }

  /** At the beginning of a read: does a message begin with it? */
  #seek(bytes: Uint8Array): void {
    if (bytes.length === 0 || !this.#couldBegin(bytes)) return
    if (this.#state === 'open') this.#end(false)
    this.#state = 'idle'
    this.#sought = true
  }

  #couldBegin(bytes: Uint8Array): boolean {
    const text = latin1(bytes, 0, Math.min(bytes.length, BEGINNING_BYTES)).replace(EMPTY_LINES, '')
    if (this.#kind === 'request') return REQUEST_BEGINNING.test(firstLineOf(text))
    if (text.length < STATUS_BEGINNING.length) return STATUS_BEGINNING.startsWith(text)
    return text.startsWith(STATUS_BEGINNING)
  }

  #consume(bytes: Uint8Array): void {
    let at = 0
    while (at < bytes.length) {
      switch (this.#state) {
        case 'idle':
          at = this.#begin(bytes, at)
          break
        case 'head':
        case 'size':
        case 'dataEnd':
        case 'trailer':
          at = this.#takeLine(bytes, at)
          break
        case 'length':
        case 'data': {
          const end = Math.min(bytes.length, at + this.#left)
          this.#left -= end - at
          this.#events.content(bytes.subarray(at, end))
          at = end
          if (this.#left === 0) this.#contentOver()
          break
        }
        case 'open':
          this.#open(bytes, at)
          return
        case 'close':
          this.#events.content(bytes.subarray(at))
          return
        case 'seek':
        case 'tunnel':
          return
      }
    }
  }

  #begin(bytes: Uint8Array, from: number): number {
    let at = from
    while (at < bytes.length && (bytes[at] === CR || bytes[at] === LF)) at += 1
    if (at === bytes.length) return at
    if (!this.#couldBegin(bytes.subarray(at))) {
      this.#lose('malformed')
      return bytes.length
    }
    this.#line = ''
    this.#lineCut = false
    this.#headBytes = 0
    this.#first = undefined
    this.#clearFields()
    this.#beganNs = this.#atNs
    this.#state = 'head'
    this.#events.begin()
    return at
  }

  /** Reads to the end of a line, or of the bytes. */
  #takeLine(bytes: Uint8Array, at: number): number {
    const newline = bytes.indexOf(LF, at)
    const end = newline < 0 ? bytes.length : newline
    const room = FIELD_BYTES_MAX - this.#line.length
    if (end - at > room) this.#lineCut = true
    this.#line += latin1(bytes, at, Math.min(end, at + room))
    this.#headBytes += end - at + 1
    if (this.#state === 'size' && this.#line.length > CHUNK_LINE_BYTES_MAX) this.#lose('malformed')
    else if (this.#headBytes > HEAD_BYTES_MAX) this.#lose('malformed')
    else if (newline >= 0) {
      const line = this.#line.endsWith('\r') ? this.#line.slice(0, -1) : this.#line
      const cut = this.#lineCut
      this.#line = ''
      this.#lineCut = false
      this.#onLine(line, cut)
    }
    return newline < 0 ? end : newline + 1
  }

  #onLine(line: string, cut: boolean): void {
    if (this.#state === 'size') this.#onChunkSize(line)
    else if (this.#state === 'dataEnd') {
      if (line === '') this.#expectChunk()
      else this.#lose('malformed')
    } else if (this.#state === 'trailer') {
      if (line === '') {
        this.#events.trailers(this.#fields)
        this.#end(true)
      } else this.#onField(line)
    } else if (!this.#first) this.#onFirstLine(line, cut)
    else if (line === '' && !cut) this.#onHeadEnd()
    else this.#onField(line)
  }

  #onFirstLine(line: string, cut: boolean): void {
    this.#first = this.#firstLine(line, cut)
    this.#sought = false
    if (this.#first) return
    if (this.#kind === 'request' && line === PREFACE) {
      this.#state = 'tunnel'
      this.#events.preface()
    } else this.#lose('malformed')
  }

  #firstLine(line: string, cut: boolean): FirstLine | undefined {
    if (this.#kind === 'response') return statusLine(line)
    const first = requestLine(line, cut)
    return first && (!this.#sought || (!cut && METHODS.has(first.method))) ? first : undefined
  }

  #onField(line: string): void {
    const first = line.charCodeAt(0)
    if (first === SPACE || first === TAB) {
      this.#onFolded(line.trim())
      return
    }
    this.#lastFramingName = undefined
    const colon = line.indexOf(':')
    const rawName = line.slice(0, Math.max(colon, 0))
    if (!NAME.test(rawName)) return
    const name = rawName.toLowerCase()
    const value = line.slice(colon + 1).trim()
    if (this.#fields.length < FIELDS_MAX) this.#fields.push([name, value])
    if (this.#state === 'trailer') return
    if (name === 'content-length') this.#contentLength = listed(this.#contentLength, value)
    else if (name === 'transfer-encoding') this.#transferEncoding = listed(this.#transferEncoding, value)
    else return
    this.#lastFramingName = name
  }

  /** A line that begins with space continues the one before (RFC 9112, 5.2); it matters for framing alone. */
  #onFolded(more: string): void {
    if (this.#lastFramingName === 'content-length') this.#contentLength += ` ${more}`
    if (this.#lastFramingName === 'transfer-encoding') this.#transferEncoding += ` ${more}`
  }

  #onHeadEnd(): void {
    const framing = this.#tellHead(false)
    switch (framing.kind) {
      case 'none':
        this.#end(true)
        return
      case 'length':
        this.#left = framing.bytes
        if (this.#left === 0) this.#end(true)
        else this.#state = 'length'
        return
      case 'chunked':
        this.#expectChunk()
        return
      case 'close':
        this.#state = 'close'
        return
      case 'unknown':
        this.#state = 'open'
        return
      case 'tunnel':
        this.#end(true)
        this.#state = 'tunnel'
        return
      case 'malformed':
        this.#events.end(false, this.#atNs)
        this.#lose('malformed')
        return
    }
  }

  #tellHead(cut: boolean): Framing {
    const head = {
      ...(this.#first ?? { minor: 1, method: '', target: '', status: 0 }),
      fields: this.#fields,
      contentLength: this.#contentLength,
      transferEncoding: this.#transferEncoding,
      cut,
    }
    this.#clearFields()
    return this.#events.head(head, this.#beganNs)
  }

  #clearFields(): void {
    this.#fields = []
    this.#contentLength = undefined
    this.#transferEncoding = undefined
    this.#lastFramingName = undefined
  }

  #expectChunk(): void {
    this.#headBytes = 0
    this.#state = 'size'
  }

  #onChunkSize(line: string): void {
    const hex = CHUNK_SIZE.exec(line)?.[1]
    if (hex === undefined) {
      this.#lose('malformed')
      return
    }
    this.#left = Number.parseInt(hex, 16)
    this.#headBytes = 0
    this.#state = this.#left === 0 ? 'trailer' : 'data'
  }

  #contentOver(): void {
    if (this.#state === 'data') {
      this.#headBytes = 0
      this.#state = 'dataEnd'
    } else this.#end(true)
  }

  /** Content of a message whose framing was lost, which most often ends with the last chunk of it. */
  #open(bytes: Uint8Array, at: number): void {
    const tail = latin1(bytes, Math.max(at, bytes.length - AFTER_CHUNK.length), bytes.length)
    this.#events.content(bytes.subarray(at))
    if (tail === AFTER_CHUNK || tail === LAST_CHUNK) this.#end(false)
  }

  #end(whole: boolean): void {
    this.#state = 'idle'
    this.#events.end(whole, this.#atNs)
  }

  #lose(why: 'gap' | 'malformed'): void {
    const inContent = this.#inContent()
    this.#state = inContent ? 'open' : 'seek'
    this.#line = ''
    this.#lineCut = false
    this.#events.lost(why)
  }

  /** Where the size of a chunk is due, the bytes of a last one are missing, and a message follows: that was the last one. */
  #missedLastChunk(skipped: number, next: Uint8Array): boolean {
    const isDue = this.#state === 'size' && this.#line === ''
    if (!isDue || skipped !== LAST_CHUNK.length || next.length === 0 || !this.#couldBegin(next)) return false
    this.#end(true)
    return true
  }

  /** Bytes are missing: whole reads, of which nothing is known, or the rest of one whose beginning was seen. */
  #miss(bytes: number, wholeReads: boolean): void {
    switch (this.#state) {
      case 'tunnel':
        break
      case 'close':
        this.#events.missing(bytes)
        break
      case 'length':
      case 'data':
        this.#missContent(bytes, wholeReads)
        break
      case 'head':
        this.#missHead(wholeReads)
        break
      case 'open':
        this.#events.missing(bytes)
        if (wholeReads) this.#events.lost('gap')
        break
      case 'idle':
        this.#lose('gap')
        break
      case 'seek':
        // The rest of a read that did not begin a message begins none that anybody could read.
        if (wholeReads) this.#lose('gap')
        break
      default:
        this.#opens(wholeReads)
    }
  }

  #missHead(wholeReads: boolean): void {
    this.#first ??= this.#firstLine(this.#line, true)
    this.#sought = false
    this.#line = ''
    if (!this.#first) {
      this.#lose('gap')
      return
    }
    this.#tellHead(true)
    this.#opens(wholeReads)
  }

  #missContent(bytes: number, wholeReads: boolean): void {
    const content = Math.min(bytes, this.#left)
    const beyond = bytes - content
    this.#left -= content
    this.#events.missing(content)
    if (this.#left > 0) return
    const chunked = this.#state === 'data'
    this.#contentOver()
    if (!chunked) {
      if (beyond > 0) this.#miss(beyond, wholeReads)
    } else if (beyond === CRLF_BYTES) this.#expectChunk()
    else if (beyond === CRLF_BYTES + LAST_CHUNK.length && !wholeReads) this.#end(false)
    else if (beyond > 0) {
      if (beyond > CRLF_BYTES) this.#events.missing(beyond - CRLF_BYTES)
      this.#opens(wholeReads)
    }
  }

  #opens(wholeReads: boolean): void {
    this.#state = 'open'
    if (wholeReads) this.#events.lost('gap')
    else this.#events.opened()
  }
}

function requestLine(line: string, cut: boolean): FirstLine | undefined {
  const [, method, target, minor] = REQUEST_LINE.exec(line) ?? []
  if (method !== undefined && target !== undefined) return { minor: Number(minor), method, target, status: 0 }
  const [, begun, part] = (cut && REQUEST_LINE_BEGUN.exec(line)) || []
  return begun === undefined || !part ? undefined : { minor: 1, method: begun, target: part, status: 0 }
}

function statusLine(line: string): FirstLine | undefined {
  const [, minor, status] = STATUS_LINE.exec(line) ?? []
  return status === undefined ? undefined : { minor: Number(minor), method: '', target: '', status: Number(status) }
}

function firstLineOf(text: string): string {
  const end = text.search(/[\r\n]/)
  return end < 0 ? text : text.slice(0, end)
}

function sumOfLengths(fields: readonly Field[]): number {
  return fields.reduce((sum, [name, value]) => sum + name.length + value.length, 0)
}

function listed(list: string | undefined, value: string): string {
  return list === undefined ? value : `${list}, ${value}`
}

function latin1(bytes: Uint8Array, from: number, to: number): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset + from, Math.max(0, to - from)).toString('latin1')
}
