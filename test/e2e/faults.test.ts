import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, beforeEach, test } from 'node:test'
import { enterOwnNetwork, eventually, requires } from '@tollward/testkit'
import { flood } from '../scenario/attack.ts'
import { type Customer, LOCAL } from '../scenario/customer.ts'
import { send } from '../scenario/http.ts'
import { type Finding, isFindingOf } from '../scenario/siem.ts'
import { type LocalStack, startLocalStack } from './local-stack.ts'

const skip = await requires({ tools: ['nats-server', 'bitcoind'] })
if (process.getuid?.() === 0) enterOwnNetwork()

const BACK_WITHIN_MS = 5000
const SERVED_WITHIN_MS = 10_000
const BUS_DOWN_MS = 20_000
const PAUSE_MS = 15
const BLOCKED = '127.0.0.88'
const FLOOD_CONNECTIONS_MAX = 40_000
const FLOOD_AT_ONCE = 16
/** Once while nothing is decided yet, and again among what is being decided. */
const KILLS_IN_FLOODS = 3
const ORDERS = `${LOCAL.gateway}/orders`

/** What a proxy in front says of an anonymous request of the blocked address. */
const FORWARDED_PUBLIC = {
  'x-forwarded-for': BLOCKED,
  'x-forwarded-method': 'GET',
  'x-forwarded-proto': 'http',
  'x-forwarded-host': 'api.example',
  'x-forwarded-uri': '/public',
}

const HEALTH = {
  'auth-issuer': 9400,
  'token-introspector': 9401,
  'payment-verifier': 9402,
  authorizer: 9403,
  'sensor-ingest': 9404,
  'alert-router': 9405,
  'node-sensor': 9406,
  'admin-api': 9407,
  gateway: 9408,
} as const

let stack: LocalStack
let customer: Customer
let sensorIsOn = false

before(async () => {
  if (skip !== false) return
  stack = await startLocalStack()
  sensorIsOn = stack.pidOf('services/node-sensor/') !== undefined
  customer = await stack.customer('payer')
  await stack.tollward(['blocks', 'add', BLOCKED, '--ttl', '10m', '--reason', 'test'])
})
// How often the customer asks depends on the machine: the requests of one pass must do for one test only.
beforeEach(async () => {
  if (skip !== false) return
  await stack.buyPass(customer)
  await served()
})
after(() => stack?.[Symbol.asyncDispose]())

/** Settles when a request of the paying customer is served; otherwise says what the last one was told. */
async function served(timeoutMs = SERVED_WITHIN_MS): Promise<void> {
  const ask = async () => {
    const { status } = await customer.call(ORDERS)
    assert.equal(status, 200)
    return true
  }
  await eventually(ask, { what: 'paid requests to be served', timeoutMs })
}

/** Requests that must get through and requests that must not, side by side, until ended. */
function keepAsking() {
  const seen: Record<'paid' | 'unknown' | 'blocked' | 'forwarded', Map<number | string, number>> = {
    paid: new Map(),
    unknown: new Map(),
    blocked: new Map(),
    forwarded: new Map(),
  }
  const ended = new AbortController()
  const ask = async (who: keyof typeof seen, request: () => ReturnType<typeof send>) => {
    const status = await request().then(
      (answer) => answer.status,
      () => 'no answer' as const,
    )
    seen[who].set(status, (seen[who].get(status) ?? 0) + 1)
  }
  const keep = async (who: keyof typeof seen, request: () => ReturnType<typeof send>) => {
    while (!ended.signal.aborted) {
      await ask(who, request)
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS))
    }
  }
  const asking = Promise.all([
    keep('paid', () => customer.call(ORDERS)),
    keep('unknown', () => send(ORDERS, { headers: { authorization: 'Bearer unknown-token' } })),
    keep('blocked', () => send(ORDERS, { from: BLOCKED, timeoutMs: 200 })),
    // Where the sensor is on, the kernel drops what comes from the address itself: this one meets layer 7.
    keep('forwarded', () => send(LOCAL.forwardAuth, { headers: FORWARDED_PUBLIC })),
  ])
  const end = async () => {
    ended.abort()
    await asking
    return seen
  }
  return { seen, end, [Symbol.asyncDispose]: async () => void (await end()) }
}

