import type { Readable } from 'node:stream'
import type { TokenInfo } from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
import {
  contentSecurityPolicy,
  inlineSource,
  markupOf,
  type PageContent,
  pageMarkup,
  STYLE_SOURCE,
} from '@tollward/pages'
import Fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify'
import type { Logger } from 'pino'
import type { Metrics } from '../metrics.ts'
import type { callerCheck } from './caller.ts'
import { type OrderOptions, openInvoice } from './http-orders.ts'
import { faultPage, PAGE_SCRIPT, payPage, payParts } from './http-page.ts'
import { type ShowOptions, showCredit, showInvoice, showPlans } from './http-shown.ts'
import { InvoiceStreams } from './http-streams.ts'
import { Problem, problemOf } from './problem.ts'

/** An order is two short strings. */
const BODY_BYTES_MAX = 4096
/** Slow senders are not waited for. */
const REQUEST_TIMEOUT_MS = 10_000
/** Node's parser lets no longer one through. An id or key is only looked up, so a long one is just not there. */
const PARAMETER_LENGTH_MAX = 16 * 1024
const PROBLEMS = 'https://tollward.dev/problems/'
const EVENT_STREAM = 'text/event-stream'
const PAGES = '/pay/'
const PAGE_POLICY = contentSecurityPolicy(
  `style-src ${STYLE_SOURCE}; script-src ${inlineSource(PAGE_SCRIPT)}; connect-src 'self'; form-action 'none'`,
)

export interface HttpOptions extends OrderOptions, ShowOptions {
  readonly authenticate: ReturnType<typeof callerCheck>
  readonly metrics: Metrics
  readonly log: Logger
}

/** What clients ask, and the pages for people who pay. */
export function createHttp(options: HttpOptions): FastifyInstance {
  const http = Fastify({
    logger: false,
    bodyLimit: BODY_BYTES_MAX,
    requestTimeout: REQUEST_TIMEOUT_MS,
    exposeHeadRoutes: false,
    routerOptions: { maxParamLength: PARAMETER_LENGTH_MAX },
  })
  const { book, chain, metrics } = options
  const streams = new InvoiceStreams(metrics, () => `${book.ledger.sequence} ${chain.follower.tip?.hash}`)
  http.addHook('preClose', async () => streams[Symbol.dispose]())
  http.addHook('onSend', async (_request, reply) => void reply.header('cache-control', 'no-store'))
  http.setErrorHandler((error, request, reply) =>
    sendProblem(problemOf(error, BODY_BYTES_MAX), request, reply, options),
  )
  http.setNotFoundHandler((request, reply) =>
    sendProblem(notFound('Here are /plans, /credit, /invoices and /invoices/{id}.'), request, reply, options),
  )
  http.get('/plans', async (request, reply) => {
    // Prices are no secret; with a token they are those for its client.
    const caller = request.headers.authorization === undefined ? undefined : await authenticated(request, options)
    count(options, 'plans', 'ok')
    return await reply.send({ plans: showPlans(caller?.clientId, options) })
  })
  http.get('/credit', async (request, reply) => {
    const { clientId } = await authenticated(request, options)
    count(options, 'credit', 'ok')
    return await reply.send(await showCredit(clientId, options))
  })
  serveInvoices(http, streams, options)
  servePages(http, streams, options)
  return http
}

function serveInvoices(http: FastifyInstance, streams: InvoiceStreams, options: HttpOptions): void {
  http.post('/invoices', async (request, reply) => {
    const caller = await authenticated(request, options)
    const { invoice, isNew } = await openInvoice(caller, request.body, options)
    count(options, 'open', isNew ? 'opened' : 'repeated')
    const shown = await showInvoice(invoice, options)
    return await reply
      .code(isNew ? 201 : 200)
      .header('location', shown.url)
      .send(shown)
  })
  http.get<{ Params: { id: string } }>('/invoices/:id', async (request, reply) => {
    const { clientId } = await authenticated(request, options)
    const own = () => {
      const invoice = options.book.ledger.invoice(request.params.id)
      if (invoice?.clientId !== clientId) throw notFound('You have no invoice with this id.')
      return showInvoice(invoice, options)
    }
    if (!wantsStream(request)) {
      const shown = await own()
      count(options, 'read', 'ok')
      return await reply.send(shown)
    }
    const stream = await streams.open(clientId, async () => JSON.stringify(await own()))
    count(options, 'read', 'stream')
    return await sendStream(reply, stream)
  })
}

