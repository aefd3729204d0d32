import { join } from 'node:path'
import { cookieFile } from './chain.ts'
import { STACK_MARK } from './leftovers.ts'
import { COMPILE_CACHE, type Paths, REPOSITORY } from './paths.ts'
import { HEALTH_PORTS, HOST, localUrl, PORTS, type ServiceName } from './ports.ts'
import type { Keys } from './secrets.ts'
import type { Program } from './supervise.ts'

const PROBE_TIMEOUT_MS = 1000

/** Where an environment's own settings matter to Node itself; everything else a program gets is listed here. */
const INHERITED = ['PATH', 'HOME', 'LANG', 'TMPDIR'] as const

/** A service that this machine cannot run, and why. */
export type Off = Readonly<Partial<Record<ServiceName, string>>>

/** What all programs of this stack get, so that they can be known again. */
export function baseEnvironment(paths: Paths): Record<string, string> {
  const inherited = INHERITED.flatMap((name) => (process.env[name] === undefined ? [] : [[name, process.env[name]]]))
  return { ...Object.fromEntries(inherited), NODE_COMPILE_CACHE: COMPILE_CACHE, [STACK_MARK]: paths.state }
}

/** The services in the order in which they start; each only needs those before it to become ready. */
export function serviceNames(off: Off): ServiceName[] {
  const all = Object.keys(HEALTH_PORTS) as ServiceName[]
  return all.filter((name) => off[name] === undefined)
}

/** What the services' configuration follows from. */
export interface Facts {
  readonly paths: Paths
  readonly keys: Keys
  readonly off: Off
  /** The API behind the gateway. */
  readonly upstreamUrl: string
}

/** A service as a program: its configuration for the local stack, and how it is asked whether it is ready. */
export function serviceProgram(name: ServiceName, facts: Facts): Program {
  const { paths } = facts
  const healthPort = HEALTH_PORTS[name]
  return {
    name,
    command: process.execPath,
    args: [serviceMain(name)],
    env: {
      ...baseEnvironment(paths),
      TOLLWARD_NATS_URL: `nats://${HOST}:${PORTS.nats}`,
      TOLLWARD_NATS_NKEY_FILE: paths.natsSeed(name),
      TOLLWARD_HEALTH_PORT: String(healthPort),
      ...SETTINGS[name](facts),
    },
    logFile: paths.log(name),
    isReady: async () => (await probe(localUrl(healthPort, '/healthz/ready'))).ok,
  }
}

/** The program of a service, for what is not part of running it. */
export function serviceMain(name: ServiceName): string {
  return join(REPOSITORY, 'services', name, 'src/main.ts')
}

/** The example API that the gateway protects. */
export function exampleApi(paths: Paths): Program {
  return {
    name: 'example-api',
    command: process.execPath,
    args: [join(REPOSITORY, 'test/example-api/src/main.ts')],
    env: { ...baseEnvironment(paths), EXAMPLE_API_HOST: HOST, EXAMPLE_API_PORT: String(PORTS.exampleApi) },
    logFile: paths.log('example-api'),
    isReady: async () => (await probe(localUrl(PORTS.exampleApi, '/public'))).ok,
  }
}

/** What strangers may register for: the scope of the example API, and tokens for the issuer as those of its own clients. */
const SELF_REGISTRATION = {
  scopes: ['orders'],
  audience: [localUrl(PORTS.issuer)],
  // Everybody here comes from one address.
  registrationsPerSourceAndHour: 100,
}

