import assert from 'node:assert/strict'
import { fork } from 'node:child_process'
import { setTimeout as pause } from 'node:timers/promises'
import { create, toBinary } from '@bufbuild/protobuf'
import { connect, type NatsConnection } from '@nats-io/transport-node'
import { Authorization, CheckRequestSchema } from '@tollward/contracts/envoy'
import { EXAMPLE_DOCUMENTS, type Neighbours, startNeighbours } from '@tollward/decision/testing'
import { eventually, freePort, startService } from '@tollward/testkit'
import { publishAndReceive } from './bare-nats.ts'
import { goFirst } from './cores.ts'
import type { LoadOrder, LoadReport } from './enforcement-load.ts'
import { GrpcAsker } from './grpc-asker.ts'
import { percentile } from './latencies.ts'

/** One line of the table; milliseconds. */
export interface Row {
  readonly [column: string]: string | number
}

export const name = 'enforcement: blocked or revoked → refused by two authorizers at 70 % of what they can do'

/** What is promised of the slowest hundredth. */
const P99_MAX_MS = 10
/** Of the requests a second that both take when asked without a pause. */
const LOAD_SHARE = 0.7
const CAPACITY_MS = 3000
/** As many questions under way at each replica as a busy Envoy worker has. */
const IN_FLIGHT = 16
/** Of each kind. */
const ROUNDS = 500
/** Of both kinds together, before any counts: until then the servers' code is still being compiled. */
const WARM_UP_ROUNDS = 400
/** Between an answer and the next question: asking without end would be what is measured. */
const ASK_PAUSE_MS = 1
const REPLICAS = 2

type Kind = 'block' | 'token'

/** One block or revocation, from when it was sent. */
interface Measured {
  readonly kind: Kind
  readonly bareMs: number
  /** When both had refused. */
  readonly refusedMs: number
  /** When the question was asked that was the first to be refused, of the later one: from then on nothing was let through. */
  readonly inForceMs: number
}

/**
 * Two authorizers, each a process of its own, beside a steady load at both: in turns an address is blocked and a token revoked that
 * both have just admitted, while both are asked every millisecond until they refuse. Each round first publishes a bare NATS message
 * between two connections of this process.
 */
export async function run(rounds = ROUNDS): Promise<{ rows: Row[] }> {
  await using resources = new AsyncDisposableStack()
  const neighbours = resources.use(await startNeighbours())
  await neighbours.apply(EXAMPLE_DOCUMENTS)
  const { url } = neighbours.nats
  const [sender, receiver] = [await connect({ servers: url }), await connect({ servers: url })]
  resources.defer(async () => {
    await sender.close()
    await receiver.close()
  })
  const ports: number[] = []
  for (let replica = 0; replica < REPLICAS; replica++) ports.push(await startAuthorizer(url, resources))
  const path = `/${Authorization.typeName}/Check`
  const clients = await Promise.all(ports.map((port) => GrpcAsker.connect(port, path)))
  for (const client of clients) resources.use(client)

  // Not before: the servers would inherit it.
  goFirst()
  const steady = question({ path: '/echo', token: neighbours.issue('steady', ['orders']) })
  for (const client of clients) await eventually(() => isAdmitted(client, steady), { what: 'the load to be admitted' })
  const asked = { ports, message: steady.toString('base64') }
  const most = await load({ ...asked, inFlight: IN_FLIGHT, durationMs: CAPACITY_MS }).report
  const perSecond = Math.floor((most.perSecond * LOAD_SHARE) / REPLICAS)
  const beside = load({ ...asked, perSecond })
  const measured: Measured[] = []
  for (let index = 0; index < WARM_UP_ROUNDS + 2 * rounds; index++) {
    if (index === WARM_UP_ROUNDS) beside.tell('count')
    const kind = index % 2 === 0 ? 'block' : 'token'
    const one = await enforceOne(kind, index, { neighbours, clients, sender, receiver })
    if (index >= WARM_UP_ROUNDS) measured.push(one)
  }
  beside.tell('stop')
  const report = await beside.report
  return {
    rows: [
      ...(['block', 'token'] as const).map((kind) => rowOf(kind, measured)),
      { what: 'the most that both take together', perSecond: Math.round(most.perSecond) },
      {
        what: 'load meanwhile, all admitted',
        perSecond: Math.round(report.perSecond),
        p50Ms: report.p50Ms,
        p99Ms: report.p99Ms,
        'generator still, ms': report.stoodStillMs,
      },
    ],
  }
}

