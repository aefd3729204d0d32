import { randomBytes } from 'node:crypto'
import { readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { create } from '@bufbuild/protobuf'
import { connect } from '@nats-io/transport-node'
import { type Bus, type Client, connectBus, provision } from '@tollward/bus'
import { bucketContract } from '@tollward/contracts'
import { StoredDocumentSchema } from '@tollward/contracts/document'
import { IssuerService } from '@tollward/contracts/token'
import { documentKey } from '@tollward/documents'
import { createLog } from '@tollward/runtime'
import {
  freePort,
  type NatsServer,
  type Service,
  startNatsServer,
  startService,
  temporaryDirectory,
} from '@tollward/testkit'
import { Registry } from 'prom-client'

const log = createLog('test', 'silent')

/** A NATS server of its own with Tollward's topology, and what replicas of auth-issuer share beside it. */
export interface TestBus extends AsyncDisposable {
  readonly nats: NatsServer
  /** For files of the test; removed at the end. */
  readonly directory: string
  /** Has one secret. */
  readonly masterSecretFile: string
  /** A connection of its own, closed at the end, by default as auth-issuer. */
  connected(name?: string): Promise<Bus>
}

export async function startTestBus(): Promise<TestBus> {
  await using stack = new AsyncDisposableStack()
  const nats = stack.use(await startNatsServer())
  const provisioner = await connect({ servers: nats.url })
  await provision(provisioner)
  await provisioner.close()
  const { path: directory } = stack.use(await temporaryDirectory('tollward-issuer-'))
  const masterSecretFile = join(directory, 'master-secret')
  await writeFile(masterSecretFile, randomBytes(32).toString('base64url'), { mode: 0o600 })
  const resources = stack.move()
  return {
    nats,
    directory,
    masterSecretFile,
    connected: async (name = 'auth-issuer') =>
      resources.use(await connectBus({ servers: nats.url, name, log, registry: new Registry() })),
    [Symbol.asyncDispose]: () => resources.disposeAsync(),
  }
}

/** Fields of the spec of a Client document. */
export type ClientSpec = Record<string, unknown>

/** Writes a Client document, as admin-api does. */
export async function applyClient(bus: Bus, name: string, spec: ClientSpec): Promise<void> {
  const yaml = JSON.stringify({ apiVersion: 'tollward.dev/v1', kind: 'Client', metadata: { name }, spec })
  const value = create(StoredDocumentSchema, { format: 1, kind: 'Client', name, yaml })
  await bus.bucket(bucketContract(StoredDocumentSchema)).put(documentKey('Client', name), value)
}

/** A process of auth-issuer, and where it listens. */
export type Replica = Service & { readonly url: string }

/** An issuer, with as many replicas as the test starts. */
export interface TestIssuer extends TestBus {
  /** The issuer identifier, where the first replica listens. */
  readonly url: string
  /** As admin-api. */
  readonly bus: Bus
  readonly rpc: Client<typeof IssuerService>
  /** Starts a replica with settings beside those that all have. */
  replica(settings?: Record<string, string>): Promise<Replica>
  apply(name: string, spec?: ClientSpec): Promise<void>
  /** Applies a Client document, and returns a new secret of the client. */
  register(name: string, spec?: ClientSpec): Promise<string>
  /** What a token is worth at its source. */
  infoOf(token: string): ReturnType<typeof infoOf>
}

/** Prepares an issuer without replicas yet; its clients have what is given here unless they say otherwise. */
export async function openTestIssuer(client: ClientSpec): Promise<TestIssuer> {
  await using stack = new AsyncDisposableStack()
  const shared = stack.use(await startTestBus())
  const bus = await shared.connected('admin-api')
  const rpc = bus.client(IssuerService)
  const ports = [await freePort()]
  const url = `http://127.0.0.1:${ports[0]}`
  const apply = (name: string, spec: ClientSpec = {}) => applyClient(bus, name, { ...client, ...spec })
  const resources = stack.move()
  return {
    ...shared,
    url,
    bus,
    rpc,
    replica: async (settings = {}) => {
      const port = ports.pop() ?? (await freePort())
      const service = await startService('auth-issuer', {
        TOLLWARD_NATS_URL: shared.nats.url,
        TOLLWARD_ISSUER_URL: url,
        TOLLWARD_MASTER_SECRET_FILE: shared.masterSecretFile,
        TOLLWARD_LISTEN_PORT: String(port),
        TOLLWARD_HEALTH_PORT: String(await freePort()),
        ...settings,
      })
      return Object.assign(resources.use(service), { url: `http://127.0.0.1:${port}` })
    },
    apply,
    register: async (name, spec) => {
      await apply(name, spec)
      return (await rpc.replaceClientSecret({ clientId: name })).clientSecret
    },
    infoOf: (token) => infoOf(rpc, token),
    [Symbol.asyncDispose]: () => resources.disposeAsync(),
  }
}

async function infoOf(rpc: Client<typeof IssuerService>, token: string) {
  const { info } = await rpc.exchange({ token, pastCache: true })
  if (info === undefined) throw new Error('the answer has no info')
  return info
}

/** The header of a client that authenticates with its secret. */
export function basic(clientId: string, secret = ''): { authorization: string } {
  return { authorization: `Basic ${Buffer.from(`${clientId}:${secret}`).toString('base64')}` }
}

/** Posts a form, and reads the answer to its end. */
export async function postForm(
  url: string,
  body: Record<string, string> | [string, string][],
  headers: Record<string, string> = {},
): Promise<{ status: number; headers: Headers; text: string }> {
  const response = await fetch(url, { method: 'POST', headers, body: new URLSearchParams(body) })
  return { status: response.status, headers: response.headers, text: await response.text() }
}

/** An answer of the token endpoint; it has tokens where its status is 200. */
export interface TokenAnswer {
  status: number
  access_token: string
  refresh_token: string
  id_token?: string
  token_type?: string
  expires_in?: number
  scope?: string
  error?: string
  error_description?: string
}

/** Asks a replica's token endpoint. */
export async function askForToken(
  base: string,
  body: Record<string, string> | [string, string][],
  headers: Record<string, string> = {},
): Promise<TokenAnswer> {
  const { status, text } = await postForm(`${base}/token`, body, headers)
  const answer: Omit<TokenAnswer, 'status'> = JSON.parse(text)
  return { ...answer, status }
}

/** All that a stopped NATS server keeps in files. */
export async function filesOf({ storeDir }: NatsServer): Promise<Buffer> {
  const files = await readdir(storeDir, { recursive: true, withFileTypes: true })
  const contents = files.filter((file) => file.isFile()).map((file) => readFile(join(file.parentPath, file.name)))
  return Buffer.concat(await Promise.all(contents))
}