/** What each service is told beyond what all are. */
const SETTINGS: Readonly<Record<ServiceName, (facts: Facts) => Record<string, string>>> = {
  'auth-issuer': ({ paths }) => ({
    TOLLWARD_LISTEN_PORT: String(PORTS.issuer),
    TOLLWARD_ISSUER_URL: localUrl(PORTS.issuer),
    TOLLWARD_MASTER_SECRET_FILE: paths.issuerSecret,
    TOLLWARD_OPERATOR_CLIENT_FILE: paths.operatorClient,
    TOLLWARD_INTROSPECTION_URL: localUrl(PORTS.introspector, '/introspect'),
    TOLLWARD_MTLS_LISTEN_PORT: String(PORTS.issuerMtls),
    TOLLWARD_MTLS_URL: `https://${HOST}:${PORTS.issuerMtls}`,
    TOLLWARD_MTLS_CERT_FILE: paths.issuerCertificate,
    TOLLWARD_MTLS_KEY_FILE: paths.issuerKey,
    TOLLWARD_MTLS_CLIENT_CA_FILE: paths.caCertificate,
    TOLLWARD_SELF_REGISTRATION: JSON.stringify(SELF_REGISTRATION),
    // Short enough to watch a rotation: a new key signs after twice this time.
    TOLLWARD_JWKS_MAX_AGE: '2s',
  }),
  'token-introspector': () => ({
    TOLLWARD_LISTEN_PORT: String(PORTS.introspector),
    TOLLWARD_ISSUER_URL: localUrl(PORTS.issuer),
  }),
  'payment-verifier': ({ paths, keys }) => ({
    TOLLWARD_LISTEN_PORT: String(PORTS.verifier),
    TOLLWARD_PUBLIC_URL: localUrl(PORTS.verifier),
    TOLLWARD_NETWORK: 'regtest',
    TOLLWARD_ACCOUNT_KEY: keys.accountKey,
    TOLLWARD_NODE_URL: localUrl(PORTS.bitcoinRpc),
    TOLLWARD_NODE_COOKIE_FILE: cookieFile(paths),
    TOLLWARD_NODE_ZMQ_URL: `tcp://${HOST}:${PORTS.bitcoinZmq}`,
  }),
  authorizer: () => ({
    TOLLWARD_GRPC_PORT: String(PORTS.authorizerGrpc),
    TOLLWARD_HTTP_PORT: String(PORTS.authorizerHttp),
    TOLLWARD_PAYMENT_URL: localUrl(PORTS.verifier),
  }),
  'sensor-ingest': () => ({}),
  'alert-router': ({ paths }) => ({ TOLLWARD_FINDINGS_FILE: paths.findings }),
  'node-sensor': () => ({
    TOLLWARD_INTERFACES: 'lo',
    TOLLWARD_NODE: 'local',
    // Of the calls of this machine only those that do not leave it: the rest is its owner's own business.
    TOLLWARD_CALLS: 'auto',
    TOLLWARD_CALLS_RANGES: '127.0.0.0/8,::1',
    TOLLWARD_CALLS_CLEAR_PORTS: String(PORTS.exampleApi),
  }),
  'admin-api': ({ paths, off }) => ({
    TOLLWARD_LISTEN_PORT: String(PORTS.adminApi),
    TOLLWARD_SERVICES: JSON.stringify(
      (Object.keys(HEALTH_PORTS) as ServiceName[]).map((name) => {
        const reason = off[name]
        return reason === undefined
          ? { name, readyUrl: localUrl(HEALTH_PORTS[name], '/healthz/ready') }
          : { name, off: reason }
      }),
    ),
    TOLLWARD_BITCOIN_RPC_URL: localUrl(PORTS.bitcoinRpc),
    TOLLWARD_BITCOIN_COOKIE_FILE: cookieFile(paths),
  }),
  gateway: ({ paths, upstreamUrl }) => ({
    TOLLWARD_UPSTREAM_URL: upstreamUrl,
    TOLLWARD_HTTP_PORT: String(PORTS.gatewayHttp),
    TOLLWARD_HTTPS_PORT: String(PORTS.gatewayHttps),
    TOLLWARD_TLS_CERT_FILE: paths.gatewayCertificate,
    TOLLWARD_TLS_KEY_FILE: paths.gatewayKey,
    TOLLWARD_PAYMENT_URL: localUrl(PORTS.verifier),
  }),
}

function probe(url: string): Promise<Response> {
  return fetch(url, { signal: AbortSignal.timeout(PROBE_TIMEOUT_MS) })
}
