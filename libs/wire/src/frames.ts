/** Frames of HTTP/2, RFC 9113, section 6. */
export const FrameType = {
  data: 0,
  headers: 1,
  priority: 2,
  resetStream: 3,
  settings: 4,
  pushPromise: 5,
  ping: 6,
  goAway: 7,
  windowUpdate: 8,
  continuation: 9,
} as const

export const FrameFlag = { ack: 0x1, endStream: 0x1, endHeaders: 0x4, padded: 0x8, priority: 0x20 } as const

/** Section 7. */
export const ErrorCode = {
  none: 0,
  protocol: 1,
  internal: 2,
  flowControl: 3,
  settingsTimeout: 4,
  streamClosed: 5,
  frameSize: 6,
  refusedStream: 7,
  cancel: 8,
  compression: 9,
  enhanceYourCalm: 11,
} as const

/** Section 6.5.2. */
export const Setting = {
  headerTableSize: 1,
  enablePush: 2,
  maxConcurrentStreams: 3,
  initialWindowSize: 4,
  maxFrameSize: 5,
  maxHeaderListSize: 6,
} as const

/** What a client says first (section 3.4). */
export const CLIENT_PREFACE = Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', 'latin1')
export const FRAME_HEADER_BYTES = 9
/** Until the other side says otherwise: of a frame's payload, and of windows. */
export const FRAME_BYTES = 16_384
export const WINDOW_BYTES = 65_535
/** Of windows (section 6.9.1) and of stream ids. */
export const INTEGER_31_MAX = 2 ** 31 - 1

/** Hears of frames; `payload` is only lent. False: reading ends here. */
export type OnFrame = (type: number, flags: number, streamId: number, payload: Buffer) => boolean

/** Cuts the bytes of one direction of a connection, after the preface, into frames. What it holds is less than one frame. */
export class FrameReader {
  readonly #payloadBytesMax: number
  readonly #onFrame: OnFrame
  #held: Buffer | undefined

  /** A frame with a payload of more than payloadBytesMax is FRAME_SIZE_ERROR. */
  constructor(payloadBytesMax: number, onFrame: OnFrame) {
    this.#payloadBytesMax = payloadBytesMax
    this.#onFrame = onFrame
  }

  /** Of a frame that is not whole. */
  get heldBytes(): number {
    return this.#held?.length ?? 0
  }

  /** Reads what came. Undefined: all of it; else why nothing more can be read: 'too-large', or 'ended' by onFrame. */
  push(chunk: Buffer): 'too-large' | 'ended' | undefined {
    const bytes = this.#held ? Buffer.concat([this.#held, chunk]) : chunk
    this.#held = undefined
    let at = 0
    while (bytes.length - at >= FRAME_HEADER_BYTES) {
      const length = bytes.readUIntBE(at, 3)
      if (length > this.#payloadBytesMax) return 'too-large'
      const end = at + FRAME_HEADER_BYTES + length
      if (end > bytes.length) break
      const streamId = bytes.readUInt32BE(at + 5) & INTEGER_31_MAX
      const payload = bytes.subarray(at + FRAME_HEADER_BYTES, end)
      if (!this.#onFrame(bytes[at + 3] ?? 0, bytes[at + 4] ?? 0, streamId, payload)) return 'ended'
      at = end
    }
    // A copy: what is left must not keep alive all that came with it.
    if (at < bytes.length) this.#held = Buffer.from(bytes.subarray(at))
    return undefined
  }
}

/** Writes the nine bytes in front of a payload of `length` bytes. */
export function writeFrameHeader(
  to: Buffer,
  at: number,
  { length, type, flags = 0, streamId = 0 }: { length: number; type: number; flags?: number; streamId?: number },
): void {
  to.writeUIntBE(length, at, 3)
  to[at + 3] = type
  to[at + 4] = flags
  to.writeUInt32BE(streamId, at + 5)
}

/** A frame's payload without its padding; undefined where the padding is longer than the frame. `flags` may be those of DATA or HEADERS. */
export function unpadded(flags: number, payload: Buffer): Buffer | undefined {
  if (!(flags & FrameFlag.padded)) return payload
  const padding = payload[0]
  if (padding === undefined || padding + 1 > payload.length) return undefined
  return payload.subarray(1, payload.length - padding)
}
