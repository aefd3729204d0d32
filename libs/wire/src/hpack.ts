import { huffmanDecode } from './huffman.ts'

/** One header field; names as they came, which HTTP/2 wants in lower case. Octets are characters of ISO 8859-1. */
export type Field = readonly [name: string, value: string]

/** RFC 7541, appendix A. */
const STATIC_TABLE: readonly Field[] = [
  [':authority', ''],
  [':method', 'GET'],
  [':method', 'POST'],
  [':path', '/'],
  [':path', '/index.html'],
  [':scheme', 'http'],
  [':scheme', 'https'],
  [':status', '200'],
  [':status', '204'],
  [':status', '206'],
  [':status', '304'],
  [':status', '400'],
  [':status', '404'],
  [':status', '500'],
  ['accept-charset', ''],
  ['accept-encoding', 'gzip, deflate'],
  ['accept-language', ''],
  ['accept-ranges', ''],
  ['accept', ''],
  ['access-control-allow-origin', ''],
  ['age', ''],
  ['allow', ''],
  ['authorization', ''],
  ['cache-control', ''],
  ['content-disposition', ''],
  ['content-encoding', ''],
  ['content-language', ''],
  ['content-length', ''],
  ['content-location', ''],
  ['content-range', ''],
  ['content-type', ''],
  ['cookie', ''],
  ['date', ''],
  ['etag', ''],
  ['expect', ''],
  ['expires', ''],
  ['from', ''],
  ['host', ''],
  ['if-match', ''],
  ['if-modified-since', ''],
  ['if-none-match', ''],
  ['if-range', ''],
  ['if-unmodified-since', ''],
  ['last-modified', ''],
  ['link', ''],
  ['location', ''],
  ['max-forwards', ''],
  ['proxy-authenticate', ''],
  ['proxy-authorization', ''],
  ['range', ''],
  ['referer', ''],
  ['refresh', ''],
  ['retry-after', ''],
  ['server', ''],
  ['set-cookie', ''],
  ['strict-transport-security', ''],
  ['transfer-encoding', ''],
  ['user-agent', ''],
  ['vary', ''],
  ['via', ''],
  ['www-authenticate', ''],
]

/** Of a table until the other side is told otherwise (RFC 9113, section 6.5.2). */
const HPACK_TABLE_BYTES = 4096
/** What each field counts beside its octets (RFC 7541, section 4.1). */
const FIELD_OVERHEAD_BYTES = 32
/** A size or an index that needs more octets than this is no use to anybody. */
const INTEGER_MAX = 2 ** 28

/** Stands for a field that a reader who came late cannot know. */
export const UNKNOWN_FIELD: Field = ['', '']

export interface HpackDecoderOptions {
  /** What the other side may ask for as its table's size. */
  readonly tableBytesMax?: number
  /** Fields of one block, each counted with 32 octets more, beyond which it is too large. */
  readonly listBytesMax: number
  /** The beginning of the connection was not seen: fields of the other's table that are not known are UNKNOWN_FIELD. */
  readonly isLate?: boolean
}

/** What a block holds. `isTooLarge`: fields beyond listBytesMax were read, for the table's sake, and left out. */
export interface FieldBlock {
  readonly fields: readonly Field[]
  readonly isTooLarge: boolean
}

const EMPTY = Buffer.alloc(0)
/** Where strings are decoded, one after the other; as long as the longest needs. */
let text = Buffer.alloc(256)

/**
 * Reads the header blocks of one direction of one connection, in the order in which they were sent (RFC 7541). Its memory is that of the
 * table, and of one block.
 */
export class HpackDecoder {
  readonly #tableBytesMax: number
  readonly #listBytesMax: number
  readonly #isLate: boolean
  /** Newest last; those before #first are gone. */
  #entries: Field[] = []
  #first = 0
  #bytes = 0
  #capacity: number
  #block: Buffer = EMPTY
  #at = 0

  constructor({ tableBytesMax = HPACK_TABLE_BYTES, listBytesMax, isLate = false }: HpackDecoderOptions) {
    this.#tableBytesMax = tableBytesMax
    this.#listBytesMax = listBytesMax
    this.#isLate = isLate
    this.#capacity = tableBytesMax
  }

  /** Of the table, as its peers count it, and of a block. */
  get heldBytes(): number {
    return this.#bytes + this.#block.length
  }

  /** Undefined: the block is damaged, and nothing that comes after it can be read (COMPRESSION_ERROR). */
  decode(block: Buffer): FieldBlock | undefined {
    this.#block = block
    this.#at = 0
    const decoded = this.#fields(block)
    this.#block = EMPTY
    return decoded
  }

