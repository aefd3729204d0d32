import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import {
  call,
  DATA,
  dueAnswer,
  END_STREAM,
  FrameReader,
  HEADERS,
  MESSAGE_PREFIX_BYTES,
  preface,
  requestHeaders,
} from './grpc-frames.ts'

/** Asks one question after the other over one connection, for far less than a client library costs. */
export class GrpcAsker implements Disposable {
  readonly #socket: Socket
  readonly #head: Buffer
  readonly #frames: FrameReader
  #nextStream = 1
  #answer: Buffer | undefined
  #asked: PromiseWithResolvers<Buffer> | undefined

  private constructor(socket: Socket, path: string) {
    this.#socket = socket
    this.#head = requestHeaders(path)
    this.#frames = new FrameReader((type, flags, _stream, payload) => this.#frame(type, flags, payload))
    socket.on('error', (error) => this.#asked?.reject(error))
    socket.on('close', () => this.#asked?.reject(new Error('the server closed the connection')))
    socket.on('data', (chunk) => {
      try {
        this.#frames.push(chunk)
      } catch (error) {
        this.#asked?.reject(error)
      }
    })
    socket.write(preface())
  }

  /** `path` is `/package.Service/Method`. */
  static async connect(port: number, path: string): Promise<GrpcAsker> {
    const socket = connect({ port, host: '127.0.0.1', noDelay: true })
    await once(socket, 'connect')
    return new GrpcAsker(socket, path)
  }

  /** The answer's message. One question at a time. */
  async ask(message: Uint8Array): Promise<Buffer> {
    if (this.#asked) throw new Error('the question before has no answer yet')
    const asked = Promise.withResolvers<Buffer>()
    this.#asked = asked
    this.#answer = undefined
    this.#socket.write(call(this.#head, message, this.#nextStream))
    this.#nextStream += 2
    try {
      return await asked.promise
    } finally {
      this.#asked = undefined
    }
  }

  [Symbol.dispose](): void {
    this.#socket.destroy()
  }

  #frame(type: number, flags: number, payload: Buffer): void {
    const due = dueAnswer(type, flags, payload)
    if (due) this.#socket.write(due)
    if (type === DATA && payload.length > 0) this.#answer = Buffer.from(payload.subarray(MESSAGE_PREFIX_BYTES))
    if ((type !== HEADERS && type !== DATA) || (flags & END_STREAM) === 0) return
    if (this.#answer) this.#asked?.resolve(this.#answer)
    else this.#asked?.reject(new Error('a call ended without an answer'))
  }
}
