import { hash } from 'node:crypto'
import { once } from 'node:events'
import { writeFile } from 'node:fs/promises'
import { createServer, request as httpRequest, type IncomingMessage } from 'node:http'
import { type AddressInfo, connect } from 'node:net'
import { join } from 'node:path'
import { type Neighbours, startNeighbours } from '@tollward/decision/testing'
import { createApi } from '@tollward/example-api'
import {
  eventually,
  freePort,
  type RunningProcess,
  type Service,
  startProcess,
  startService,
  temporaryDirectory,
} from '@tollward/testkit'
import type { Authority } from '../scenario/certificates.ts'

/** What guards the API in these tests: the example's rules, and one for each way in which a body or an answer goes through. */
const DOCUMENTS = `
apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: example }
spec:
  hosts: ["*"]
  rules:
    - { name: public, match: { methods: [GET, HEAD], path: /public }, anonymous: true }
    - name: orders
      match: { methods: [GET, POST], path: /orders }
      require: { token: { scopes: [orders] }, payment: { plan: orders } }
    - { name: echo, match: { methods: [GET], path: /echo }, require: { token: { scopes: [orders] } } }
    - name: limited
      match: { methods: [GET], path: /limited }
      require: { token: { scopes: [orders] } }
      limit: { requests: 1, perSeconds: 3600, by: client }
    - { name: internal, match: { prefix: /internal }, deny: { reason: Internal paths are not served here. } }
    - { name: uploads, match: { methods: [POST], path: /uploads }, anonymous: true }
    - { name: stream, match: { methods: [GET], path: /stream }, anonymous: true }
    - { name: socket, match: { methods: [GET], path: /socket }, require: { token: { scopes: [orders] } } }
    - { name: error, match: { methods: [GET], prefix: /status }, anonymous: true }
    - { name: moved, match: { methods: [GET], path: /moved }, anonymous: true, rewrite: { path: /echo } }
    - { name: query, match: { methods: [GET], path: /query }, anonymous: true, rewrite: { path: /echo, query: { set: { from: rule }, remove: [secret] } } }
    - name: headers
      match: { methods: [GET], path: /headers }
      anonymous: true
      rewrite: { path: /echo, headers: { set: { x-tenant: gold }, remove: [x-debug] }, responseHeaders: { set: { x-plan: gold } } }
    - { name: told, match: { methods: [GET], path: /told }, anonymous: true, rewrite: { path: /stream, responseHeaders: { set: { x-plan: gold } } } }
---
apiVersion: tollward.dev/v1
kind: Plan
metadata: { name: orders }
spec: { priceSats: 10000, requests: 1000, duration: 24h, confirmations: 1, payWithin: 15m, confirmWithin: 2h }
`

export interface Ask {
  path?: string
  method?: string
  token?: string
  from?: string
  headers?: Record<string, string | string[]>
  body?: string | Buffer
}

export interface Answer {
  status: number
  headers: IncomingMessage['headers']
  body: string
}

/** Where the proxy finds the others, and where it is to listen. */
export interface Places {
  readonly proxyPort: number
  readonly apiPort: number
  readonly authorizerPort: number
  /** Where it is to speak TLS and ask clients for certificates: PEM files of its own, of both in one, and of who vouches for clients. */
  readonly tls?: { readonly cert: string; readonly key: string; readonly both: string; readonly authority: string }
}

/** A proxy with Tollward's own configuration of it. */
export interface ProxyUnderTest {
  /** Starts it, with nothing but the addresses of that configuration replaced. */
  readonly start: (places: Places, resources: AsyncDisposableStack) => Promise<RunningProcess>
  /** The same, with what its README says for a load balancer in front, at 127.0.0.1. */
  readonly startBehindBalancer?: ProxyUnderTest['start']
  /** What of a rule's rewriting it does beside the path. */
  readonly applies: readonly ('query' | 'headers')[]
  /** Headers that it sets by itself, of the request or of itself. */
  readonly sets?: readonly string[]
  /** How it spells what stands in a query as ";". */
  readonly semicolon?: string
}

