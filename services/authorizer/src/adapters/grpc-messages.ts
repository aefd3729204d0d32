/*
 * gRPC over HTTP/2 (the protocol document of gRPC, "PROTOCOL-HTTP2"): messages on a stream, and how a call ends.
 */

/** Status codes of gRPC that a server says on its own. */
export const Status = {
  ok: 0,
  cancelled: 1,
  unknown: 2,
  deadlineExceeded: 4,
  resourceExhausted: 8,
  unimplemented: 12,
  internal: 13,
  unavailable: 14,
} as const

/** How a call fails. */
export interface Failure {
  readonly code: number
  readonly message: string
}

/** Flag and length in front of each message. */
const PREFIX_BYTES = 5

/** Takes a stream's bytes, in whatever parts they come, and gives back messages. */
export class MessageReader {
  readonly #bytesMax: number
  #held: Buffer | undefined

  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax
  }

  /** The bytes end within a message. */
  get isWithin(): boolean {
    return this.#held !== undefined
  }

  /** The messages that are whole with these bytes; they are views. */
  push(chunk: Buffer): readonly Buffer[] | Failure {
    let bytes = this.#held ? Buffer.concat([this.#held, chunk]) : chunk
    const messages: Buffer[] = []
    while (bytes.length >= PREFIX_BYTES) {
      if (bytes[0] !== 0) return COMPRESSED
      const length = bytes.readUInt32BE(1)
      if (length > this.#bytesMax) {
        return { code: Status.resourceExhausted, message: `A message has at most ${this.#bytesMax} bytes here.` }
      }
      if (bytes.length < PREFIX_BYTES + length) break
      messages.push(bytes.subarray(PREFIX_BYTES, PREFIX_BYTES + length))
      bytes = bytes.subarray(PREFIX_BYTES + length)
    }
    this.#held = bytes.length > 0 ? bytes : undefined
    return messages
  }
}

const COMPRESSED: Failure = { code: Status.unimplemented, message: 'Messages are not compressed here.' }

/** A message as it goes on a stream. */
export function framed(message: Uint8Array): Buffer {
  const frame = Buffer.allocUnsafe(PREFIX_BYTES + message.length)
  frame[0] = 0
  frame.writeUInt32BE(message.length, 1)
  frame.set(message, PREFIX_BYTES)
  return frame
}

/** grpc-message: percent-encoded but for printable ASCII. */
export function encodedMessage(message: string): string {
  return message.toWellFormed().replace(/[^\x20-\x24\x26-\x7e]+/g, encodeURIComponent)
}

const UNIT_MS: Readonly<Record<string, number>> = { H: 3_600_000, M: 60_000, S: 1000, m: 1, u: 1e-3, n: 1e-6 }

/** grpc-timeout in milliseconds; undefined if it is none. */
export function timeoutMs(header: string): number | undefined {
  const [, digits, unit = ''] = /^(\d{1,8})([HMSmun])$/.exec(header) ?? []
  return digits === undefined ? undefined : Number(digits) * (UNIT_MS[unit] ?? 0)
}
