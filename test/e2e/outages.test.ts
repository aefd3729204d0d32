import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { resolve } from 'node:path'
import { after, before, test } from 'node:test'
import { create, toBinary } from '@bufbuild/protobuf'
import { connect, headers, type NatsConnection } from '@nats-io/transport-node'
import { StoredDocumentSchema } from '@tollward/contracts/document'
import { type Neighbours, startNeighbours } from '@tollward/decision/testing'
import { eventually, requires } from '@tollward/testkit'
import { type FaultyLine, openFaultyLine } from '../scenario/faulty-line.ts'
import { send } from '../scenario/http.ts'
import { BLOCKED, type OutageLoad, POLICY, type Seen, startOutageLoad } from '../scenario/outage-load.ts'
import {
  documentedOutages,
  type Expectations,
  type Expected,
  HEALTHY,
  NATS_OUTAGES,
  REQUESTS,
  type RequestKind,
  SERVICE_OUTAGES,
} from '../scenario/outage-table.ts'

const skip = await requires({ tools: ['nats-server'] })

/** Answers of each kind, at each decision point, that are compared. */
const ANSWERS_MIN = 3
/** By itself, once what failed is back. */
const BACK_WITHIN_MS = 5000

const UNDECODABLE = Uint8Array.of(0x0a, 0xff, 0xff, 0xff, 0xff, 0x07, 0x01)
const OTHER_MESSAGE = toBinary(
  StoredDocumentSchema,
  create(StoredDocumentSchema, { format: 1, kind: 'Plan', name: 'orders', yaml: 'kind: Plan', appliedBy: 'ada' }),
)

let resources: AsyncDisposableStack
let neighbours: Neighbours
let line: FaultyLine
let load: OutageLoad
let raw: NatsConnection

before(async () => {
  if (skip !== false) return
  resources = new AsyncDisposableStack()
  neighbours = resources.use(await startNeighbours())
  await neighbours.apply(POLICY)
  neighbours.quotes.set('orders', { isSold: true, listPriceSats: 1000n, priceSats: 1000n })
  await neighbours.block(BLOCKED, 600_000)
  await neighbours.blockCaller({ kind: 'client', value: 'banned' }, 600_000)
  raw = resources.adopt(await connect({ servers: neighbours.nats.url, maxReconnectAttempts: -1 }), (open) =>
    open.close(),
  )
  line = resources.use(await openFaultyLine(neighbours.nats.port))
  load = resources.use(await startOutageLoad(neighbours, line.port))
  await recovered()
})
after(() => resources?.disposeAsync())

/** Answers in the place of a service on the bus, to whatever it is asked. */
function answerFor(responder: string, bytes: Uint8Array, error?: string): () => Promise<void> {
  const head = headers()
  if (error !== undefined) head.set('Tollward-Error', error)
  const options = error === undefined ? {} : { headers: head }
  const subscription = raw.subscribe(`${responder}.v1.rpc.*`, {
    callback: (_, message) => void message.respond(bytes, options),
  })
  return async () => await subscription.drain()
}

interface Failing {
  readonly stop: () => Promise<void>
  readonly start: () => void
  readonly slow: (ms: number) => void
  readonly responder: string
}

const wait = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms))

/** Makes a service fail as the name of an outage says. Returns what mends it. */
async function fail(how: string, { stop, start, slow, responder }: Failing): Promise<() => Promise<void>> {
  const slowMs = { 'takes 200 ms': 200, 'takes 2 s': 2000 }[how]
  if (slowMs !== undefined) {
    slow(slowMs)
    return async () => slow(0)
  }
  await stop()
  const answers = {
    'is stopped': undefined,
    'answers bytes that cannot be decoded': () => answerFor(responder, UNDECODABLE),
    'answers an empty message': () => answerFor(responder, new Uint8Array()),
    'answers another message': () => answerFor(responder, OTHER_MESSAGE),
    'answers errors': () => answerFor(responder, new Uint8Array(), 'permission_denied'),
  }
  assert.ok(how in answers, how)
  const end = answers[how as keyof typeof answers]?.()
  await raw.flush()
  return async () => {
    await end?.()
    start()
  }
}

const failing: Readonly<Record<string, () => Failing>> = {
  'token-introspector': () => ({
    responder: 'token-introspector',
    stop: neighbours.stopIntrospector,
    start: neighbours.startIntrospector,
    slow: (ms) => {
      neighbours.beforeIntrospection = () => (ms === 0 ? Promise.resolve() : wait(ms))
    },
  }),
  'payment-verifier': () => ({
    responder: 'payment-verifier',
    stop: neighbours.stopVerifier,
    start: neighbours.startVerifier,
    slow: (ms) => {
      neighbours.beforeVerification = () => (ms === 0 ? Promise.resolve() : wait(ms))
    },
  }),
}

