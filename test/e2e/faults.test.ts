import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { after, before, test } from 'node:test'
import { enterOwnNetwork, eventually, requires } from '@tollward/testkit'
import { type Customer, LOCAL } from '../scenario/customer.ts'
import { send } from '../scenario/http.ts'
import { type LocalStack, startLocalStack } from './local-stack.ts'

const skip = await requires({ tools: ['nats-server', 'bitcoind'] })
if (process.getuid?.() === 0) enterOwnNetwork()

const BACK_WITHIN_MS = 5000
const BUS_DOWN_MS = 20_000
const PAUSE_MS = 15
const BLOCKED = '127.0.0.88'
const ORDERS = `${LOCAL.gateway}/orders`

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
  customer = await stack.payingCustomer('payer')
  await eventually(async () => (await customer.call(ORDERS)).status === 200, { what: 'the paid request' })
  await stack.tollward(['blocks', 'add', BLOCKED, '--ttl', '10m', '--reason', 'test'])
})
after(() => stack?.[Symbol.asyncDispose]())

/** Requests that must get through and requests that must not, side by side, until ended. */
function keepAsking() {
  const seen: Record<'paid' | 'unknown' | 'blocked', Map<number | string, number>> = {
    paid: new Map(),
    unknown: new Map(),
    blocked: new Map(),
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
  ])
  const end = async () => {
    ended.abort()
    await asking
    return seen
  }
  return { seen, end, [Symbol.asyncDispose]: async () => void (await end()) }
}

function statuses(seen: ReadonlyMap<number | string, number>): string {
  return [...seen].map(([status, count]) => `${status} ×${count}`).join(', ')
}

async function publishedFlows(): Promise<number> {
  const { body } = await send('http://127.0.0.1:9406/metrics')
  return Number(/^tollward_node_sensor_flows_total\{result="published"\} (\d+)/m.exec(body)?.[1])
}

function assertNothingGotThrough({ unknown, blocked }: ReturnType<typeof keepAsking>['seen']): void {
  for (const who of [unknown, blocked]) {
    for (const status of who.keys())
      assert.ok(status === 'no answer' || Number(status) >= 400, `got through with ${status}`)
  }
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
    await eventually(async () => (await customer.call(ORDERS)).status === 200, {
      what: 'paid requests to be served again',
    })
    const seen = await asking.end()
    t.diagnostic(
      `back after ${backAfterMs.toFixed(0)} ms; paid: ${statuses(seen.paid)}; unknown: ${statuses(seen.unknown)}; blocked: ${statuses(seen.blocked)}`,
    )
    assertNothingGotThrough(seen)
    assert.ok(backAfterMs < BACK_WITHIN_MS, `it took ${backAfterMs.toFixed(0)} ms`)
    assert.equal((await stack.tollward<unknown[]>(['passes'])).length, passes.length)
    const blocks = await stack.tollward<{ cidr: string }[]>(['blocks', 'list'])
    assert.ok(
      blocks.some(({ cidr }) => cidr === BLOCKED),
      'the block is gone',
    )
  })
}

test('nats-server gone for 20 s: everything recovers by itself, nothing acknowledged is lost, nothing let through', {
  skip,
}, async (t) => {
  const invoice = await customer.getInvoice('orders')
  const passes = await stack.tollward<unknown[]>(['passes'])
  const pid = stack.pidOf('nats-server')
  assert.ok(pid)
  let publishedBefore = 0
  await using asking = keepAsking()
  // Stopped, not killed: the supervisor would have it back at once.
  process.kill(pid, 'SIGSTOP')
  await new Promise((resolve) => setTimeout(resolve, BUS_DOWN_MS))
  process.kill(pid, 'SIGKILL')
  if (sensorIsOn) publishedBefore = await publishedFlows()
  for (const [name, port] of Object.entries(HEALTH)) {
    if (name === 'node-sensor' && !sensorIsOn) continue
    await eventually(async () => (await fetch(`http://127.0.0.1:${port}/healthz/ready`)).ok, {
      what: `${name} to be ready again`,
      timeoutMs: 30_000,
    })
  }
  await eventually(async () => (await customer.call(ORDERS)).status === 200, {
    what: 'paid requests to be served again',
    timeoutMs: 30_000,
  })
  // Flows are in a memory stream, which a restarted server has forgotten.
  if (sensorIsOn)
    await eventually(async () => (await publishedFlows()) > publishedBefore, { what: 'flows to be published again' })
  const seen = await asking.end()
  t.diagnostic(`paid: ${statuses(seen.paid)}; unknown: ${statuses(seen.unknown)}; blocked: ${statuses(seen.blocked)}`)
  assertNothingGotThrough(seen)
  assert.equal((await stack.tollward<unknown[]>(['passes'])).length, passes.length)
  const invoices = await stack.tollward<{ invoiceId: string }[]>(['invoices'])
  assert.ok(
    invoices.some(({ invoiceId }) => invoiceId === invoice.id),
    'an acknowledged invoice is gone',
  )
  const blocks = await stack.tollward<{ cidr: string }[]>(['blocks', 'list'])
  assert.ok(
    blocks.some(({ cidr }) => cidr === BLOCKED),
    'the block is gone',
  )
  for (const name of Object.keys(HEALTH)) {
    if (name === 'node-sensor' && !sensorIsOn) continue
    assert.doesNotMatch(
      readFileSync(`${stack.state}/logs/${name}.log`, 'utf8'),
      /"level":"fatal"/,
      `${name} failed meanwhile`,
    )
  }
})