function servePages(http: FastifyInstance, streams: InvoiceStreams, options: HttpOptions): void {
  http.get<{ Params: { key: string } }>(`${PAGES}:key`, async (request, reply) => {
    const invoice = () => {
      const found = options.book.ledger.invoiceOfPageKey(request.params.key)
      if (found === undefined) throw notFound('There is no such invoice: check the address, or start again.')
      return found
    }
    const shown = () => showInvoice(invoice(), options)
    if (!wantsStream(request)) {
      const page = payPage(await shown())
      count(options, 'page', 'ok')
      return await sendPage(reply, page)
    }
    // Counted as its client's, who gave the page's address away.
    const stream = await streams.open(invoice().clientId, async () => markupOf(payParts(await shown())))
    count(options, 'page', 'stream')
    return await sendStream(reply, stream)
  })
}

/** What the token of whoever asks is worth; see callerCheck. */
function authenticated({ method, url, raw }: FastifyRequest, { authenticate }: HttpOptions): Promise<TokenInfo> {
  return authenticate({ method, target: url, rawHeaders: raw.rawHeaders })
}

function notFound(message: string): Problem {
  return new Problem('not-found', new AppError('not_found', message))
}

function wantsStream({ headers }: FastifyRequest): boolean {
  return (headers.accept ?? '').split(',').some((type) => type.trim().split(';')[0] === EVENT_STREAM)
}

async function sendStream(reply: FastifyReply, stream: Readable): Promise<FastifyReply> {
  // Proxies that collect answers before they pass them on would pass on nothing.
  return await reply.type(EVENT_STREAM).header('x-accel-buffering', 'no').send(stream)
}

async function sendPage(reply: FastifyReply, page: PageContent): Promise<FastifyReply> {
  return await reply
    .type('text/html; charset=utf-8')
    .header('content-security-policy', PAGE_POLICY)
    .header('x-content-type-options', 'nosniff')
    // The address of the page is all that one needs to see it.
    .header('referrer-policy', 'no-referrer')
    .send(pageMarkup(page))
}

async function sendProblem(
  problem: Problem,
  request: FastifyRequest,
  reply: FastifyReply,
  options: HttpOptions,
): Promise<FastifyReply> {
  const { http: status } = problem.meaning
  count(options, requestOf(request), problem.type)
  if (status >= 500) options.log.warn({ err: problem.cause }, 'request not served')
  const { challenge, retryAfterSeconds } = problem.extras
  if (challenge !== undefined) reply.header('www-authenticate', challenge)
  if (retryAfterSeconds !== undefined) reply.header('retry-after', String(retryAfterSeconds))
  reply.code(status)
  if (request.url.startsWith(PAGES) && !wantsStream(request)) return await sendPage(reply, faultPage(problem.message))
  return await reply
    .type('application/problem+json')
    .send({ type: PROBLEMS + problem.type, title: problem.type.replaceAll('-', ' '), status, detail: problem.message })
}

function count({ metrics }: HttpOptions, request: string, result: string): void {
  metrics.invoiceRequests.inc({ request, result })
}

/** What was asked, as the counter names it. */
function requestOf({ method, routeOptions }: FastifyRequest): string {
  if (method === 'POST') return 'open'
  switch (routeOptions.url) {
    case '/plans':
      return 'plans'
    case '/credit':
      return 'credit'
    case `${PAGES}:key`:
      return 'page'
    default:
      return 'read'
  }
}
