import { createServer, type IncomingMessage, type Server, STATUS_CODES } from 'node:http'
import { constants, performServerHandshake, type ServerHttp2Session, type ServerHttp2Stream } from 'node:http2'
import { createServer as createSecureServer, type Server as SecureServer } from 'node:https'
import type { AddressInfo, Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import type { SecureContextOptions, TLSSocket } from 'node:tls'
import { type Decider, HEADER_BYTES_MAX, HEADER_FIELDS_MAX, type Reason } from '@tollward/decision'
import { ConnectionCounts, FrameRate } from '../domain/connection-limits.ts'
import type { GatewayMetrics } from '../metrics.ts'
import { type ClientNames, type Exchange, exchangeOf, exchangeOfStream } from './exchange.ts'
import { REQUEST_TIMEOUT_MS } from './proxy.ts'

export interface ListenerOptions {
  readonly host: string
  readonly port: number
  /** Without it plain HTTP/1.1 is served. */
  readonly tls?: SecureContextOptions
  readonly names: ClientNames
  readonly connectionsMax: number
  readonly connectionsPerSourceMax: number
  /** Whether a peer speaks for many clients: a proxy in front has as many connections as it likes. */
  readonly isProxy: (peer: string) => boolean
  readonly drainMs: number
  readonly decider: Decider
  readonly metrics: GatewayMetrics
  readonly onExchange: (exchange: Exchange) => void
  /** A WebSocket is asked for. */
  readonly onUpgrade: (request: IncomingMessage, socket: Socket, head: Buffer) => void
}

export interface Listener extends AsyncDisposable {
  readonly port: number
  /** New connections get these certificates; others keep theirs. Throws if they are not usable. */
  renew(tls: SecureContextOptions): void
  /** Takes no more connections, and lets the ones there are end after what is under way. Settles when they have, or were ended. */
  drain(): Promise<void>
}

/** For all headers of a request: a client that sends them byte by byte holds a connection no longer. For a TLS handshake too. */
const HEADERS_TIMEOUT_MS = 10_000
/** How often connections are looked at for that. */
const CHECK_EVERY_MS = 2000
/** An idle connection is kept this long, longer than most load balancers keep theirs. */
const KEEP_ALIVE_MS = 65_000
/** Then it is ended, so that load finds its way to other gateways. */
const REQUESTS_PER_CONNECTION_MAX = 100_000
/** While draining, a connection that is idle for so long gets no other chance to hear that it ends. */
const DRAIN_IDLE_MS = 300

/** Requests under way at once on one connection of HTTP/2. */
const STREAMS_MAX = 128
/** Streams that a client may reset at once, and each second after that (CVE-2023-44487): above what browsers that navigate away need. */
const STREAM_RESETS_AT_ONCE_MAX = 200
const STREAM_RESETS_PER_SECOND_MAX = 20
/** Frames that are no part of a stream's life: more of them end the connection. */
const INVALID_FRAMES_MAX = 50
/** Streams refused because there were too many at once. */
const REJECTED_STREAMS_MAX = 100
/** Settings in one frame; there are seven. */
const SETTINGS_MAX = 16
/** Memory of one connection for streams, header fields and what waits to be sent, in MB. */
const SESSION_MEMORY_MB = 4
/** PING and SETTINGS that a client may send in CONTROL_WINDOW_MS; each is answered. */
const CONTROL_FRAMES_MAX = 60
const CONTROL_WINDOW_MS = 10_000
/** Room for header fields beyond what the decision takes, so that it can say what is wrong; far beyond, a stream is reset. */
const HEADER_ROOM = 2

const HTTP2 = {
  maxSendHeaderBlockLength: 64 * 1024,
  maxHeaderListPairs: HEADER_FIELDS_MAX * HEADER_ROOM,
  maxSessionInvalidFrames: INVALID_FRAMES_MAX,
  maxSessionRejectedStreams: REJECTED_STREAMS_MAX,
  maxSessionMemory: SESSION_MEMORY_MB,
  maxSettings: SETTINGS_MAX,
  streamResetBurst: STREAM_RESETS_AT_ONCE_MAX,
  streamResetRate: STREAM_RESETS_PER_SECOND_MAX,
  // What the API answers twice is the API's business.
  strictSingleValueFields: false,
  settings: {
    enablePush: false,
    maxConcurrentStreams: STREAMS_MAX,
    maxHeaderListSize: HEADER_BYTES_MAX * HEADER_ROOM,
  },
} as const

/**
 * Any client certificate will do for the connection: the handshake proves its key, and a token that is bound to it names it by
 * its hash (RFC 8705). Clients without one are served as well.
 */
const TLS = {
  minVersion: 'TLSv1.2',
  requestCert: true,
  rejectUnauthorized: false,
  ALPNProtocols: ['h2', 'http/1.1'],
  handshakeTimeout: HEADERS_TIMEOUT_MS,
} as const

/** Serves HTTP/1.1, and over TLS also HTTP/2 to those who choose it by ALPN. */
export async function listen(options: ListenerOptions): Promise<Listener> {
  const { host, port, tls, names, metrics, onExchange, onUpgrade } = options
  // A request without Host is refused by the decision, with a reason, and not by Node.
  const http = {
    maxHeaderSize: HEADER_BYTES_MAX,
    headersTimeout: HEADERS_TIMEOUT_MS,
    requestTimeout: REQUEST_TIMEOUT_MS,
    keepAliveTimeout: KEEP_ALIVE_MS,
    connectionsCheckingInterval: CHECK_EVERY_MS,
    requireHostHeader: false,
    shouldUpgradeCallback: asksForWebSocket,
  }
  const server: Server | SecureServer = tls ? createSecureServer({ ...http, ...tls, ...TLS }) : createServer(http)
  const ending = { draining: false }
  const sessions = new Sessions(names, metrics, onExchange)
  if (tls) chooseByAlpn(server as SecureServer, sessions, ending)
  // Node counts fields for itself and leaves out the rest; the decision counts them and says so.
  server.maxHeadersCount = 0
  server.maxRequestsPerSocket = REQUESTS_PER_CONNECTION_MAX
  server.maxConnections = options.connectionsMax
  server.on('drop', () => metrics.connectionsRefused.inc({ reason: 'all' }))
  server.prependListener('connection', countingSources(options))
  // Also those in a handshake, of HTTP/2, and of WebSockets, which the server does not end by itself.
  const sockets = new Set<Socket>()
  server.on('connection', (socket: Socket) => {
    sockets.add(socket)
    socket.once('close', () => sockets.delete(socket))
  })
  const open = new Map<Socket, Exchange>()
  server.on('request', (request, response) => {
    const exchange = exchangeOf(request, response, names, ending)
    open.set(request.socket, exchange)
    response.once('close', () => open.get(request.socket) === exchange && open.delete(request.socket))
    onExchange(exchange)
  })
  for (const event of ['checkContinue', 'checkExpectation'] as const)
    server.on(event, (request, response) => server.emit('request', request, response))
  server.on('upgrade', (request, socket: Socket, head) => onUpgrade(request, socket, head))
  server.on('connect', (_request, socket: Socket) => answerPlain(options, socket, 'method-unsupported'))
  server.on('clientError', (error, socket) => unreadable(options, error, socket as Socket, open.get(socket as Socket)))
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject).listen(port, host, resolve)
  })
  const drain = draining(server, sessions, sockets, ending, options.drainMs)
  return {
    port: (server.address() as AddressInfo).port,
    renew: (renewed) => (server as SecureServer).setSecureContext({ ...renewed, ...TLS }),
    drain,
    [Symbol.asyncDispose]: drain,
  }
}

