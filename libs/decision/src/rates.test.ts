import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { create } from '@bufbuild/protobuf'
import type { Bus } from '@tollward/bus'
import { broadcastContract, parseAddress } from '@tollward/contracts'
import { type RateUsed, RateUsedSchema, Table } from '@tollward/contracts/decision'
import { createLog } from '@tollward/runtime'
import { eventually, requires } from '@tollward/testkit'
import { Registry } from 'prom-client'
import { createDecider, type Decider } from './decider.ts'
import { RateTable } from './domain/rate.ts'
import { RATES_PER_MESSAGE_MAX, RATES_TOLD_LIMIT, RATES_UNTOLD_MAX } from './edges.ts'
import { connectTestBus, type Neighbours, startNeighbours } from './testing.ts'

const skip = await requires({ tools: ['nats-server'] })
const RATES = broadcastContract(RateUsedSchema)
const WIDE = { requests: 200, perSeconds: 1 }
const NARROW = { requests: 10, perSeconds: 60 }

const POLICY = `
apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: limits }
spec:
  hosts: ["*"]
  rules:
    - name: wide
      match: { path: /wide }
      anonymous: true
      limit: { requests: ${WIDE.requests}, perSeconds: ${WIDE.perSeconds}, by: source }
    - name: narrow
      match: { path: /narrow }
      anonymous: true
      limit: { requests: ${NARROW.requests}, perSeconds: ${NARROW.perSeconds}, by: source }
    - name: known
      match: { path: /known }
      require: { token: {} }
      limit: { requests: ${WIDE.requests}, perSeconds: ${WIDE.perSeconds}, by: client }
`

interface Asked {
  readonly path: string
  readonly from: string
  readonly token?: string
}

/** A decider on a bus that is watched. */
interface Replica extends AsyncDisposable {
  readonly decider: Decider
  readonly bus: Bus
  readonly registry: Registry
  onTold: (message: RateUsed) => void
  onHeard: (message: RateUsed) => void
}

