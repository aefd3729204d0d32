import { randomBytes, randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { create, toBinary } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { jetstream } from '@nats-io/jetstream'
import { connect } from '@nats-io/transport-node'
import { connectBus, provision } from '@tollward/bus'
import { bucketContract, contract } from '@tollward/contracts'
import { StoredDocumentSchema } from '@tollward/contracts/document'
import { EntryAppendedSchema, InvoiceOpenedSchema } from '@tollward/contracts/ledger'
import { IntrospectorService } from '@tollward/contracts/token'
import { documentKey } from '@tollward/documents'
import {
  type Bitcoind,
  eventually,
  freePort,
  type NatsServer,
  requires,
  type Service,
  startBitcoind,
  startNatsServer,
  startService,
} from '@tollward/testkit'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import { load, type Target } from './http-load.ts'
import { percentile, rounded } from './latencies.ts'

/** One line of the table. */
export interface Row {
  readonly [column: string]: string | number
}

export const name = 'payments: invoices a second, catching up with the chain, memory of open invoices'

const BLOCKS = 1_000
const BLOCKS_PER_CALL = 100
const CONNECTIONS = 16
const OPEN_MS = 10_000
/** Each client may have so many open invoices at most. */
const CLIENTS = 50
const INVOICES = 200_000
const CONNECTED_AT_ONCE = 1_000
const MILLION = 1_000_000
const READY_TIMEOUT_MS = 300_000
const PLAN =
  'apiVersion: tollward.dev/v1\nkind: Plan\nmetadata: { name: orders }\nspec: { priceSats: 10000, requests: 1000, confirmations: 1, payWithin: 15m, confirmWithin: 2h }\n'

interface Bench {
  readonly node: Bitcoind
  readonly nats: NatsServer
  readonly service: Service
  readonly port: number
}

/** Everything against a real node and nats-server; each write is synced as in the local stack, but for the ledger that is only read. */
export async function run(): Promise<{ rows: Row[] }> {
  const missing = await requires({ tools: ['nats-server', 'bitcoind'] })
  if (missing !== false) return { rows: [{ what: `not run: ${missing}` }] }
  const rows: Row[] = []
  {
    await using resources = new AsyncDisposableStack()
    const bench = await start(resources, 'always')
    rows.push(await openInvoices(bench))
    rows.push(...(await catchUp(bench)))
  }
  await using resources = new AsyncDisposableStack()
  rows.push(...(await remember(await start(resources, '2m'))))
  return { rows }
}

async function start(resources: AsyncDisposableStack, syncInterval: string): Promise<Bench> {
  const node = resources.use(await startBitcoind())
  const nats = resources.use(
    await startNatsServer({
      config: `jetstream { sync_interval: ${syncInterval}, max_memory_store: 2GB, max_file_store: 64GB }`,
    }),
  )
  const provisioner = await connect({ servers: nats.url })
  await provision(provisioner)
  await provisioner.close()
  const options = { servers: nats.url, log: pino({ level: 'silent' }), registry: new Registry() }
  const bus = resources.use(await connectBus({ ...options, name: 'token-introspector' }))
  // Whose a token is, is not what is measured.
  bus.serve(IntrospectorService, {
    introspect: async ({ token }) => ({ info: { active: true, clientId: token, scopes: [], selfRegistered: false } }),
  })
  const stored = create(StoredDocumentSchema, { format: 1, kind: 'Plan', name: 'orders', yaml: PLAN })
  await bus.bucket(bucketContract(StoredDocumentSchema)).put(documentKey('Plan', 'orders'), stored)
  const port = await freePort()
  const service = resources.use(
    await startService(
      'payment-verifier',
      {
        TOLLWARD_NATS_URL: nats.url,
        TOLLWARD_HEALTH_PORT: String(await freePort()),
        TOLLWARD_LISTEN_PORT: String(port),
        TOLLWARD_PUBLIC_URL: `http://127.0.0.1:${port}`,
        TOLLWARD_NETWORK: 'regtest',
        TOLLWARD_ACCOUNT_KEY: await accountOf(node),
        TOLLWARD_NODE_URL: node.rpcUrl,
        TOLLWARD_NODE_COOKIE_FILE: node.cookieFile,
        TOLLWARD_NODE_ZMQ_URL: node.zmqUrl,
        TOLLWARD_OPEN_INVOICES_MAX: '10000',
        TOLLWARD_INVOICES_PER_MINUTE: '10000',
      },
      { readyTimeoutMs: READY_TIMEOUT_MS },
    ),
  )
  return { node, nats, service, port }
}

/** Taproot, because the wallet's own addresses are of another kind: what it mines to pays no invoice. */
async function accountOf(node: Bitcoind): Promise<string> {
  const { descriptors } = await node.rpc<{ descriptors: { desc: string; internal?: boolean }[] }>('listdescriptors')
  const account = descriptors.find(({ desc, internal }) => desc.startsWith('tr(') && internal === false)
  if (account === undefined) throw new Error('the wallet has no taproot account')
  return account.desc
}

async function openInvoices({ port }: Bench): Promise<Row> {
  let sent = 0
  const target: Target = {
    port,
    next: () => {
      const body = '{"plan":"orders"}'
      const headers = `host: x\r\nauthorization: Bearer client-${sent++ % CLIENTS}\r\ncontent-type: application/json`
      return Buffer.from(`POST /invoices HTTP/1.1\r\n${headers}\r\ncontent-length: ${body.length}\r\n\r\n${body}`)
    },
    accepts: (answer) => answer.subarray(0, 12).toString('latin1') === 'HTTP/1.1 201',
  }
  const { latenciesMs, durationMs } = await load(target, CONNECTIONS, OPEN_MS)
  return {
    what: `POST /invoices, ${CONNECTIONS} at once, each written and synced`,
    count: latenciesMs.length,
    perSecond: rounded((latenciesMs.length * 1000) / durationMs),
    p50Ms: percentile(latenciesMs, 0.5),
    p99Ms: percentile(latenciesMs, 0.99),
  }
}

/** The service is away while blocks are mined; beside it, what it takes merely to ask the node for the same blocks. */
async function catchUp({ node, service }: Bench): Promise<Row[]> {
  await service.stop()
  const mined: string[] = []
  while (mined.length < BLOCKS) mined.push(...(await node.mine(BLOCKS_PER_CALL)))
  const askedMs = performance.now()
  for (const hash of mined) await node.rpc('getblock', [hash, 0])
  const askingMs = performance.now() - askedMs
  const beganMs = performance.now()
  await service.start()
  const height = await node.rpc<number>('getblockcount')
  await eventually(async () => (await metricsOf(service)).includes(`tollward_payment_tip_height ${height}\n`), {
    ...{ what: 'all blocks are handled', timeoutMs: READY_TIMEOUT_MS },
  })
  return [
    { what: 'the node is asked for the blocks, one by one', count: BLOCKS, seconds: rounded(askingMs / 1000) },
    {
      what: 'start of the service → blocks handled',
      count: BLOCKS,
      seconds: rounded((performance.now() - beganMs) / 1000),
    },
  ]
}

/** The service reads a ledger of open invoices that others wrote, beside the same service with none. */
async function remember({ nats, node, service }: Bench): Promise<Row[]> {
  const emptyBytes = residentBytes(service)
  await service.stop()
  const connection = await connect({ servers: nats.url })
  const stream = jetstream(connection)
  const { subject } = contract(EntryAppendedSchema)
  const tipHash = Buffer.from(await node.rpc<string>('getbestblockhash'), 'hex').reverse()
  for (let index = 0; index < INVOICES; index += CONNECTED_AT_ONCE) {
    const entries = Array.from({ length: CONNECTED_AT_ONCE }, (_, offset) => invoiceEntry(index + offset, tipHash))
    await Promise.all(entries.map((entry) => stream.publish(subject, entry)))
  }
  await connection.close()
  const beganMs = performance.now()
  await service.start()
  const seconds = rounded((performance.now() - beganMs) / 1000)
  const bytes = residentBytes(service) - emptyBytes
  return [
    { what: 'start of the service with a ledger of open invoices', count: INVOICES, seconds },
    {
      what: 'memory of a million open invoices (resident, from these)',
      count: INVOICES,
      megabytes: Math.round((bytes / INVOICES) * (MILLION / 1e6)),
    },
  ]
}

function invoiceEntry(index: number, tipHash: Uint8Array): Uint8Array {
  const nowMs = Date.now()
  const value = create(InvoiceOpenedSchema, {
    ...{ invoiceId: randomUUID(), clientId: `client-${index % 1000}`, plan: 'orders', amountSats: 10_000n },
    ...{ confirmations: 1, quotaRequests: 1000n, addressIndex: index, listPriceSats: 10_000n },
    address: `bcrt1p${randomBytes(29).toString('hex')}`,
    script: Buffer.concat([Buffer.from('5120', 'hex'), randomBytes(32)]),
    openedAt: timestampFromMs(nowMs),
    payBy: timestampFromMs(nowMs + 900_000),
    confirmBy: timestampFromMs(nowMs + 7_200_000),
    redeemBy: timestampFromMs(nowMs + 86_400_000),
    ...{ tipHeight: 101, tipHash, pageKey: randomBytes(16) },
  })
  const entry = create(EntryAppendedSchema, {
    appendedAt: timestampFromMs(nowMs),
    entry: { case: 'invoiceOpened', value },
  })
  return toBinary(EntryAppendedSchema, entry)
}

function residentBytes({ pid }: Service): number {
  const [, kilobytes] = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8')) ?? []
  return Number(kilobytes) * 1024
}

async function metricsOf({ healthUrl }: Service): Promise<string> {
  return await (await fetch(`${healthUrl}/metrics`)).text()
}
