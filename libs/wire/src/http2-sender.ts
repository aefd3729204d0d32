import {
  FRAME_BYTES,
  FRAME_HEADER_BYTES,
  FrameFlag,
  FrameType,
  Setting,
  WINDOW_BYTES,
  writeFrameHeader,
} from './frames.ts'
import { NO_TABLE } from './hpack.ts'
import type { Http2Limits } from './http2-server.ts'
import type { Http2Stream } from './http2-stream.ts'
import type { Output } from './output.ts'
import type { StreamTable } from './stream-table.ts'

const EMPTY = Buffer.alloc(0)

interface Http2SenderOptions {
  /** Of answers that wait for the client: for its windows, or for it to read. */
  readonly heldBytesMax: number
  /** All of an answer is said. */
  readonly answered: (stream: Http2Stream) => void
  /** More waits than may. */
  readonly overflowed: () => void
}

/** What the server's side of one HTTP/2 connection says, as far as the client's windows let it. */
export class Http2Sender {
  readonly #output: Output
  readonly #heldBytesMax: number
  readonly #answered: (stream: Http2Stream) => void
  readonly #overflowed: () => void
  /** What the client takes: on the whole connection, on a stream at first, and in one frame. */
  window = WINDOW_BYTES
  initialWindow = WINDOW_BYTES
  frameBytesMax = FRAME_BYTES
  /** Of answers, what waits for windows. */
  #heldBytes = 0
  #hasSentHead = false
  #isHeld = false
  #isFlushing = false

  constructor(output: Output, { heldBytesMax, answered, overflowed }: Http2SenderOptions) {
    this.#output = output
    this.#heldBytesMax = heldBytesMax
    this.#answered = answered
    this.#overflowed = overflowed
  }

  /** What the client has yet to read. */
  get waitingBytes(): number {
    return this.#output.waitingBytes
  }