/** Other upgrades are ignored, as a server may (RFC 9110, 7.8): the request is answered in HTTP/1.1. */
function asksForWebSocket({ method, headers }: IncomingMessage): boolean {
  return method === 'GET' && headers.upgrade?.toLowerCase() === 'websocket'
}

function countingSources({ connectionsPerSourceMax, isProxy, metrics }: ListenerOptions) {
  const counts = new ConnectionCounts(connectionsPerSourceMax)
  return (socket: Socket) => {
    const peer = socket.remoteAddress ?? ''
    metrics.connections.inc()
    socket.once('close', () => metrics.connections.dec())
    if (isProxy(peer)) return
    const source = sourceOf(peer)
    if (counts.take(source)) {
      socket.once('close', () => counts.release(source))
      return
    }
    metrics.connectionsRefused.inc({ reason: 'source' })
    socket.destroy()
  }
}

/** An IPv6 address stands for its /64, which is what one subscriber has. */
function sourceOf(peer: string): string {
  if (!peer.includes(':') || peer.startsWith('::ffff:')) return peer
  const [head = '', tail] = peer.split('::')
  const before = head === '' ? [] : head.split(':')
  const after = tail === undefined || tail === '' ? [] : tail.split(':')
  const zeros = tail === undefined ? 0 : 8 - before.length - after.length
  return [...before, ...Array<string>(zeros).fill('0'), ...after].slice(0, 4).join(':')
}

/** Hands connections that chose HTTP/2 to the sessions, and the others to the server itself. */
function chooseByAlpn(server: SecureServer, sessions: Sessions, ending: { readonly draining: boolean }): void {
  const http1 = server.listeners('secureConnection')
  server.removeAllListeners('secureConnection')
  server.on('secureConnection', (socket: TLSSocket) => {
    if (socket.alpnProtocol !== 'h2') for (const listener of http1) listener.call(server, socket)
    else if (ending.draining) socket.destroy()
    else sessions.begin(socket)
  })
}

