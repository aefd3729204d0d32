import assert from 'node:assert/strict'
import { setTimeout as pause } from 'node:timers/promises'
import { create, toBinary } from '@bufbuild/protobuf'
import { Client, credentials } from '@grpc/grpc-js'
import { connect } from '@nats-io/transport-node'
import { Authorization, CheckRequestSchema } from '@tollward/contracts/envoy'
import { type Limit, RateTable } from '@tollward/decision'
import { startNeighbours } from '@tollward/decision/testing'
import { eventually, freePort, startService } from '@tollward/testkit'
import { publishAndReceive } from './bare-nats.ts'
import { percentile, rounded } from './latencies.ts'

/** One line of a benchmark's table. */
export interface Row {
  readonly what: string
  readonly limit: string
  /** Requests that both were asked. */
  readonly asked: number
  readonly admitted: number
  /** What one replica alone would have admitted of the same requests at the same times. */
  readonly alone: number
  /** admitted − alone; below 0: fewer. */
  readonly error: number
  /** What it may be: max(1, requests / 20) and what one replica is asked while a message travels. */
  readonly bound: number
  /** Of a message through NATS beside it. */
  readonly 'message p99 ms': number
}

export const name = 'limits: two authorizers keep one limit'

/** As many questions under way at each replica as a busy Envoy worker has. */
const IN_FLIGHT = 16
const MEASURE_MS = 3000
/** Between two messages that measure how long one travels. */
const PROBE_EVERY_MS = 10

const LIMITS: readonly Limit[] = [
  { requests: 20, perSeconds: 1 },
  { requests: 100, perSeconds: 1 },
  { requests: 1000, perSeconds: 1 },
]

/** Which of the two replicas is asked, by milliseconds since the beginning. */
const TRAFFIC: Readonly<Record<string, (replica: number, elapsedMs: number) => boolean>> = {
  'both at once': () => true,
  'one after the other, 100 ms each': (replica, elapsedMs) => Math.floor(elapsedMs / 100) % 2 === replica,
  'bursts of 50 ms on both, every 500 ms': (_replica, elapsedMs) => elapsedMs % 500 < 50,
}

/**
 * What two authorizers, each a process of its own, admit of one limit under load beside what one alone would, and the error that the
 * documentation promises.
 */
export async function run(): Promise<{ rows: Row[] }> {
  await using resources = new AsyncDisposableStack()
  const neighbours = resources.use(await startNeighbours())
  await neighbours.apply(LIMITS.map(policy).join('---\n'))
  const ports = [await freePort(), await freePort()]
  const clients: Client[] = []
  for (const port of ports) {
    resources.use(
      await startService('authorizer', {
        TOLLWARD_NATS_URL: neighbours.nats.url,
        TOLLWARD_HEALTH_PORT: String(await freePort()),
        TOLLWARD_GRPC_PORT: String(port),
        TOLLWARD_HTTP_PORT: String(await freePort()),
      }),
    )
    const client = new Client(`127.0.0.1:${port}`, credentials.createInsecure())
    resources.defer(() => client.close())
    clients.push(client)
  }
  const [sender, receiver] = [
    await connect({ servers: neighbours.nats.url }),
    await connect({ servers: neighbours.nats.url }),
  ]
  resources.defer(() => sender.close())
  resources.defer(() => receiver.close())
  const rows: Row[] = []
  for (const limit of LIMITS) {
    for (const [what, isAsked] of Object.entries(TRAFFIC)) {
      const token = neighbours.issue(`${what} ${limit.requests}`.replaceAll(/[^a-z0-9]+/g, '-'), [])
      const question = checkRequest(limit, token)
      for (const client of clients)
        await eventually(() => isAdmitted(client, question), { what: 'the token to be known' })
      // What was taken to see that comes free again.
      await pause(limit.perSeconds * 1000)
      const travel: number[] = []
      const [loaded] = await Promise.all([
        load(clients, question, limit, isAsked),
        probe(travel, () => publishAndReceive(sender, receiver)),
      ])
      const travelMs = percentile(travel, 0.99)
      const bound = Math.max(1, limit.requests / 20) + (loaded.askedASecond / 1000) * travelMs
      const { asked, admitted, alone } = loaded
      rows.push({
        ...{ what, limit: `${limit.requests} in ${limit.perSeconds} s`, asked, admitted, alone },
        ...{ error: admitted - alone, bound: Math.ceil(bound), 'message p99 ms': rounded(travelMs) },
      })
    }
  }
  return { rows }
}

/** Asks both replicas as the traffic goes. `askedASecond`: one replica, while it is asked. */
async function load(
  clients: readonly Client[],
  question: Buffer,
  limit: Limit,
  isAsked: (replica: number, elapsedMs: number) => boolean,
) {
  const table = new RateTable(1, () => {})
  const beganMs = performance.now()
  let [asked, admitted, alone, busyMs] = [0, 0, 0, 0]
  const worker = async (client: Client, replica: number) => {
    for (let nowMs = beganMs; nowMs - beganMs < MEASURE_MS; nowMs = performance.now()) {
      if (!isAsked(replica, nowMs - beganMs)) {
        await pause(1)
        continue
      }
      const answer = isAdmitted(client, question)
      if (table.take('', limit, performance.now()).conforms) alone++
      if (await answer) admitted++
      asked++
      busyMs += performance.now() - nowMs
    }
  }
  await Promise.all(
    clients.flatMap((client, replica) => Array.from({ length: IN_FLIGHT }, () => worker(client, replica))),
  )
  return { asked, admitted, alone, askedASecond: (asked / (busyMs / IN_FLIGHT)) * 1000 }
}

async function probe(travel: number[], once: () => Promise<number>): Promise<void> {
  const endMs = performance.now() + MEASURE_MS
  while (performance.now() < endMs) {
    travel.push(await once())
    await pause(PROBE_EVERY_MS)
  }
}

const host = (limit: Limit) => `limit-${limit.requests}.example`

function policy(limit: Limit): string {
  return `
apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: limit-${limit.requests} }
spec:
  hosts: [${host(limit)}]
  rules:
    - name: limited
      match: { path: /limited }
      require: { token: {} }
      limit: { requests: ${limit.requests}, perSeconds: ${limit.perSeconds}, by: client }
`
}

function checkRequest(limit: Limit, token: string): Buffer {
  const headers = [{ key: 'authorization', rawValue: Buffer.from(`Bearer ${token}`) }]
  const socketAddress = { address: '203.0.113.9', portSpecifier: { case: 'portValue' as const, value: 43_210 } }
  const http = { method: 'GET', path: '/limited', host: host(limit), scheme: 'https', protocol: 'HTTP/1.1' }
  const attributes = {
    source: { address: { address: { case: 'socketAddress' as const, value: socketAddress } } },
    request: { http: { ...http, headerMap: { headers } } },
  }
  return Buffer.from(toBinary(CheckRequestSchema, create(CheckRequestSchema, { attributes })))
}

async function isAdmitted(client: Client, question: Buffer): Promise<boolean> {
  const answer = await new Promise<Buffer>((resolve, reject) => {
    client.makeUnaryRequest(`/${Authorization.typeName}/Check`, same, same, question, (error, answer) =>
      error || !answer ? reject(error) : resolve(answer),
    )
  })
  // CheckResponse begins with status; admitted, that is an empty message.
  assert.equal(answer[0], 0x0a)
  return answer[1] === 0
}

function same(bytes: Buffer): Buffer {
  return bytes
}
