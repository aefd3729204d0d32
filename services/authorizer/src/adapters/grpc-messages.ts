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
const NOTHING = Buffer.alloc(0)
const NO_MESSAGES: readonly Buffer[] = []

/** Takes a stream's bytes, in whatever parts they come, and gives back messages. */
export class MessageReader {
  readonly #bytesMax: number
  /** Of which the first #length bytes have come. */
  #held = NOTHING
  #length = 0
  /** With so many there is something to read. */
  #needed = PREFIX_BYTES

  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax
  }

  /** The bytes end within a message. */
  get isWithin(): boolean {
    return this.#length > 0
  }

  /** The messages that are whole with these bytes; they are views. What is needed later is copied. */
  push(chunk: Buffer): readonly Buffer[] | Failure {
    if (this.#length + chunk.length < this.#needed) {
      this.#hold(chunk)
      return NO_MESSAGES
    }
    let bytes = chunk
    if (this.#length > 0) {
      this.#hold(chunk)
      bytes = this.#held.subarray(0, this.#length)
      this.#held = NOTHING
      this.#length = 0
    }
    const messages: Buffer[] = []
    this.#needed = PREFIX_BYTES
    while (bytes.length >= PREFIX_BYTES) {
      if (bytes[0] !== 0) return COMPRESSED
      const length = bytes.readUInt32BE(1)
      if (length > this.#bytesMax) {
        return { code: Status.resourceExhausted, message: `A message has at most ${this.#bytesMax} bytes here.` }
      }
      this.#needed = PREFIX_BYTES + length
      if (bytes.length < this.#needed) break
      messages.push(bytes.subarray(PREFIX_BYTES, this.#needed))
      bytes = bytes.subarray(this.#needed)
      this.#needed = PREFIX_BYTES
    }
    if (bytes.length > 0) this.#hold(bytes)
    return messages
  }

  /** Grows with what came, not with what was announced. */
  #hold(bytes: Buffer): void {
    const length = this.#length + bytes.length
    if (length > this.#held.length) {
      const grown = Buffer.allocUnsafe(Math.max(length, Math.min(2 * this.#held.length, this.#needed)))
      grown.set(this.#held.subarray(0, this.#length))
      this.#held = grown
    }
    this.#held.set(bytes, this.#length)
    this.#length = length
  }
}

const COMPRESSED: Failure = { code: Status.unimplemented, message: 'Messages are not compressed here.' }

/** What goes in front of a message of so many bytes. */
export function messagePrefix(bytes: number): Buffer {
  const prefix = Buffer.allocUnsafe(PREFIX_BYTES)
  prefix[0] = 0
  prefix.writeUInt32BE(bytes, 1)
  return prefix
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
