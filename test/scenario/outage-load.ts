import { randomBytes } from 'node:crypto'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { credentials } from '@grpc/grpc-js'
import { Authorization } from '@tollward/contracts/envoy'
import { grpcClient } from '@tollward/contracts/grpc'
import type { Neighbours } from '@tollward/decision/testing'
import { freePort, type Service, startService } from '@tollward/testkit'
import { send } from './http.ts'
import { REQUESTS, type RequestKind } from './outage-table.ts'

/** Of this machine, and never guarded. */
export const BLOCKED = '127.0.0.88'
const ELSEWHERE = '127.0.0.89'
/** Long enough that nobody asks anew for what is known. */
const KNOWN_FOR_MS = 3_600_000
/** Clients without a pass: so many that each is told a price anew, which is kept for 2 s. */
const UNPAID_CLIENTS = 600
const LEARNT_AT_ONCE = 50
const PAUSE_MS = 40
/** Requests of a kind that may take as long as a deadline. */
const SIDE_BY_SIDE = 3
const ANSWER_TIMEOUT_MS = 8000

export const POLICY = `
apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: outages }
spec:
  hosts: ["*"]
  rules:
    - { name: public, match: { path: /public }, anonymous: true }
    - { name: echo, match: { path: /echo }, require: { token: { scopes: [orders] } } }
    - { name: orders, match: { path: /orders }, require: { token: { scopes: [orders] }, payment: { plan: orders } } }
`

export type Point = 'authorizer' | 'gateway'

/** One request and what came of it. */
export interface Seen {
  readonly point: Point
  readonly kind: RequestKind
  readonly beganMs: number
  readonly tookMs: number
  /** passes; the reason of a refusal as its problem's type has it; or what kept the client without an answer. */
  readonly answer: string
  readonly retryAfter: string | undefined
  readonly price: boolean
}

interface Ask {
  readonly path: string
  readonly token?: string
  readonly txid?: string
  readonly from?: string
}

type Outcome = Pick<Seen, 'answer' | 'retryAfter' | 'price'>

/** Authorizer and gateway under load of every kind. */
export interface OutageLoad extends AsyncDisposable {
  readonly services: readonly Service[]
  /** Everything that was seen, oldest first. */
  readonly seen: readonly Seen[]
  /** Gives the client with little quota a new pass: the next requests of the kind `pinched` are of another client. */
  pinch(): Promise<void>
}

/** Starts authorizer and gateway, which reach NATS by the given port, and the load on them. */
export async function startOutageLoad(neighbours: Neighbours, natsPort: number): Promise<OutageLoad> {
  await using stack = new AsyncDisposableStack()
  const api = createServer((_request, response) => response.end('served'))
  await new Promise<void>((resolve) => api.listen(0, '127.0.0.1', resolve))
  stack.defer(() => void api.close())
  const env = async () => ({
    TOLLWARD_NATS_URL: `nats://127.0.0.1:${natsPort}`,
    TOLLWARD_HEALTH_PORT: String(await freePort()),
    TOLLWARD_HTTP_PORT: String(await freePort()),
    TOLLWARD_PAYMENT_URL: 'http://pay.example',
  })
  const grpcPort = await freePort()
  const authorizer = stack.use(
    await startService('authorizer', { ...(await env()), TOLLWARD_GRPC_PORT: `${grpcPort}` }),
  )
  const ofGateway = await env()
  const upstream = `http://127.0.0.1:${(api.address() as AddressInfo).port}`
  const gateway = stack.use(await startService('gateway', { ...ofGateway, TOLLWARD_UPSTREAM_URL: upstream }))
  const check = stack.use(grpcClient(Authorization, `127.0.0.1:${grpcPort}`, credentials.createInsecure()))
  const points: Record<Point, (asked: Ask) => Promise<Outcome>> = {
    authorizer: (asked) => askAuthorizer(check, asked),
    gateway: (asked) => askGateway(`http://127.0.0.1:${ofGateway.TOLLWARD_HTTP_PORT}`, asked),
  }

  const issue = (client: string, scopes = ['orders']) =>
    neighbours.issue(client, scopes, {
      internalToken: `internal.${client}.jwt`,
      internalTokenExpiresAt: { seconds: BigInt(Math.ceil((Date.now() + KNOWN_FOR_MS) / 1000)), nanos: 0 },
      expiresAt: { seconds: BigInt(Math.ceil((Date.now() + KNOWN_FOR_MS) / 1000)), nanos: 0 },
    })
  const tokens = {
    known: issue('known'),
    unscoped: issue('unscoped', []),
    banned: issue('banned'),
    paid: issue('paid'),
  }
  const unpaid = Array.from({ length: UNPAID_CLIENTS }, (_, index) => issue(`unpaid-${index}`))
  let pinched = ''
  let pinches = 0
  const learn = (token: string) => Promise.all(Object.values(points).map((ask) => ask({ path: '/echo', token })))
  const pinch = async () => {
    const client = `pinched-${++pinches}`
    const token = issue(client)
    await neighbours.activatePass(client, 'orders', 500)
    await learn(token)
    pinched = token
  }
  await neighbours.activatePass('paid', 'orders', 1_000_000)
  await pinch()
  for (const token of Object.values(tokens)) await learn(token)
  for (let first = 0; first < UNPAID_CLIENTS; first += LEARNT_AT_ONCE)
    await Promise.all(unpaid.slice(first, first + LEARNT_AT_ONCE).map(learn))
  let turn = 0
  const nextOf = () => {
    let index = 0
    return () => unpaid[index++ % UNPAID_CLIENTS] ?? ''
  }
  const [unpaidNext, presentedNext] = [nextOf(), nextOf()]
  const asks: Record<RequestKind, () => Ask> = {
    anonymous: () => ({ path: '/public' }),
    known: () => ({ path: '/echo', token: tokens.known }),
    fresh: () => ({ path: '/echo', token: issue(`fresh-${turn++}`) }),
    worthless: () => ({ path: '/echo', token: randomBytes(32).toString('base64url') }),
    unscoped: () => ({ path: '/echo', token: tokens.unscoped }),
    blocked: () => ({ path: '/public', from: BLOCKED }),
    banned: () => ({ path: '/echo', token: tokens.banned }),
    paid: () => ({ path: '/orders', token: tokens.paid }),
    pinched: () => ({ path: '/orders', token: pinched }),
    unpaid: () => ({ path: '/orders', token: unpaidNext() }),
    presented: () => ({ path: '/orders', token: presentedNext(), txid: randomBytes(32).toString('hex') }),
  }

  const seen: Seen[] = []
  const ended = new AbortController()
  const keepAsking = async (point: Point, kind: RequestKind) => {
    while (!ended.signal.aborted) {
      const beganMs = performance.now()
      const outcome = await points[point](asks[kind]()).catch((error: Error) => noAnswer(error))
      seen.push({ point, kind, beganMs, tookMs: performance.now() - beganMs, ...outcome })
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS))
    }
  }
  const kinds = Object.keys(REQUESTS) as RequestKind[]
  const loops = (Object.keys(points) as Point[]).flatMap((point) =>
    kinds.flatMap((kind) => Array.from({ length: SLOW.has(kind) ? SIDE_BY_SIDE : 1 }, () => keepAsking(point, kind))),
  )
  stack.defer(async () => {
    ended.abort()
    await Promise.all(loops)
  })
  const owned = stack.move()
  return { services: [authorizer, gateway], seen, pinch, [Symbol.asyncDispose]: () => owned.disposeAsync() }
}

