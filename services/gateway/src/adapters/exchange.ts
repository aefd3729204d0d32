import { type IncomingMessage, type ServerResponse, STATUS_CODES } from 'node:http'
import { constants, type Http2Stream, type ServerHttp2Stream } from 'node:http2'
import type { Socket } from 'node:net'
import type { Readable } from 'node:stream'
import { TLSSocket } from 'node:tls'
import { certificatePrincipal } from '../domain/certificate-principal.ts'
import { type FieldList, type ReceivedRequest, valuesOf } from '../domain/forwarding.ts'

/** One request of a client and the way to answer it, whichever version of HTTP it came by. */
export interface Exchange {
  readonly request: ReceivedRequest
  readonly version: string
  /** Undefined: the request has none. */
  readonly body: Readable | undefined
  /** The client waits for 100 before it sends its body. */
  readonly expectsContinue: boolean
  /** Sends 100. */
  goOn(): void
  /** Sends 103 with these fields. */
  hint(fields: FieldList): void
  /** Sends status and header fields, names in lower case; `ends`: nothing follows. */
  begin(status: number, fields: readonly string[], ends?: boolean): void
  readonly begun: boolean
  /** False: wait for `onDrain`. */
  write(chunk: Uint8Array): boolean
  onDrain(listener: () => void): void
  end(trailers?: readonly string[]): void
  /** Ends it so that the client sees that the answer is not complete. */
  fail(): void
  /** The request's body is of no use any more, whatever else of it comes. */
  discard(): void
  /** Called once, when nothing more can be sent: everything was, or the client went away. */
  onClose(listener: (complete: boolean) => void): void
}

/** Whether certificates that connections prove are looked at for who the client is. */
export interface ClientNames {
  readonly verified: boolean
}

/** Connections that end after the answer under way. */
export interface Ending {
  readonly draining: boolean
}

const LINK = /^<[^<>]*>(?:\s*;\s*[a-z]+(?:=(?:"[^"]*"|[^\s;,"]+))?)*$/i

/** Of a body that nobody wants so much is read for the sake of the connection; then the connection ends. */
const DISCARDED_BYTES_MAX = 1024 * 1024

/** An exchange of HTTP/1.1. */
export function exchangeOf(
  request: IncomingMessage,
  response: ServerResponse,
  names: ClientNames,
  ending: Ending,
): Exchange {
  const { rawHeaders: fields, headers, socket, method = '', url = '' } = request
  const hasBody = headers['transfer-encoding'] !== undefined || Number(headers['content-length'] ?? 0) > 0
  const expectsContinue = headers.expect !== undefined
  let ends = false
  // Whatever goes wrong with an answer closes it, and that is heard.
  response.on('error', () => {})
  return {
    request: { method, target: url, fields, ...connectionOf(socket, names) },
    version: request.httpVersion,
    body: hasBody ? request : undefined,
    expectsContinue,
    goOn: () => response.writeContinue(),
    hint: (hints) => {
      // Node sends only links that it can read.
      const link = valuesOf(hints, 'link').filter((value) => LINK.test(value))
      if (link.length > 0 && request.httpVersion === '1.1') response.writeEarlyHints({ link })
    },
    begin: (status, answered) => {
      // A client that waits for 100 may leave its body out: where it would end can't be told then.
      const closes = ending.draining || (expectsContinue && !request.complete && status >= 400)
      response.writeHead(status, STATUS_CODES[status] ?? '', [...answered, ...(closes ? ['connection', 'close'] : [])])
      // In one piece with the body's first part where that is there already.
      queueMicrotask(() => ends || response.flushHeaders())
    },
    get begun() {
      return response.headersSent
    },
    write: (chunk) => response.write(chunk),
    onDrain: (listener) => void response.on('drain', listener),
    end: (trailers = []) => {
      ends = true
      if (trailers.length > 0) response.addTrailers(pairsOf(trailers))
      response.end()
    },
    fail: () => void response.destroy(),
    discard: () => {
      let bytes = 0
      request.on('data', (chunk: Buffer) => {
        bytes += chunk.length
        if (bytes > DISCARDED_BYTES_MAX) response.destroy()
      })
    },
    onClose: (listener) => void response.once('close', () => listener(response.writableFinished)),
  }
}

