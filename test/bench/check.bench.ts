import assert from 'node:assert/strict'
import { resolve } from 'node:path'
import process from 'node:process'
import { create, fromBinary, toBinary } from '@bufbuild/protobuf'
import { Client, credentials } from '@grpc/grpc-js'
import { Authorization, CheckRequestSchema, CheckResponseSchema } from '@tollward/contracts/envoy'
import { EXAMPLE_DOCUMENTS, startNeighbours } from '@tollward/decision/testing'
import { eventually, freePort, startProcess, startService } from '@tollward/testkit'
import { median, rounded } from './latencies.ts'

/** One line of a benchmark's table. */
export interface Row {
  readonly what: string
  readonly perSecond: number
  readonly p50Ms: number
  readonly p99Ms: number
  /** Throughput as a share of the bare server's in the same run. */
  readonly share: number
}

export const name = 'check'

/** As many questions under way at once as a busy Envoy worker has. */
const IN_FLIGHT = 32
const WARM_UP_MS = 1500
const MEASURE_MS = 1500
/** Servers take turns, so that a slow moment of the machine hits all of them. */
const ROUNDS = 5
const REQUEST_BYTES = 739
const INTERNAL_TOKEN_LENGTH = 600

/**
 * Check decisions a second of the authorizer beside a bare grpc-js server that answers a fixed OK to the same bytes. Each server
 * is a process of its own, as is the load generator (this one).
 */
export async function run(): Promise<{ rows: Row[] }> {
  await using resources = new AsyncDisposableStack()
  const neighbours = resources.use(await startNeighbours())
  await neighbours.apply(EXAMPLE_DOCUMENTS)
  const [grpcPort, httpPort, barePort] = [await freePort(), await freePort(), await freePort()]
  resources.use(
    await startService('authorizer', {
      TOLLWARD_NATS_URL: neighbours.nats.url,
      TOLLWARD_HEALTH_PORT: String(await freePort()),
      TOLLWARD_GRPC_PORT: String(grpcPort),
      TOLLWARD_HTTP_PORT: String(httpPort),
    }),
  )
  const script = resolve(import.meta.dirname, 'bare-check-server.ts')
  const bare = resources.use(await startProcess(process.execPath, [script, String(barePort)]))
  await bare.line(/^listening$/)

  const internalToken = 'x'.repeat(INTERNAL_TOKEN_LENGTH)
  const token = neighbours.issue('bench-client', ['orders'], { internalToken })
  await neighbours.activatePass('bench-client', 'orders', 1_000_000_000)
  const known = checkRequest('/echo?page=2', token)
  const paid = checkRequest('/orders/42?page=2', token)
  const authorizer = resources.use(closing(new Client(`127.0.0.1:${grpcPort}`, credentials.createInsecure())))
  const bareClient = resources.use(closing(new Client(`127.0.0.1:${barePort}`, credentials.createInsecure())))
  for (const bytes of [known, paid])
    await eventually(() => isAllowed(authorizer.client, bytes), { what: 'it is admitted' })

  const contenders = [
    { what: 'bare grpc-js, fixed OK', client: bareClient.client, bytes: known },
    { what: 'authorizer, token', client: authorizer.client, bytes: known },
    { what: 'authorizer, token and pass', client: authorizer.client, bytes: paid },
  ]
  const rounds = contenders.map((): number[][] => [])
  for (let round = 0; round < ROUNDS; round++) {
    for (const [index, { client, bytes }] of contenders.entries()) {
      if (round === 0) await load(client, bytes, WARM_UP_MS)
      rounds[index]?.push(await load(client, bytes, MEASURE_MS))
    }
  }
  return { rows: contenders.map(({ what }, index) => row(what, rounds[index] ?? [], rounds[0] ?? [])) }
}

/** Medians over the rounds: the machine may be busy with something else in one of them. */
function row(what: string, rounds: readonly number[][], bareRounds: readonly number[][]): Row {
  const sorted = rounds.flat().toSorted((a, b) => a - b)
  const at = (share: number) => rounded(sorted[Math.floor(sorted.length * share)] ?? 0)
  const shares = rounds.map((latencies, round) => latencies.length / (bareRounds[round]?.length ?? 1))
  const perSecond = Math.round(median(rounds.map((latencies) => latencies.length)) / (MEASURE_MS / 1000))
  return { what, perSecond, p50Ms: at(0.5), p99Ms: at(0.99), share: rounded(median(shares)) }
}

/** A question as Envoy asks it with encode_raw_headers, of REQUEST_BYTES bytes. */
function checkRequest(path: string, token: string): Buffer {
  const fields: [string, string][] = [
    [':authority', 'api.example.com'],
    [':path', path],
    [':method', 'GET'],
    [':scheme', 'https'],
    ['user-agent', 'Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36'],
    ['accept', 'application/json'],
    ['accept-encoding', 'gzip, deflate, br'],
    ['authorization', `Bearer ${token}`],
    ['x-forwarded-proto', 'https'],
    ['x-forwarded-for', '203.0.113.9'],
    ['x-request-id', '0b2b1f1e-4a4e-4a52-8f5c-1d3a5a1b2c3d'],
  ]
  const socketAddress = { address: '203.0.113.9', portSpecifier: { case: 'portValue' as const, value: 43_210 } }
  const encode = (padding: string) => {
    const headers = [...fields, ['cookie', padding] as const].map(([key, value]) => ({
      key,
      rawValue: Buffer.from(value),
    }))
    const http = {
      id: '12345678901234567890',
      method: 'GET',
      path,
      host: 'api.example.com',
      scheme: 'https',
      protocol: 'HTTP/1.1',
      size: -1n,
    }
    const attributes = {
      source: { address: { address: { case: 'socketAddress' as const, value: socketAddress } } },
      request: { http: { ...http, headerMap: { headers } } },
    }
    return Buffer.from(toBinary(CheckRequestSchema, create(CheckRequestSchema, { attributes })))
  }
  return encode('c'.repeat(Math.max(0, REQUEST_BYTES - encode('').length)))
}

/** Keeps IN_FLIGHT questions under way, and returns the latency of each in milliseconds. Any answer but OK fails the benchmark. */
async function load(client: Client, bytes: Buffer, durationMs: number): Promise<number[]> {
  const latencies: number[] = []
  const endMs = performance.now() + durationMs
  const worker = async () => {
    while (performance.now() < endMs) {
      const beganMs = performance.now()
      const answer = await send(client, bytes)
      latencies.push(performance.now() - beganMs)
      // CheckResponse begins with status; admitted, that is an empty message.
      assert.ok(answer[0] === 0x0a && answer[1] === 0, 'the authorizer refused')
    }
  }
  await Promise.all(Array.from({ length: IN_FLIGHT }, worker))
  return latencies
}

async function isAllowed(client: Client, bytes: Buffer): Promise<boolean> {
  const { status, httpResponse } = fromBinary(CheckResponseSchema, await send(client, bytes))
  return status?.code === 0 && httpResponse.case === 'okResponse'
}

function send(client: Client, bytes: Buffer): Promise<Buffer> {
  return new Promise((resolveAnswer, reject) => {
    client.makeUnaryRequest(`/${Authorization.typeName}/Check`, same, same, bytes, (error, answer) =>
      error || !answer ? reject(error) : resolveAnswer(answer),
    )
  })
}

function same(bytes: Buffer): Buffer {
  return bytes
}

function closing(client: Client): { client: Client } & Disposable {
  return { client, [Symbol.dispose]: () => client.close() }
}
