import { type AddressInfo, createServer, type Server, type Socket } from 'node:net'
import { setTimeout as setTimeoutPromise } from 'node:timers/promises'
import { createServer as createSecureServer, type Server as SecureServer } from 'node:tls'
import { type TlsFiles, type TlsMaterial, watchTlsFiles } from '@tollward/runtime'
import {
  encodeFields,
  type Http2Events,
  type Http2Limits,
  type Http2Request,
  Http2ServerConnection,
  type Http2Stream,
  OutputBuffers,
} from '@tollward/wire'
import type { Logger } from 'pino'
import type { Counter } from 'prom-client'
import { Call, type CallOptions, type Method, refuse } from './grpc-calls.ts'
import { type Failure, Status } from './grpc-messages.ts'
import { bindSocket } from './grpc-socket.ts'

export interface GrpcTransportOptions {
  readonly at: GrpcAddress
  readonly methods: readonly Method[]
  /** Hears of every call that does not end with OK. */
  readonly failed: (failure: Failure) => void
  /** Counts connections that were cut off, by whose fault. */
  readonly faults: Counter<'fault'>
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
const LIMITS: Http2Limits = {
  streamsMax: 10_000,
  /** gRPC has a dozen. */
  headerFieldsMax: 64,
  headerBytesMax: 16 * 1024,
  /** The largest message with its prefix, and some padding. */
  streamWindowBytes: MESSAGE_BYTES_MAX + 64 * 1024,
  /** Questions that are not whole yet, or wait for somebody else: more than streamsMax of a usual size. */
  connectionWindowBytes: 32 * 1024 * 1024,
  heldBytesMax: 32 * 1024 * 1024,
  /** A proxy gives up calls whenever its own clients go away, however many those are. */
  resetsPerSecondMax: 20_000,
  /** A client may ask for a sign of life with every call. */
  idleFramesPerSecondMax: 20_000,
}
/** A unary call, from its headers to the end of its answer. Proxies wait a second or less; this is for those who never finish. */
const UNARY_MS_MAX = 5000
/** Between two looks for calls whose time is up: they end at most so much later. */
const DEADLINE_TICK_MS = 20
/** Between two pings; a connection that has not answered the last by then is dead. Who never says a word in HTTP/2, too. */
const KEEPALIVE_MS = 20_000
const SECOND_MS = 1000
/** Calls that are under way at the end get this long. */
const DRAIN_MS = 3000
/** Of which it may take so long until clients know of the end. */
const NOTICE_MS = 200

/**
 * Serves gRPC on HTTP/2 of its own (@tollward/wire): unary calls straight, without what a general server does for each, and any other kind
 * by listeners. At the end it says so (GOAWAY), and takes calls that were sent before that was heard; what is under way has DRAIN_MS.
 */
export async function startGrpcTransport(options: GrpcTransportOptions): Promise<ListeningServer> {
  const { at, tlsReloads, log } = options
  const connections = new Set<Http2ServerConnection>()
  const buffers = new OutputBuffers()
  const events = answering(options, connections)
  const connected = (socket: Socket) =>
    connections.add(new Http2ServerConnection(socket, { limits: LIMITS, events, buffers }))
  const server = newServer(at, connected, log)
  server.maxConnections = CONNECTIONS_MAX
  await using resources = new AsyncDisposableStack()
  const tls = 'host' in at ? at.tls : undefined
  if (tls && 'setSecureContext' in server) {
    const renew = (read: TlsMaterial) => server.setSecureContext(read)
    resources.use(watchTlsFiles(tls.files, tls.material, renew, { log, reloads: tlsReloads }))
  }
  const every = (intervalMs: number, look: () => void) => {
    const timer = setInterval(look, intervalMs)
    resources.defer(() => clearInterval(timer))
  }
  every(DEADLINE_TICK_MS, () => expireCalls(connections, performance.now()))
  every(SECOND_MS, () => {
    for (const connection of connections) connection.nextSecond()
  })
  every(KEEPALIVE_MS, () => {
    for (const connection of connections) connection.checkLife()
  })
  if ('socket' in at) resources.use(await bindSocket(server, at.socket))
  else await bindPort(server, at.host, at.port)
  resources.defer(() => drain(server, connections))
  const owned = resources.move()
  return {
    port: 'socket' in at ? 0 : (server.address() as AddressInfo).port,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

function newServer(at: GrpcAddress, connected: (socket: Socket) => void, log: Logger): Server | SecureServer {
  // Answers are gathered before they are written: waiting for more of them would only make them late.
  if ('socket' in at || !at.tls) return createServer({ noDelay: true }, connected)
  const isAsked = at.tls.material.ca !== undefined
  const server = createSecureServer(
    {
      ...at.tls.material,
      noDelay: true,
      requestCert: isAsked,
      rejectUnauthorized: isAsked,
      minVersion: 'TLSv1.2',
      ALPNProtocols: ['h2'],
    },
    connected,
  )
  server.on('tlsClientError', (error: Error) => log.debug({ err: error }, 'TLS handshake failed'))
  return server
}

function answering(
  { methods, failed, faults, log }: GrpcTransportOptions,
  connections: Set<Http2ServerConnection>,
): Http2Events {
  const byPath = new Map(methods.map((method) => [method.path, method]))
  const options: CallOptions = {
    messageBytesMax: MESSAGE_BYTES_MAX,
    unaryMsMax: UNARY_MS_MAX,
    failed: (failure, thrown) => {
      if (thrown !== undefined) log.error({ err: thrown }, 'gRPC method failed')
      failed(failure)
    },
  }
  return {
    closed: (connection, fault) => {
      connections.delete(connection)
      if (!fault) return
      faults.inc({ fault: fault.by })
      log.debug(fault, 'gRPC connection failed')
    },
    request: (stream, head) => {
      const { contentType, timeout } = grpcFields(head)
      if (head.method !== 'POST') return refuseHttp(stream, 405)
      if (!isGrpc(contentType)) return refuseHttp(stream, 415)
      const method = byPath.get(head.path)
      if (method) return new Call(stream, timeout, method, performance.now(), options)
      const unknown = { code: Status.unimplemented, message: 'There is no such method.' }
      failed(unknown)
      refuse(stream, unknown)
      return undefined
    },
  }
}

function grpcFields({ fields }: Http2Request): { contentType: string | undefined; timeout: string | undefined } {
  let contentType: string | undefined
  let timeout: string | undefined
  for (const [name, value] of fields) {
    if (name === 'content-type') contentType = value
    else if (name === 'grpc-timeout') timeout = value
  }
  return { contentType, timeout }
}

/** application/grpc, with a subtype or parameters; not application/grpc-web, which is another protocol. */
function isGrpc(contentType: string | undefined): boolean {
  return contentType === 'application/grpc' || /^application\/grpc(?:$|[+;])/.test(contentType ?? '')
}

/** Who asks so does not speak gRPC, and could not read its refusals. */
function refuseHttp(stream: Http2Stream, status: number): undefined {
  stream.head(encodeFields([[':status', String(status)]]), true)
}

function expireCalls(connections: Iterable<Http2ServerConnection>, nowMs: number): void {
  for (const connection of connections) {
    for (const call of connection.listeners()) if (call instanceof Call && call.deadlineMs <= nowMs) call.expire()
  }
}

function bindPort(server: Server, host: string, port: number): Promise<void> {
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
 * the ping behind the notice says that it was read, and that what came before the answer was sent before it.
 */
async function drain(server: Server, connections: ReadonlySet<Http2ServerConnection>): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  server.close(() => resolve())
  const noticed = Array.from(connections, (connection) => connection.drain())
  await Promise.race([Promise.all(noticed), setTimeoutPromise(NOTICE_MS)])
  for (const connection of connections) connection.finish()
  const timer = setTimeout(() => {
    for (const connection of connections) connection.destroy()
  }, DRAIN_MS - NOTICE_MS)
  await promise
  clearTimeout(timer)
}
