import type {
  Http2SecureServer,
  Http2Server,
  Http2Session,
  IncomingHttpHeaders,
  ServerHttp2Session,
  ServerHttp2Stream,
} from 'node:http2'
import { constants, createSecureServer, createServer } from 'node:http2'
import type { AddressInfo } from 'node:net'
import { setTimeout as setTimeoutPromise } from 'node:timers/promises'
import { type TlsFiles, type TlsMaterial, watchTlsFiles } from '@tollward/runtime'
import type { Logger } from 'pino'
import type { Counter } from 'prom-client'
import { Call, type CallOptions, type Method, refuse, stop } from './grpc-calls.ts'
import { type Failure, Status } from './grpc-messages.ts'
import { bindSocket } from './grpc-socket.ts'

export interface GrpcTransportOptions {
  readonly at: GrpcAddress
  readonly methods: readonly Method[]
  /** Hears of every call that does not end with OK. */
  readonly failed: (failure: Failure) => void
  /** Counts what became of changed certificates. */
  readonly tlsReloads: Counter<'result'>
  readonly log: Logger
}

/** Where it listens: over TCP, with TLS where there are certificates, or on a unix socket. */
export type GrpcAddress =
  | { readonly host: string; readonly port: number; readonly tls: GrpcTls | undefined }
  | { readonly socket: string }

/** With authorities for clients in it, only who has a certificate of theirs may ask. */
interface GrpcTls {
  readonly files: TlsFiles
  readonly material: TlsMaterial
}

export interface ListeningServer extends AsyncDisposable {
  /** 0: it listens on a unix socket. */
  readonly port: number
}

/** A question with its headers, whose limit in Envoy is 60 KiB by default, and a body, whose limit is with_request_body's. */
const MESSAGE_BYTES_MAX = 1024 * 1024
/** Proxies open few connections, each one or two a worker; more than this are somebody else's. */
const CONNECTIONS_MAX = 1000
/** Calls under way on one connection. */
const STREAMS_MAX = 10_000
/** Memory of one connection; with STREAMS_MAX calls of a usual size it takes 30 MB. */
const CONNECTION_MEGABYTES_MAX = 64
/** Header fields of a call: gRPC has a dozen. */
const CALL_HEADER_FIELDS_MAX = 64
/** Their bytes, each field counted with 32 more (RFC 9113, 6.5.2). */
const CALL_HEADER_BYTES_MAX = 16 * 1024
/** What a client may send ahead on a connection; by default it would be that of a single stream. */
const CONNECTION_WINDOW_BYTES = 4 * 1024 * 1024
/**
 * Calls that a client gives up, in a second: a proxy does so whenever its own clients go away, however many those are, and node's 33
 * would have them cut the proxy off from us. Each is a call that was admitted among STREAMS_MAX before.
 */
const RESETS_PER_SECOND_MAX = 20_000
/** A unary call, from its headers to the end of its answer. Proxies wait a second or less; this is for those who never finish. */
const UNARY_MS_MAX = 5000
/** Between two looks for calls whose time is up: they end at most so much later. */
const DEADLINE_TICK_MS = 20
/** Between two pings; a connection that has not answered the last by then is dead. Who never says a word in HTTP/2, too. */
const KEEPALIVE_MS = 20_000
/** Calls that are under way at the end get this long. */
const DRAIN_MS = 3000
/** Of which it may take so long until clients know of the end. */
const NOTICE_MS = 200

const SHUTDOWN_NOTICE_STREAM = 2 ** 31 - 1

/**
 * Serves gRPC on node:http2: unary calls straight, without what a general server does for each call, and any other kind by listeners.
 * At the end it says so (GOAWAY), and takes calls that were sent before that was heard; what is under way has DRAIN_MS.
 */