/** Kinds for which somebody may have to be asked. */
const SLOW: ReadonlySet<RequestKind> = new Set(['fresh', 'worthless', 'unpaid', 'presented'])

async function askGateway(url: string, { path, token, txid, from = ELSEWHERE }: Ask): Promise<Outcome> {
  const headers = {
    ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
    ...(txid === undefined ? {} : { 'x-bitcoin-txid': txid }),
  }
  const { status, headers: got, body } = await send(`${url}${path}`, { headers, from, timeoutMs: ANSWER_TIMEOUT_MS })
  return outcomeOf(status, got['retry-after'], body)
}

async function askAuthorizer(
  check: ReturnType<typeof grpcClient<typeof Authorization>>,
  { path, token, txid, from = ELSEWHERE }: Ask,
): Promise<Outcome> {
  const fields = {
    ...{ ':authority': 'api.example', ':path': path, ':method': 'GET', ':scheme': 'http' },
    ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
    ...(txid === undefined ? {} : { 'x-bitcoin-txid': txid }),
  }
  const headers = Object.entries(fields).map(([key, value]) => ({ key, rawValue: Buffer.from(value) }))
  const http = { method: 'GET', path, host: 'api.example', scheme: 'http', protocol: 'HTTP/1.1', size: -1n }
  const socketAddress = { address: from, portSpecifier: { case: 'portValue' as const, value: 43_210 } }
  const source = { address: { address: { case: 'socketAddress' as const, value: socketAddress } } }
  const question = { attributes: { source, request: { http: { ...http, headerMap: { headers } } } } }
  const { status, httpResponse } = await check.check(question, { timeoutMs: ANSWER_TIMEOUT_MS })
  if (status?.code === 0) return outcomeOf(200, undefined, '')
  if (httpResponse.case !== 'deniedResponse') return { answer: 'no HTTP answer', retryAfter: undefined, price: false }
  const denied = httpResponse.value
  const retryAfter = denied.headers.find(({ header }) => header?.key === 'retry-after')?.header
  const text = retryAfter?.value || Buffer.from(retryAfter?.rawValue ?? []).toString()
  return outcomeOf(denied.status?.code ?? 0, text === '' ? undefined : text, denied.body)
}

function outcomeOf(status: number, retryAfter: string | undefined, body: string): Outcome {
  if (status === 200) return { answer: 'passes', retryAfter, price: false }
  const { type = '', status: told = 0, priceSats } = JSON.parse(body) as ProblemBody
  if (told !== status) return { answer: `${status} that says ${told}`, retryAfter, price: false }
  return { answer: type.split(/[:/]/).at(-1) ?? '', retryAfter, price: priceSats !== undefined }
}

interface ProblemBody {
  readonly type?: string
  readonly status?: number
  readonly priceSats?: string
}

function noAnswer(error: Error): Outcome {
  return { answer: `no answer: ${error.message}`, retryAfter: undefined, price: false }
}
