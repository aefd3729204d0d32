import { once } from 'node:events'
import { writeFile } from 'node:fs/promises'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { text as textOf } from 'node:stream/consumers'
import { connect, nkeyAuthenticator, nkeys } from '@nats-io/transport-node'
import { type Bus, connectBus, permissionsOf, provision } from '@tollward/bus'
import { VerifierService } from '@tollward/contracts/payment'
import { IntrospectorService } from '@tollward/contracts/token'
import {
  type Bitcoind,
  eventually,
  freePort,
  type Service,
  startNatsServer,
  startService,
  temporaryDirectory,
} from '@tollward/testkit'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import { tollward } from '../scenario/operator.ts'

const SERVICES = ['payment-verifier', 'admin-api'] as const

const PLAN = `apiVersion: tollward.dev/v1
kind: Plan
metadata: { name: orders }
spec: { priceSats: 10000, requests: 1000, confirmations: 1, payWithin: 15m, confirmWithin: 2h }
`

/** Of a machine that runs other tests as well. */
export const PATIENCE_MS = 60_000

/** What the tests read of an invoice. */
export interface OpenedInvoice {
  readonly id: string
  readonly address: string
  readonly amountSats: string
}

/**
 * A bus with the permissions of the real one, payment-verifier and admin-api: what a treasurer has in front of them. The token of
 * client `a` is `token-a`.
 */
export interface TreasurerStack extends AsyncDisposable {
  readonly bus: Bus
  readonly verifier: ReturnType<typeof verifierOf>
  readonly paymentVerifier: Service
  /** Runs a command of the operator's and reads its JSON. Rejects with what it said. */
  tollward<T = unknown>(...args: readonly string[]): Promise<T>
  readonly operatorFile: string
  open(client: string): Promise<OpenedInvoice>
  /** What an invoice is now. */
  stateOf(client: string, id: string): Promise<string>
}

export async function startTreasurerStack(node: Bitcoind, accountKey: string): Promise<TreasurerStack> {
  await using resources = new AsyncDisposableStack()
  const { path } = resources.use(await temporaryDirectory())
  const keys = new Map([...SERVICES, 'tester'].map((name) => [name, nkeys.createUser()]))
  const seedOf = (name: string) => Buffer.from(keys.get(name)?.getSeed() ?? []).toString()
  const users = [...keys].map(([name, key]) => {
    if (name === 'tester') return { nkey: key.getPublicKey() }
    const { publish, subscribe, allowResponses } = permissionsOf(name)
    const permissions = { publish: { allow: publish }, subscribe: { allow: subscribe } }
    return {
      nkey: key.getPublicKey(),
      permissions: allowResponses ? { ...permissions, allow_responses: true } : permissions,
    }
  })
  const nats = resources.use(await startNatsServer({ config: `authorization: ${JSON.stringify({ users })}` }))
  const authenticator = nkeyAuthenticator(new TextEncoder().encode(seedOf('tester')))
  const provisioner = await connect({ servers: nats.url, authenticator })
  await provision(provisioner)
  await provisioner.close()
  const log = pino({ level: 'silent' })
  const options = { servers: nats.url, name: 'tester', nkeySeed: seedOf('tester'), log, registry: new Registry() }
  const bus = resources.use(await connectBus(options))
  resources.use(bus.serve(IntrospectorService, { introspect: async ({ token }) => ({ info: infoOf(token) }) }))

  const common = async (name: (typeof SERVICES)[number]) => {
    const seedFile = join(path, `${name}.nk`)
    await writeFile(seedFile, seedOf(name), { mode: 0o600 })
    const port = await freePort()
    return {
      TOLLWARD_NATS_URL: nats.url,
      TOLLWARD_NATS_NKEY_FILE: seedFile,
      TOLLWARD_HEALTH_PORT: String(await freePort()),
      TOLLWARD_LISTEN_PORT: String(port),
    }
  }
  const verifierEnv = await common('payment-verifier')
  const url = `http://127.0.0.1:${verifierEnv.TOLLWARD_LISTEN_PORT}`
  const adminEnv = await common('admin-api')
  const patient = { readyTimeoutMs: PATIENCE_MS }
  const [paymentVerifier] = await Promise.all([
    startService(
      'payment-verifier',
      {
        ...verifierEnv,
        TOLLWARD_PUBLIC_URL: url,
        TOLLWARD_NETWORK: 'regtest',
        TOLLWARD_ACCOUNT_KEY: accountKey,
        TOLLWARD_NODE_URL: node.rpcUrl,
        TOLLWARD_NODE_COOKIE_FILE: node.cookieFile,
        TOLLWARD_NODE_ZMQ_URL: node.zmqUrl,
      },
      patient,
    ).then((service) => resources.use(service)),
    startService('admin-api', adminEnv, patient).then((service) => resources.use(service)),
  ])
  const issuer = resources.use(await startIssuer())
  const operatorFile = join(path, 'operator.json')
  const adminApi = `127.0.0.1:${adminEnv.TOLLWARD_LISTEN_PORT}`
  const credential = { issuer: issuer.url, adminApi, clientId: 'operator', clientSecret: 'secret' }
  await writeFile(operatorFile, JSON.stringify(credential), { mode: 0o600 })
  await tollward(['apply', '-f', '-'], { operatorFile, input: PLAN })

  const request = (client: string, target: string, body?: unknown) =>
    fetch(url + target, {
      method: body === undefined ? 'GET' : 'POST',
      headers: { authorization: `Bearer token-${client}`, 'content-type': 'application/json' },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    })
  const owned = resources.move()
  return {
    ...{ bus, paymentVerifier, operatorFile, verifier: verifierOf(bus) },
    tollward: (...args) => tollward(args, { operatorFile }),
    open: async (client) => {
      // While a block is being looked at, orders are asked to come again.
      const taken = async () => {
        const response = await request(client, '/invoices', { plan: 'orders' })
        return response.status === 201 && response
      }
      const response = await eventually(taken, { what: 'the order is taken', timeoutMs: PATIENCE_MS })
      return (await response.json()) as OpenedInvoice
    },
    stateOf: async (client, id) => {
      const { state } = (await (await request(client, `/invoices/${id}`)).json()) as { state: string }
      return state
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

function verifierOf(bus: Bus) {
  return bus.client(VerifierService, { timeoutMs: 10_000 })
}

function infoOf(token: string) {
  if (token === 'operator') {
    const scopes = ['tollward.read', 'tollward.admin']
    return { active: true, clientId: 'operator', scopes, audience: ['urn:tollward:admin'] }
  }
  const clientId = /^token-(.+)$/.exec(token)?.[1]
  return clientId === undefined ? { active: false } : { active: true, clientId, scopes: ['orders'] }
}

/** Gives the operator's command its token. */
async function startIssuer(): Promise<AsyncDisposable & { readonly url: string }> {
  const server: Server = createServer(async (incoming, response) => {
    await textOf(incoming)
    const answer =
      incoming.url === '/token'
        ? { access_token: 'operator', token_type: 'Bearer' }
        : { issuer: url, token_endpoint: `${url}/token` }
    response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(answer))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  return {
    url,
    [Symbol.asyncDispose]: async () => {
      server.closeAllConnections()
      server.close()
      await once(server, 'close')
    },
  }
}