/** The connections of HTTP/2. */
class Sessions {
  readonly #names: ClientNames
  readonly #metrics: GatewayMetrics
  readonly #onExchange: (exchange: Exchange) => void
  readonly #open = new Set<ServerHttp2Session>()

  constructor(names: ClientNames, metrics: GatewayMetrics, onExchange: (exchange: Exchange) => void) {
    this.#names = names
    this.#metrics = metrics
    this.#onExchange = onExchange
  }

  begin(socket: TLSSocket): void {
    const session = performServerHandshake(socket, HTTP2)
    this.#open.add(session)
    let streams = 0
    let served = 0
    const idle = setTimeout(() => session.destroy(), KEEP_ALIVE_MS)
    session.on('stream', (stream: ServerHttp2Stream, _headers, _flags, raw: string[]) => {
      clearTimeout(idle)
      streams += 1
      served += 1
      stream.once('close', () => {
        streams -= 1
        if (streams === 0 && !session.destroyed) idle.refresh()
      })
      if (served === REQUESTS_PER_CONNECTION_MAX) session.close()
      this.#onExchange(exchangeOfStream(stream, raw, socket, this.#names))
    })
    this.#boundControlFrames(session)
    session.on('error', (error: NodeJS.ErrnoException) => {
      const kind = FLOODS[error.code ?? '']
      if (kind !== undefined) this.#metrics.floods.inc({ kind })
    })
    session.once('close', () => {
      clearTimeout(idle)
      this.#open.delete(session)
    })
  }

  #boundControlFrames(session: ServerHttp2Session): void {
    const rate = new FrameRate(CONTROL_FRAMES_MAX, CONTROL_WINDOW_MS)
    const count = (kind: string) => () => {
      if (rate.take(Date.now()) || session.destroyed) return
      this.#metrics.floods.inc({ kind })
      session.destroy(new Error(`too many frames of ${kind}`), constants.NGHTTP2_ENHANCE_YOUR_CALM)
    }
    session.on('ping', count('ping'))
    session.on('remoteSettings', count('settings'))
  }

  /** Tells all clients to open no more streams here (GOAWAY). */
  close(): void {
    for (const session of this.#open) session.close()
  }
}

const FLOODS: Readonly<Record<string, string>> = {
  ERR_HTTP2_TOO_MANY_INVALID_FRAMES: 'invalid frames',
  ERR_HTTP2_SESSION_ERROR: 'session error',
  ERR_HTTP2_ERROR: 'protocol error',
}

/** Answers what Node's parser could not read as a request, and closes the connection. */
function unreadable(
  options: ListenerOptions,
  error: NodeJS.ErrnoException,
  socket: Socket,
  open: Exchange | undefined,
): void {
  const reason = UNREADABLE[error.code ?? ''] ?? 'malformed-request'
  options.metrics.unreadable.inc({ reason })
  // In the middle of an answer another one would be read as part of it.
  if (error.code === 'ECONNRESET' || !socket.writable || open?.begun) socket.destroy()
  else answerPlain(options, socket, reason)
}

const UNREADABLE: Readonly<Record<string, Reason>> = {
  HPE_HEADER_OVERFLOW: 'headers-too-large',
  ERR_HTTP_REQUEST_TIMEOUT: 'request-timeout',
}

/** Refuses on a connection that Node does not parse any more. */
function answerPlain({ decider }: Pick<ListenerOptions, 'decider'>, socket: Duplex, reason: Reason): void {
  const { status, headers, body } = decider.refuse(reason)
  const fields = [...headers, ['content-length', String(Buffer.byteLength(body))], ['connection', 'close']]
  const head = fields.map(([name, value]) => `${name}: ${value}\r\n`).join('')
  socket.on('error', () => {})
  socket.end(`HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\n${head}\r\n${body}`)
}

/** Takes no more, finishes what is under way, and ends what takes too long. */
function draining(
  server: Server | SecureServer,
  sessions: Sessions,
  sockets: ReadonlySet<Socket>,
  ending: { draining: boolean },
  drainMs: number,
): () => Promise<void> {
  let drained: Promise<void> | undefined
  const drain = async () => {
    ending.draining = true
    const { promise, resolve } = Promise.withResolvers<void>()
    // Calls back when the last connection is gone.
    server.close(() => resolve())
    sessions.close()
    const idle = setInterval(() => server.closeIdleConnections(), DRAIN_IDLE_MS)
    const end = setTimeout(() => {
      for (const socket of sockets) socket.destroy()
    }, drainMs)
    await promise
    clearInterval(idle)
    clearTimeout(end)
  }
  return () => {
    drained ??= drain()
    return drained
  }
}
