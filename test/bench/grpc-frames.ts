export const DATA = 0
export const HEADERS = 1
const SETTINGS = 4
const PING = 6
const GOAWAY = 7
const WINDOW_UPDATE = 8
const ACK = 1
export const END_STREAM = 1
const END_HEADERS = 4
const FRAME_HEADER_BYTES = 9
export const MESSAGE_PREFIX_BYTES = 5
const STREAM_WINDOW_BYTES = 2 ** 20
/** The server may send so much before it hears of more room: enough for any run here. */
const CONNECTION_WINDOW_BYTES = 2 ** 31 - 1
export const DEFAULT_WINDOW_BYTES = 65_535

/** Cuts what comes into frames (RFC 9113, section 4.1). */
export class FrameReader {
  readonly #told: (type: number, flags: number, stream: number, payload: Buffer) => void
  #rest: Buffer = Buffer.alloc(0)

  constructor(told: (type: number, flags: number, stream: number, payload: Buffer) => void) {
    this.#told = told
  }

  push(chunk: Buffer): void {
    const bytes = this.#rest.length > 0 ? Buffer.concat([this.#rest, chunk]) : chunk
    let at = 0
    while (bytes.length - at >= FRAME_HEADER_BYTES) {
      const length = bytes.readUIntBE(at, 3)
      const end = at + FRAME_HEADER_BYTES + length
      if (end > bytes.length) break
      this.#told(bytes[at + 3] ?? 0, bytes[at + 4] ?? 0, bytes.readUInt32BE(at + 5), bytes.subarray(at + 9, end))
      at = end
    }
    this.#rest = bytes.subarray(at)
  }
}

/** What a frame that concerns the whole connection has to be answered with, if anything. Throws when the server goes away. */
export function dueAnswer(type: number, flags: number, payload: Buffer): Buffer | undefined {
  if (type === GOAWAY) throw new Error('the server goes away')
  if (type !== SETTINGS && type !== PING) return undefined
  return (flags & ACK) === 0 ? frame(type, ACK, 0, type === PING ? payload : undefined) : undefined
}

/** How much more the server takes, if this frame says so. */
export function grantedBytes(type: number, payload: Buffer): number {
  return type === WINDOW_UPDATE ? payload.readUInt32BE(0) : 0
}

/** What a client says first: much room for answers. */
export function preface(): Buffer {
  const settings = Buffer.alloc(6)
  settings.writeUInt16BE(4, 0)
  settings.writeUInt32BE(STREAM_WINDOW_BYTES, 2)
  const room = Buffer.alloc(4)
  room.writeUInt32BE(CONNECTION_WINDOW_BYTES - DEFAULT_WINDOW_BYTES)
  return Buffer.concat([
    Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'),
    frame(SETTINGS, 0, 0, settings),
    frame(WINDOW_UPDATE, 0, 0, room),
  ])
}

function frame(type: number, flags: number, stream: number, payload: Uint8Array = new Uint8Array(0)): Buffer {
  const bytes = Buffer.alloc(FRAME_HEADER_BYTES + payload.length)
  bytes.writeUIntBE(payload.length, 0, 3)
  bytes[3] = type
  bytes[4] = flags
  bytes.writeUInt32BE(stream, 5)
  bytes.set(payload, FRAME_HEADER_BYTES)
  return bytes
}

/** One call: its headers, and its message in one DATA frame. */
export function call(head: Buffer, message: Uint8Array, stream: number): Buffer {
  const at = head.length
  const bytes = Buffer.allocUnsafe(at + FRAME_HEADER_BYTES + MESSAGE_PREFIX_BYTES + message.length)
  head.copy(bytes)
  bytes.writeUInt32BE(stream, 5)
  bytes.writeUIntBE(MESSAGE_PREFIX_BYTES + message.length, at, 3)
  bytes[at + 3] = DATA
  bytes[at + 4] = END_STREAM
  bytes.writeUInt32BE(stream, at + 5)
  bytes[at + 9] = 0
  bytes.writeUInt32BE(message.length, at + 10)
  bytes.set(message, at + 14)
  return bytes
}

/** HPACK without table or Huffman code (RFC 7541): indexed names where the static table has them. */
export function requestHeaders(path: string): Buffer {
  const literal = (text: string) => Buffer.concat([Buffer.of(text.length), Buffer.from(text)])
  const fields = [
    Buffer.of(0x83, 0x86, 0x04),
    literal(path),
    Buffer.of(0x01),
    literal('authorizer'),
    Buffer.of(0x0f, 0x10),
    literal('application/grpc'),
    ...['te', 'trailers', 'grpc-timeout', '1000m'].map((text, index) =>
      Buffer.concat([index % 2 === 0 ? Buffer.of(0) : Buffer.alloc(0), literal(text)]),
    ),
  ]
  return frame(HEADERS, END_HEADERS, 0, Buffer.concat(fields))
}