export interface Stack {
  readonly neighbours: Neighbours
  readonly authorizer: Service
  readonly proxyPort: number
  readonly gatewayPort: number
  readonly authorizerPort: number
  readonly apiPort: number
  /** Requests that reached the API, as "METHOD url". */
  readonly arrived: string[]
  readonly resources: AsyncDisposableStack
}

export const ANSWER_TIMEOUT_MS = 5000
const UPLOAD_BYTES_MAX = 10 * 1024 * 1024
/** RFC 6455, 1.3. */
const WEBSOCKET_GUID = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11'
const SOCKET_ANSWER = ['HTTP/1.1 101 Switching Protocols', 'Upgrade: websocket', 'Connection: Upgrade']

/** The example API with what it lacks to show how bodies go through a proxy. */
async function startApi(
  arrived: string[],
  resources: AsyncDisposableStack,
): Promise<{ port: number; hangUp: () => void }> {
  const api = createApi()
  api.addHook('onRequest', async ({ method, url }) => void arrived.push(`${method} ${url}`))
  api.addContentTypeParser('application/octet-stream', { parseAs: 'buffer' }, (_request, body, done) =>
    done(null, body),
  )
  api.post<{ Body: Buffer }>('/uploads', { bodyLimit: UPLOAD_BYTES_MAX }, ({ body }) => ({ bytes: body.length }))
  api.get<{ Params: { code: string } }>('/status/:code', ({ params }, reply) =>
    reply.code(Number(params.code)).header('x-of-the-api', 'yes').send({ code: params.code }),
  )
  const open: { destroy: () => unknown }[] = []
  // The rest of this answer never comes.
  api.get('/stream', (_request, reply) => {
    reply.hijack()
    open.push(reply.raw)
    reply.raw.writeHead(200, { 'content-type': 'text/event-stream', 'x-plan': 'free' }).write('data: first\n\n')
  })
  api.server.on('upgrade', (request, socket) => {
    arrived.push(`${request.method} ${request.url}`)
    const client = request.headers['x-tollward-client'] ?? ''
    const accept = hash('sha1', `${request.headers['sec-websocket-key']}${WEBSOCKET_GUID}`, 'base64')
    socket.write([...SOCKET_ANSWER, `Sec-WebSocket-Accept: ${accept}`, `X-Seen-Client: ${client}`, '', ''].join('\r\n'))
    socket.on('data', (bytes: Buffer) => socket.write(bytes))
    socket.on('error', () => socket.destroy())
    open.push(socket)
  })
  resources.defer(() => api.close())
  const hangUp = () => {
    for (const each of open) each.destroy()
  }
  return { port: Number(new URL(await api.listen({ host: '127.0.0.1', port: 0 })).port), hangUp }
}

export async function startStack({ start }: ProxyUnderTest): Promise<Stack> {
  await using resources = new AsyncDisposableStack()
  const neighbours = resources.use(await startNeighbours())
  await neighbours.apply(DOCUMENTS)
  const arrived: string[] = []
  const { port: apiPort, hangUp } = await startApi(arrived, resources)
  const [authorizerPort, gatewayPort, proxyPort] = [await freePort(), await freePort(), await freePort()]
  const shared = { TOLLWARD_NATS_URL: neighbours.nats.url, TOLLWARD_PAYMENT_URL: 'http://pay.example' }
  const authorizer = resources.use(
    await startService('authorizer', {
      ...shared,
      TOLLWARD_HEALTH_PORT: String(await freePort()),
      TOLLWARD_GRPC_PORT: String(await freePort()),
      TOLLWARD_HTTP_PORT: String(authorizerPort),
      TOLLWARD_FORWARD_AUTH_CERTIFICATE_HEADER: 'X-Client-Certificate',
    }),
  )
  resources.use(
    await startService('gateway', {
      ...shared,
      TOLLWARD_HEALTH_PORT: String(await freePort()),
      TOLLWARD_HTTP_PORT: String(gatewayPort),
      TOLLWARD_UPSTREAM_URL: `http://127.0.0.1:${apiPort}`,
    }),
  )
  const { lines } = await start({ proxyPort, apiPort, authorizerPort }, resources)
  // First of all: a proxy waits for what goes on before it ends.
  resources.defer(hangUp)
  await eventually(async () => (await ask(proxyPort, {})).status === 200, { what: 'the proxy serves' }).catch(
    (cause) => {
      throw new Error(`the proxy does not serve:\n${lines.join('\n')}`, { cause })
    },
  )
  return {
    ...{ neighbours, authorizer, authorizerPort, proxyPort, gatewayPort, apiPort, arrived },
    resources: resources.move(),
  }
}

