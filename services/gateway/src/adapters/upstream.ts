import type { Readable } from 'node:stream'
import { type Dispatcher, errors, Pool } from 'undici'
import type { FieldList } from '../domain/forwarding.ts'

/** What the API is asked. */
export interface UpstreamRequest {
  readonly method: string
  /** Path and query. */
  readonly path: string
  readonly fields: string[]
  readonly body: Readable | undefined
  /** Both sides may be silent for long: a call of gRPC. */
  readonly patient: boolean
}

/** What becomes of it; nothing follows `onEnd` and `onFailure`. */
export interface UpstreamListener {
  /** 103. */
  onHint(fields: FieldList): void
  /** `ends`: nothing follows. */
  onHead(status: number, fields: FieldList, ends: boolean): void
  onPart(chunk: Uint8Array): void
  onEnd(trailers: FieldList): void
  onFailure(error: Error): void
}

/** A request to the API that is under way. */
export interface UpstreamCall {
  pause(): void
  resume(): void
  abort(): void
}

export interface Upstream extends AsyncDisposable {
  /** Sends a request, once. */
  send(request: UpstreamRequest, listener: UpstreamListener): UpstreamCall
}

/** The API took longer than it may. */
export class UpstreamTimeout extends Error {
  override readonly name = 'UpstreamTimeout'
}

/** There are more requests under way than the API is given. */
export class UpstreamFull extends Error {
  override readonly name = 'UpstreamFull'
}

/** Connections to the API. */
const CONNECTIONS_MAX = 256
/** Requests that wait for a connection. */
const WAITING_MAX = 4096
/** An answer's header fields together, as many as other servers commonly take. */
const ANSWER_HEADER_BYTES_MAX = 64 * 1024
/** Both directions of a patient request may be silent for so long. */
export const PATIENT_TIMEOUT_MS = 300_000

/** The API over HTTP/1.1. `timeoutMs`: to connect, for the headers, and between parts of the body. */
export function openUpstream(url: string, timeoutMs: number): Upstream {
  const pool = new Pool(url, {
    connections: CONNECTIONS_MAX,
    connect: { timeout: timeoutMs, rejectUnauthorized: true },
    headersTimeout: timeoutMs,
    bodyTimeout: timeoutMs,
    maxHeaderSize: ANSWER_HEADER_BYTES_MAX,
  })
  let underWay = 0
  return {
    send: ({ method, path, fields, body, patient }, listener) => {
      if (underWay >= CONNECTIONS_MAX + WAITING_MAX) {
        return failing(listener, new UpstreamFull('too many requests wait for the API'))
      }
      underWay += 1
      const timeouts = patient ? { headersTimeout: PATIENT_TIMEOUT_MS, bodyTimeout: PATIENT_TIMEOUT_MS } : {}
      const call = new Call(listener, () => {
        underWay -= 1
      })
      pool.dispatch({ method, path, headers: fields, body: body ?? null, idempotent: false, ...timeouts }, call)
      return call
    },
    [Symbol.asyncDispose]: () => pool.destroy(),
  }
}

/** A request that comes to nothing: its listener hears of it when it has the call. */
export function failing(listener: UpstreamListener, error: Error): UpstreamCall {
  queueMicrotask(() => listener.onFailure(error))
  return { pause: () => {}, resume: () => {}, abort: () => {} }
}

class Aborted extends Error {
  override readonly name = 'Aborted'
}

class Call implements UpstreamCall, Dispatcher.DispatchHandler {
  readonly #listener: UpstreamListener
  readonly #over: () => void
  #controller: Dispatcher.DispatchController | undefined
  #aborted = false

  constructor(listener: UpstreamListener, over: () => void) {
    this.#listener = listener
    this.#over = over
  }

  pause(): void {
    this.#controller?.pause()
  }

  resume(): void {
    this.#controller?.resume()
  }

  abort(): void {
    this.#aborted = true
    this.#controller?.abort(new Aborted('the client went away'))
  }

  onRequestStart(controller: Dispatcher.DispatchController): void {
    this.#controller = controller
    if (this.#aborted) this.abort()
  }

  onResponseStart(controller: Dispatcher.DispatchController, status: number): void {
    const fields = textsOf(controller.rawHeaders)
    if (status >= 200) this.#listener.onHead(status, fields, false)
    else if (status === 103) this.#listener.onHint(fields)
  }

  onResponseData(_controller: Dispatcher.DispatchController, chunk: Buffer): void {
    this.#listener.onPart(chunk)
  }

  onResponseEnd(controller: Dispatcher.DispatchController): void {
    this.#over()
    this.#listener.onEnd(textsOf(controller.rawTrailers))
  }

  onResponseError(_controller: Dispatcher.DispatchController, error: Error): void {
    this.#over()
    if (!this.#aborted) this.#listener.onFailure(isTimeout(error) ? new UpstreamTimeout(error.message) : error)
  }
}

function isTimeout(error: Error): boolean {
  return (
    error instanceof errors.HeadersTimeoutError ||
    error instanceof errors.BodyTimeoutError ||
    error instanceof errors.ConnectTimeoutError
  )
}

/** Header fields as undici read them: bytes, which HTTP reads as Latin-1. */
function textsOf(raw: Dispatcher.DispatchController['rawHeaders']): string[] {
  return Array.isArray(raw) ? raw.map((part: Buffer | string) => part.toString('latin1')) : []
}
