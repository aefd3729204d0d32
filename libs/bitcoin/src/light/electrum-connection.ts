import { once } from 'node:events'
import { connect as connectTcp, isIP, type Socket } from 'node:net'
import { createInterface } from 'node:readline'
import { connect as connectTls } from 'node:tls'
import { AppError } from '@tollward/errors'
import { z } from 'zod'
import { forged } from './header.ts'

/** Where a server of the Electrum protocol listens. */
export interface ElectrumOptions {
  /** `tcp://host:port` or `ssl://host:port`. */
  readonly url: string
  /** Certificates, in PEM, that vouch for the server instead of the system's; its own one if it signed that itself. */
  readonly ca?: string
  readonly timeoutMs?: number
}

const REQUEST_TIMEOUT_MS = 30_000
/** A transaction that fills a block is 8 MB of hexadecimal. */
const LINE_CHARACTERS_MAX = 16 * 1024 * 1024
/** From what all servers speak to what the newest do. */
const PROTOCOLS = ['1.4', '1.6']

const Message = z.union([
  z.object({ id: z.number(), error: z.object({ code: z.number(), message: z.string() }) }),
  z.object({ id: z.number(), result: z.unknown() }),
  z.object({ method: z.string(), params: z.array(z.unknown()) }),
])

interface Waiting {
  resolve(result: unknown): void
  reject(error: AppError): void
}

/** One connection to a server of the Electrum protocol: JSON-RPC 2.0, one message a line. It does not connect again. */
export class ElectrumConnection implements AsyncDisposable {
  /** Settles when the connection is gone. */
  readonly closed: Promise<void>
  readonly #socket: Socket
  readonly #timeoutMs: number
  readonly #waiting = new Map<number, Waiting>()
  #nextId = 0
  #over: AppError | undefined

  private constructor(socket: Socket, timeoutMs: number, onNotice: (method: string, params: unknown[]) => void) {
    this.#socket = socket
    this.#timeoutMs = timeoutMs
    this.closed = this.#read(onNotice)
  }

  /** Connects and agrees on a version. Throws AppError `unavailable`. */
  static async open(
    { url, ca, timeoutMs = REQUEST_TIMEOUT_MS }: ElectrumOptions,
    onNotice: (method: string, params: unknown[]) => void,
  ): Promise<ElectrumConnection> {
    const { protocol, hostname, port } = new URL(url)
    const host = hostname.replace(/^\[(.*)\]$/, '$1')
    const at = { host, port: Number(port) }
    const isTls = protocol === 'ssl:'
    const socket = isTls
      ? connectTls({ ...at, ...(isIP(host) === 0 && { servername: host }), ...(ca !== undefined && { ca }) })
      : connectTcp(at)
    try {
      await once(socket, isTls ? 'secureConnect' : 'connect', { signal: AbortSignal.timeout(timeoutMs) })
    } catch (error) {
      socket.destroy()
      throw new AppError('unavailable', 'The Electrum server is not reached.', { cause: error })
    }
    const connection = new ElectrumConnection(socket, timeoutMs, onNotice)
    try {
      await connection.call(z.unknown(), 'server.version', ['tollward', PROTOCOLS])
      return connection
    } catch (error) {
      await connection[Symbol.asyncDispose]()
      throw error
    }
  }

  /**
   * Calls one method and checks its result. Throws AppError: `unavailable` (too slow, gone), `not_found` (the server refuses: it
   * knows no such thing, or wants to be asked less), `invalid_argument` (an answer that is none).
   */
  async call<T>(result: z.ZodType<T>, method: string, params: readonly unknown[]): Promise<T> {
    if (this.#over !== undefined) throw this.#over
    const id = this.#nextId++
    const { promise, resolve, reject } = Promise.withResolvers<unknown>()
    const timer = setTimeout(
      () => reject(new AppError('unavailable', 'The Electrum server is too slow.')),
      this.#timeoutMs,
    )
    this.#waiting.set(id, { resolve, reject })
    this.#socket.write(`${JSON.stringify({ jsonrpc: '2.0', id, method, params })}\n`)
    try {
      const parsed = result.safeParse(await promise)
      if (!parsed.success) throw forged(`The server's answer to ${method} is not as documented.`)
      return parsed.data
    } finally {
      clearTimeout(timer)
      this.#waiting.delete(id)
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#socket.destroy()
    await this.closed
  }

  async #read(onNotice: (method: string, params: unknown[]) => void): Promise<void> {
    let pending = 0
    let cause: unknown
    const end = (error: unknown) => {
      cause ??= error
      this.#socket.destroy()
    }
    this.#socket.on('error', end)
    this.#socket.on('data', (chunk: Buffer) => {
      const newline = chunk.lastIndexOf('\n')
      pending = newline === -1 ? pending + chunk.length : chunk.length - newline
      if (pending > LINE_CHARACTERS_MAX) end(forged('The server answers with too much.'))
    })
    const lines = createInterface({ input: this.#socket })
    // It repeats the socket's.
    lines.on('error', end)
    lines.on('line', (line) => {
      try {
        this.#take(line, onNotice)
      } catch (error) {
        end(error)
      }
    })
    await new Promise<void>((resolve) => this.#socket.once('close', () => resolve()))
    this.#over =
      cause instanceof AppError ? cause : new AppError('unavailable', 'The Electrum server is gone.', { cause })
    for (const { reject } of this.#waiting.values()) reject(this.#over)
  }

  #take(line: string, onNotice: (method: string, params: unknown[]) => void): void {
    const message = Message.safeParse(readJson(line))
    if (!message.success) throw forged("The server's answer is no JSON-RPC.")
    if ('method' in message.data) {
      onNotice(message.data.method, message.data.params)
      return
    }
    const waiting = this.#waiting.get(message.data.id)
    if ('error' in message.data) {
      const { code, message: said } = message.data.error
      waiting?.reject(
        new AppError('not_found', 'The Electrum server refuses.', { cause: new Error(`${said} (${code})`) }),
      )
    } else waiting?.resolve(message.data.result)
  }
}

/** What the line says; undefined: nothing. */
function readJson(line: string): unknown {
  try {
    return JSON.parse(line)
  } catch (error) {
    if (error instanceof SyntaxError) return undefined
    throw error
  }
}
