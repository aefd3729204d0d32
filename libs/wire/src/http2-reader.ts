import { FIELD_BYTES_MAX, FIELDS_MAX, type ObservedBytes } from './exchange.ts'
import {
  CLIENT_PREFACE,
  FRAME_BYTES,
  FRAME_HEADER_BYTES,
  FrameFlag,
  FrameType,
  INTEGER_31_MAX,
  unpadded,
} from './frames.ts'
import { type Field, HpackDecoder } from './hpack.ts'

/** What any peer allows the other in practice; larger frames are no frames of an API. */
const FRAME_BYTES_MAX = 1024 * 1024
/** Of a header block, with its continuations. */
const BLOCK_BYTES_MAX = 64 * 1024
/** A block comes in one frame, a large one in a few; each that is kept costs some bytes beside its own. */
const BLOCK_PARTS_MAX = 64
const PART_OVERHEAD_BYTES = 128
/** A larger table than the peers agreed on only knows more of what nobody refers to any more. */
const TABLE_BYTES_MAX = 64 * 1024

/** What the reader of one direction tells of streams. */
export interface StreamEvents {
  readonly fields: (streamId: number, fields: readonly Field[], endsStream: boolean) => void
  readonly content: (streamId: number, bytes: Uint8Array) => void
  /** Content that was not seen. */
  readonly missing: (streamId: number, bytes: number) => void
  /** The direction's side of the stream is over, by a frame without fields. */
  readonly end: (streamId: number) => void
  readonly reset: (streamId: number) => void
  /** Frames are missing, or what is there are none; of which streams nobody knows. */
  readonly lost: (why: 'gap' | 'malformed') => void
}

interface Frame {
  readonly type: number
  readonly flags: number
  readonly streamId: number
  readonly bytes: number
}

/**
 * Reads the frames of one direction of an HTTP/2 connection (RFC 9113) out of what was observed of it. It never throws and keeps at
 * most one header block and the table of its compression. After frames are missing it goes on with the next read that consists of
 * frames; what the compression refers to from before is unknown then, and never taken for something else.
 */
export class Http2Reader {
  readonly #asks: boolean
  readonly #events: StreamEvents
  #isAligned = false
  #decoder = lateDecoder()

  readonly #header = Buffer.alloc(FRAME_HEADER_BYTES)
  #headerBytes = 0
  #frame: Frame | undefined
  /** Of the frame's payload. */
  #left = 0
  /** Of a padded frame of content: undefined until its length was read. */
  #padding: number | undefined = 0
  /** Payload of a frame with fields, as far as it came in earlier reads. */
  #held: Buffer[] = []
  #isDamaged = false

  #block: Buffer[] = []
  #blockBytes = 0
  #blockOf: { readonly streamId: number; readonly endsStream: boolean; readonly isPromise: boolean } | undefined

  constructor(asks: boolean, events: StreamEvents) {
    this.#asks = asks
    this.#events = events
  }

  /** The next byte is the first of a frame; without a decoder: the first of all. */
  begin(decoder = new HpackDecoder({ tableBytesMax: TABLE_BYTES_MAX, listBytesMax: BLOCK_BYTES_MAX })): void {
    this.#isAligned = true
    this.#headerBytes = 0
    this.#frame = undefined
    this.#left = 0
    this.#dropBlock()
    this.#decoder = decoder
  }