  #fields(block: Buffer): FieldBlock | undefined {
    const fields: Field[] = []
    let listBytes = 0
    let mayResize = true
    while (this.#at < block.length) {
      const first = block[this.#at] ?? 0
      if ((first & 0xe0) === 0x20) {
        if (!mayResize || !this.#resize(this.#integer(5))) return undefined
        continue
      }
      mayResize = false
      const field = this.#field(first)
      if (!field) return undefined
      listBytes += sizeOf(field)
      if (listBytes <= this.#listBytesMax) fields.push(field)
    }
    return { fields, isTooLarge: listBytes > this.#listBytesMax }
  }

  #field(first: number): Field | undefined {
    if (first & 0x80) return this.#indexed(this.#integer(7))
    if ((first & 0xc0) === 0x40) {
      const field = this.#literal(this.#integer(6))
      if (field) this.#insert(field)
      return field
    }
    return this.#literal(this.#integer(4))
  }

  #indexed(index: number): Field | undefined {
    if (index <= 0) return undefined
    if (index <= STATIC_TABLE.length) return STATIC_TABLE[index - 1]
    const at = this.#entries.length - (index - STATIC_TABLE.length)
    if (at >= this.#first) return this.#entries[at]
    return this.#isLate ? UNKNOWN_FIELD : undefined
  }

  #literal(nameIndex: number): Field | undefined {
    if (nameIndex < 0) return undefined
    const name = nameIndex === 0 ? this.#string() : this.#indexed(nameIndex)?.[0]
    if (name === undefined) return undefined
    const value = this.#string()
    return value === undefined ? undefined : [name, value]
  }

  /** With a prefix of so many bits; -1: it is cut off or beyond any use. */
  #integer(bits: number): number {
    const block = this.#block
    const most = (1 << bits) - 1
    let value = (block[this.#at++] ?? 0) & most
    if (value < most) return value
    for (let factor = 1; value < INTEGER_MAX; factor *= 128) {
      const byte = block[this.#at++]
      if (byte === undefined || factor > INTEGER_MAX) return -1
      value += (byte & 0x7f) * factor
      if (byte < 0x80) return value < INTEGER_MAX ? value : -1
    }
    return -1
  }

  #string(): string | undefined {
    const block = this.#block
    if (this.#at >= block.length) return undefined
    const isCoded = ((block[this.#at] ?? 0) & 0x80) !== 0
    const length = this.#integer(7)
    const from = this.#at
    const to = from + length
    if (length < 0 || to > block.length) return undefined
    this.#at = to
    if (!isCoded) return block.toString('latin1', from, to)
    if (text.length < length * 2) text = Buffer.alloc(length * 2)
    const octets = huffmanDecode(block, from, to, text)
    return octets < 0 ? undefined : text.toString('latin1', 0, octets)
  }

  #insert(field: Field): void {
    this.#bytes += sizeOf(field)
    this.#entries.push(field)
    this.#evict()
  }

  #resize(bytes: number): boolean {
    if (bytes < 0 || bytes > this.#tableBytesMax) return false
    this.#capacity = bytes
    this.#evict()
    return true
  }

  #evict(): void {
    while (this.#bytes > this.#capacity) {
      const oldest = this.#entries[this.#first++]
      this.#bytes -= oldest ? sizeOf(oldest) : this.#bytes
    }
    // Moved seldom enough to cost nothing: once for as many as are kept.
    if (this.#first > 32 && this.#first * 2 > this.#entries.length) {
      this.#entries = this.#entries.slice(this.#first)
      this.#first = 0
    }
  }
}

function sizeOf([name, value]: Field): number {
  return name.length + value.length + FIELD_OVERHEAD_BYTES
}

/** First in the first block of a connection whose encoder keeps no table: it may not be larger than the other side wants it. */
export const NO_TABLE = Buffer.of(0x20)

/**
 * A block that stands for itself: literals that no table remembers and no code shortens, so that it may be written before and sent on any
 * connection, any number of times.
 */
export function encodeFields(fields: Iterable<Field>): Buffer {
  const parts: Buffer[] = []
  for (const [name, value] of fields) {
    const index = STATIC_TABLE.findIndex(([known]) => known === name)
    const exact = STATIC_TABLE.findIndex(([known, given]) => known === name && given === value && value !== '')
    if (exact >= 0) parts.push(encodeInteger(0x80, 7, exact + 1))
    else {
      parts.push(encodeInteger(0, 4, index + 1))
      if (index < 0) parts.push(encodeString(name))
      parts.push(encodeString(value))
    }
  }
  return Buffer.concat(parts)
}

function encodeString(text: string): Buffer {
  return Buffer.concat([encodeInteger(0, 7, text.length), Buffer.from(text, 'latin1')])
}

function encodeInteger(flags: number, bits: number, value: number): Buffer {
  const most = (1 << bits) - 1
  if (value < most) return Buffer.of(flags | value)
  const bytes = [flags | most]
  let rest = value - most
  for (; rest >= 0x80; rest >>= 7) bytes.push((rest & 0x7f) | 0x80)
  return Buffer.from([...bytes, rest])
}