/** The proxy's files for TLS. */
export async function tlsFiles(
  authority: Authority,
  resources: AsyncDisposableStack,
): Promise<NonNullable<Places['tls']>> {
  const { path } = resources.use(await temporaryDirectory('tollward-tls-'))
  const { cert, key } = await authority.issue('CN=proxy', 'server', { dns: 'api.example' })
  const files = { cert, key, both: `${cert}\n${key}`, authority: authority.cert }
  const at = (name: string) => join(path, `${name}.pem`)
  await Promise.all(Object.entries(files).map(([name, pem]) => writeFile(at(name), pem)))
  return { cert: at('cert'), key: at('key'), both: at('both'), authority: at('authority') }
}

/** One request on a connection of its own. */
export async function ask(
  port: number,
  { path = '/public', method = 'GET', token, from = '127.0.0.1', headers = {}, body }: Ask,
): Promise<Answer> {
  const sent = httpRequest({
    ...{ host: '127.0.0.1', port, localAddress: from, path, method, agent: false },
    headers: { host: 'api.example', ...(token && { authorization: `Bearer ${token}` }), ...headers },
    signal: AbortSignal.timeout(ANSWER_TIMEOUT_MS),
  })
  sent.end(body)
  const [response] = (await once(sent, 'response')) as [IncomingMessage]
  let text = ''
  for await (const chunk of response) text += chunk
  return { status: response.statusCode ?? 0, headers: response.headers, body: text }
}

/** What a client sends byte by byte, on a connection that stays open, and the first answer's status line. */
export async function askRaw(port: number, text: string): Promise<{ status: number; text: string }> {
  const socket = connect(port, '127.0.0.1')
  let answer = ''
  socket.setEncoding('latin1').on('data', (chunk) => {
    answer += chunk
  })
  socket.setTimeout(ANSWER_TIMEOUT_MS, () => socket.destroy(new Error(`no answer to ${text}`)))
  socket.write(text)
  await once(socket, 'close')
  return { status: Number(/^HTTP\/1\.[01] (\d{3})/.exec(answer)?.[1] ?? 0), text: answer }
}

/** What of an answer must be the same on both ways: all but what is of the moment. */
export function comparable({ status, headers, body }: Answer) {
  const names = ['content-type', 'cache-control', 'www-authenticate', 'ratelimit-policy', 'location', 'x-of-the-api']
  const problem = headers['content-type'] === 'application/problem+json' && body ? JSON.parse(body) : undefined
  const said = problem ? { ...problem, decision: typeof problem.decision } : body.length > 0
  return {
    ...{ status, said, waits: headers['retry-after'] !== undefined, limits: headers.ratelimit !== undefined },
    headers: Object.fromEntries(names.map((name) => [name, headers[name]])),
  }
}

/** Starts a proxy's program, and gives the process. */
export async function startProxyProcess(
  tool: { readonly command: string; readonly args: readonly string[] },
  args: readonly string[],
  resources: AsyncDisposableStack,
  options: { readonly cwd?: string; readonly env?: NodeJS.ProcessEnv } = {},
): Promise<RunningProcess> {
  return resources.use(await startProcess(tool.command, [...tool.args, ...args], options))
}

/** An API that says nothing, and how many requests reached it. */
export async function startCountingApi(
  resources: AsyncDisposableStack,
): Promise<{ readonly port: number; readonly arrived: () => number }> {
  let arrived = 0
  const api = createServer((_request, response) => {
    arrived += 1
    response.end()
  }).listen(0, '127.0.0.1')
  resources.defer(() => void api.close())
  await once(api, 'listening')
  return { port: (api.address() as AddressInfo).port, arrived: () => arrived }
}
