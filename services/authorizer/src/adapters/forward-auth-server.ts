import type { AddressInfo } from 'node:net'
import { parseAddress } from '@tollward/contracts'
import { type Decider, isTrusted, type Rejection } from '@tollward/decision'
import { type FastifyReply, type FastifyRequest, fastify } from 'fastify'
import type { Logger } from 'pino'
import {
  type ForwardAuthAnswer,
  forwardAuthAnswer,
  forwardAuthFacts,
  type ProxyTrust,
  unapplied,
  type Wishes,
  wishesOf,
} from '../domain/forward-auth.ts'
import { REFUSAL_HEADER, unpackRefusal } from '../domain/refusal-header.ts'
import type { AuthorizerMetrics } from '../metrics.ts'
import type { ListeningServer } from './grpc-transport.ts'

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
  server.all('/refusal', (request, reply) => refusal(options, request, reply))
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
  { decider, trust, metrics, log }: ForwardAuthServerOptions,
  request: FastifyRequest,
  reply: FastifyReply,
): Promise<FastifyReply> {
  metrics.requests.inc({ protocol: 'http' })
  const { rawHeaders } = request.raw
  const wishes = wishesOf(request.query as Record<string, unknown>)
  const facts = wishes ? forwardAuthFacts({ peer: peerOf(request), headers: rawHeaders }, trust) : 'incomplete'
  const asked = wishes ?? NO_WISHES
  if (typeof facts === 'string') {
    metrics.undecidable.inc({ protocol: 'http' })
    const refused = decider.refuse(facts === 'untrusted' ? 'untrusted-proxy' : 'malformed-request')
    return send(reply, forwardAuthAnswer(refused, rawHeaders, asked))
  }
  const decision = await decider.decide(facts)
  const part = decision.admitted ? unapplied(decision, asked) : undefined
  if (part === undefined) return send(reply, forwardAuthAnswer(decision, rawHeaders, asked))
  metrics.unapplied.inc({ part })
  log.warn({ part, rule: decision.admitted && decision.metadata.rule }, 'a proxy does not do what this rule wants')
  return send(reply, forwardAuthAnswer(decider.refuse('unavailable'), rawHeaders, asked))
}

const NO_WISHES: Wishes = { for: undefined, applies: [] }

/** Makes the answer to the client of a refusal that came in a header, for a proxy that could not pass it on. */
async function refusal(
  { decider, trust, metrics }: ForwardAuthServerOptions,
  request: FastifyRequest,
  reply: FastifyReply,
): Promise<FastifyReply> {
  const peer = parseAddress(peerOf(request))
  const isAsker = peer !== undefined && isTrusted(peer, trust.askers)
  const packed = request.headers[REFUSAL_HEADER]
  const refused = isAsker && typeof packed === 'string' ? unpackRefusal(packed) : undefined
  if (refused) return send(reply, refused)
  metrics.undecidable.inc({ protocol: 'http' })
  return send(reply, decider.refuse(isAsker ? 'malformed-request' : 'untrusted-proxy'))
}

function peerOf(request: FastifyRequest): string {
  return request.raw.socket.remoteAddress ?? ''
}

function send(reply: FastifyReply, { status, headers, body }: ForwardAuthAnswer | Rejection): FastifyReply {
  reply.code(status)
  for (const [name, value] of headers) reply.header(name, value)
  // As bytes: to a text Fastify would add a charset, which JSON has not.
  return reply.send(Buffer.from(body))
}
