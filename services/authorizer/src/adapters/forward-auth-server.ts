import type { AddressInfo } from 'node:net'
import type { Decider, Rejection } from '@tollward/decision'
import { type FastifyReply, type FastifyRequest, fastify } from 'fastify'
import type { Logger } from 'pino'
import { type ForwardAuthAnswer, forwardAuthAnswer, forwardAuthFacts, type ProxyTrust } from '../domain/forward-auth.ts'
import type { AuthorizerMetrics } from '../metrics.ts'
import type { ListeningServer } from './grpc-server.ts'

export interface ForwardAuthServerOptions {
  readonly host: string
  readonly port: number
  readonly trust: ProxyTrust
  readonly decider: Decider
  readonly metrics: AuthorizerMetrics
  readonly log: Logger
}

/** A proxy asks with the original request's headers, and adds its own. */
const HEADER_BYTES_MAX = 64 * 1024
/** A proxy that takes longer to send headers is none. */
const REQUEST_TIMEOUT_MS = 5000

/** Serves /forward-auth for proxies that ask over HTTP: 200 with the headers for upstream, or the refusal. */
export async function startForwardAuthServer(options: ForwardAuthServerOptions): Promise<ListeningServer> {
  const { host, port, decider, metrics, log } = options
  const server = fastify({
    logger: false,
    http: { maxHeaderSize: HEADER_BYTES_MAX },
    requestTimeout: REQUEST_TIMEOUT_MS,
    forceCloseConnections: 'idle',
  })
  // Nothing of a body is needed, and none may be buffered.
  server.removeAllContentTypeParsers()
  server.addContentTypeParser('*', (_request, _body, done) => done(null))
  server.all('/forward-auth', (request, reply) => answer(options, request, reply))
  server.setErrorHandler((error, _request, reply) => {
    log.warn({ err: error }, 'forward-auth question failed')
    metrics.undecidable.inc({ protocol: 'http' })
    return send(reply, decider.refuse('malformed-request'))
  })
  await server.listen({ host, port })
  return {
    port: (server.server.address() as AddressInfo).port,
    [Symbol.asyncDispose]: () => server.close(),
  }
}

async function answer(
  { decider, trust, metrics }: ForwardAuthServerOptions,
  request: FastifyRequest,
  reply: FastifyReply,
): Promise<FastifyReply> {
  metrics.requests.inc({ protocol: 'http' })
  const peer = request.raw.socket.remoteAddress ?? ''
  const facts = forwardAuthFacts({ peer, headers: request.raw.rawHeaders }, trust)
  if (typeof facts !== 'string') return send(reply, forwardAuthAnswer(await decider.decide(facts)))
  metrics.undecidable.inc({ protocol: 'http' })
  return send(reply, decider.refuse(facts === 'untrusted' ? 'untrusted-proxy' : 'malformed-request'))
}

function send(reply: FastifyReply, { status, headers, body }: ForwardAuthAnswer | Rejection): FastifyReply {
  reply.code(status)
  for (const [name, value] of headers) reply.header(name, value)
  // As bytes: to a text Fastify would add a charset, which JSON has not.
  return reply.send(Buffer.from(body))
}