/** Waits until every kind of request was answered often enough since, and compares each answer with what it should be. */
async function expectAll(expected: Expectations, sinceMs: number): Promise<void> {
  for (const point of ['authorizer', 'gateway'] as const) {
    for (const kind of Object.keys(REQUESTS) as RequestKind[]) {
      const cell = expected[kind]
      const answers = () =>
        load.seen.filter((seen) => seen.point === point && seen.kind === kind && seen.beganMs >= sinceMs)
      const what = `${kind} at ${point}: ${cell.answer}`
      await eventually(
        () => {
          const met = answers()
          const settled = cell.first === undefined ? met : met.filter(({ answer }) => answer !== cell.first)
          return settled.length >= ANSWERS_MIN
        },
        { what },
      )
      const met = answers()
      const becameAt = met.findIndex(({ answer }) => answer !== cell.first)
      for (const seen of met.slice(cell.first === undefined ? 0 : becameAt)) compare(seen, cell)
    }
  }
}

function compare({ point, kind, answer, tookMs, retryAfter, price }: Seen, expected: Expected): void {
  const what = `${kind} at ${point}`
  assert.equal(answer, expected.answer, what)
  const [fromMs, toMs] = expected.within
  assert.ok(tookMs >= fromMs && tookMs <= toMs, `${what}: ${answer} after ${tookMs} ms, and not ${fromMs} to ${toMs}`)
  if (expected.retryAfter !== undefined) assert.equal(retryAfter, String(expected.retryAfter), what)
  if (expected.price !== undefined) assert.equal(price, expected.price, `${what}: a price`)
}

/** Waits until everything is as if nothing had failed. */
async function recovered(): Promise<void> {
  const sinceMs = performance.now()
  const isBack = () => {
    const last = new Map(
      load.seen.filter(({ beganMs }) => beganMs >= sinceMs).map((seen) => [`${seen.point} ${seen.kind}`, seen]),
    )
    if (last.size < 2 * Object.keys(REQUESTS).length) return false
    return last.values().every(({ kind, answer }) => answer === HEALTHY[kind].answer)
  }
  await eventually(isBack, { what: 'all is as before', timeoutMs: BACK_WITHIN_MS })
  await expectAll(HEALTHY, performance.now())
}

/** Whatever failed in between: who must not pass did not, and everybody got an answer. */
function expectNoneThrough(sinceMs: number): void {
  for (const { point, kind, answer, beganMs } of load.seen) {
    if (beganMs < sinceMs) continue
    assert.ok(HEALTHY[kind].answer === 'passes' || answer !== 'passes', `${kind} got through at ${point}`)
    assert.doesNotMatch(answer, /^no /, `${kind} at ${point}`)
  }
}

async function outage(work: () => Promise<void>): Promise<void> {
  const sinceMs = performance.now()
  await load.pinch()
  await work()
  await recovered()
  expectNoneThrough(sinceMs)
}

test('what is documented is the table that is held here', () => {
  const documented = readFileSync(resolve(import.meta.dirname, '../../docs/outages.md'), 'utf8').split('\n')
  const cells = (row: string) => row.split('|').map((cell) => cell.trim().replace(/^-+$/, '---'))
  assert.deepEqual(documented.filter((row) => row.startsWith('|')).map(cells), documentedOutages().map(cells))
})

const GUARANTEE = 'clients see what is documented, nobody passes who must not, and it mends by itself'

for (const [name, expected] of Object.entries(SERVICE_OUTAGES)) {
  test(`${name}: ${GUARANTEE}`, { skip }, () =>
    outage(async () => {
      const [, service = '', how = ''] = /^(\S+) (.+)$/.exec(name) ?? []
      const dependency = failing[service]?.()
      assert.ok(dependency)
      const mend = await fail(how, dependency)
      try {
        await expectAll(expected, performance.now())
      } finally {
        await mend()
      }
    }),
  )
}

/** Decision points no longer know whether they would hear of a revocation. */
function isStale(): Promise<boolean> {
  const stale = load.services.map(async ({ healthUrl }) => {
    const { status, body } = await send(`${healthUrl}/healthz/ready`)
    return status === 503 && body.includes('revocations not heard')
  })
  return Promise.all(stale).then((all) => all.every(Boolean))
}

const natsFaults: Readonly<Record<string, { start: () => Promise<void>; end: () => Promise<void> }>> = {
  'NATS is stopped': { start: () => neighbours.nats.stop(), end: () => neighbours.nats.start() },
  'NATS answers nonsense': { start: async () => line.set('nonsense'), end: async () => line.set('none') },
  'NATS takes 200 ms': { start: async () => line.set({ slowMs: 200 }), end: async () => line.set('none') },
  'NATS takes 2 s': { start: async () => line.set({ slowMs: 2000 }), end: async () => line.set('none') },
}

for (const [name, { atFirst, later }] of Object.entries(NATS_OUTAGES)) {
  test(`${name}: ${GUARANTEE}`, { skip }, () =>
    outage(async () => {
      const fault = natsFaults[name]
      assert.ok(fault)
      await fault.start()
      try {
        await expectAll(atFirst, performance.now())
        if (later) {
          await eventually(isStale, { what: 'the silence is noticed' })
          await expectAll(later, performance.now())
        }
      } finally {
        await fault.end()
      }
    }),
  )
}
