import { randomBytes } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { create } from '@bufbuild/protobuf'
import { connect } from '@nats-io/transport-node'
import { type Bus, type Client, connectBus, provision } from '@tollward/bus'
import { bucketContract } from '@tollward/contracts'
import { StoredDocumentSchema } from '@tollward/contracts/document'
import { IntrospectorService, IssuerService } from '@tollward/contracts/token'
import {
  freePort,
  type NatsServer,
  type Service,
  startNatsServer,
  startService,
  temporaryDirectory,
} from '@tollward/testkit'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import { startBalancer } from './balancer.ts'
import { type Authority, makeAuthority } from './certificates.ts'

const DOCUMENTS = bucketContract(StoredDocumentSchema)
const DOCUMENT_FORMAT = 1
const SECRET_BYTES = 32

/** How often nats-server writes to the disk: after each write, as in the local stack, or as it does by default. */
export type SyncMode = 'always' | '2m (default)'

/** nats-server, auth-issuer and token-introspector as processes of their own, without TLS and on free ports. */
export interface Identity extends AsyncDisposable {
  readonly nats: NatsServer
  /** As admin-api. */
  readonly bus: Bus
  /** The first of the replicas. */
  readonly issuer: Service
  /** All of them. Those that are one alone listen on the issuer's port, others behind a balancer on it. */
  readonly issuers: readonly Service[]
  readonly issuerUrl: string
  readonly issuerPort: number
  readonly introspector: Service
  readonly introspectionUrl: string
  readonly introspectionPort: number
  readonly issuerRpc: Client<typeof IssuerService>
  readonly introspectorRpc: Client<typeof IntrospectorService>
  /** Where clients with certificates connect (RFC 8705), and the authority for them and for it. */
  readonly mtlsUrl: string
  readonly authority: Authority
  /** Applies a Client document, or another one. */
  apply(kind: string, name: string, spec: object): Promise<void>
  /** Applies a Client document and makes its secret. */
  register(name: string, spec: object): Promise<string>
}

export interface IdentityOptions {
  readonly sync?: SyncMode
  /** Called before each of them is started, for what it shall inherit. */
  readonly before?: (program: 'nats-server' | 'auth-issuer' | 'token-introspector') => void
  /** How many issuers there are; by default one. */
  readonly replicas?: number
  /** Added to the issuer's environment. */
  readonly issuerEnvironment?: Readonly<Record<string, string>>
}

/** Starts them. */
export async function startIdentity({
  sync,
  before = () => {},
  replicas = 1,
  issuerEnvironment = {},
}: IdentityOptions = {}): Promise<Identity> {
  await using resources = new AsyncDisposableStack()
  const limits = `${sync === 'always' ? 'sync_interval: always, ' : ''}max_memory_store: 2GB, max_file_store: 64GB`
  before('nats-server')
  const nats = resources.use(await startNatsServer({ config: `jetstream { ${limits} }` }))
  const provisioner = await connect({ servers: nats.url })
  await provision(provisioner)
  await provisioner.close()
  const { path } = resources.use(await temporaryDirectory('tollward-identity-'))
  const [issuerPort, introspectionPort, mtlsPort] = [await freePort(), await freePort(), await freePort()]
  const mtlsUrl = `https://127.0.0.1:${mtlsPort}`
  const authority = await makeAuthority()
  const issuerUrl = `http://127.0.0.1:${issuerPort}`
  const introspectionUrl = `http://127.0.0.1:${introspectionPort}/introspect`
  before('auth-issuer')
  const shared = {
    TOLLWARD_NATS_URL: nats.url,
    TOLLWARD_ISSUER_URL: issuerUrl,
    TOLLWARD_INTROSPECTION_URL: introspectionUrl,
    ...(await issuerSecrets(path)),
    ...(await mtlsFiles(path, authority)),
    TOLLWARD_MTLS_URL: mtlsUrl,
    ...issuerEnvironment,
  }
  const ports = replicas === 1 ? [issuerPort] : await Promise.all(Array.from({ length: replicas }, freePort))
  const starting = ports.map(async (port, index) =>
    resources.use(
      await startService('auth-issuer', {
        ...shared,
        TOLLWARD_LISTEN_PORT: String(port),
        TOLLWARD_HEALTH_PORT: String(await freePort()),
        TOLLWARD_MTLS_LISTEN_PORT: String(index === 0 ? mtlsPort : await freePort()),
      }),
    ),
  )
  const [issuer, ...others] = await Promise.all(starting)
  if (!issuer) throw new RangeError('an identity has one issuer at least')
  if (replicas > 1) resources.use(await startBalancer(issuerPort, ports))
  before('token-introspector')
  const introspector = resources.use(
    await startService('token-introspector', {
      TOLLWARD_NATS_URL: nats.url,
      TOLLWARD_ISSUER_URL: issuerUrl,
      TOLLWARD_LISTEN_PORT: String(introspectionPort),
      TOLLWARD_HEALTH_PORT: String(await freePort()),
    }),
  )
  const bus = resources.use(
    await connectBus({
      servers: nats.url,
      name: 'admin-api',
      log: pino({ level: 'silent' }),
      registry: new Registry(),
    }),
  )
  const issuerRpc = bus.client(IssuerService)
  const apply = async (kind: string, name: string, spec: object) => {
    const yaml = JSON.stringify({ apiVersion: 'tollward.dev/v1', kind, metadata: { name }, spec })
    const stored = create(StoredDocumentSchema, { format: DOCUMENT_FORMAT, kind, name, yaml })
    await bus.bucket(DOCUMENTS).put(`${kind}.${Buffer.from(name).toString('base64url')}`, stored)
    if (kind === 'Client') await issuerRpc.noteClientChange({ clientId: name })
  }
  const owned = resources.move()
  return {
    nats,
    bus,
    issuer,
    issuers: [issuer, ...others],
    issuerUrl,
    issuerPort,
    introspector,
    introspectionUrl,
    introspectionPort,
    issuerRpc,
    mtlsUrl,
    authority,
    introspectorRpc: bus.client(IntrospectorService),
    apply,
    register: async (name, spec) => {
      await apply('Client', name, spec)
      return (await issuerRpc.replaceClientSecret({ clientId: name })).clientSecret
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

/** Files of secrets that every issuer needs, made in `directory`, and the settings that name them. */
async function issuerSecrets(directory: string): Promise<Record<string, string>> {
  const masterSecretFile = join(directory, 'master-secret')
  await writeFile(masterSecretFile, randomBytes(SECRET_BYTES).toString('base64url'), { mode: 0o600 })
  return { TOLLWARD_MASTER_SECRET_FILE: masterSecretFile }
}

/** The certificate of the listener for clients with certificates, and the authority of theirs. */
async function mtlsFiles(directory: string, authority: Authority): Promise<Record<string, string>> {
  const { cert, key } = await authority.issue('CN=auth-issuer', 'server')
  const inDirectory = (name: string) => join(directory, name)
  const [certFile, keyFile, caFile] = [inDirectory('mtls.crt'), inDirectory('mtls.key'), inDirectory('mtls-ca.crt')]
  await writeFile(certFile, cert)
  await writeFile(keyFile, key, { mode: 0o600 })
  await writeFile(caFile, authority.cert)
  return { TOLLWARD_MTLS_CERT_FILE: certFile, TOLLWARD_MTLS_KEY_FILE: keyFile, TOLLWARD_MTLS_CLIENT_CA_FILE: caFile }
}