function described(seen: ReturnType<typeof keepAsking>['seen']): string {
  return Object.entries(seen)
    .map(([who, met]) => `${who}: ${[...met].map(([status, count]) => `${status} ×${count}`).join(', ')}`)
    .join('; ')
}

async function publishedFlows(): Promise<number> {
  const { body } = await send('http://127.0.0.1:9406/metrics')
  return Number(/^tollward_node_sensor_flows_total\{result="published"\} (\d+)/m.exec(body)?.[1])
}

function assertNothingGotThrough({ unknown, blocked, forwarded }: ReturnType<typeof keepAsking>['seen']): void {
  for (const who of [unknown, blocked, forwarded]) {
    for (const status of who.keys())
      assert.ok(status === 'no answer' || Number(status) >= 400, `got through with ${status}`)
  }
  assert.ok(forwarded.has(403), 'the block was never met at layer 7')
}

/** Every service that this run of the stack has, ready. */
async function allReady(timeoutMs: number): Promise<void> {
  for (const [name, port] of Object.entries(HEALTH)) {
    if (name === 'node-sensor' && !sensorIsOn) continue
    await eventually(async () => (await fetch(`http://127.0.0.1:${port}/healthz/ready`)).ok, {
      what: `${name} to be ready`,
      timeoutMs,
    })
  }
}

function blocksInForce(): Promise<{ cidr: string; expiresAt: string }[]> {
  return stack.tollward(['blocks', 'list'])
}

async function findings(): Promise<Finding[]> {
  const rows = await stack.tollward<{ finding: Finding }[]>(['alerts', '--since', '1h', '--limit', '1000'])
  return rows.map(({ finding }) => finding)
}

for (const [name, port] of Object.entries(HEALTH)) {
  test(`${name} killed: back within 5 s, nothing lost, nothing let through`, { skip }, async (t) => {
    if (name === 'node-sensor' && !sensorIsOn) return t.skip('missing: root')
    const passes = await stack.tollward<unknown[]>(['passes'])
    const before = stack.pidOf(`services/${name}/`)
    assert.ok(before, `${name} does not run`)
    await using asking = keepAsking()
    const startMs = performance.now()
    process.kill(before, 'SIGKILL')
    await eventually(
      async () => {
        const pid = stack.pidOf(`services/${name}/`)
        return pid !== undefined && pid !== before && (await fetch(`http://127.0.0.1:${port}/healthz/ready`)).ok
      },
      { what: `${name} to be ready again`, timeoutMs: 15_000 },
    )
    const backAfterMs = performance.now() - startMs
    await served()
    await eventually(() => asking.seen.forwarded.has(403), { what: 'the block to be met at layer 7' })
    const seen = await asking.end()
    t.diagnostic(`back after ${backAfterMs.toFixed(0)} ms; ${described(seen)}`)
    assertNothingGotThrough(seen)
    assert.ok(backAfterMs < BACK_WITHIN_MS, `it took ${backAfterMs.toFixed(0)} ms`)
    assert.equal((await stack.tollward<unknown[]>(['passes'])).length, passes.length)
    assert.ok(
      (await blocksInForce()).some(({ cidr }) => cidr === BLOCKED),
      'the block is gone',
    )
  })
}

