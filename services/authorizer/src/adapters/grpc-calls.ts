import type { Http2Session, IncomingHttpHeaders, ServerHttp2Stream } from 'node:http2'
import { constants } from 'node:http2'
import { encodedMessage, type Failure, framed, MessageReader, Status, timeoutMs } from './grpc-messages.ts'

/** One question, one answer. */
export interface UnaryMethod {
  /** `/package.Service/Method`. */
  readonly path: string
  /** Takes and gives protobuf bytes; what it was given is only lent. What it throws ends the call with INTERNAL. */
  readonly handle: (message: Uint8Array) => Uint8Array | Promise<Uint8Array>
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
  /** Those that are not closed. */
  readonly calls: Set<Call>
  readonly messageBytesMax: number
  /** A unary call, from its headers to its end. */
  readonly unaryMsMax: number
  /** Hears of every call that does not end with OK. */
  readonly failed: (failure: Failure, thrown?: unknown) => void
}

const ANSWER_HEADERS = {
  ':status': 200,
  'content-type': 'application/grpc',
  'grpc-accept-encoding': 'identity',
} as const
const ANSWER_OPTIONS = { waitForTrailers: true, sendDate: false } as const
const ONLY_TRAILERS_OPTIONS = { endStream: true, sendDate: false } as const
const OK_TRAILERS = { 'grpc-status': '0' } as const

export const NOT_ONE_MESSAGE: Failure = { code: Status.unimplemented, message: 'Send exactly one message.' }
const METHOD_FAILED: Failure = { code: Status.internal, message: 'The method failed.' }

/**
 * Node's end of a stream lives until the next full collection, and with it all that hangs on it. So its listeners are the same for
 * all streams, and its call hangs on it only while it lasts.
 */
const CALL = Symbol('call')

interface Carrier extends ServerHttp2Stream {
  [CALL]?: Call | undefined
}

function onData(this: Carrier, chunk: Buffer): void {
  this[CALL]?.data(chunk)
}

function onEnd(this: Carrier): void {
  this[CALL]?.endOfQuestion()
}

function onClose(this: Carrier): void {
  this[CALL]?.closed()
}

/** One call, from its headers on. */
export class Call {
  readonly #stream: ServerHttp2Stream
  readonly #options: CallOptions
  readonly #reader: MessageReader
  /** On the clock of performance.now(). */
  readonly deadlineMs: number
  readonly #method: Method
  #listener: StreamListener | undefined
  #message: Buffer | undefined
  #failure: Failure | undefined
  /** Its status is said, or on its way. */
  #ended = false

  constructor(
    stream: ServerHttp2Stream,
    headers: IncomingHttpHeaders,
    method: Method,
    nowMs: number,
    options: CallOptions,
  ) {
    this.#stream = stream
    this.#options = options
    this.#method = method
    this.#reader = new MessageReader(options.messageBytesMax)
    const header = headers['grpc-timeout']
    const asked = header === undefined ? Number.POSITIVE_INFINITY : timeoutMs(String(header))
    const most = 'handle' in method ? options.unaryMsMax : Number.POSITIVE_INFINITY
    this.deadlineMs = nowMs + Math.min(asked ?? 0, most)
    const carrier: Carrier = stream
    carrier[CALL] = this
    stream.on('data', onData)
    stream.on('end', onEnd)
    stream.on('close', onClose)
    options.calls.add(this)
    if (asked === undefined) {
      this.end({ code: Status.internal, message: 'grpc-timeout is at most 8 digits and one of H, M, S, m, u, n.' })
    } else if ('open' in method) this.#listener = method.open(this)
  }

  get session(): Http2Session | undefined {
    return this.#stream.session
  }