export async function startGrpcTransport(options: GrpcTransportOptions): Promise<ListeningServer> {
  const { at, tlsReloads, log } = options
  const server = newServer(at)
  const calls = new Set<Call>()
  const sessions = new Set<ServerHttp2Session>()
  server.maxConnections = CONNECTIONS_MAX
  server.on('stream', answering(options, calls))
  server.on('session', (session: ServerHttp2Session) => {
    sessions.add(session)
    session.setLocalWindowSize(CONNECTION_WINDOW_BYTES)
    session.once('close', () => sessions.delete(session))
  })
  server.on('sessionError', (error) => log.debug({ err: error }, 'gRPC connection failed'))
  server.on('tlsClientError', (error: Error) => log.debug({ err: error }, 'TLS handshake failed'))
  await using resources = new AsyncDisposableStack()
  const tls = 'host' in at ? at.tls : undefined
  if (tls && 'setSecureContext' in server) {
    const renew = (read: TlsMaterial) => server.setSecureContext(read)
    resources.use(watchTlsFiles(tls.files, tls.material, renew, { log, reloads: tlsReloads }))
  }
  const deadlines = setInterval(() => expireCalls(calls, performance.now()), DEADLINE_TICK_MS)
  resources.defer(() => clearInterval(deadlines))
  const keepalive = setInterval(keepingAlive(sessions), KEEPALIVE_MS)
  resources.defer(() => clearInterval(keepalive))
  if ('socket' in at) resources.use(await bindSocket(server, at.socket))
  else await bindPort(server, at.host, at.port)
  resources.defer(() => drain(server, calls, sessions))
  const owned = resources.move()
  return {
    port: 'socket' in at ? 0 : (server.address() as AddressInfo).port,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

function newServer(at: GrpcAddress): Http2Server | Http2SecureServer {
  const options = {
    maxSessionMemory: CONNECTION_MEGABYTES_MAX,
    maxHeaderListPairs: CALL_HEADER_FIELDS_MAX,
    streamResetBurst: RESETS_PER_SECOND_MAX,
    streamResetRate: RESETS_PER_SECOND_MAX,
    settings: {
      enablePush: false,
      maxConcurrentStreams: STREAMS_MAX,
      maxHeaderListSize: CALL_HEADER_BYTES_MAX,
    },
  }
  if ('socket' in at || !at.tls) return createServer(options)
  const isAsked = at.tls.material.ca !== undefined
  return createSecureServer({
    ...options,
    ...at.tls.material,
    requestCert: isAsked,
    rejectUnauthorized: isAsked,
    minVersion: 'TLSv1.2',
  })
}

function answering({ methods, failed, log }: GrpcTransportOptions, calls: Set<Call>) {
  const byPath = new Map(methods.map((method) => [method.path, method]))
  const streamFailed = (error: Error) => log.debug({ err: error }, 'gRPC stream failed')
  const options: CallOptions = {
    calls,
    messageBytesMax: MESSAGE_BYTES_MAX,
    unaryMsMax: UNARY_MS_MAX,
    failed: (failure, thrown) => {
      if (thrown !== undefined) log.error({ err: thrown }, 'gRPC method failed')
      failed(failure)
    },
  }
  return (stream: ServerHttp2Stream, headers: IncomingHttpHeaders) => {
    stream.on('error', streamFailed)
    if (headers[':method'] !== 'POST') return refuseHttp(stream, 405)
    if (!isGrpc(headers['content-type'])) return refuseHttp(stream, 415)
    const method = byPath.get(String(headers[':path']))
    if (!method) {
      const unknown = { code: Status.unimplemented, message: 'There is no such method.' }
      failed(unknown)
      return refuse(stream, unknown)
    }
    new Call(stream, headers, method, performance.now(), options)
  }
}

/** application/grpc, with a subtype or parameters; not application/grpc-web, which is another protocol. */
function isGrpc(contentType: string | undefined): boolean {
  return contentType === 'application/grpc' || /^application\/grpc(?:$|[+;])/.test(contentType ?? '')
}

/** Who asks so does not speak gRPC, and could not read its refusals. */
function refuseHttp(stream: ServerHttp2Stream, status: number): void {
  stream.respond({ ':status': status }, { endStream: true })
  stop(stream)
}

function expireCalls(calls: ReadonlySet<Call>, nowMs: number): void {
  for (const call of calls) if (call.deadlineMs <= nowMs) call.expire()
}

function keepingAlive(sessions: ReadonlySet<ServerHttp2Session>): () => void {
  const unanswered = new WeakSet<ServerHttp2Session>()
  return () => {
    for (const session of sessions) {
      if (unanswered.has(session)) session.destroy()
      else if (!session.closed) {
        unanswered.add(session)
        session.ping((error) => error ?? unanswered.delete(session))
      }
    }
  }
}

function bindPort(server: Http2Server | Http2SecureServer, host: string, port: number): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  server.once('error', reject)
  server.listen({ host, port }, () => {
    server.off('error', reject)
    resolve()
  })
  return promise
}

/**
 * Notice first, the end after it: a GOAWAY that names the last call that was heard of would lose those that are on their way. Answered,
 * the ping behind the notice says that it was read, and that what came before the answer was sent before it. A connection without calls
 * gets no notice: having sent one, node would not read from it any more.
 */
async function drain(
  server: Http2Server,
  calls: ReadonlySet<Call>,
  sessions: ReadonlySet<ServerHttp2Session>,
): Promise<void> {
  const busy = new Set(Array.from(calls, ({ session }) => session))
  await Promise.race([Promise.all(Array.from(busy, giveNotice)), setTimeoutPromise(NOTICE_MS)])
  const { promise, resolve } = Promise.withResolvers<void>()
  const timer = setTimeout(() => {
    for (const session of sessions) session.destroy()
  }, DRAIN_MS - NOTICE_MS)
  // Takes no connections from now on, and says goodbye on those that there are.
  server.close(() => resolve())
  await promise
  clearTimeout(timer)
}

function giveNotice(session: Http2Session | undefined): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  if (!session || session.closed || session.destroyed) return Promise.resolve()
  session.goaway(constants.NGHTTP2_NO_ERROR, SHUTDOWN_NOTICE_STREAM)
  session.ping(() => resolve())
  return promise
}
