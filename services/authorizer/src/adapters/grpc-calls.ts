import { ErrorCode, encodeFields, type Field, type Http2Listener, type Http2Stream } from '@tollward/wire'
import { encodedMessage, type Failure, MessageReader, messagePrefix, Status, timeoutMs } from './grpc-messages.ts'

/** One question, one answer. */
export interface UnaryMethod {
  /** `/package.Service/Method`. */
  readonly path: string
  /** Takes and gives protobuf bytes; what it was given is only lent. What it throws ends the call with INTERNAL. */
  readonly handle: (message: Buffer) => Uint8Array | Promise<Uint8Array>
  /** Answers a question that is longer than messages may be; without it the call ends with RESOURCE_EXHAUSTED. */
  readonly tooLarge?: () => Uint8Array
}

/** A method of any other kind: what comes is handed on as it comes, until `end`. */
export interface StreamMethod {
  readonly path: string
  readonly open: (call: OpenCall) => StreamListener
}

/** What a stream method may do. */
export interface OpenCall {
  write(message: Uint8Array): void
  /** Without failure: OK. */
  end(failure?: Failure): void
}

/** What a stream method hears. */
export interface StreamListener {
  message(bytes: Uint8Array): void
  /** The client says no more. */
  end(): void
  /** The call is over, in whatever way. */
  closed(): void
}

export type Method = UnaryMethod | StreamMethod

/** What calls share. */
export interface CallOptions {
  readonly messageBytesMax: number
  /** A unary call, from its headers to its end. */
  readonly unaryMsMax: number
  /** Hears of every call that does not end with OK. */
  readonly failed: (failure: Failure, thrown?: unknown) => void
}

const ANSWER_HEAD: readonly Field[] = [
  [':status', '200'],
  ['content-type', 'application/grpc'],
  ['grpc-accept-encoding', 'identity'],
]
const ANSWER = encodeFields(ANSWER_HEAD)
const OK_TRAILERS = encodeFields([['grpc-status', String(Status.ok)]])
/**
 * Of a failure's text, in UTF-16 code units: nobody reads more. With its status it has to fit into one frame, and a unit is at most three bytes
 * of UTF-8, each of which takes three octets percent-encoded.
 */
const FAILURE_TEXT_MAX = 1000

export const NOT_ONE_MESSAGE: Failure = { code: Status.unimplemented, message: 'Send exactly one message.' }
const METHOD_FAILED: Failure = { code: Status.internal, message: 'The method failed.' }

/** One call, from its headers on. */
export class Call implements Http2Listener {
  readonly #stream: Http2Stream
  readonly #options: CallOptions
  readonly #reader: MessageReader
  /** On the clock of performance.now(). */
  readonly deadlineMs: number
  readonly #method: Method
  #listener: StreamListener | undefined
  #message: Buffer | undefined
  #hasBegun = false
  /** Its status is said, or on its way. */
  #ended = false

  constructor(stream: Http2Stream, timeout: string | undefined, method: Method, nowMs: number, options: CallOptions) {
    this.#stream = stream
    this.#options = options
    this.#method = method
    this.#reader = new MessageReader(options.messageBytesMax)
    const asked = timeout === undefined ? Number.POSITIVE_INFINITY : timeoutMs(timeout)
    const most = 'handle' in method ? options.unaryMsMax : Number.POSITIVE_INFINITY
    this.deadlineMs = nowMs + Math.min(asked ?? 0, most)
    if (asked === undefined) {
      this.end({ code: Status.internal, message: 'grpc-timeout is at most 8 digits and one of H, M, S, m, u, n.' })
    } else if ('open' in method) this.#open(method)
  }

  #open(method: StreamMethod): void {
    try {
      this.#listener = method.open(this)
    } catch (thrown) {
      this.#threw(thrown)
    }
  }

  /** Its time is up; where it had ended before, its client does not take the answer. */
  expire(): void {
    if (this.#ended) this.#stream.reset(ErrorCode.cancel)
    else this.end({ code: Status.deadlineExceeded, message: 'The call was not asked and answered in time.' })
  }

  /** The stream is closed, in whatever way. */
  closed(): void {
    if (!this.#ended) this.#options.failed({ code: Status.cancelled, message: 'The client gave up.' })
    this.#ended = true
    this.#listener?.closed()
  }

  /** Bytes of the question have come. */
  data(chunk: Buffer, isLast: boolean): void {
    if (this.#ended) return
    try {
      this.#read(chunk, isLast)
    } catch (thrown) {
      this.#threw(thrown)
    }
  }

  #read(chunk: Buffer, isLast: boolean): void {
    const messages = this.#reader.push(chunk)
    if ('code' in messages) this.#unreadable(messages)
    else for (const message of messages) this.#take(message, isLast)
    // A unary question stays until it is answered, and so does what it takes of the client's windows.
    if (this.#listener) this.#stream.release(chunk.length)
    if (isLast) this.#endOfQuestion()
  }

  #unreadable(failure: Failure): void {
    const tooLarge = failure.code === Status.resourceExhausted && 'handle' in this.#method && this.#method.tooLarge
    if (tooLarge) this.#reply(tooLarge())
    else this.end(failure)
  }

  #take(message: Buffer, isLast: boolean): void {
    if (this.#listener) this.#listener.message(message)
    else if (this.#message) this.end(NOT_ONE_MESSAGE)
    else this.#message = isLast ? message : Buffer.from(message)
  }

  #endOfQuestion(): void {
    if (this.#ended) return
    if (this.#reader.isWithin) this.end({ code: Status.internal, message: 'The last message is not whole.' })
    else if (this.#listener) this.#listener.end()
    else if (this.#message && 'handle' in this.#method) this.#answer(this.#method, this.#message)
    else this.end(NOT_ONE_MESSAGE)
  }

  #answer(method: UnaryMethod, message: Buffer): void {
    const answer = method.handle(message)
    if (answer instanceof Promise) {
      answer.then(
        (late) => this.#reply(late),
        (thrown) => this.#threw(thrown),
      )
    } else this.#reply(answer)
  }

  #reply(answer: Uint8Array): void {
    if (this.#ended) return
    this.#ended = true
    this.#stream.head(ANSWER)
    this.#stream.data([messagePrefix(answer.length), answer], OK_TRAILERS)
  }

  #threw(thrown: unknown): void {
    if (this.#ended) return
    this.#options.failed(METHOD_FAILED, thrown)
    this.#finish(METHOD_FAILED)
  }

  write(message: Uint8Array): void {
    if (this.#ended) return
    this.#begin()
    this.#stream.data([messagePrefix(message.length), message])
  }

  end(failure?: Failure): void {
    if (this.#ended) return
    if (failure) this.#options.failed(failure)
    this.#finish(failure)
  }

  #finish(failure: Failure | undefined): void {
    this.#ended = true
    if (failure && !this.#hasBegun) refuse(this.#stream, failure)
    else {
      this.#begin()
      this.#stream.data([], failure ? encodeFields(trailers(failure)) : OK_TRAILERS)
    }
  }

  #begin(): void {
    if (!this.#hasBegun) this.#stream.head(ANSWER)
    this.#hasBegun = true
  }
}

/** Ends a call without any message: status and headers are one (the protocol's "Trailers-Only"). */
export function refuse(stream: Http2Stream, failure: Failure): void {
  stream.head(encodeFields([...ANSWER_HEAD, ...trailers(failure)]), true)
}

function trailers({ code, message }: Failure): Field[] {
  return [
    ['grpc-status', String(code)],
    ['grpc-message', encodedMessage(message.slice(0, FAILURE_TEXT_MAX))],
  ]
}