/** An exchange of HTTP/2: `raw` has the pseudo-header fields too. */
export function exchangeOfStream(
  stream: ServerHttp2Stream,
  raw: FieldList,
  socket: Socket,
  names: ClientNames,
): Exchange {
  const { fields, pseudo } = splitFields(raw)
  const hasBody = !stream.endAfterHeaders
  // Whatever goes wrong with a stream closes it, and that is heard.
  stream.on('error', () => {})
  let trailing: readonly string[] = []
  stream.on('wantTrailers', () => stream.sendTrailers(pairsOf(trailing)))
  return {
    request: {
      method: pseudo.get(':method') ?? '',
      target: pseudo.get(':path') ?? '',
      authority: pseudo.get(':authority'),
      fields,
      ...connectionOf(socket, names),
    },
    version: '2.0',
    body: hasBody ? stream : undefined,
    expectsContinue: valuesOf(fields, 'expect').length > 0,
    goOn: () => void (stream.writable && stream.additionalHeaders({ ':status': 100 })),
    hint: (hints) => {
      const link = valuesOf(hints, 'link')
      if (link.length > 0 && stream.writable) stream.additionalHeaders({ ':status': 103, link })
    },
    begin: (status, answered, ends = false) => {
      if (stream.destroyed) return
      const waitForTrailers = !ends && valuesOf(answered, 'content-length').length === 0
      stream.respond([':status', String(status), ...answered], { endStream: ends, waitForTrailers })
    },
    get begun() {
      return stream.headersSent
    },
    write: (chunk) => stream.write(chunk),
    onDrain: (listener) => void stream.on('drain', listener),
    end: (trailers = []) => {
      trailing = trailers
      stream.end()
    },
    fail: () => stream.close(constants.NGHTTP2_INTERNAL_ERROR),
    discard: () => stream.close(constants.NGHTTP2_NO_ERROR),
    onClose: (listener) => void stream.once('close', () => listener(wasCompleted(stream))),
  }
}

/** A stream may close before it says that it finished: everything was handed over then, and nobody reset it. */
function wasCompleted({ writableEnded, rstCode, aborted }: Http2Stream & { readonly writableEnded: boolean }): boolean {
  return writableEnded && !aborted && (rstCode ?? constants.NGHTTP2_NO_ERROR) === constants.NGHTTP2_NO_ERROR
}

/** What the API's answer and ours have in common in node:http and node:http2: names with one value or several. */
function pairsOf(fields: readonly string[]): Record<string, string | string[]> {
  const pairs: Record<string, string | string[]> = {}
  for (let index = 0; index < fields.length; index += 2) {
    const [name = '', value = ''] = [fields[index], fields[index + 1]]
    const before = pairs[name]
    pairs[name] = before === undefined ? value : [before, value].flat()
  }
  return pairs
}

function splitFields(raw: FieldList): { fields: string[]; pseudo: Map<string, string> } {
  const fields: string[] = []
  const pseudo = new Map<string, string>()
  for (let index = 0; index < raw.length; index += 2) {
    const [name = '', value = ''] = [raw[index], raw[index + 1]]
    if (name.startsWith(':')) pseudo.set(name, value)
    else fields.push(name, value)
  }
  return { fields, pseudo }
}

/** What the connection says of the client. */
export function connectionOf(
  socket: Socket | TLSSocket,
  { verified }: ClientNames,
): Pick<ReceivedRequest, 'peer' | 'scheme' | 'certificate' | 'principal'> {
  const peer = socket.remoteAddress ?? ''
  if (!(socket instanceof TLSSocket)) return { peer, scheme: 'http', certificate: none, principal: none }
  const certificate = () => socket.getPeerX509Certificate()?.raw
  const principal = () => {
    if (!verified || !socket.authorized) return undefined
    const proved = socket.getPeerX509Certificate()
    return proved && certificatePrincipal(proved)
  }
  return { peer, scheme: 'https', certificate, principal }
}

function none(): undefined {
  return undefined
}
