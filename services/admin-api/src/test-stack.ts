import { once } from 'node:events'
import { writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import type { MessageInitShape } from '@bufbuild/protobuf'
import { createUser } from '@nats-io/nkeys'
import { connect, nkeyAuthenticator } from '@nats-io/transport-node'
import { type Bus, connectBus, type Implementation, permissionsOf, provision } from '@tollward/bus'
import {
  GrantService,
  IntrospectorService,
  IssuerService,
  KeyService,
  RegistrationService,
  type TokenInfoSchema,
  UserService,
} from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
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

/** A real nats-server with admin-api's own permissions, a real admin-api, and a bus that plays its neighbours. */
export interface TestStack extends AsyncDisposable {
  readonly nats: NatsServer
  readonly adminApi: Service
  /** host:port of gRPC. */
  readonly address: string
  /** May do everything. */
  readonly bus: Bus
  /** What token-introspector says of each token. */
  readonly tokens: Map<string, MessageInitShape<typeof TokenInfoSchema>>
  /** What auth-issuer was asked. */
  readonly asked: string[]
  /** Base URL of a server whose /ready is ready and whose /busy is not. */
  readonly services: string
}

const AUDIENCE = ['urn:tollward:admin']

export const OPERATOR = { authorization: 'Bearer operator-token' }
export const READER = { authorization: 'Bearer reader-token' }
export const WRITER = { authorization: 'Bearer writer-token' }
/** Secrets that auth-issuer makes: no audit record and no log may hold them. */
export const CLIENT_SECRET = 'made-for-this-test'
export const MADE_PASSWORD = 'made-pa55word'
export const INVITATION = 'made-invitation'

export async function startTestStack(): Promise<TestStack> {
  await using stack = new AsyncDisposableStack()
  const directory = stack.use(await temporaryDirectory())
  const user = createUser()
  const tester = createUser()
  const seedFile = join(directory.path, 'admin-api.nk')
  await writeFile(seedFile, user.getSeed(), { mode: 0o600 })
  const { publish, subscribe } = permissionsOf('admin-api')
  const users = [
    { nkey: user.getPublicKey(), permissions: { publish: { allow: publish }, subscribe: { allow: subscribe } } },
    { nkey: tester.getPublicKey() },
  ]
  const nats = stack.use(await startNatsServer({ config: `authorization: ${JSON.stringify({ users })}` }))
  const provisioner = await connect({ servers: nats.url, authenticator: nkeyAuthenticator(tester.getSeed()) })
  await provision(provisioner)
  await provisioner.close()

  const nkeySeed = Buffer.from(tester.getSeed()).toString()
  const log = pino({ level: 'silent' })
  const bus = stack.use(
    await connectBus({ servers: nats.url, name: 'tester', nkeySeed, log, registry: new Registry() }),
  )
  const tokens: TestStack['tokens'] = new Map([
    [
      'operator-token',
      { active: true, clientId: 'operator', audience: AUDIENCE, scopes: ['tollward.read', 'tollward.admin'] },
    ],
    ['reader-token', { active: true, clientId: 'reader', audience: AUDIENCE, scopes: ['tollward.read'] }],
    ['writer-token', { active: true, clientId: 'writer', audience: AUDIENCE, scopes: ['tollward.admin'] }],
    ['api-token', { active: true, clientId: 'shop', audience: ['https://api.example'], scopes: ['tollward.admin'] }],
  ])
  const asked: string[] = []
  stack.use(bus.serve(IntrospectorService, { introspect: async ({ token }) => ({ info: tokens.get(token) ?? {} }) }))
  stack.use(bus.serve(IssuerService, issuerWith(asked)))
  stack.use(bus.serve(UserService, usersWith(asked)))
  stack.use(bus.serve(GrantService, grantsWith(asked)))
  stack.use(bus.serve(KeyService, keysWith(asked)))
  stack.use(bus.serve(RegistrationService, registrationsWith(asked)))
  const services = stack.use(await startNeighbours())

  const port = await freePort()
  const adminApi = stack.use(
    await startService('admin-api', {
      TOLLWARD_NATS_URL: nats.url,
      TOLLWARD_NATS_NKEY_FILE: seedFile,
      TOLLWARD_HEALTH_PORT: String(await freePort()),
      TOLLWARD_LISTEN_PORT: String(port),
      TOLLWARD_GUARDED_ADDRESSES: '192.0.2.10',
      TOLLWARD_MANAGEMENT_PORTS: '22, 2222,2223',
      TOLLWARD_SERVICES: JSON.stringify([
        { name: 'gateway', readyUrl: `${services.url}/ready` },
        { name: 'authorizer', readyUrl: `${services.url}/busy` },
        { name: 'payment-verifier', readyUrl: `http://127.0.0.1:${await freePort()}/healthz/ready` },
        { name: 'node-sensor', off: 'needs root' },
      ]),
    }),
  )
  const owned = stack.move()
  return {
    ...{ nats, adminApi, address: `127.0.0.1:${port}`, bus, tokens, asked, services: services.url },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

/** auth-issuer as far as admin-api sees it: gives each client one secret, and says what it was asked. */
function issuerWith(asked: string[]) {
  const secrets = new Set<string>()
  const unused = async () => {
    throw new AppError('internal', 'admin-api does not ask this')
  }
  return {
    exchange: unused,
    authenticateClient: unused,
    revoke: async ({ target }: { target: { case?: string | undefined; value?: string | undefined } }) => {
      asked.push(`revoke ${target.case} ${target.value}`)
      return { revoked: true }
    },
    replaceClientSecret: async ({ clientId, onlyIfMissing }: { clientId: string; onlyIfMissing: boolean }) => {
      asked.push(`replaceClientSecret ${clientId} ${onlyIfMissing}`)
      if (onlyIfMissing && secrets.has(clientId)) return {}
      secrets.add(clientId)
      return { clientSecret: CLIENT_SECRET }
    },
    forgetClient: async ({ clientId }: { clientId: string }) => {
      asked.push(`forgetClient ${clientId}`)
      secrets.delete(clientId)
      return {}
    },
    noteClientChange: async ({ clientId }: { clientId: string }) => {
      asked.push(`noteClientChange ${clientId}`)
      return {}
    },
    signIntrospection: () => Promise.reject(new Error('not asked here')),
  }
}

const SUBJECT = 'subject-of-ada'

/** Its one person is Ada, who is there from the beginning. */
function usersWith(asked: string[]): Implementation<typeof UserService> {
  const ada = { subject: SUBJECT, name: 'Ada', enabled: true }
  return {
    createUser: async ({ name, password }) => {
      asked.push(`createUser ${name}`)
      return { user: { subject: `subject-of-${name}`, name, enabled: true }, password: password || MADE_PASSWORD }
    },
    listUsers: async () => ({ users: [{ subject: 'subject-of-eve', name: SUBJECT, enabled: true }, ada] }),
    setPassword: async ({ name, password }) => {
      asked.push(`setPassword ${name}`)
      return { password: password === '' ? MADE_PASSWORD : '' }
    },
    setUserEnabled: async ({ name, enabled }) => {
      asked.push(`setUserEnabled ${name} ${enabled}`)
      return { user: { ...ada, enabled } }
    },
    deleteUser: async ({ name }) => {
      asked.push(`deleteUser ${name}`)
      return {}
    },
  }
}

function grantsWith(asked: string[]): Implementation<typeof GrantService> {
  return {
    listSessions: async ({ subject }) => ({
      leftOut: 5,
      sessions: [{ sessionHash: 'a1', subject: subject || SUBJECT }],
    }),
    endSession: async ({ sessionHash }) => {
      asked.push(`endSession ${sessionHash}`)
      return { ended: true }
    },
    listGrants: async ({ subject, clientId }) => ({ grants: [{ grantHash: 'b2', subject, clientId }] }),
  }
}

function keysWith(asked: string[]): Implementation<typeof KeyService> {
  const key = { kid: 'k1', algorithm: 'ES256' }
  return {
    listKeys: async () => ({ keys: [key] }),
    rotateKeys: async () => {
      asked.push('rotateKeys')
      return { keys: [key, { ...key, kid: 'k2' }] }
    },
  }
}

function registrationsWith(asked: string[]): Implementation<typeof RegistrationService> {
  return {
    listRegisteredClients: async () => ({ clients: [{ clientId: 'r1', selfRegistered: true }], leftOut: 3 }),
    removeRegisteredClient: async ({ clientId }) => {
      asked.push(`removeRegisteredClient ${clientId}`)
      return { removed: true }
    },
    createInitialAccessToken: async ({ lifetimeSeconds, registrationsMax }) => {
      asked.push(`createInitialAccessToken ${lifetimeSeconds} ${registrationsMax}`)
      return { token: INVITATION }
    },
  }
}

async function startNeighbours() {
  const server = createServer((request, response) => {
    const ready = request.url === '/ready'
    response.writeHead(ready ? 200 : 503, { 'content-type': 'application/json' })
    response.end(JSON.stringify({ ready, reasons: ready ? [] : ['bus: is not connected'] }))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections()
      server.close()
      await once(server, 'close')
    },
  }
}
