import { IncomingMessage, METHODS, STATUS_CODES } from 'node:http'
import type { AddressInfo, Socket } from 'node:net'
import { Transform } from 'node:stream'
import { TLSSocket } from 'node:tls'
import replyFrom from '@fastify/reply-from'
import type { AddressRange } from '@tollward/contracts'
import { type Admission, type Decider, HEADER_BYTES_MAX, type Reason, type Rejection } from '@tollward/decision'
import { type FastifyInstance, type FastifyReply, type FastifyRequest, fastify } from 'fastify'
import type { Logger } from 'pino'
import { downstreamHeaders, requestFacts, upstreamHeaders } from '../domain/forwarding.ts'
import type { GatewayMetrics } from '../metrics.ts'

export interface ProxyOptions {
  readonly host: string
  readonly port: number
  /** PEM; without it plain HTTP is served. */
  readonly tls?: { readonly cert: string; readonly key: string }
  readonly upstreamUrl: string
  readonly upstreamTimeoutMs: number
  readonly bodyBytesMax: number
  readonly trustedProxies: readonly AddressRange[]
  readonly decider: Decider
  readonly metrics: GatewayMetrics
  readonly log: Logger
}

export interface Proxy extends AsyncDisposable {
  readonly port: number
}

/** For all headers of a request: a client that sends them byte by byte holds a connection no longer. */
const HEADERS_TIMEOUT_MS = 10_000
/** For the whole request with its body. */
const REQUEST_TIMEOUT_MS = 300_000
/** An idle connection is kept this long, longer than most load balancers keep theirs. */
const KEEP_ALIVE_MS = 65_000
const CONNECTIONS_MAX = 10_000
/** Connections to the API. */
const UPSTREAM_CONNECTIONS_MAX = 256
/** Requests that are under way at the end get this long. */
const DRAIN_MS = 5000

/**
 * Any client certificate will do for the connection: the handshake proves its key, and a token that is bound to it names it by
 * its hash (RFC 8705). Clients without one are served as well.
 */
const TLS = { minVersion: 'TLSv1.2', requestCert: true, rejectUnauthorized: false } as const

class BodyTooLarge extends Error {
  override readonly name = 'BodyTooLarge'
}

/** Serves the API's clients: decides about each request in process, and forwards what is admitted. */
export async function startProxy(options: ProxyOptions): Promise<Proxy> {
  const { host, port, tls } = options
  // A request without Host is refused by the decision, with a reason, and not by Node.
  const http = { maxHeaderSize: HEADER_BYTES_MAX, headersTimeout: HEADERS_TIMEOUT_MS, requireHostHeader: false }
  const shared = {
    logger: false,
    requestTimeout: REQUEST_TIMEOUT_MS,
    keepAliveTimeout: KEEP_ALIVE_MS,
    bodyLimit: options.bodyBytesMax,
    forceCloseConnections: 'idle',
    return503OnClosing: false,
    exposeHeadRoutes: false,
    // Routes are the decision's business: the router sees one path, and so can't read the request in its own way.
    rewriteUrl: () => '/',
    clientErrorHandler: (error: NodeJS.ErrnoException, socket: Socket) => unreadable(options, error, socket),
  } as const
  const server = (
    tls ? fastify({ ...shared, https: { ...http, ...tls, ...TLS } }) : fastify({ ...shared, http })
  ) as FastifyInstance
  await server.register(replyFrom, {
    base: options.upstreamUrl,
    undici: {
      connections: UPSTREAM_CONNECTIONS_MAX,
      headersTimeout: options.upstreamTimeoutMs,
      bodyTimeout: options.upstreamTimeoutMs,
      connect: { timeout: options.upstreamTimeoutMs, rejectUnauthorized: true },
    },
    destroyAgent: true,
    disableRequestLogging: true,
  })
  route(server, options)
  server.server.maxConnections = CONNECTIONS_MAX
  await server.listen({ host, port })
  return {
    port: (server.server.address() as AddressInfo).port,
    [Symbol.asyncDispose]: () => drain(server),
  }
}

function route(server: FastifyInstance, options: ProxyOptions): void {
  const { decider, metrics, log } = options
  for (const method of METHODS) {
    if (method !== 'CONNECT' && !server.supportedMethods.includes(method))
      server.addHttpMethod(method, { hasBody: true })
  }
  server.removeAllContentTypeParsers()
  server.addContentTypeParser('*', (_request, body, done) => done(null, body))
  server.addHook('onResponse', async (_request, reply) => {
    metrics.seconds.observe({ status: `${Math.floor(reply.statusCode / 100)}xx` }, reply.elapsedTime / 1000)
  })
  server.all('/', (request, reply) => answer(options, request, reply))
  server.setNotFoundHandler((_request, reply) => refuse(reply, decider.refuse('method-unsupported')))
  server.setErrorHandler<Error & { statusCode?: number }>((error, _request, reply) => {
    const isTheirs = error.statusCode !== undefined && error.statusCode < 500
    log.warn({ err: error }, 'request failed')
    return refuse(reply, decider.refuse(isTheirs ? 'malformed-request' : 'unavailable'))
  })
}

