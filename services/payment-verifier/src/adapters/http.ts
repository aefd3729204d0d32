import type { TokenInfo } from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
import Fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify'
import type { Logger } from 'pino'
import type { Metrics } from '../metrics.ts'
import type { callerCheck } from './caller.ts'
import { type OrderOptions, openInvoice } from './http-orders.ts'
import { type ShowOptions, shownInvoice, shownPlan } from './http-shown.ts'
import { Problem, problemOf } from './problem.ts'

/** An order is two short strings. */
const BODY_BYTES_MAX = 4096
/** Slow senders are not waited for. */
const REQUEST_TIMEOUT_MS = 10_000
const PROBLEMS = 'https://tollward.dev/problems/'

export interface HttpOptions extends OrderOptions, ShowOptions {
  readonly authenticate: ReturnType<typeof callerCheck>
  readonly metrics: Metrics
  readonly log: Logger
}

/** `GET /plans`, `POST /invoices` and `GET /invoices/{id}` for clients. */
export function createHttp(options: HttpOptions): FastifyInstance {
  const http = Fastify({
    logger: false,
    bodyLimit: BODY_BYTES_MAX,
    requestTimeout: REQUEST_TIMEOUT_MS,
    exposeHeadRoutes: false,
  })
  http.addHook('onSend', async (_request, reply) => void reply.header('cache-control', 'no-store'))
  http.setErrorHandler((error, request, reply) =>
    sendProblem(problemOf(error, BODY_BYTES_MAX), request, reply, options),
  )
  http.setNotFoundHandler((request, reply) =>
    sendProblem(
      new Problem('not-found', new AppError('not_found', 'Here are /plans, /invoices and /invoices/{id}.')),
      request,
      reply,
      options,
    ),
  )
  http.get('/plans', async (_request, reply) => {
    count(options, 'plans', 'ok')
    return await reply.send({ plans: options.plans.all().map(shownPlan) })
  })
  http.post('/invoices', async (request, reply) => {
    const caller = await authenticated(request, options)
    const { invoice, isNew } = await openInvoice(caller, request.body, options)
    count(options, 'open', isNew ? 'opened' : 'repeated')
    const shown = await shownInvoice(invoice, options)
    return await reply
      .code(isNew ? 201 : 200)
      .header('location', shown.url)
      .send(shown)
  })
  http.get<{ Params: { id: string } }>('/invoices/:id', async (request, reply) => {
    const { clientId } = await authenticated(request, options)
    const invoice = options.book.ledger.invoice(request.params.id)
    if (invoice?.clientId !== clientId) {
      throw new Problem('not-found', new AppError('not_found', 'You have no invoice with this id.'))
    }
    count(options, 'read', 'ok')
    return await reply.send(await shownInvoice(invoice, options))
  })
  return http
}

/** What the token of whoever asks is worth; see callerCheck. */
function authenticated({ method, url, raw }: FastifyRequest, { authenticate }: HttpOptions): Promise<TokenInfo> {
  return authenticate({ method, target: url, rawHeaders: raw.rawHeaders })
}

async function sendProblem(
  problem: Problem,
  request: FastifyRequest,
  reply: FastifyReply,
  options: HttpOptions,
): Promise<FastifyReply> {
  const { http: status } = problem.meaning
  count(options, request.method === 'POST' ? 'open' : 'read', problem.type)
  if (status >= 500) options.log.warn({ err: problem.cause }, 'request not served')
  const { challenge, retryAfterSeconds } = problem.extras
  if (challenge !== undefined) reply.header('www-authenticate', challenge)
  if (retryAfterSeconds !== undefined) reply.header('retry-after', String(retryAfterSeconds))
  return await reply
    .code(status)
    .type('application/problem+json')
    .send({ type: PROBLEMS + problem.type, title: problem.type.replaceAll('-', ' '), status, detail: problem.message })
}

function count({ metrics }: HttpOptions, request: string, result: string): void {
  metrics.invoiceRequests.inc({ request, result })
}
