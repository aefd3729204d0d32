import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync } from 'node:fs'
import { createServer, type IncomingMessage, type RequestListener, type Server } from 'node:http'
import { type ClientHttp2Session, type ClientHttp2Stream, connect, type OutgoingHttpHeaders } from 'node:http2'
import type { AddressInfo } from 'node:net'
import type { SecureContextOptions } from 'node:tls'
import { type Neighbours, startNeighbours } from '@tollward/decision/testing'
import { freePort, type Service, startService, temporaryDirectory } from '@tollward/testkit'

/** Documents for tests: everybody may do anything at open.example; tokens are needed at closed.example. */
export const DOCUMENTS = `
apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: open }
spec:
  hosts: [open.example]
  rules:
    - { name: all, match: { prefix: / }, anonymous: true }
---
apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: closed }
spec:
  hosts: [closed.example]
  rules:
    - { name: all, match: { prefix: / }, require: { token: { scopes: [orders] } } }
`

/** A gateway with its neighbours, in front of an API that a test plays. */
export interface TestGateway {
  readonly neighbours: Neighbours
  readonly service: Service
  readonly env: NodeJS.ProcessEnv
  readonly directory: string
  readonly httpPort: number
  readonly httpsPort: number
  /** The API's own server. */
  readonly api: Server
  /** A gateway beside it, in front of the same API. */
  another(env?: NodeJS.ProcessEnv): Promise<{ service: Service; httpPort: number; httpsPort: number }>
  /** Reads one metric, all labels together or those that match. */
  metric(name: string, labels?: string): Promise<number>
}

/** Starts it. */
export async function startTestGateway(
  resources: AsyncDisposableStack,
  onRequest: RequestListener,
  { env: more = {}, documents = DOCUMENTS }: { env?: NodeJS.ProcessEnv; documents?: string } = {},
): Promise<TestGateway> {
  const neighbours = resources.use(await startNeighbours())
  await neighbours.apply(documents)
  const api = createServer(onRequest)
  const apiPort = await listening(api, resources)
  const directory = resources.use(await temporaryDirectory()).path
  const { keyFile, certFile } = makeCertificate(directory, 'localhost')
  const common = {
    TOLLWARD_NATS_URL: neighbours.nats.url,
    TOLLWARD_TLS_CERT_FILE: certFile,
    TOLLWARD_TLS_KEY_FILE: keyFile,
    TOLLWARD_UPSTREAM_URL: `http://127.0.0.1:${apiPort}`,
    ...more,
  }
  const another = async (changed: NodeJS.ProcessEnv = {}) => {
    const [httpPort, httpsPort, healthPort] = [await freePort(), await freePort(), await freePort()]
    const ports = {
      TOLLWARD_HEALTH_PORT: String(healthPort),
      TOLLWARD_HTTP_PORT: String(httpPort),
      TOLLWARD_HTTPS_PORT: String(httpsPort),
    }
    const env = { ...common, ...ports, ...changed }
    return { service: resources.use(await startService('gateway', env)), env, httpPort, httpsPort }
  }
  const { service, env, httpPort, httpsPort } = await another()
  const metric = async (name: string, labels = '') => {
    const text = await (await fetch(`${service.healthUrl}/metrics`)).text()
    const lines = text.split('\n').filter((line) => line.startsWith(name) && line.includes(labels))
    return lines.reduce((sum, line) => sum + Number(line.split(' ').at(-1)), 0)
  }
  return { neighbours, service, env, directory, httpPort, httpsPort, api, another, metric }
}

/** Lets a server listen on a free port until the end of the test. */
async function listening(server: Server, resources: AsyncDisposableStack): Promise<number> {
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  resources.defer(() => {
    server.closeAllConnections()
    server.close()
  })
  return (server.address() as AddressInfo).port
}

/** Makes a certificate that vouches for itself, or that `issuer` vouches for. */
export function makeCertificate(
  directory: string,
  name: string,
  { issuer, extensions = [] }: { issuer?: string; extensions?: readonly string[] } = {},
): { keyFile: string; certFile: string } {
  const [keyFile, certFile] = [`${directory}/${name}.key.pem`, `${directory}/${name}.cert.pem`]
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', keyFile]
  const subject = ['-subj', `/CN=${name}`, '-days', '1', '-out', certFile]
  const by =
    issuer === undefined ? [] : ['-CA', `${directory}/${issuer}.cert.pem`, '-CAkey', `${directory}/${issuer}.key.pem`]
  const added = extensions.flatMap((extension) => ['-addext', extension])
  execFileSync('openssl', ['req', '-x509', ...key, ...subject, ...by, ...added], { stdio: 'pipe' })
  chmodSync(keyFile, 0o600)
  return { keyFile, certFile }
}

/** Connects by HTTP/2 over TLS. */
export async function connectHttp2(
  resources: AsyncDisposableStack | DisposableStack,
  port: number,
  options: SecureContextOptions = {},
): Promise<ClientHttp2Session> {
  const session = connect(`https://127.0.0.1:${port}`, { rejectUnauthorized: false, ...options })
  session.on('error', () => {})
  await once(session, 'connect')
  resources.defer(() => session.destroy())
  return session
}

interface Answer {
  readonly status: number
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
  readonly body: string
  readonly trailers: Readonly<Record<string, string | string[] | undefined>>
}

/** Asks over HTTP/2 and reads the whole answer; rejects if it breaks off. */
export async function askHttp2(
  session: ClientHttp2Session,
  headers: OutgoingHttpHeaders | readonly string[],
  body?: string | Buffer,
): Promise<Answer> {
  const stream: ClientHttp2Stream = session.request(headers, { endStream: body === undefined })
  let trailers = {}
  stream.on('trailers', (received) => {
    trailers = received
  })
  if (body !== undefined) stream.end(body)
  const [received] = await once(stream, 'response')
  let text = ''
  for await (const chunk of stream) text += chunk
  if (stream.rstCode !== 0) throw new Error(`reset with ${stream.rstCode}`)
  return { status: Number(received[':status']), headers: received, body: text, trailers }
}

/** Reads a body as text. */
export async function textOf(message: IncomingMessage): Promise<string> {
  let text = ''
  for await (const chunk of message) text += chunk
  return text
}
