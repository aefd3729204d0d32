import { readFileSync } from 'node:fs'
import { resolve } from 'node:path'
import process from 'node:process'
import { setImmediate as turn } from 'node:timers/promises'
import { create, toBinary } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { connect } from '@nats-io/transport-node'
import { parseAddress, rangeKey } from '@tollward/contracts'
import { BlockSchema } from '@tollward/contracts/enforcement'
import { createDecider, type Decider, type RequestFacts } from '@tollward/decision'
import { connectTestBus, type Neighbours, startNeighbours } from '@tollward/decision/testing'
import { eventually, freePort, startProcess, startService } from '@tollward/testkit'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import { type Generator, startGenerator } from './check-generator.ts'
import { digits, RULES } from './check-questions.ts'
import { GENERATOR_CORE, moveTo, SERVER_CORE } from './cores.ts'
import { cpuMs } from './cpu.ts'
import type { GrpcEffort, GrpcLoad } from './grpc-load.ts'
import { median, percentile, rounded } from './latencies.ts'

/** One line of a benchmark's table. */
export type Row = Readonly<Record<string, string | number>>

export const name = 'check'

/** One turn of load, and the CPU time that the server used in it. */
interface Turn extends GrpcLoad {
  readonly cpuMs: number
}

/** What the authorizer knows while it is measured. */
const TOKENS = 100_000
const CLIENTS = 100
const BLOCKS = 1_000_000

/** As many questions under way at once as a busy Envoy worker has. */
const IN_FLIGHT = 32
/** Tokens that are looked up at once while the authorizer learns them. */
const LEARNING_IN_FLIGHT = 48
const WARM_UP_MS = 1500
const MEASURE_MS = 1500
/** Servers take turns, so that a slow moment of the machine hits all of them. */
const ROUNDS = 5
/** Of what a server can do at most, as measured just before: the machine's own speed changes by half within minutes. */
const USUAL_LOAD = 0.7
/** A turn at it: long enough that one ordinary collection of garbage is no hundredth of it. */
const USUAL_MS = 6000
/** At the beginning of such a turn the server has been idle, and its heap has shrunk: that is told by no hundredth of a steady load. */
const SETTLING_MS = 1000
const INTERNAL_TOKEN_LENGTH = 600
const HOUR_MS = 3_600_000
/** Decisions without any transport. */
const DECISIONS = 100_000
const DECISIONS_AT_ONCE = 100

/** Messages handed to nats-server before it is asked whether it keeps up. */
const FILL_BATCH = 10_000

/**
 * Check decisions a second of the authorizer beside a bare grpc-js server that answers a fixed OK to the same bytes, each with a core
 * for itself, the generator of load on the other. The authorizer knows 1,000 rules, 100,000 tokens and 1,000,000 blocks; each question
 * is of another token and another rule, whose limits and passes count.
 */
export async function run(): Promise<{ rows: Row[] }> {
  await using resources = new AsyncDisposableStack()
  moveTo(GENERATOR_CORE)
  const neighbours = resources.use(await startNeighbours())
  const tokens = await fill(neighbours)
  const grpcPort = await freePort()
  const barePort = await freePort()
  moveTo(SERVER_CORE)
  const beganMs = performance.now()
  const authorizer = resources.use(
    await startService(
      'authorizer',
      {
        TOLLWARD_NATS_URL: neighbours.nats.url,
        TOLLWARD_HEALTH_PORT: String(await freePort()),
        TOLLWARD_GRPC_PORT: String(grpcPort),
        TOLLWARD_HTTP_PORT: String(await freePort()),
      },
      { readyTimeoutMs: 60_000 },
    ),
  )
  const startedMs = performance.now() - beganMs
  const script = resolve(import.meta.dirname, 'bare-check-server.ts')
  const bare = resources.use(await startProcess(process.execPath, [script, String(barePort)]))
  await bare.line(/^listening$/)
  moveTo(GENERATOR_CORE)

  const generator = resources.use(startGenerator(tokens))
  await learn(generator, grpcPort, tokens.length)
  const contenders = [
    { what: 'bare grpc-js, fixed OK', pid: bare.pid, port: barePort, kind: 'plain' },
    { what: 'authorizer: token, limits', pid: authorizer.pid, port: grpcPort, kind: 'plain' },
    { what: 'authorizer: token, limits, pass', pid: authorizer.pid, port: grpcPort, kind: 'paid' },
  ] as const
  const ask = ({ port, kind }: (typeof contenders)[number], effort: GrpcEffort) =>
    generator.ask({ port, kind, any: false, effort })
  const rounds = contenders.map((): Turn[] => [])
  for (let round = 0; round < ROUNDS; round++) {
    for (const [index, contender] of contenders.entries()) {
      if (round === 0) await ask(contender, { inFlight: IN_FLIGHT, durationMs: WARM_UP_MS })
      const before = cpuMs(contender.pid)
      const turn = await ask(contender, { inFlight: IN_FLIGHT, durationMs: MEASURE_MS })
      rounds[index]?.push({ ...turn, cpuMs: cpuMs(contender.pid) - before })
    }
  }
  const full = contenders.map(({ what }, index) => row(what, rounds[index] ?? [], rounds[0] ?? []))
  const usual = contenders.map((): GrpcLoad[] => [])
  for (let round = 0; round < ROUNDS; round++) {
    for (const [index, contender] of contenders.entries()) {
      const most = await ask(contender, { inFlight: IN_FLIGHT, durationMs: MEASURE_MS })
      const perSecond = Math.round(rate(most) * USUAL_LOAD)
      await ask(contender, { perSecond, durationMs: SETTLING_MS })
      usual[index]?.push(await ask(contender, { perSecond, durationMs: USUAL_MS }))
    }
  }
  const rows: Row[] = full.map((one, index) => ({ ...one, ...usualColumns(usual[index] ?? []) }))
  rows.push({ what: `authorizer's memory (RSS), MiB`, perSecond: rssMebibytes(authorizer.pid) })
  rows.push({ what: 'authorizer ready after, s', perSecond: rounded(startedMs / 1000) })
  rows.push(...(await decisionsAlone(neighbours, tokens)))
  return { rows }
}

