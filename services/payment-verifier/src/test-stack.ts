import { randomBytes } from 'node:crypto'
import { create } from '@bufbuild/protobuf'
import { connect } from '@nats-io/transport-node'
import { parsePaymentUri } from '@tollward/bitcoin'
import { type Bus, connectBus, provision } from '@tollward/bus'
import { bucketContract } from '@tollward/contracts'
import { StoredDocumentSchema } from '@tollward/contracts/document'
import { type Pass, PassSchema, VerifierService } from '@tollward/contracts/payment'
import { IntrospectorService } from '@tollward/contracts/token'
import { documentKey } from '@tollward/documents'
import {
  type Bitcoind,
  type BitcoindOptions,
  eventually,
  freePort,
  type NatsServer,
  type Service,
  startBitcoind,
  startNatsServer,
  startService,
} from '@tollward/testkit'
import { BIP32Factory } from 'bip32'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import * as secp256k1 from 'tiny-secp256k1'
import { z } from 'zod'

/** A fresh account of a test network: its private part is gone with the test. */
export function newAccountKey(): string {
  const network = { wif: 0xef, bip32: { public: 0x043587cf, private: 0x04358394 } }
  return BIP32Factory(secp256k1).fromSeed(randomBytes(32), network).derivePath("m/84'/1'/0'").neutered().toBase58()
}

export const PRICE_SATS = 10_000n
/** Plans that the tests sell by. */
const PLANS = {
  orders: '{ priceSats: 10000, requests: 1000, duration: 24h, confirmations: 1, payWithin: 15m, confirmWithin: 2h }',
  three: '{ priceSats: 10000, requests: 1000, confirmations: 3, payWithin: 15m, confirmWithin: 2h }',
  hasty: '{ priceSats: 10000, requests: 1000, confirmations: 1, payWithin: 300ms, confirmWithin: 2h }',
  cheap:
    '{ priceSats: 10000, requests: 1000, confirmations: 1, payWithin: 15m, confirmWithin: 2h, discounts: { bitcoin: 1000 } }',
  kind: '{ priceSats: 10000, requests: 1000, confirmations: 1, payWithin: 15m, confirmWithin: 2h, discounts: { conduct: { basisPoints: 2000 } } }',
  brief: '{ priceSats: 10000, duration: 1s, confirmations: 1, payWithin: 15m, confirmWithin: 2h }',
  small: '{ priceSats: 10000, requests: 1000, confirmations: 1, payWithin: 15m, confirmWithin: 2h }',
} as const

const Invoice = z.strictObject({
  id: z.string(),
  url: z.string(),
  pageUrl: z.string(),
  plan: z.string(),
  state: z.string(),
  listPriceSats: z.string(),
  discounts: z.array(
    z.strictObject({
      kind: z.enum(['bitcoin', 'conduct']),
      basisPoints: z.number(),
      amountSats: z.string(),
      score: z.number().optional(),
    }),
  ),
  creditUsedSats: z.string(),
  address: z.string(),
  amountSats: z.string(),
  uri: z.string(),
  toPaySats: z.string(),
  receivedSats: z.string(),
  pendingSats: z.string(),
  excessSats: z.string(),
  creditedSats: z.string(),
  confirmations: z.number(),
  confirmationsNeeded: z.number(),
  openedAt: z.iso.datetime(),
  payBy: z.iso.datetime(),
  confirmBy: z.iso.datetime(),
  confirmByHeight: z.number().optional(),
  redeemBy: z.iso.datetime(),
  requests: z.number().optional(),
  durationSeconds: z.number().optional(),
  passId: z.string().optional(),
  pass: z.strictObject({ requests: z.number(), served: z.number(), lossBound: z.number() }).optional(),
  payments: z.array(
    z.strictObject({
      txid: z.string(),
      vout: z.number(),
      amountSats: z.string(),
      blockHeight: z.number().optional(),
      replaced: z.literal(true).optional(),
    }),
  ),
})
export type ShownInvoice = z.infer<typeof Invoice>

/** One payment-verifier of the stack. */
export interface Replica extends AsyncDisposable {
  readonly service: Service
  /** What it was started with. */
  readonly env: NodeJS.ProcessEnv
  readonly url: string
  request(method: string, path: string, client?: string, body?: unknown): Promise<Response>
  open(client: string, plan: keyof typeof PLANS, idempotencyKey?: string): Promise<ShownInvoice>
  read(client: string, id: string): Promise<ShownInvoice>
  reaches(client: string, id: string, state: string): Promise<ShownInvoice>
}

/**
 * nats-server, bitcoind, documents, and who a token belongs to: the token of client `a` is `token-a`. Clients whose names begin
 * with `self-` registered themselves.
 */
export class TestStack implements AsyncDisposable {
  readonly node: Bitcoind
  readonly nats: NatsServer
  readonly bus: Bus
  readonly accountKey: string
  readonly #resources: AsyncDisposableStack

  private constructor(node: Bitcoind, nats: NatsServer, bus: Bus, accountKey: string, resources: AsyncDisposableStack) {
    this.accountKey = accountKey
    this.node = node
    this.nats = nats
    this.bus = bus
    this.#resources = resources
  }

  static async start(nodeOptions: BitcoindOptions = {}): Promise<TestStack> {
    await using resources = new AsyncDisposableStack()
    const node = resources.use(await startBitcoind(nodeOptions))
    const stack = resources.use(await TestStack.beside(node, newAccountKey()))
    return new TestStack(node, stack.nats, stack.bus, stack.accountKey, resources.move())
  }