  /** What it keeps of what it was given: the parts of a header block, and the table. */
  get heldBytes(): number {
    const parts = [...this.#held, ...this.#block]
    return parts.reduce((sum, { length }) => sum + length + PART_OVERHEAD_BYTES, this.#decoder.heldBytes)
  }

  push({ bytes, skipped, total }: ObservedBytes): void {
    if (skipped > 0) this.#miss(skipped, true)
    const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
    const from = this.#isAligned ? 0 : this.#align(buffer)
    if (this.#isAligned) this.#consume(buffer, from)
    if (total > bytes.length) this.#miss(total - bytes.length, false)
  }

  /** At the beginning of a read: where its frames begin, if it has any. */
  #align(bytes: Buffer): number {
    const prefaced = this.#asks && bytes.subarray(0, CLIENT_PREFACE.length).equals(CLIENT_PREFACE)
    if (!prefaced && !consistsOfFrames(bytes)) return 0
    // Whoever speaks first says its settings: nothing was compressed before.
    const begins = prefaced || (bytes[3] === FrameType.settings && ((bytes[4] ?? 0) & FrameFlag.ack) === 0)
    this.begin(begins ? undefined : lateDecoder())
    return prefaced ? CLIENT_PREFACE.length : 0
  }

  #consume(bytes: Buffer, from: number): void {
    let at = from
    while (at < bytes.length && this.#isAligned) {
      if (!this.#frame) {
        const taken = bytes.copy(this.#header, this.#headerBytes, at, at + FRAME_HEADER_BYTES - this.#headerBytes)
        this.#headerBytes += taken
        at += taken
        if (this.#headerBytes === FRAME_HEADER_BYTES) this.#beginFrame()
      } else {
        const end = Math.min(bytes.length, at + this.#left)
        this.#takePayload(this.#frame, bytes.subarray(at, end))
        this.#left -= end - at
        at = end
        if (this.#left === 0) this.#endFrame(this.#frame)
      }
    }
    // What was lent is overwritten after this read.
    if (this.#held.length > 0) this.#held = [Buffer.concat(this.#held)]
  }

  #beginFrame(): void {
    this.#headerBytes = 0
    const frame = frameAt(this.#header, 0)
    if (!isPlausible(frame) || (this.#blockOf && !continues(frame, this.#blockOf.streamId))) {
      this.#lose('malformed')
      return
    }
    this.#frame = frame
    this.#left = frame.bytes
    this.#held = []
    this.#isDamaged = hasFields(frame.type) && !this.#hasRoom(frame)
    this.#padding = frame.type === FrameType.data && (frame.flags & FrameFlag.padded) !== 0 ? undefined : 0
    if (this.#left === 0) this.#endFrame(frame)
  }

  /** What goes beyond is not kept, and the block is as if some of it had been missed. */
  #hasRoom({ bytes }: Frame): boolean {
    return this.#blockBytes + bytes <= BLOCK_BYTES_MAX && this.#block.length < BLOCK_PARTS_MAX
  }

  #takePayload(frame: Frame, bytes: Buffer): void {
    if (frame.type === FrameType.data) this.#takeContent(frame, bytes)
    else if (hasFields(frame.type) && !this.#isDamaged) this.#held.push(bytes)
  }

  #takeContent(frame: Frame, bytes: Buffer): void {
    let content = bytes
    let left = this.#left
    if (this.#padding === undefined) {
      this.#padding = bytes[0] ?? 0
      content = bytes.subarray(1)
      left -= 1
    }
    // Padding comes last.
    content = content.subarray(0, Math.max(0, Math.min(content.length, left - this.#padding)))
    if (content.length > 0) this.#events.content(frame.streamId, content)
  }

  #endFrame(frame: Frame): void {
    this.#frame = undefined
    const { type, flags, streamId } = frame
    if (type === FrameType.data && (flags & FrameFlag.endStream) !== 0) this.#events.end(streamId)
    else if (type === FrameType.resetStream) this.#events.reset(streamId)
    else if (hasFields(type)) this.#endFields(frame)
  }

  #endFields(frame: Frame): void {
    const { type, flags, streamId } = frame
    if (type !== FrameType.continuation)
      this.#blockOf = {
        streamId,
        endsStream: type === FrameType.headers && (flags & FrameFlag.endStream) !== 0,
        isPromise: type === FrameType.pushPromise,
      }
    const payload = this.#held.length === 1 ? (this.#held[0] ?? Buffer.alloc(0)) : Buffer.concat(this.#held)
    const fragment = this.#isDamaged ? undefined : fragmentOf(frame, payload)
    this.#held = []
    if (fragment) {
      // The payload may be lent.
      this.#block.push((flags & FrameFlag.endHeaders) === 0 ? Buffer.from(fragment) : fragment)
      this.#blockBytes += fragment.length
    } else {
      this.#block = []
      this.#blockBytes = Number.POSITIVE_INFINITY
    }
    if ((flags & FrameFlag.endHeaders) !== 0) this.#endBlock()
  }

  #endBlock(): void {
    const of = this.#blockOf
    const decoded = this.#blockBytes <= BLOCK_BYTES_MAX ? this.#decoder.decode(Buffer.concat(this.#block)) : undefined
    this.#dropBlock()
    // What it added to the table is not known.
    if (!decoded) this.#decoder = lateDecoder()
    if (!of || of.isPromise) return
    if (decoded) this.#events.fields(of.streamId, shortened(decoded.fields), of.endsStream)
    else {
      this.#events.missing(of.streamId, 0)
      if (of.endsStream) this.#events.end(of.streamId)
    }
  }

  #dropBlock(): void {
    this.#block = []
    this.#blockBytes = 0
    this.#blockOf = undefined
  }

  #lose(why: 'gap' | 'malformed'): void {
    this.#isAligned = false
    this.#frame = undefined
    this.#held = []
    this.#dropBlock()
    this.#events.lost(why)
  }

  /** Bytes are missing: whole reads, or the rest of one. */
  #miss(bytes: number, wholeReads: boolean): void {
    if (!this.#isAligned) {
      if (wholeReads) this.#events.lost('gap')
      return
    }
    const frame = this.#frame
    const ofFrame = Math.min(bytes, this.#left)
    if (frame && ofFrame > 0) {
      if (frame.type === FrameType.data) {
        const content =
          this.#padding === undefined ? ofFrame - 1 : ofFrame - Math.max(0, this.#padding - (this.#left - ofFrame))
        this.#events.missing(frame.streamId, Math.max(0, content))
        // Its length is missing too, and little at most.
        this.#padding ??= 0
      }
      this.#isDamaged = true
      this.#left -= ofFrame
      if (this.#left === 0) this.#endFrame(frame)
    }
    if (bytes > ofFrame || (!frame && bytes > 0)) this.#lose('gap')
  }
}

/** Whether a read is of frames, by the rules that hold for each kind of them, up to its end. */
export function consistsOfFrames(bytes: Buffer): boolean {
  let at = 0
  let frames = 0
  while (at + FRAME_HEADER_BYTES <= bytes.length) {
    const frame = frameAt(bytes, at)
    if (!isPlausible(frame) || frame.type > FrameType.continuation) return false
    at += FRAME_HEADER_BYTES + frame.bytes
    frames += 1
  }
  return frames > 0
}

/** The first fields in a read of frames, as somebody sees them who came late. */
export function firstFields(bytes: Buffer): readonly Field[] | undefined {
  for (let at = 0; at + FRAME_HEADER_BYTES <= bytes.length; ) {
    const frame = frameAt(bytes, at)
    const payload = bytes.subarray(at + FRAME_HEADER_BYTES, at + FRAME_HEADER_BYTES + frame.bytes)
    const isWhole = payload.length === frame.bytes && (frame.flags & FrameFlag.endHeaders) !== 0
    if (frame.type === FrameType.headers && isWhole) {
      const fragment = fragmentOf(frame, payload)
      return fragment && lateDecoder().decode(fragment)?.fields
    }
    at += FRAME_HEADER_BYTES + frame.bytes
  }
  return undefined
}

function frameAt(bytes: Buffer, at: number): Frame {
  return {
    bytes: bytes.readUIntBE(at, 3),
    type: bytes.readUInt8(at + 3),
    flags: bytes.readUInt8(at + 4),
    // With the reserved bit, which nobody sets.
    streamId: bytes.readUInt32BE(at + 5),
  }
}

/** RFC 9113, section 6: which frames are of a stream, and how long they are. */
function isPlausible({ type, bytes, streamId }: Frame): boolean {
  if (streamId > INTEGER_31_MAX || bytes > FRAME_BYTES_MAX) return false
  switch (type) {
    case FrameType.data:
    case FrameType.headers:
    case FrameType.continuation:
    case FrameType.pushPromise:
      return streamId > 0
    case FrameType.priority:
      return streamId > 0 && bytes === 5
    case FrameType.resetStream:
      return streamId > 0 && bytes === 4
    case FrameType.settings:
      return streamId === 0 && bytes % 6 === 0 && bytes <= FRAME_BYTES
    case FrameType.ping:
      return streamId === 0 && bytes === 8
    case FrameType.goAway:
      return streamId === 0 && bytes >= 8
    case FrameType.windowUpdate:
      return bytes === 4
    default:
      return bytes <= FRAME_BYTES
  }
}

/** Nothing may stand between a block and its continuation. */
function continues({ type, streamId }: Frame, blockStreamId: number): boolean {
  return type === FrameType.continuation && streamId === blockStreamId
}

function hasFields(type: number): boolean {
  return type === FrameType.headers || type === FrameType.continuation || type === FrameType.pushPromise
}

/** The part of a header block in a payload; undefined if its padding is longer than it. */
function fragmentOf({ type, flags }: Frame, payload: Buffer): Buffer | undefined {
  if (type === FrameType.continuation) return payload
  const content = unpadded(flags, payload)
  if (!content) return undefined
  if (type === FrameType.pushPromise) return content.subarray(4)
  return (flags & FrameFlag.priority) === 0 ? content : content.subarray(5)
}

function shortened(fields: readonly Field[]): readonly Field[] {
  return fields
    .slice(0, FIELDS_MAX)
    .map((field) => (field[1].length > FIELD_BYTES_MAX ? [field[0], field[1].slice(0, FIELD_BYTES_MAX)] : field))
}

function lateDecoder(): HpackDecoder {
  return new HpackDecoder({ tableBytesMax: TABLE_BYTES_MAX, listBytesMax: BLOCK_BYTES_MAX, isLate: true })
}
