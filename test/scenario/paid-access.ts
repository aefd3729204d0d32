import assert from 'node:assert/strict'
import { credentials } from '@grpc/grpc-js'
import { Authorization } from '@tollward/contracts/envoy'
import { grpcClient } from '@tollward/contracts/grpc'
import { type Neighbours, startNeighbours } from '@tollward/decision/testing'
import { type Bitcoind, eventually, freePort, type Service, startBitcoind, startService } from '@tollward/testkit'
import { checkStatus } from './decision-points.ts'

/** An invoice, as far as these scenarios look at it. */
export interface BoughtInvoice {
  readonly id: string
  readonly state: string
  readonly address: string
  readonly amountSats: string
  readonly pass?: { readonly requests: number; readonly served: number; readonly lossBound: number }
}

/** A decision point of its own process. */
export interface Authorizer {
  readonly service: Service
  /** The HTTP status of a call with this token and, if there is one, transaction. Rejects if nobody answers. */
  status(path: string, token: string, txid?: string): Promise<number>
  /** Kills it and starts it again. */
  crash(): Promise<void>
}

/** Real payment-verifiers, authorizers, bitcoin node and bus; tokens are those of the neighbours of decision points. */
export interface PaidAccess extends AsyncDisposable {
  readonly neighbours: Neighbours
  readonly node: Bitcoind
  readonly verifiers: readonly Service[]
  readonly authorizers: readonly Authorizer[]
  /** Opens an invoice, pays it, and waits until every verifier has it as paid. */
  buy(token: string, plan: string): Promise<{ readonly id: string; readonly txid: string }>
  invoice(token: string, id: string): Promise<BoughtInvoice>
}

/** Starts two verifiers and two authorizers. `documents`: policies and plans. */
export async function startPaidAccess(documents: string, leaseLastsMs: number): Promise<PaidAccess> {
  await using resources = new AsyncDisposableStack()
  const [neighbours, node] = await Promise.all([startNeighbours(), startBitcoind()])
  resources.use(neighbours)
  resources.use(node)
  await neighbours.stopVerifier()
  await neighbours.apply(documents)
  const ports = [await freePort(), await freePort()] as const
  const verifierEnv = await envOfVerifiers(neighbours, node, leaseLastsMs)
  const verifiers: Service[] = []
  for (const port of ports) {
    const own = { TOLLWARD_LISTEN_PORT: String(port), TOLLWARD_HEALTH_PORT: String(await freePort()) }
    verifiers.push(resources.use(await startService('payment-verifier', { ...verifierEnv, ...own })))
  }
  const authorizers = [await startAuthorizer(resources, neighbours), await startAuthorizer(resources, neighbours)]
  const request = async (port: number, path: string, token: string, body?: object) => {
    const json = { method: 'POST', body: JSON.stringify(body) }
    const headers = { authorization: `Bearer ${token}`, 'content-type': 'application/json' }
    const answer = await fetch(`http://127.0.0.1:${port}${path}`, { ...(body && json), headers })
    const text = await answer.text()
    if (!answer.ok) throw new Error(`${answer.status} ${text}`)
    return JSON.parse(text) as BoughtInvoice
  }
  const invoice = (token: string, id: string) =>
    eventually(() => Promise.any(ports.map((port) => request(port, `/invoices/${id}`, token))), { what: 'the invoice' })
  const owned = resources.move()
  return {
    neighbours,
    node,
    verifiers,
    authorizers,
    invoice,
    buy: async (token, plan) => {
      const order = { plan, idempotencyKey: 'one' }
      const { id, address, amountSats } = await eventually(() => request(ports[0], '/invoices', token, order), {
        what: 'the order is taken',
      })
      const txid = await node.pay(address, BigInt(amountSats))
      await node.mine(1)
      for (const port of ports) {
        const isPaid = async () => (await request(port, `/invoices/${id}`, token)).state === 'paid'
        await eventually(isPaid, { what: 'it is paid' })
      }
      return { id, txid }
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

async function envOfVerifiers({ nats }: Neighbours, node: Bitcoind, leaseLastsMs: number): Promise<NodeJS.ProcessEnv> {
  const { descriptors } = await node.rpc<{ descriptors: { desc: string; internal?: boolean }[] }>('listdescriptors')
  // Taproot, because the wallet's own addresses are of another kind.
  const account = descriptors.find(({ desc, internal }) => desc.startsWith('tr(') && internal === false)
  assert.ok(account)
  return {
    TOLLWARD_NATS_URL: nats.url,
    TOLLWARD_PUBLIC_URL: 'http://pay.example',
    TOLLWARD_NETWORK: 'regtest',
    TOLLWARD_ACCOUNT_KEY: account.desc,
    TOLLWARD_NODE_URL: node.rpcUrl,
    TOLLWARD_NODE_COOKIE_FILE: node.cookieFile,
    TOLLWARD_NODE_ZMQ_URL: node.zmqUrl,
    TOLLWARD_LEASE_LASTS_MS: String(leaseLastsMs),
  }
}

async function startAuthorizer(resources: AsyncDisposableStack, { nats }: Neighbours): Promise<Authorizer> {
  const grpcPort = await freePort()
  const service = resources.use(
    await startService('authorizer', {
      TOLLWARD_NATS_URL: nats.url,
      TOLLWARD_HEALTH_PORT: String(await freePort()),
      TOLLWARD_GRPC_PORT: String(grpcPort),
      TOLLWARD_HTTP_PORT: String(await freePort()),
    }),
  )
  const connect = () => grpcClient(Authorization, `127.0.0.1:${grpcPort}`, credentials.createInsecure())
  let client = connect()
  resources.defer(() => client[Symbol.dispose]())
  return {
    service,
    status: (path, token, txid) =>
      checkStatus(client, path, {
        authorization: `Bearer ${token}`,
        ...(txid === undefined ? {} : { 'x-bitcoin-txid': txid }),
      }),
    crash: async () => {
      await service.kill()
      await service.start()
      // A new one: the old connection waits ever longer before it tries again.
      client[Symbol.dispose]()
      client = connect()
    },
  }
}
