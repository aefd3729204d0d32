import { once } from 'node:events'
import { writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import type { MessageInitShape } from '@bufbuild/protobuf'
import { createUser } from '@nats-io/nkeys'
import { connect, nkeyAuthenticator } from '@nats-io/transport-node'
import { type Bus, connectBus, permissionsOf, provision } from '@tollward/bus'
import { IntrospectorService, IssuerService, type TokenInfoSchema } from '@tollward/contracts/token'
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
export const CLIENT_SECRET = 'made-for-this-test'

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
    ['api-token', { active: true, clientId: 'shop', audience: ['https://api.example'], scopes: ['tollward.admin'] }],
  ])
  const asked: string[] = []
  stack.use(bus.serve(IntrospectorService, { introspect: async ({ token }) => ({ info: tokens.get(token) ?? {} }) }))
  stack.use(bus.serve(IssuerService, issuerWith(asked)))
  const services = stack.use(await startNeighbours())

  const port = await freePort()
  const adminApi = stack.use(
    await startService('admin-api', {
      TOLLWARD_NATS_URL: nats.url,
      TOLLWARD_NATS_NKEY_FILE: seedFile,
      TOLLWARD_HEALTH_PORT: String(await freePort()),
      TOLLWARD_LISTEN_PORT: String(port),
      TOLLWARD_GUARDED_ADDRESSES: '192.0.2.10',
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