  /** For Http2Stream. */
  head(stream: Http2Stream, block: Buffer, isLast: boolean): void {
    const first = this.#hasSentHead ? EMPTY : NO_TABLE
    this.#hasSentHead = true
    const length = first.length + block.length
    const flags = FrameFlag.endHeaders | (isLast ? FrameFlag.endStream : 0)
    this.#output.add(FRAME_HEADER_BYTES + length, (to, at) => {
      writeFrameHeader(to, at, { length, type: FrameType.headers, flags, streamId: stream.id })
      to.set(first, at + FRAME_HEADER_BYTES)
      to.set(block, at + FRAME_HEADER_BYTES + first.length)
    })
    if (isLast) this.#answered(stream)
    this.#flushSoon()
  }

  /** For Http2Stream. */
  data(stream: Http2Stream, parts: readonly Uint8Array[], trailers: Buffer | undefined): void {
    let bytes = 0
    for (const part of parts) bytes += part.length
    const room = Math.min(stream.sendWindow, this.window, this.frameBytesMax)
    // Trailers need no window, and wait only behind what does.
    if (stream.waiting.length > 0 || (bytes > 0 && bytes > room)) this.#hold(stream, Buffer.concat(parts), trailers)
    else {
      if (bytes > 0) this.#sendFrame(stream, parts, bytes)
      this.#finishAnswer(stream, trailers)
    }
    if (this.#heldBytes + this.#output.waitingBytes > this.#heldBytesMax) this.#overflowed()
    this.#flushSoon()
  }

  #hold(stream: Http2Stream, bytes: Buffer, trailers: Buffer | undefined): void {
    if (bytes.length > 0) stream.waiting.push(bytes)
    stream.trailers = trailers
    this.#heldBytes += bytes.length
    this.sendWaiting(stream)
  }

  /** Windows have grown: what waited goes as far as it may now. */
  sendAllWaiting(streams: StreamTable<Http2Stream>): void {
    if (this.#heldBytes > 0) for (const stream of streams.values()) this.sendWaiting(stream)
  }

  /** The same, where only a stream's own window has. */
  sendWaiting(stream: Http2Stream): void {
    if (stream.waiting.length === 0) return
    for (;;) {
      const next = stream.waiting[0]
      if (!next) break
      const bytes = Math.min(next.length, stream.sendWindow, this.window, this.frameBytesMax)
      if (bytes <= 0) return
      this.#heldBytes -= bytes
      this.#sendFrame(stream, [next.subarray(0, bytes)], bytes)
      if (bytes < next.length) stream.waiting[0] = next.subarray(bytes)
      else stream.waiting.shift()
    }
    this.#finishAnswer(stream, stream.trailers)
  }

  #sendFrame(stream: Http2Stream, parts: readonly Uint8Array[], bytes: number): void {
    stream.sendWindow -= bytes
    this.window -= bytes
    this.#output.add(FRAME_HEADER_BYTES + bytes, (to, from) => {
      writeFrameHeader(to, from, { length: bytes, type: FrameType.data, streamId: stream.id })
      let at = from + FRAME_HEADER_BYTES
      for (const part of parts) {
        to.set(part, at)
        at += part.length
      }
    })
  }

  #finishAnswer(stream: Http2Stream, trailers: Buffer | undefined): void {
    if (!trailers) return
    const flags = FrameFlag.endHeaders | FrameFlag.endStream
    this.#output.add(FRAME_HEADER_BYTES + trailers.length, (to, at) => {
      const { length } = trailers
      writeFrameHeader(to, at, { length, type: FrameType.headers, flags, streamId: stream.id })
      to.set(trailers, at + FRAME_HEADER_BYTES)
    })
    this.#answered(stream)
  }

  windowUpdate(streamId: number, bytes: number): void {
    const payload = Buffer.alloc(4)
    payload.writeUInt32BE(bytes)
    this.#control(FrameType.windowUpdate, payload, 0, streamId)
  }

  /** What a server says first. */
  settings({ streamsMax, streamWindowBytes, headerBytesMax, connectionWindowBytes }: Http2Limits): void {
    const settings = [
      [Setting.maxConcurrentStreams, streamsMax],
      [Setting.initialWindowSize, streamWindowBytes],
      [Setting.maxHeaderListSize, headerBytesMax],
    ] as const
    const payload = Buffer.alloc(settings.length * 6)
    for (const [index, [name, value]] of settings.entries()) {
      payload.writeUInt16BE(name, index * 6)
      payload.writeUInt32BE(value, index * 6 + 2)
    }
    this.#control(FrameType.settings, payload)
    this.windowUpdate(0, connectionWindowBytes - WINDOW_BYTES)
  }

  /** The client's settings are heard. */
  acknowledge(): void {
    this.#control(FrameType.settings, EMPTY, FrameFlag.ack)
  }

  ping(mark: number): void {
    this.#control(FrameType.ping, Buffer.alloc(8, mark))
  }

  pong(payload: Buffer): void {
    this.#control(FrameType.ping, payload, FrameFlag.ack)
  }

  goAway(lastStreamId: number, code: number): void {
    const payload = Buffer.alloc(8)
    payload.writeUInt32BE(lastStreamId)
    payload.writeUInt32BE(code, 4)
    this.#control(FrameType.goAway, payload)
  }

  reset(id: number, code: number): void {
    const payload = Buffer.alloc(4)
    payload.writeUInt32BE(code)
    this.#control(FrameType.resetStream, payload, 0, id)
  }

  #control(type: number, payload: Buffer, flags = 0, streamId = 0): void {
    this.#output.add(FRAME_HEADER_BYTES + payload.length, (to, at) => {
      writeFrameHeader(to, at, { length: payload.length, type, flags, streamId })
      to.set(payload, at + FRAME_HEADER_BYTES)
    })
    this.#flushSoon()
  }

  /** Of the answer to a stream that is over, what still waited. */
  drop(stream: Http2Stream): void {
    for (const bytes of stream.waiting) this.#heldBytes -= bytes.length
    stream.waiting = []
  }

  /** Until `flush`, nothing goes out on its own: what answers one chunk goes together. */
  hold(): void {
    this.#isHeld = true
  }

  flush(): void {
    this.#isHeld = false
    this.#output.flush()
  }

  /** What was said goes out, then the connection ends. */
  end(ended?: () => void): void {
    this.#output.end(ended)
  }

  /** What is said in one turn of the event loop goes out together. */
  #flushSoon(): void {
    if (this.#isHeld || this.#isFlushing) return
    this.#isFlushing = true
    queueMicrotask(() => {
      this.#isFlushing = false
      this.#output.flush()
    })
  }
}