describe('limits over replicas', { skip }, () => {
  let neighbours: Neighbours
  let replicas: readonly [Replica, Replica]
  let resources: AsyncDisposableStack
  let sources = 0

  before(async () => {
    resources = new AsyncDisposableStack()
    neighbours = resources.use(await startNeighbours())
    await neighbours.apply(POLICY)
    replicas = [resources.use(await startReplica()), resources.use(await startReplica())]
    await hearEachOther()
  })
  after(() => resources.disposeAsync())

  async function startReplica(): Promise<Replica> {
    await using stack = new AsyncDisposableStack()
    const bus = stack.use(await connectTestBus(neighbours.nats.url, 'gateway'))
    const registry = new Registry()
    const watched: Bus = {
      ...bus,
      get connected() {
        return bus.connected
      },
      get disconnectedForMs() {
        return bus.disconnectedForMs
      },
      broadcast: (told, message) => {
        const sent = bus.broadcast(told, message)
        if (sent && told.schema.typeName === RateUsedSchema.typeName) replica.onTold(message as unknown as RateUsed)
        return sent
      },
      listen: (event, onMessage, options) =>
        bus.listen(
          event,
          (message) => {
            onMessage(message)
            if (event.schema.typeName === RateUsedSchema.typeName) replica.onHeard(message as unknown as RateUsed)
          },
          options,
        ),
      [Symbol.asyncDispose]: () => bus[Symbol.asyncDispose](),
    }
    const config = { source: 'gateway', paymentUrl: 'http://pay.example', guardedAddresses: [] } as const
    const decider = stack.use(
      await createDecider({ bus: watched, log: createLog('gateway', 'silent'), registry, config }),
    )
    const owned = stack.move()
    const replica: Replica = {
      decider,
      bus,
      registry,
      onTold: () => {},
      onHeard: () => {},
      [Symbol.asyncDispose]: () => owned.disposeAsync(),
    }
    return replica
  }

  /** A source that nobody has seen yet. */
  function newSource(): string {
    sources++
    return `10.${(sources >> 16) & 255}.${(sources >> 8) & 255}.${sources & 255}`
  }

  async function hearEachOther(): Promise<void> {
    for (const [teller, listener] of [replicas, replicas.toReversed()] as [Replica, Replica][]) {
      await eventually(
        async () => {
          isAdmitted(teller, { path: '/narrow', from: newSource() })
          return (await count(listener, 'tollward_decision_rate_uses_total', 'heard')) > 0
        },
        { what: 'a replica to be heard' },
      )
    }
  }

  /** Plays turns of the event loop; in each, `asks` says how many requests each replica gets. Stops after so many milliseconds. */
  async function load(asked: Asked, forMs: number, asks: (elapsedMs: number, turn: number) => [number, number]) {
    const told = replicas.map(() => new Map<bigint, number>())
    const admitted = [0, 0]
    const heard = [0, 0]
    const admittedAtMs: number[] = []
    const alone = new RateTable(1, () => {})
    const result = { admittedAtMs, aloneAdmits: 0, unheardMax: 0, travellingMax: 0, travelMaxMs: 0 }
    let perTurnMax = 0
    const sentAtMs = replicas.map(() => new Map<bigint, number>())
    for (const [index, replica] of replicas.entries()) {
      const other = replicas[1 - index]
      assert.ok(other)
      const use = ({ uses }: RateUsed) => uses.reduce((sum, { requests }) => sum + requests, 0)
      let name: string | undefined
      replica.onTold = ({ decider, sequence }) => {
        name = decider
        told[index]?.set(sequence, admitted[index] ?? 0)
        sentAtMs[index]?.set(sequence, performance.now())
      }
      other.onHeard = (message) => {
        const before = told[index]?.get(message.sequence)
        if (message.decider !== name || before === undefined) return
        heard[index] = (heard[index] ?? 0) + use(message)
        result.travellingMax = Math.max(result.travellingMax, (admitted[index] ?? 0) - before)
        const sent = sentAtMs[index]?.get(message.sequence) ?? 0
        result.travelMaxMs = Math.max(result.travelMaxMs, performance.now() - sent)
      }
    }
    const beganMs = performance.now()
    for (let turn = 0; performance.now() - beganMs < forMs; turn++) {
      for (const [index, times] of asks(performance.now() - beganMs, turn).entries()) {
        const replica = replicas[index]
        assert.ok(replica)
        perTurnMax = Math.max(perTurnMax, times)
        for (let n = 0; n < times; n++) {
          const nowMs = Date.now()
          if (alone.take('alone', WIDE, nowMs).conforms) result.aloneAdmits++
          if (!isAdmitted(replica, asked)) continue
          admittedAtMs.push(nowMs)
          admitted[index] = (admitted[index] ?? 0) + 1
          result.unheardMax = Math.max(result.unheardMax, (admitted[index] ?? 0) - (heard[index] ?? 0))
        }
      }
      await nextTurn()
    }
    for (const replica of replicas) replica.onTold = replica.onHeard = () => {}
    return { ...result, travellingMax: result.travellingMax + perTurnMax }
  }

  /** Times are whole milliseconds, taken beside those that the decision took. */
  const CLOCK_MS = 2

  function assertWithinBound({ admittedAtMs, unheardMax, travellingMax }: Awaited<ReturnType<typeof load>>): void {
    const intervalMs = (WIDE.perSeconds * 1000) / WIDE.requests
    const error = Math.max(1, WIDE.requests / 20) + travellingMax
    assert.ok(unheardMax <= error, `${unheardMax} were admitted and not heard of, more than ${error}`)
    for (const [first, fromMs] of admittedAtMs.entries()) {
      for (const [last, toMs] of admittedAtMs.entries()) {
        if (last < first) continue
        const most = WIDE.requests + (toMs - fromMs + CLOCK_MS) / intervalMs + (replicas.length - 1) * error
        assert.ok(last - first + 1 <= most, `${last - first + 1} in ${toMs - fromMs} ms, more than ${most}`)
      }
    }
  }

  function assertNoneTooFew({ admittedAtMs, aloneAdmits, travelMaxMs }: Awaited<ReturnType<typeof load>>): void {
    const intervalMs = (WIDE.perSeconds * 1000) / WIDE.requests
    // What becomes free while a message travels.
    const least = aloneAdmits - Math.ceil((travelMaxMs + CLOCK_MS) / intervalMs)
    assert.ok(admittedAtMs.length >= least, `${admittedAtMs.length} of ${aloneAdmits} that one alone admits`)
  }

  test('both under load admit as many as one alone would, and no more than the stated error beyond', async () => {
    const result = await load({ path: '/wide', from: newSource() }, 1200, () => [2, 2])
    assertWithinBound(result)
    assertNoneTooFew(result)
  })

  test('bursts on both at once stay within the bound, and what was too much is paid back', async () => {
    const bursts = (elapsedMs: number): [number, number] => (elapsedMs % 400 < 30 ? [20, 20] : [0, 0])
    const result = await load({ path: '/wide', from: newSource() }, 1200, bursts)
    assertWithinBound(result)
    assertNoneTooFew(result)
  })

  test('traffic that goes from one to the other finds the limit where it left it, also by client', async () => {
    const token = neighbours.issue('wanderer', [])
    for (const { decider } of replicas)
      assert.ok((await decider.decide(facts({ path: '/known', from: '::1', token }))).admitted)
    const wander = (elapsedMs: number): [number, number] => (elapsedMs % 100 < 50 ? [3, 0] : [0, 3])
    const result = await load({ path: '/known', from: newSource(), token }, 1200, wander)
    assertWithinBound(result)
    assertNoneTooFew(result)
  })

  test('a replica that hears nothing but itself admits its limit and no more or less', async () => {
    const [replica] = replicas
    const from = newSource()
    const heard = Promise.withResolvers<void>()
    const told = new Set<string>()
    replica.onTold = ({ decider, sequence }) => told.add(`${decider} ${sequence}`)
    replica.onHeard = ({ decider, sequence }) => told.has(`${decider} ${sequence}`) && heard.resolve()
    const ask = (times: number) => Array.from({ length: times }, () => isAdmitted(replica, { path: '/narrow', from }))
    const before = ask(5)
    await heard.promise
    replica.onTold = replica.onHeard = () => {}
    assert.equal([...before, ...ask(10)].filter(Boolean).length, NARROW.requests)
  })

  test('one that has used up its limit is refused by the other as soon as it heard', async () => {
    const [one, other] = replicas
    const from = newSource()
    const heard = Promise.withResolvers<void>()
    let uses = 0
    other.onHeard = (message) => {
      uses += message.uses.reduce((sum, { requests }) => sum + requests, 0)
      if (uses >= NARROW.requests) heard.resolve()
    }
    for (let n = 0; n < NARROW.requests; n++) assert.ok(isAdmitted(one, { path: '/narrow', from }))
    await heard.promise
    other.onHeard = () => {}
    assert.ok(!isAdmitted(other, { path: '/narrow', from }))
  })

  test('what proxies ask about limits alone is told too, and counted apart from what policies limit', async () => {
    const [one, other] = replicas
    const charge = { key: 'edge/address', limit: NARROW, hits: 4 }
    assert.ok(one.decider.rateLimits.rates.takeAll([charge], Date.now()).conforms)
    const left = () => other.decider.rateLimits.rates.left(charge, Date.now()).requests
    await eventually(() => left() === NARROW.requests - 4, { what: 'the other to hear' })
    const sizes = await other.registry.getSingleMetric('tollward_decision_entries')?.get()
    const size = sizes?.values.find(({ labels }) => labels.table === 'descriptor rates')?.value
    assert.equal(size, 1)
  })

  test('messages that never came are counted, those that come twice count once, and nonsense counts nothing', async () => {
    const [one, other] = replicas
    const from = newSource()
    const key = await keyOf(one, from)
    const missed = () => count(other, 'tollward_decision_rate_messages_missed_total')
    const unusable = () => count(other, 'tollward_decision_rate_uses_total', 'unusable')
    const [missedBefore, unusableBefore] = [await missed(), await unusable()]
    const bus = resources.use(await connectTestBus(neighbours.nats.url, 'authorizer'))
    const use = { key, requests: 3, limitRequests: 10, limitPerSeconds: 60, table: Table.SOURCES }
    const tell = (sequence: bigint, uses: object[]) =>
      bus.broadcast(RATES, create(RateUsedSchema, { decider: 'stranger', sequence, uses }))
    const last = Promise.withResolvers<void>()
    other.onHeard = ({ sequence }) => sequence === 9n && last.resolve()
    tell(1n, [use])
    tell(1n, [use])
    tell(5n, [
      { ...use, table: Table.UNSPECIFIED },
      { ...use, requests: 0 },
      { ...use, limitRequests: 0 },
      { ...use, limitPerSeconds: 4_000_000_000 },
      { ...use, key: 'k'.repeat(2000) },
    ])
    tell(
      9n,
      Array.from({ length: RATES_PER_MESSAGE_MAX + 1 }, () => ({ ...use, requests: 0 })),
    )
    await last.promise
    other.onHeard = () => {}
    assert.equal((await missed()) - missedBefore, 6)
    assert.equal((await unusable()) - unusableBefore, 5 + RATES_PER_MESSAGE_MAX + 1)
    // One by the look at the key, three by the stranger.
    const left = Array.from({ length: 10 }, () => isAdmitted(other, { path: '/narrow', from })).filter(Boolean).length
    assert.equal(left, NARROW.requests - 1 - 3)
  })

  test('a flood of keys floods neither the bus nor the memory, and what is not told is counted', async () => {
    const [flooded] = replicas
    const uses = (result: string) => count(flooded, 'tollward_decision_rate_uses_total', result)
    const [toldBefore, lostBefore] = [await uses('told'), await uses('lost')]
    const { rates } = flooded.decider.rateLimits
    const [atOnce, overTime] = [RATES_UNTOLD_MAX + 5000, 100_000]
    const floodOf = atOnce + overTime
    const beganMs = performance.now()
    for (let n = 0; n < floodOf; n++) {
      rates.takeAll([{ key: `flood ${n}`, limit: WIDE }], Date.now())
      if (n >= atOnce && n % 1000 === 0) await nextTurn()
    }
    const told = await eventually(
      async () => {
        const told = (await uses('told')) - toldBefore
        return told + (await uses('lost')) - lostBefore === floodOf && told
      },
      { what: 'all to be told or given up' },
    )
    const most = RATES_TOLD_LIMIT.requests * (1 + (performance.now() - beganMs) / 1000)
    assert.ok(told <= most, `${told}, more than ${most}`)
    assert.ok(told <= floodOf - 5000, 'what was too much at once was given up')
  })

  test('without the bus each limits by itself, which is counted, and together again when it is back', async () => {
    const [one, other] = replicas
    const lost = () => count(one, 'tollward_decision_rate_uses_total', 'lost')
    const before = await lost()
    await neighbours.nats.stop()
    try {
      await eventually(() => !one.bus.connected && !other.bus.connected, { what: 'the loss to be noticed' })
      const from = newSource()
      const admitted = replicas.map(
        (replica) =>
          Array.from({ length: 15 }, () => isAdmitted(replica, { path: '/narrow', from })).filter(Boolean).length,
      )
      assert.deepEqual(admitted, [NARROW.requests, NARROW.requests])
      await eventually(async () => (await lost()) > before, { what: 'the loss to be counted' })
    } finally {
      await neighbours.nats.start()
    }
    await eventually(() => one.bus.connected && other.bus.connected, { what: 'the bus to be back' })
    const from = newSource()
    await eventually(
      async () => {
        isAdmitted(one, { path: '/wide', from })
        await nextTurn()
        const fresh = newSource()
        for (let n = 0; n < NARROW.requests; n++) isAdmitted(one, { path: '/narrow', from: fresh })
        await eventually(() => !isAdmitted(other, { path: '/narrow', from: fresh }), {
          what: 'a refusal',
          timeoutMs: 200,
        })
        return true
      },
      { what: 'one to hear the other again' },
    )
  })

  /** The key under which a source is counted on /narrow; looking takes one request, and waits until the others have heard of it. */
  async function keyOf(replica: Replica, from: string): Promise<string> {
    const [key, heard] = [Promise.withResolvers<string>(), Promise.withResolvers<void>()]
    replica.onTold = ({ uses }) => uses[0] && key.resolve(uses[0].key)
    for (const other of replicas) if (other !== replica) other.onHeard = ({ decider }) => decider && heard.resolve()
    assert.ok(isAdmitted(replica, { path: '/narrow', from }))
    const found = await key.promise
    await heard.promise
    for (const each of replicas) each.onTold = each.onHeard = () => {}
    return found
  }
})

function isAdmitted({ decider }: Replica, asked: Asked): boolean {
  const decision = decider.decide(facts(asked))
  assert.ok(!(decision instanceof Promise), 'decided from memory')
  assert.ok(decision.admitted || decision.status === 429, decision.admitted ? '' : decision.reason)
  return decision.admitted
}

function facts({ path, from, token }: Asked) {
  const address = parseAddress(from)
  assert.ok(address)
  const headers = token === undefined ? [] : ['Authorization', `Bearer ${token}`]
  return { method: 'GET', scheme: 'https', host: 'api.example', target: path, address, headers } as const
}

async function count({ registry }: Replica, name: string, result?: string): Promise<number> {
  const values = (await registry.getSingleMetric(name)?.get())?.values ?? []
  return values.find(({ labels }) => labels.result === result)?.value ?? 0
}