async function answer(options: ProxyOptions, request: FastifyRequest, reply: FastifyReply): Promise<FastifyReply> {
  const { decider, trustedProxies, bodyBytesMax, tls } = options
  const { method, rawHeaders, socket } = request.raw
  const peer = socket.remoteAddress ?? ''
  const scheme = tls ? 'https' : 'http'
  const certificate = () => (socket instanceof TLSSocket ? socket.getPeerX509Certificate()?.raw : undefined)
  const received = { method: method ?? '', target: request.originalUrl, peer, scheme, rawHeaders, certificate } as const
  const facts = requestFacts(received, trustedProxies)
  if (!facts) return refuse(reply, decider.refuse('malformed-request'))
  const decision = await decider.decide(facts)
  if (!decision.admitted) return refuse(reply, decision)
  if (Number(request.headers['content-length'] ?? 0) > bodyBytesMax)
    return refuse(reply, decider.refuse('body-too-large'))
  if (request.body instanceof IncomingMessage) request.body = bounded(request.body, bodyBytesMax)
  return forward(options, request, reply, decision, peer)
}

function forward(
  { tls, decider, upstreamUrl, trustedProxies, log }: ProxyOptions,
  request: FastifyRequest,
  reply: FastifyReply,
  admission: Admission,
  peer: string,
): FastifyReply {
  const { path, query } = admission.target
  const scheme = tls ? 'https' : 'http'
  const forwarded = { peer, scheme, host: request.headers.host ?? '', keepFor: trustedProxies.length > 0 }
  return reply.from(path, {
    getUpstream: () => upstreamUrl,
    queryString: () => query.slice(1),
    // A repeated request would be decided once and done twice.
    retryDelay: () => null,
    rewriteRequestHeaders: (_request, headers) => upstreamHeaders(headers, request.method, admission, forwarded),
    rewriteHeaders: (headers) => downstreamHeaders(headers, admission),
    onError: (_reply, { error }) => {
      const reason = failureOf(error)
      log.warn({ err: error, decision: admission.id }, 'request not forwarded')
      refuse(reply, decider.refuse(reason))
    },
  })
}

function failureOf(error: Error): Reason {
  if (error.cause instanceof BodyTooLarge) return 'body-too-large'
  const { statusCode } = error as { statusCode?: number }
  return statusCode === 504 ? 'upstream-timeout' : 'upstream-failed'
}

function refuse(reply: FastifyReply, { status, headers, body }: Rejection): FastifyReply {
  reply.code(status)
  for (const [name, value] of headers) reply.header(name, value)
  // As bytes: to a text Fastify would add a charset, which JSON has not.
  return reply.send(Buffer.from(body))
}

/** Passes a body on as it comes, and fails as soon as it is too large; the rest is read and thrown away. */
function bounded(body: IncomingMessage, bytesMax: number): Transform {
  let bytes = 0
  const counting = new Transform({
    transform(chunk: Buffer, _encoding, done) {
      bytes += chunk.length
      done(bytes > bytesMax ? new BodyTooLarge() : null, chunk)
    },
  })
  counting.on('error', () => {
    body.unpipe(counting)
    body.resume()
  })
  body.on('error', (error) => counting.destroy(error))
  return body.pipe(counting)
}

/** Answers what Node's parser could not read as a request, and closes the connection. */
function unreadable({ decider, metrics }: ProxyOptions, error: NodeJS.ErrnoException, socket: Socket): void {
  const reason = UNREADABLE[error.code ?? ''] ?? 'malformed-request'
  metrics.unreadable.inc({ reason })
  if (error.code === 'ECONNRESET' || !socket.writable) {
    socket.destroy()
    return
  }
  const { status, headers, body } = decider.refuse(reason)
  const fields = [...headers, ['content-length', String(Buffer.byteLength(body))], ['connection', 'close']]
  const head = fields.map(([name, value]) => `${name}: ${value}\r\n`).join('')
  socket.end(`HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\n${head}\r\n${body}`)
}

const UNREADABLE: Readonly<Record<string, Reason>> = {
  HPE_HEADER_OVERFLOW: 'headers-too-large',
  ERR_HTTP_REQUEST_TIMEOUT: 'request-timeout',
}

/** Takes no more, finishes what is under way, and ends what takes too long. */
async function drain(server: FastifyInstance): Promise<void> {
  const timer = setTimeout(() => server.server.closeAllConnections(), DRAIN_MS)
  await server.close()
  clearTimeout(timer)
}