  /** Everything but the node, which is another stack's; with its account, this is the heir of what that stack lost. */
  static async beside(node: Bitcoind, accountKey: string): Promise<TestStack> {
    await using resources = new AsyncDisposableStack()
    const nats = resources.use(await startNatsServer())
    const provisioner = await connect({ servers: nats.url })
    await provision(provisioner)
    await provisioner.close()
    const options = { servers: nats.url, log: pino({ level: 'silent' }) }
    const bus = resources.use(await connectBus({ ...options, name: 'test', registry: new Registry() }))
    const introspector = await connectBus({ ...options, name: 'token-introspector', registry: new Registry() })
    resources.use(introspector)
    introspector.serve(IntrospectorService, {
      introspect: async ({ token }) => {
        const clientId = /^token-(.+)$/.exec(token)?.[1]
        if (clientId === undefined) return { info: { active: false } }
        return { info: { active: true, clientId, scopes: ['orders'], selfRegistered: clientId.startsWith('self-') } }
      },
    })
    for (const [name, spec] of Object.entries(PLANS)) {
      const yaml = `apiVersion: tollward.dev/v1\nkind: Plan\nmetadata: { name: ${name} }\nspec: ${spec}\n`
      const stored = create(StoredDocumentSchema, { format: 1, kind: 'Plan', name, yaml })
      await bus.bucket(bucketContract(StoredDocumentSchema)).put(documentKey('Plan', name), stored)
    }
    return new TestStack(node, nats, bus, accountKey, resources.move())
  }

  get verifier() {
    return this.bus.client(VerifierService, { timeoutMs: 5_000 })
  }

  get passes() {
    return this.bus.bucket(bucketContract(PassSchema))
  }

  async pass(passId: string | undefined): Promise<Pass | undefined> {
    return (await this.passes.get(passId ?? ''))?.value
  }

  async env(overrides: NodeJS.ProcessEnv = {}): Promise<NodeJS.ProcessEnv> {
    const port = await freePort()
    return {
      TOLLWARD_NATS_URL: this.nats.url,
      TOLLWARD_HEALTH_PORT: String(await freePort()),
      TOLLWARD_LISTEN_PORT: String(port),
      TOLLWARD_PUBLIC_URL: `http://127.0.0.1:${port}/`,
      TOLLWARD_NETWORK: 'regtest',
      TOLLWARD_ACCOUNT_KEY: this.accountKey,
      TOLLWARD_NODE_URL: this.node.rpcUrl,
      TOLLWARD_NODE_COOKIE_FILE: this.node.cookieFile,
      TOLLWARD_NODE_ZMQ_URL: this.node.zmqUrl,
      TOLLWARD_NODE_SILENT_MAX_MS: '3000',
      TOLLWARD_OPEN_INVOICES_MAX: '60',
      TOLLWARD_INVOICES_PER_MINUTE: '60',
      ...overrides,
    }
  }

  async replica(overrides: NodeJS.ProcessEnv = {}): Promise<Replica> {
    const env = await this.env(overrides)
    const service = await startService('payment-verifier', env)
    const url = `http://127.0.0.1:${env.TOLLWARD_LISTEN_PORT}`
    const request: Replica['request'] = (method, path, client, body) =>
      fetch(url + path, {
        method,
        headers: {
          ...(client === undefined ? {} : { authorization: `Bearer token-${client}` }),
          ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        },
        ...(body === undefined ? {} : { body: typeof body === 'string' ? body : JSON.stringify(body) }),
      })
    const shown = async (response: Response) => {
      const text = await response.text()
      if (!response.ok) throw new Error(`${response.status} ${text}`)
      return Invoice.parse(JSON.parse(text))
    }
    const read: Replica['read'] = async (client, id) => await shown(await request('GET', `/invoices/${id}`, client))
    return {
      service,
      env,
      url,
      request,
      read,
      open: async (client, plan, idempotencyKey) => {
        // While a block is being looked at, orders are asked to come again.
        const taken = async () => {
          const response = await request('POST', '/invoices', client, { plan, idempotencyKey })
          return response.status !== 503 && response
        }
        return await shown(await eventually(taken, { what: 'the order is taken' }))
      },
      reaches: async (client, id, state) =>
        await eventually(
          async () => {
            const invoice = await read(client, id)
            if (invoice.state !== state) throw new Error(`the invoice is ${invoice.state}`)
            return invoice
          },
          { what: `the invoice is ${state}` },
        ),
      [Symbol.asyncDispose]: () => service[Symbol.asyncDispose](),
    }
  }

  /** Pays an invoice's URI from the node's wallet, into the mempool; by default what it asks for. */
  async pay({ uri }: ShownInvoice, amountSats?: bigint): Promise<string> {
    const request = parsePaymentUri(uri, 'regtest')
    return await this.node.pay(request.address, amountSats ?? request.amountSats ?? 0n)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#resources.disposeAsync()
  }
}

/** A replica that has reached a state when the other one has too: either of them may be asked on the bus. */
export function together(one: Replica, another: Replica): Replica {
  const reaches: Replica['reaches'] = async (...what) => {
    await another.reaches(...what)
    return await one.reaches(...what)
  }
  return { ...one, reaches }
}
