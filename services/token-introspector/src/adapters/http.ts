import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import type { Client } from '@tollward/bus'
import type { IssuerService, TokenInfo } from '@tollward/contracts/token'
import { toAppError } from '@tollward/errors'
import type { Logger } from 'pino'
import { presentedCredentials } from '../domain/credentials.ts'
import { type Form, readForm } from '../domain/form.ts'
import { type Caller, introspectionOf, mayKnow } from '../domain/introspection.ts'
import type { IntrospectorMetrics } from '../metrics.ts'
import type { Callers } from './callers.ts'
import type { Lookup } from './lookup.ts'

/** A token, a hint and credentials are a few hundred bytes. */
export const BODY_BYTES_MAX = 16_384

/** Whole request, body included: a client that sends slower than this is not waited for. */
const REQUEST_TIMEOUT_MS = 10_000

/** Connections at once; more are refused, so that idle ones cannot use up the process. */
const CONNECTIONS_MAX = 4096

const FORM = 'application/x-www-form-urlencoded'
const JSON_TYPE = 'application/json; charset=utf-8'
/** RFC 9701, section 4. */
const SIGNED_TYPE = 'application/token-introspection+jwt'

const INACTIVE = JSON.stringify({ active: false })
const ACTIVE_TEXTS = new WeakMap<TokenInfo, string>()

export interface HttpOptions {
  readonly lookup: Pick<Lookup, 'tell'>
  readonly callers: Pick<Callers, 'authenticate'>
  readonly issuer: Pick<Client<typeof IssuerService>, 'signIntrospection'>
  /** The issuer identifier. */
  readonly issuerUrl: string
  readonly metrics: IntrospectorMetrics
  readonly log: Logger
}

export interface HttpServer extends AsyncDisposable {
  readonly port: number
}

interface Answer {
  readonly status: number
  readonly body: string
  readonly type?: string
  /** Name, value, name, value. */
  readonly headers?: readonly string[]
}

type MaybePromise<T> = T | Promise<T>

/**
 * The introspection endpoint of RFC 7662, with signed answers (RFC 9701), until disposed; then what is under way is answered. On
 * Node's own server, without a framework: a known token is answered in the time that a framework would take by itself.
 */
export async function listenHttp(options: HttpOptions, host: string, port: number): Promise<HttpServer> {
  const limits = { requestTimeout: REQUEST_TIMEOUT_MS, headersTimeout: REQUEST_TIMEOUT_MS }
  const server = createServer(limits, (request, response) => {
    const conclude = (answer: Answer) => {
      options.metrics.answers(String(answer.status))
      send(response, answer)
    }
    const refused = refusedByHead(request)
    if (refused) return conclude(refused)
    readBody(request, (body) => {
      if (typeof body !== 'string') return conclude(body)
      const answer = answering(options, request, body)
      if (answer instanceof Promise) void answer.then(conclude)
      else conclude(answer)
    })
  })
  server.maxConnections = CONNECTIONS_MAX
  server.listen(port, host)
  await once(server, 'listening')
  return {
    port: (server.address() as AddressInfo).port,
    [Symbol.asyncDispose]: async () => {
      const closed = once(server, 'close')
      server.close()
      server.closeIdleConnections()
      await closed
    },
  }
}

/** What is refused before the body is looked at; the connection is closed then, since the body still comes. */
function refusedByHead({ url = '', method, headers }: IncomingMessage): Answer | undefined {
  const query = url.indexOf('?')
  if ((query < 0 ? url : url.slice(0, query)) !== '/introspect') {
    return refusal(404, 'not_found', 'Here is only POST /introspect.', CLOSING)
  }
  if (method !== 'POST') return refusal(405, 'invalid_request', 'Ask by POST.', ['allow', 'POST', ...CLOSING])
  if (mediaType(headers['content-type'] ?? '') !== FORM) {
    return refusal(415, 'invalid_request', `The body has to be ${FORM}.`, CLOSING)
  }
  return Number(headers['content-length'] ?? 0) > BODY_BYTES_MAX ? TOO_LARGE : undefined
}

/** Hands on the whole body, or the refusal of one that is too large. A body that never ends is ended by the server's timeout. */
function readBody(request: IncomingMessage, done: (body: string | Answer) => void): void {
  const chunks: Buffer[] = []
  let bytes = 0
  request.on('data', (chunk: Buffer) => {
    bytes += chunk.length
    if (bytes <= BODY_BYTES_MAX) return void chunks.push(chunk)
    request.removeAllListeners('data').removeAllListeners('end').resume()
    done(TOO_LARGE)
  })
  // In Latin-1: a form is ASCII, and what is not becomes no token.
  request.on('end', () => done(Buffer.concat(chunks).toString('latin1')))
}