/** What operators and neighbours have written: rules, a plan, passes, tokens, blocks. */
async function fill(neighbours: Neighbours): Promise<string[]> {
  await neighbours.apply(documents())
  const clients = Array.from({ length: CLIENTS }, (_, index) => `client-${index}`)
  for (const client of clients) await neighbours.activatePass(client, 'orders', 1_000_000_000)
  const internalToken = 'x'.repeat(INTERNAL_TOKEN_LENGTH)
  const internalTokenExpiresAt = timestampFromMs(Date.now() + HOUR_MS)
  const issued = { internalToken, internalTokenExpiresAt, expiresAt: internalTokenExpiresAt }
  const tokens = Array.from({ length: TOKENS }, (_, index) =>
    neighbours.issue(clients[index % CLIENTS] ?? '', ['orders'], issued),
  )
  await block(neighbours.nats.url)
  return tokens
}

/** Half the rules want a pass, half only a token; each has limits that count and never bite. */
function documents(): string {
  const limits =
    'limits: [{ requests: 1000000, perSeconds: 1, by: client }, { requests: 1000000, perSeconds: 1, by: source }]'
  const rules = Array.from({ length: RULES }, (_, index) => {
    const kind = index % 2 === 0 ? 'plain' : 'paid'
    const payment = kind === 'paid' ? ', payment: { plan: orders }' : ''
    const match = `match: { methods: [GET], path: "/${kind}/${digits(index)}/{id}" }`
    return `    - { name: r${index}, ${match}, require: { token: { scopes: [orders] }${payment} }, ${limits} }`
  })
  return `
apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: bench }
spec:
  hosts: ["api.example.com"]
  rules:
${rules.join('\n')}
---
apiVersion: tollward.dev/v1
kind: Plan
metadata: { name: orders }
spec: { priceSats: 10000, requests: 1000000000, duration: 24h, confirmations: 1, payWithin: 15m, confirmWithin: 2h }
`
}

/** Blocks as sensor-ingest writes them, without waiting for each. */
async function block(servers: string): Promise<void> {
  const connection = await connect({ servers })
  const expiresAt = timestampFromMs(Date.now() + HOUR_MS)
  for (let index = 0; index < BLOCKS; index++) {
    const address = parseAddress(
      `${100 + (index >>> 24)}.${(index >>> 16) & 255}.${(index >>> 8) & 255}.${index & 255}`,
    )
    if (!address) throw new Error('no address')
    const range = { address, prefixLength: 128 }
    const value = create(BlockSchema, { format: 1, ...range, reason: 'bench', expiresAt })
    connection.publish(`$KV.blocks.${rangeKey(range)}`, toBinary(BlockSchema, value))
    if (index % FILL_BATCH === 0) await connection.flush()
  }
  await connection.flush()
  await connection.close()
}

