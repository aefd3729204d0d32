import { AppError, toAppError } from '@tollward/errors'
import { type FastifyInstance, type FastifyReply, fastify } from 'fastify'
import type { Logger } from 'pino'
import { type ClientCredentials, parseBasic } from '../domain/credentials.ts'
import { introspectionFor } from '../domain/introspection.ts'
import type { IntrospectorMetrics } from '../metrics.ts'
import type { Lookup } from './lookup.ts'

/** A token and a hint are a few hundred bytes. */
export const BODY_BYTES_MAX = 16_384

const REQUEST_TIMEOUT_MS = 10_000

/** Connections at once; more are refused, so that idle ones cannot use up the process. */
const CONNECTIONS_MAX = 4096

export interface HttpOptions {
  readonly lookup: Lookup
  /** Whether these are a client's id and secret. */
  readonly authenticate: (credentials: ClientCredentials) => Promise<boolean>
  readonly metrics: IntrospectorMetrics
  readonly log: Logger
}

/** The introspection endpoint of RFC 7662. */
export function createHttp({ lookup, authenticate, metrics, log }: HttpOptions): FastifyInstance {
  const app = fastify({ logger: false, bodyLimit: BODY_BYTES_MAX, requestTimeout: REQUEST_TIMEOUT_MS })
  app.server.maxConnections = CONNECTIONS_MAX
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('application/x-www-form-urlencoded', { parseAs: 'string' }, (_request, body, done) => {
    done(null, new URLSearchParams(String(body)))
  })
  app.addHook('onSend', async (_request, reply) => {
    reply.header('cache-control', 'no-store')
  })
  app.addHook('onResponse', async (_request, reply) => {
    metrics.answers.inc({ status: String(reply.statusCode) })
  })

  app.post('/introspect', async (request, reply) => {
    const credentials = parseBasic(request.headers.authorization)
    if (!credentials || !(await authenticate(credentials))) {
      reply.header('www-authenticate', 'Basic realm="token-introspector"')
      return refuse(reply, 401, 'invalid_client', 'Authenticate as a client, by client_secret_basic.')
    }
    const parameters = request.body instanceof URLSearchParams ? request.body : new URLSearchParams()
    const [token, ...others] = parameters.getAll('token')
    if (!token) return refuse(reply, 400, 'invalid_request', 'The parameter "token" is missing.')
    if (others.length > 0) return refuse(reply, 400, 'invalid_request', 'The parameter "token" is there twice.')
    return introspectionFor(credentials.clientId, await lookup.introspect(token))
  })

  app.setNotFoundHandler((request, reply) => {
    if (request.url.split('?')[0] === '/introspect') {
      reply.header('allow', 'POST')
      return refuse(reply, 405, 'invalid_request', 'Ask by POST.')
    }
    return refuse(reply, 404, 'not_found', 'Here is only POST /introspect.')
  })
  app.setErrorHandler((thrown, _request, reply) => {
    const refusal = refusalOf(thrown)
    if (refusal) return refuse(reply, ...refusal)
    const { code, meaning } = toAppError(thrown)
    if (meaning.http < 503) {
      log.error({ err: thrown }, 'introspection failed')
      return refuse(reply, 500, 'server_error', 'Something went wrong on our side; try again later.')
    }
    log.warn({ err: thrown, code }, 'introspection is not possible')
    reply.header('retry-after', '1')
    return refuse(reply, 503, 'temporarily_unavailable', 'Tokens cannot be looked up at the moment; try again.')
  })
  return app
}

/** What fastify itself refuses; undefined: it is not about the request. */
function refusalOf(thrown: unknown): [status: number, error: string, description: string] | undefined {
  if (thrown instanceof AppError || !(thrown instanceof Error) || !('statusCode' in thrown)) return undefined
  switch (thrown.statusCode) {
    case 413:
      return [413, 'invalid_request', `The body may have at most ${BODY_BYTES_MAX} bytes.`]
    case 415:
      return [415, 'invalid_request', 'The body has to be application/x-www-form-urlencoded.']
    case 400:
      return [400, 'invalid_request', 'The request cannot be read.']
    default:
      return undefined
  }
}

/** An error as RFC 6749, section 5.2 writes it. */
function refuse(reply: FastifyReply, status: number, error: string, description: string): FastifyReply {
  return reply.code(status).send({ error, error_description: description })
}