/** The answer to a request with this body; at once where everything is known. Never throws or rejects. */
function answering(options: HttpOptions, request: IncomingMessage, body: string): MaybePromise<Answer> {
  const failed = (thrown: unknown) => failure(thrown, options.log)
  try {
    const answer = answerTo(options, request, readForm(body))
    return answer instanceof Promise ? answer.catch(failed) : answer
  } catch (thrown) {
    return failed(thrown)
  }
}

function answerTo(options: HttpOptions, { headers }: IncomingMessage, form: Form | string): MaybePromise<Answer> {
  if (typeof form === 'string') return refusal(400, 'invalid_request', `The parameter "${form}" is there twice.`)
  const credentials = presentedCredentials(headers.authorization, form)
  if (credentials === 'twice') return TWO_METHODS
  if (!credentials) return UNAUTHENTICATED
  const { token, clientId } = form
  const accept = headers.accept ?? ''
  return then(options.callers.authenticate(credentials), (caller) => {
    if (!caller) return UNAUTHENTICATED
    if (clientId !== undefined && clientId !== caller.clientId) return TWO_METHODS
    if (!token) return refusal(400, 'invalid_request', 'The parameter "token" is missing.')
    return then(options.lookup.tell(token), (info): MaybePromise<Answer> => {
      const text = mayKnow(caller, info) ? activeText(info, options.issuerUrl) : INACTIVE
      return wantsSigned(accept) ? signed(options, caller, text) : { status: 200, body: text }
    })
  })
}

/** Made once for each answer of the issuer. */
function activeText(info: TokenInfo, issuerUrl: string): string {
  const known = ACTIVE_TEXTS.get(info)
  if (known !== undefined) return known
  const text = JSON.stringify(introspectionOf(info, issuerUrl))
  ACTIVE_TEXTS.set(info, text)
  return text
}

async function signed({ issuer }: HttpOptions, { clientId }: Caller, introspectionJson: string): Promise<Answer> {
  const { jwt } = await issuer.signIntrospection({ clientId, introspectionJson })
  return { status: 200, body: jwt, type: SIGNED_TYPE }
}

/** Whether the signed form is named; a client that takes anything is given plain JSON (RFC 9701, section 4). */
function wantsSigned(accept: string): boolean {
  return accept.includes(SIGNED_TYPE) && accept.split(',').some((range) => mediaType(range) === SIGNED_TYPE)
}

function mediaType(text: string): string {
  const parameters = text.indexOf(';')
  return (parameters < 0 ? text : text.slice(0, parameters)).trim().toLowerCase()
}

/** Goes on with an answer, at once or when it comes. */
function then<A, B>(answer: MaybePromise<A>, next: (answer: A) => MaybePromise<B>): MaybePromise<B> {
  return answer instanceof Promise ? answer.then(next) : next(answer)
}

function failure(thrown: unknown, log: Logger): Answer {
  const { code, meaning } = toAppError(thrown)
  if (meaning.http < 503) {
    log.error({ err: thrown }, 'introspection failed')
    return refusal(500, 'server_error', 'Something went wrong on our side; try again later.')
  }
  log.warn({ err: thrown, code }, 'introspection is not possible')
  const description = 'Tokens cannot be looked up at the moment; try again.'
  return refusal(503, 'temporarily_unavailable', description, ['retry-after', '1'])
}

/** An error as RFC 6749, section 5.2 writes it. */
function refusal(status: number, error: string, description: string, headers: readonly string[] = []): Answer {
  return { status, body: JSON.stringify({ error, error_description: description }), headers }
}

const CLOSING = ['connection', 'close']
const TOO_LARGE = refusal(413, 'invalid_request', `The body may have at most ${BODY_BYTES_MAX} bytes.`, CLOSING)
const TWO_METHODS = refusal(
  400,
  'invalid_request',
  'Authenticate by one method: client_secret_basic or client_secret_post.',
)
const UNAUTHENTICATED = refusal(
  401,
  'invalid_client',
  'Authenticate as a client, by client_secret_basic or client_secret_post.',
  ['www-authenticate', 'Basic realm="token-introspector"'],
)

function send(response: ServerResponse, { status, body, type = JSON_TYPE, headers = [] }: Answer): void {
  const length = String(Buffer.byteLength(body))
  response.writeHead(status, ['content-type', type, 'cache-control', 'no-store', 'content-length', length, ...headers])
  response.end(body)
}
