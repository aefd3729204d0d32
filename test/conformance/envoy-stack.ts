import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { createServer, request as httpRequest, type IncomingMessage } from 'node:http'
import { request as httpsRequest, type RequestOptions } from 'node:https'
import type { AddressInfo } from 'node:net'
import { resolve } from 'node:path'
import type { Duplex } from 'node:stream'
import { type Neighbours, startNeighbours } from '@tollward/decision/testing'
import { type Envoy, freePort, type Service, startEnvoy, startService } from '@tollward/testkit'

const SHIPPED = resolve(import.meta.dirname, '../../deploy/envoy')

/** What a configuration that Tollward ships names, and what stands there in a test. */
export type Places = Readonly<Record<string, string>>

/** An Envoy with a shipped configuration, and the port of its listener. */
export interface ShippedEnvoy extends AsyncDisposable {
  readonly envoy: Envoy
  readonly port: number
}

/**
 * Starts a real Envoy with deploy/envoy/<file>. `places` changes where things are, or, for a test of what a setting does, that
 * setting; each must be there.
 */
export async function startShippedEnvoy(file: string, places: Places): Promise<ShippedEnvoy> {
  const envoy = await startEnvoy(withPlaces(await readFile(resolve(SHIPPED, file), 'utf8'), places))
  return { envoy, port: await envoy.port('api'), [Symbol.asyncDispose]: () => envoy[Symbol.asyncDispose]() }
}

/** Puts what `places` says in the place of what it names. Throws if something isn't there: then the test would change nothing. */
function withPlaces(config: string, places: Places): string {
  return Object.entries(places).reduce((text, [place, with_]) => {
    if (!text.includes(place)) throw new RangeError(`the configuration does not have ${place}`)
    return text.replaceAll(place, () => with_)
  }, config)
}

/** The places of a plain configuration: all on free ports of 127.0.0.1. */
export function plainPlaces(apiPort: number, authorizerPort: number): Places {
  return {
    'port_value: 10000': 'port_value: 0',
    'port_value: 8081': `port_value: ${apiPort}`,
    'port_value: 9191': `port_value: ${authorizerPort}`,
  }
}

/** The authorizer as a process, with real neighbours on a real bus, and an API that tells what arrives at it. */
export interface AuthorizerStack extends AsyncDisposable {
  readonly neighbours: Neighbours
  readonly authorizer: Service
  readonly authorizerPort: number
  readonly api: TellingApi
}

/** Starts them with these documents in force. */
export async function startAuthorizerStack(documents: string, env: NodeJS.ProcessEnv = {}): Promise<AuthorizerStack> {
  await using resources = new AsyncDisposableStack()
  const neighbours = resources.use(await startNeighbours())
  await neighbours.apply(documents)
  const api = resources.use(await startTellingApi())
  const authorizerPort = await freePort()
  const authorizer = resources.use(
    await startService('authorizer', {
      TOLLWARD_NATS_URL: neighbours.nats.url,
      TOLLWARD_PAYMENT_URL: 'http://pay.example',
      TOLLWARD_HEALTH_PORT: String(await freePort()),
      TOLLWARD_GRPC_PORT: String(authorizerPort),
      TOLLWARD_HTTP_PORT: String(await freePort()),
      ...env,
    }),
  )
  const owned = resources.move()
  return { neighbours, authorizer, authorizerPort, api, [Symbol.asyncDispose]: () => owned.disposeAsync() }
}

/** What of a request got to the API. */
export interface Arrived {
  readonly method: string
  readonly url: string
  /** Name and value, in the order of the wire, repeated fields apart. */
  readonly fields: readonly (readonly [name: string, value: string])[]
  readonly bodyBytes: number
}

/** An API that answers every request with what arrived, and takes every upgrade and then sends back each byte. */
export interface TellingApi extends AsyncDisposable {
  readonly port: number
  /** How many requests and upgrades have arrived. */
  readonly count: () => number
}

async function startTellingApi(): Promise<TellingApi> {
  let count = 0
  const server = createServer(async (request, response) => {
    count += 1
    let bodyBytes = 0
    for await (const chunk of request) bodyBytes += chunk.length
    response.setHeader('content-type', 'application/json')
    response.setHeader('x-answer', 'the API')
    response.end(JSON.stringify({ ...arrivedHead(request), bodyBytes }))
  })
  const upgraded = new Set<Duplex>()
  server.on('upgrade', (_request: IncomingMessage, socket: Duplex) => {
    count += 1
    upgraded.add(socket.on('close', () => upgraded.delete(socket)).on('error', () => socket.destroy()))
    socket.write('HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n')
    socket.pipe(socket)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    port: (server.address() as AddressInfo).port,
    count: () => count,
    [Symbol.asyncDispose]: async () => {
      const closed = once(server, 'close')
      server.close()
      server.closeAllConnections()
      for (const socket of upgraded) socket.destroy()
      await closed
    },
  }
}

function arrivedHead({ method = '', url = '', rawHeaders }: IncomingMessage): Omit<Arrived, 'bodyBytes'> {
  const fields = rawHeaders.flatMap((name, index) =>
    index % 2 === 0 ? [[name.toLowerCase(), rawHeaders[index + 1] ?? ''] as const] : [],
  )
  return { method, url, fields }
}

/** A request to make through Envoy. */
export interface Ask {
  readonly port: number
  readonly path?: string
  readonly method?: string
  readonly token?: string
  /** Over whatever the client's other headers say. Names are sent as they are spelt, lists as repeated fields. */
  readonly headers?: Readonly<Record<string, string | string[]>>
  readonly body?: string | Uint8Array
  /** The source address, of 127.0.0.0/8. */
  readonly from?: string
  /** TLS instead of plain text. */
  readonly tls?: Pick<RequestOptions, 'ca' | 'cert' | 'key'>
}

/** What came back. */
export interface Answered {
  readonly status: number
  readonly headers: IncomingMessage['headers']
  readonly body: string
}

/** Makes one request over HTTP/1.1, on a connection of its own. */
export async function ask({
  port,
  path = '/',
  method = 'GET',
  token,
  headers,
  body,
  from,
  tls,
}: Ask): Promise<Answered> {
  const options = {
    host: '127.0.0.1',
    port,
    path,
    method,
    agent: false,
    ...(from !== undefined && { localAddress: from }),
    headers: { host: 'api.example', ...(token !== undefined && { authorization: `Bearer ${token}` }), ...headers },
  } as const
  const sent = tls === undefined ? httpRequest(options) : httpsRequest({ ...options, ...tls, servername: '' })
  sent.end(body)
  const [response] = (await once(sent, 'response')) as [IncomingMessage]
  let text = ''
  for await (const chunk of response) text += chunk
  return { status: response.statusCode ?? 0, headers: response.headers, body: text }
}

/** What arrived at the API, of an answer that came from there. */
export function arrivedAt({ status, body }: Answered): Arrived {
  if (status !== 200) throw new Error(`the API was not reached: ${status} ${body}`)
  return JSON.parse(body)
}

/** All values of a field that arrived. */
export function valuesOf({ fields }: Arrived, name: string): string[] {
  return fields.flatMap(([own, value]) => (own === name ? [value] : []))
}

/** The reason code of a refusal. */
export function reasonOf({ headers, body }: Answered): string | undefined {
  if (headers['content-type'] !== 'application/problem+json') return undefined
  return String(JSON.parse(body).type).split('/').at(-1)
}
