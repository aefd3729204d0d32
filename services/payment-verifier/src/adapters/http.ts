import { randomUUID } from 'node:crypto'
import type { AccountKey } from '@tollward/bitcoin'
import { formatPaymentUri } from '@tollward/bitcoin'
import type { TokenInfo } from '@tollward/contracts/token'
import { durationMs, type Plan } from '@tollward/documents'
import { AppError } from '@tollward/errors'
import Fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from 'fastify'
import type { Logger } from 'pino'
import { z } from 'zod'
import { type Invoice, standingOf } from '../domain/invoice.ts'
import { invoiceOfOrder, mustWait, type OrderLimits, openedFact, type Waiting } from '../domain/opening.ts'
import type { Metrics } from '../metrics.ts'
import type { callerCheck } from './caller.ts'
import { assertFollowed, type Chain } from './chain.ts'
import type { LedgerBook } from './ledger.ts'
import type { Passes } from './passes.ts'
import type { Plans } from './plans.ts'
import { Problem, problemOf } from './problem.ts'

/** An order is two short strings. */
const BODY_BYTES_MAX = 4096
/** Slow senders are not waited for. */
const REQUEST_TIMEOUT_MS = 10_000
const PROBLEMS = 'https://tollward.dev/problems/'

const OrderBody = z.strictObject({
  plan: z.string().min(1).max(63),
  idempotencyKey: z
    .string()
    .regex(/^[A-Za-z0-9_-]{1,128}$/)
    .optional(),
})

export interface HttpOptions {
  readonly book: LedgerBook
  readonly chain: Chain
  readonly passes: Passes
  readonly plans: Plans
  readonly account: AccountKey
  readonly authenticate: ReturnType<typeof callerCheck>
  readonly metrics: Metrics
  readonly log: Logger
  readonly publicUrl: string
  readonly limits: OrderLimits
  /** Of a client that registered itself: of those anybody can have many. */
  readonly selfRegisteredLimits: OrderLimits
  readonly nodeSilentMaxMs: number
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

async function openInvoice(
  { clientId, selfRegistered }: TokenInfo,
  body: unknown,
  options: HttpOptions,
): Promise<{ invoice: Invoice; isNew: boolean }> {
  const { book, chain, plans, account, limits, selfRegisteredLimits, nodeSilentMaxMs } = options
  const asked = OrderBody.safeParse(body)
  if (!asked.success) {
    const message = 'Send JSON with plan, and if you like idempotencyKey of 1 to 128 letters, digits, - and _.'
    throw new Problem('malformed-request', new AppError('invalid_argument', message))
  }
  const plan = plans.get(asked.data.plan)
  if (plan === undefined) {
    throw new Problem('no-such-plan', new AppError('not_found', 'There is no such plan: GET /plans lists them.'))
  }
  const invoiceId = randomUUID()
  const order = { invoiceId, clientId, plan, idempotencyKey: asked.data.idempotencyKey ?? '' }
  await book.write((ledger, nowMs) => {
    if (invoiceOfOrder(order, ledger) !== undefined) return undefined
    const waiting = mustWait(clientId, ledger, selfRegistered ? selfRegisteredLimits : limits, nowMs)
    if (waiting !== undefined) throw tooMany(waiting)
    // Closed: without the chain nobody could see the payment, and addresses might be given twice.
    assertFollowed(chain, nodeSilentMaxMs)
    const { tip } = chain.follower
    if (tip === undefined || chain.addressFloor === undefined)
      throw new AppError('unavailable', 'Try again in a moment.')
    const address = account.address(Math.max(ledger.nextAddressIndex, chain.addressFloor))
    return openedFact(order, address, tip, nowMs)
  })
  const invoice = invoiceOfOrder(order, book.ledger)
  if (invoice === undefined) throw new AppError('internal', 'The invoice was written and is not there.')
  return { invoice, isNew: invoice.id === invoiceId }
}

function tooMany({ reason, retryAfterSeconds }: Waiting): Problem {
  const message =
    reason === 'invoice-rate'
      ? 'You open invoices too fast: wait as long as Retry-After says.'
      : 'You have too many unpaid invoices: pay one, or wait until one expires.'
  return new Problem(reason, new AppError('resource_exhausted', message), { retryAfterSeconds })
}

function shownPlan({ metadata, spec }: Plan) {
  return {
    name: metadata.name,
    ...(metadata.description === undefined ? {} : { description: metadata.description }),
    priceSats: String(spec.priceSats),
    ...(spec.requests === undefined ? {} : { requests: spec.requests }),
    ...(spec.duration === undefined ? {} : { durationSeconds: seconds(spec.duration) }),
    confirmations: spec.confirmations,
    payWithinSeconds: seconds(spec.payWithin),
    confirmWithinSeconds: seconds(spec.confirmWithin),
  }
}

function seconds(duration: string): number {
  return Math.ceil(durationMs(duration) / 1000)
}

async function shownInvoice(invoice: Invoice, { chain, passes, publicUrl }: HttpOptions) {
  const { amountSats, address, plan, quotaRequests, redeemed } = invoice
  const view = await chain.view([invoice])
  const standing = standingOf(invoice, view, redeemed === undefined ? 'usable' : passes.use(redeemed.passId))
  const excessSats = standing.receivedSats - amountSats
  return {
    id: invoice.id,
    url: `${publicUrl}/invoices/${invoice.id}`,
    plan,
    state: standing.state,
    address,
    amountSats: String(amountSats),
    uri: formatPaymentUri({ address, amountSats, label: plan }),
    receivedSats: String(standing.receivedSats),
    pendingSats: String(standing.pendingSats),
    excessSats: String(excessSats > 0n ? excessSats : 0n),
    confirmations: Math.min(standing.confirmations, invoice.confirmationsNeeded),
    confirmationsNeeded: invoice.confirmationsNeeded,
    openedAt: new Date(invoice.openedAtMs).toISOString(),
    payBy: new Date(invoice.payByMs).toISOString(),
    confirmBy: new Date(invoice.confirmByMs).toISOString(),
    ...(quotaRequests === 0n ? {} : { requests: Number(quotaRequests) }),
    ...(invoice.durationMs === 0 ? {} : { durationSeconds: invoice.durationMs / 1000 }),
    ...(redeemed === undefined ? {} : { passId: redeemed.passId }),
    payments: [...invoice.payments.values()].map(({ txid, vout, amountSats: paidSats, block }) => ({
      txid,
      vout,
      amountSats: String(paidSats),
      ...(block === undefined ? {} : { blockHeight: block.height }),
    })),
  }
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
