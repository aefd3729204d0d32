import { FRAME_BYTES } from './frames.ts'
import { NO_TABLE } from './hpack.ts'
import type { Http2Sender } from './http2-sender.ts'
import type { Http2ServerConnection } from './http2-server.ts'

/** What whoever answers a request hears of it. */
export interface Http2Listener {
  /** A part of the body, which is only lent. `isLast`: there is no more of it. */
  data(chunk: Buffer, isLast: boolean): void
  /** The stream is over, in whatever way. */
  closed(): void
}

/** Nothing here writes CONTINUATION: a block of fields is one frame, of a size that every client takes, also where NO_TABLE precedes it. */
function fitting(block: Buffer): void {
  if (block.length + NO_TABLE.length > FRAME_BYTES) {
    throw new RangeError(`the fields of an answer take ${block.length} bytes, which is more than fits into one frame`)
  }
}

/** One request and its answer. */
export class Http2Stream {
  readonly id: number
  readonly #connection: Http2ServerConnection
  readonly #sender: Http2Sender
  // What follows is for those two.
  listener: Http2Listener | undefined
  /** Bytes of the body that the head announced and that did not come yet; undefined: it did not say. */
  missingBytes: number | undefined
  sendWindow: number
  receiveWindow: number
  /** Bytes of the body that its listener holds. */
  heldBytes = 0
  /** The client has said everything. */
  isAsked = false
  /** So is the answer said, or waits only for windows. */
  isAnswered = false
  /** Of the answer, what waits for windows, and the trailers after it. */
  waiting: Buffer[] = []
  trailers: Buffer | undefined

  constructor(connection: Http2ServerConnection, sender: Http2Sender, id: number, receiveWindow: number) {
    this.#connection = connection
    this.#sender = sender
    this.id = id
    this.sendWindow = sender.initialWindow
    this.receiveWindow = receiveWindow
  }

  /** The head of the answer, as `encodeFields` writes it; with `isLast` it is all of it. RangeError: it does not fit into one frame. */
  head(block: Buffer, isLast = false): void {
    if (this.isAnswered) return
    fitting(block)
    this.isAnswered = isLast
    this.#sender.head(this, block, isLast)
  }

  /** A part of the body. With trailers it is the last, and they end the answer; RangeError where they do not fit into one frame. */
  data(parts: readonly Uint8Array[], trailers?: Buffer): void {
    if (this.isAnswered) return
    if (trailers) fitting(trailers)
    this.isAnswered = trailers !== undefined
    this.#sender.data(this, parts, trailers)
  }

  /** The listener is done with so many bytes of what it was given: as many more may come. */
  release(bytes: number): void {
    this.#connection.release(this, bytes)
  }

  /** Ends the stream at once, with a code of ErrorCode. */
  reset(code: number): void {
    this.#connection.reset(this, code)
  }
}