async function startAuthorizer(natsUrl: string, resources: AsyncDisposableStack): Promise<number> {
  const port = await freePort()
  resources.use(
    await startService('authorizer', {
      TOLLWARD_NATS_URL: natsUrl,
      TOLLWARD_HEALTH_PORT: String(await freePort()),
      TOLLWARD_GRPC_PORT: String(port),
      TOLLWARD_HTTP_PORT: String(await freePort()),
    }),
  )
  return port
}

interface Load {
  /** Of load without an end: what comes from now on counts, and this is the end. */
  readonly tell: (word: 'count' | 'stop') => void
  readonly report: Promise<LoadReport>
}

/** Load from a process of its own, so that neither its work nor that of the questions here waits for the other. */
function load(order: LoadOrder): Load {
  const child = fork(new URL('enforcement-load.ts', import.meta.url), { execArgv: ['--single-threaded-gc'] })
  const report = new Promise<LoadReport>((resolve, reject) => {
    child.once('message', (said: LoadReport | { failure: string }) =>
      'failure' in said ? reject(new Error(said.failure)) : resolve(said),
    )
    child.once('exit', () => reject(new Error('the generator of load has ended')))
  }).finally(() => child.kill())
  child.send(order)
  return { tell: (word) => child.send(word), report }
}

async function enforceOne(
  kind: Kind,
  index: number,
  {
    neighbours,
    clients,
    sender,
    receiver,
  }: {
    readonly neighbours: Neighbours
    readonly clients: readonly GrpcAsker[]
    readonly sender: NatsConnection
    readonly receiver: NatsConnection
  },
): Promise<Measured> {
  const address = `198.18.${index >> 8}.${index & 0xff}`
  const token = neighbours.issue(`bench-${index}`, ['orders'])
  const asked = question(kind === 'block' ? { path: '/public', address } : { path: '/echo', token })
  for (const client of clients) assert.equal(await isAdmitted(client, asked), true)
  const bareMs = await publishAndReceive(sender, receiver)
  const refusals = clients.map((client) => firstRefusal(client, asked))
  const beganMs = performance.now()
  await (kind === 'block' ? neighbours.block(address) : neighbours.revoke(token))
  const refused = await Promise.all(refusals)
  return {
    kind,
    bareMs,
    refusedMs: Math.max(...refused.map(({ cameMs }) => cameMs)) - beganMs,
    inForceMs: Math.max(...refused.map(({ askedMs }) => askedMs)) - beganMs,
  }
}

async function firstRefusal(client: GrpcAsker, asked: Buffer): Promise<{ askedMs: number; cameMs: number }> {
  for (;;) {
    const askedMs = performance.now()
    if (!(await isAdmitted(client, asked))) return { askedMs, cameMs: performance.now() }
    await pause(ASK_PAUSE_MS)
  }
}

function rowOf(kind: Kind, measured: readonly Measured[]): Row {
  const those = measured.filter((one) => one.kind === kind)
  const of = (column: 'bareMs' | 'refusedMs' | 'inForceMs', share: number) =>
    percentile(
      those.map((one) => one[column]),
      share,
    )
  return {
    what: kind === 'block' ? 'address blocked → both refuse' : 'token revoked → both refuse',
    count: those.length,
    p50Ms: of('refusedMs', 0.5),
    p99Ms: of('refusedMs', 0.99),
    inForceP99Ms: of('inForceMs', 0.99),
    bareNatsP99Ms: of('bareMs', 0.99),
    wanted: `p99 < ${P99_MAX_MS} ms: ${of('refusedMs', 0.99) < P99_MAX_MS ? 'kept' : 'not kept'}`,
  }
}

function question({
  path,
  token,
  address = '203.0.113.9',
}: {
  path: string
  token?: string
  address?: string
}): Buffer {
  const headers = token === undefined ? [] : [{ key: 'authorization', rawValue: Buffer.from(`Bearer ${token}`) }]
  const socketAddress = { address, portSpecifier: { case: 'portValue' as const, value: 43_210 } }
  const http = {
    method: 'GET',
    path,
    host: 'api.example',
    scheme: 'https',
    protocol: 'HTTP/1.1',
    headerMap: { headers },
  }
  const attributes = {
    source: { address: { address: { case: 'socketAddress' as const, value: socketAddress } } },
    request: { http },
  }
  return Buffer.from(toBinary(CheckRequestSchema, create(CheckRequestSchema, { attributes })))
}

async function isAdmitted(client: GrpcAsker, asked: Buffer): Promise<boolean> {
  const answer = await client.ask(asked)
  // CheckResponse begins with status; admitted, that is an empty message.
  assert.equal(answer[0], 0x0a)
  return answer[1] === 0
}