for (const [index, name] of (['node-sensor', 'sensor-ingest', 'alert-router'] as const).entries()) {
  test(`${name} killed again and again among floods: each source is blocked, each block is told exactly once`, {
    skip,
  }, async (t) => {
    if (!sensorIsOn) return t.skip('missing: root')
    const sources = [1, 2, 3].map((host) => `127.0.${100 + index}.${host}`)
    const floods = Promise.all(
      sources.map((source) => flood(source, '127.0.0.1', 8080, FLOOD_CONNECTIONS_MAX, FLOOD_AT_ONCE)),
    )
    for (let kills = 0; kills < KILLS_IN_FLOODS; kills += 1) {
      const pid = await eventually(() => stack.pidOf(`services/${name}/`), { what: `${name} to run` })
      process.kill(pid, 'SIGKILL')
      await eventually(() => stack.pidOf(`services/${name}/`) !== pid, { what: `${name} to have ended` })
    }
    const met = await floods
    t.diagnostic(
      met.map(({ connected, silentAfterMs }) => `${connected} in ${silentAfterMs?.toFixed(0)} ms`).join('; '),
    )
    for (const { silentAfterMs } of met) assert.ok(silentAfterMs !== undefined, 'a flood went on to its end')
    await allReady(15_000)
    const blocks = await blocksInForce()
    for (const source of sources) {
      assert.ok(
        blocks.some(({ cidr }) => cidr === source),
        `${source} is not blocked`,
      )
      const told = await eventually(
        async () => {
          const found = (await findings()).filter((finding) => isFindingOf(finding, 'connection-flood', source))
          return found.length > 0 && found
        },
        { what: `the finding about ${source}`, timeoutMs: 30_000 },
      )
      assert.equal(told.length, 1, `${source} was told ${told.length} times`)
    }
  })
}

/** Each takes nats-server away and gives the way to have it back. */
const OUTAGES = {
  frozen: (pid: number) => {
    process.kill(pid, 'SIGSTOP')
    return () => process.kill(pid, 'SIGKILL')
  },
  // It cannot start while its configuration is none, however often the supervisor tries: connections are refused.
  gone: (pid: number) => {
    const file = join(stack.state, 'nats/nats.conf')
    const configuration = readFileSync(file)
    writeFileSync(file, 'no configuration {')
    process.kill(pid, 'SIGKILL')
    return () => writeFileSync(file, configuration)
  },
}

for (const [how, takeAway] of Object.entries(OUTAGES)) {
  test(`nats-server ${how} for 20 s: everything recovers by itself, nothing acknowledged is lost, nothing let through`, {
    skip,
  }, async (t) => {
    const invoice = await customer.getInvoice('orders')
    const passes = await stack.tollward<unknown[]>(['passes'])
    const blocksBefore = await blocksInForce()
    const toldBefore = await findings()
    const pid = stack.pidOf('nats-server')
    assert.ok(pid)
    await using asking = keepAsking()
    const giveBack = takeAway(pid)
    await new Promise((resolve) => setTimeout(resolve, BUS_DOWN_MS))
    const publishedBefore = sensorIsOn ? await publishedFlows() : 0
    giveBack()
    const startMs = performance.now()
    await eventually(() => ![undefined, pid].includes(stack.pidOf('nats-server')), { what: 'nats-server to run again' })
    await allReady(30_000)
    await served(30_000)
    const backAfterMs = performance.now() - startMs
    // Flows are in a memory stream, which a restarted server has forgotten.
    if (sensorIsOn)
      await eventually(async () => (await publishedFlows()) > publishedBefore, { what: 'flows to be published again' })
    const seen = await asking.end()
    t.diagnostic(`back ${backAfterMs.toFixed(0)} ms after it could start; ${described(seen)}`)
    assertNothingGotThrough(seen)
    assert.equal((await stack.tollward<unknown[]>(['passes'])).length, passes.length)
    const invoices = await stack.tollward<{ invoiceId: string }[]>(['invoices'])
    assert.ok(
      invoices.some(({ invoiceId }) => invoiceId === invoice.id),
      'an acknowledged invoice is gone',
    )
    const blocks = new Set((await blocksInForce()).map(({ cidr }) => cidr))
    for (const { cidr, expiresAt } of blocksBefore)
      assert.ok(blocks.has(cidr) || Date.parse(expiresAt) < Date.now(), `the block of ${cidr} is gone`)
    assert.ok(blocks.has(BLOCKED), 'the block is gone')
    const told = new Set((await findings()).map(({ finding_info }) => finding_info.uid))
    for (const { finding_info } of toldBefore) assert.ok(told.has(finding_info.uid), 'an acknowledged finding is gone')
    for (const name of Object.keys(HEALTH)) {
      if (name === 'node-sensor' && !sensorIsOn) continue
      assert.doesNotMatch(
        readFileSync(`${stack.state}/logs/${name}.log`, 'utf8'),
        /"level":"fatal"/,
        `${name} failed meanwhile`,
      )
    }
  })
}