/** Has the authorizer look up every token once, and waits until it is known that none is refused. */
async function learn(generator: Generator, port: number, calls: number): Promise<void> {
  const kind = 'plain'
  await generator.ask({ port, kind, any: true, effort: { inFlight: LEARNING_IN_FLIGHT, calls } })
  const admits = async () => {
    await generator.ask({ port, kind, any: false, effort: { inFlight: IN_FLIGHT, calls } })
    return true
  }
  await eventually(admits, { what: 'every token is admitted', timeoutMs: 60_000 })
}

/** Medians over the rounds: the machine may be busy with something else in one of them. */
function row(what: string, rounds: readonly Turn[], bareRounds: readonly Turn[]) {
  const latencies = rounds.flatMap(({ latenciesMs }) => latenciesMs)
  const usedMs = rounds.reduce((sum, { cpuMs: used }) => sum + used, 0)
  const shares = rounds.map((round, index) => rate(round) / rate(bareRounds[index] ?? round))
  return {
    what,
    perSecond: Math.round(median(rounds.map(rate))),
    p50Ms: percentile(latencies, 0.5),
    p99Ms: percentile(latencies, 0.99),
    share: rounded(median(shares)),
    'CPU µs each': Math.round((usedMs * 1000) / Math.max(1, latencies.length)),
    generator: rounded(median(rounds.map(({ generatorShare }) => generatorShare))),
  }
}

function rate({ latenciesMs, durationMs }: GrpcLoad): number {
  return (latenciesMs.length * 1000) / durationMs
}

/** Of the turns at the usual load: what the slowest hundredth took in the middle turn, and in the slowest. */
function usualColumns(turns: readonly GrpcLoad[]): Row {
  const p99sMs = turns.map(({ latenciesMs }) => percentile(latenciesMs, 0.99))
  return {
    'p99 at 70 %': median(p99sMs),
    'slowest turn': Math.max(...p99sMs),
    'generator still, ms': Math.round(turns.reduce((sum, { stoodStillMs }) => sum + stoodStillMs, 0)),
  }
}

function rssMebibytes(pid: number): number {
  const [, kibibytes] = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8')) ?? []
  return Math.round(Number(kibibytes) / 1024)
}

/** The same decisions in this process, without any transport. */
async function decisionsAlone(neighbours: Neighbours, tokens: readonly string[]): Promise<Row[]> {
  await using resources = new AsyncDisposableStack()
  const bus = resources.use(await connectTestBus(neighbours.nats.url, 'gateway'))
  const config = { source: 'gateway', paymentUrl: 'http://pay.example', guardedAddresses: [] } as const
  const log = pino({ level: 'silent' })
  const decider = resources.use(await createDecider({ bus, log, registry: new Registry(), config }))
  const factsOf = facts(tokens)
  for (let index = 0; index < tokens.length; index++) await decider.decide(factsOf(index, 'paid'))
  const rows: Row[] = []
  for (const kind of ['plain', 'paid'] as const) {
    const micros = await timed(decider, (index) => factsOf(index, kind))
    const [p50, p99] = [percentile(micros, 0.5), percentile(micros, 0.99)]
    rows.push({ what: `decision alone, ${kind}`, 'p50 µs': p50, 'p99 µs': p99 })
  }
  return rows
}

/** Microseconds of each decision that is made at once; between some of them the feeds and leases have their turn. */
async function timed(decider: Decider, factsOf: (index: number) => RequestFacts): Promise<number[]> {
  const micros: number[] = []
  for (let index = 0; index < DECISIONS; index++) {
    if (index % DECISIONS_AT_ONCE === 0) await turn()
    const asked = factsOf(index)
    const beganMs = performance.now()
    const decision = decider.decide(asked)
    if (!(decision instanceof Promise)) micros.push((performance.now() - beganMs) * 1000)
    const decided = await decision
    if (!decided.admitted) throw new Error(`refused: ${decided.reason}`)
  }
  return micros
}

function facts(tokens: readonly string[]): (index: number, kind: 'plain' | 'paid') => RequestFacts {
  const address = parseAddress('203.0.113.9')
  if (!address) throw new Error('no address')
  return (index, kind) => ({
    method: 'GET',
    scheme: 'https',
    host: 'api.example.com',
    target: `/${kind}/${digits(((index * 2) % RULES) + (kind === 'paid' ? 1 : 0))}/42?page=2`,
    address,
    headers: [
      ...['user-agent', 'Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36', 'accept', 'application/json'],
      ...['accept-encoding', 'gzip, deflate, br', 'authorization', `Bearer ${tokens[index % tokens.length]}`],
      ...['x-forwarded-proto', 'https', 'x-forwarded-for', '203.0.113.9', 'cookie', 'c'.repeat(100)],
      ...['x-request-id', '0b2b1f1e-4a4e-4a52-8f5c-1d3a5a1b2c3d'],
    ],
  })
}