  /** Its time is up; false: it had ended before, and its client does not take the answer or goes on asking. */
  expire(): void {
    if (this.#ended) this.#stream.close(constants.NGHTTP2_CANCEL)
    else this.end({ code: Status.deadlineExceeded, message: 'The call was not asked and answered in time.' })
  }

  /** The stream is closed, in whatever way. */
  closed(): void {
    this.#options.calls.delete(this)
    if (!this.#ended) this.#options.failed({ code: Status.cancelled, message: 'The client gave up.' })
    this.#ended = true
    this.#listener?.closed()
    const carrier: Carrier = this.#stream
    carrier[CALL] = undefined
  }

  /** Bytes of the question have come. */
  data(chunk: Buffer): void {
    if (this.#ended) return
    const messages = this.#reader.push(chunk)
    if ('code' in messages) this.#unreadable(messages)
    else for (const message of messages) this.#take(message)
  }

  #unreadable(failure: Failure): void {
    const tooLarge = failure.code === Status.resourceExhausted && 'handle' in this.#method && this.#method.tooLarge
    if (tooLarge) this.#reply(tooLarge())
    else this.end(failure)
  }

  #take(message: Buffer): void {
    if (this.#listener) this.#listener.message(message)
    else if (this.#message) this.end(NOT_ONE_MESSAGE)
    else this.#message = message
  }

  /** No more of them will. */
  endOfQuestion(): void {
    if (this.#ended) return
    if (this.#reader.isWithin) this.end({ code: Status.internal, message: 'The last message is not whole.' })
    else if (this.#listener) this.#listener.end()
    else if (this.#message && 'handle' in this.#method) this.#answer(this.#method, this.#message)
    else this.end(NOT_ONE_MESSAGE)
  }

  #answer(method: UnaryMethod, message: Buffer): void {
    try {
      const answer = method.handle(message)
      if (answer instanceof Promise) {
        answer.then(
          (late) => this.#reply(late),
          (thrown) => this.#threw(thrown),
        )
      } else this.#reply(answer)
    } catch (thrown) {
      this.#threw(thrown)
    }
  }

  #reply(answer: Uint8Array): void {
    if (this.#ended) return
    this.#ended = true
    const stream = this.#stream
    stream.respond(ANSWER_HEADERS, ANSWER_OPTIONS)
    stream.on('wantTrailers', sayOk)
    stream.end(framed(answer))
  }

  #threw(thrown: unknown): void {
    if (this.#ended) return
    this.#options.failed(METHOD_FAILED, thrown)
    this.#fail(METHOD_FAILED)
  }

  write(message: Uint8Array): void {
    if (this.#ended) return
    this.#begin()
    this.#stream.write(framed(message))
  }

  end(failure?: Failure): void {
    if (this.#ended) return
    if (failure) {
      this.#options.failed(failure)
      this.#fail(failure)
    } else {
      this.#ended = true
      this.#begin()
      this.#stream.end()
    }
  }

  /** Without any message before, status and headers are one (the protocol's "Trailers-Only"). */
  #fail(failure: Failure): void {
    this.#ended = true
    this.#failure = failure
    if (this.#stream.headersSent) this.#stream.end()
    else refuse(this.#stream, failure)
  }

  #begin(): void {
    if (this.#stream.headersSent) return
    this.#stream.respond(ANSWER_HEADERS, ANSWER_OPTIONS)
    this.#stream.on('wantTrailers', () => this.#stream.sendTrailers(trailers(this.#failure)))
  }
}

function sayOk(this: ServerHttp2Stream): void {
  this.sendTrailers(OK_TRAILERS)
}

/** Ends a call that has not begun to be answered. */
export function refuse(stream: ServerHttp2Stream, failure: Failure): void {
  stream.respond({ ...ANSWER_HEADERS, ...trailers(failure) }, ONLY_TRAILERS_OPTIONS)
  stop(stream)
}

/** What else the client sends is neither waited for nor read; RFC 9113, 8.1. */
export function stop(stream: ServerHttp2Stream): void {
  if (!stream.readableEnded) stream.close(constants.NGHTTP2_NO_ERROR)
}

function trailers(failure: Failure | undefined): Record<string, string> {
  if (!failure) return OK_TRAILERS
  return { 'grpc-status': String(failure.code), 'grpc-message': encodedMessage(failure.message) }
}
