import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { Agent, request } from 'node:http'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { jetstreamManager } from '@nats-io/jetstream'
import { connect, nkeyAuthenticator } from '@nats-io/transport-node'
import { DURABLES } from '@tollward/bus'
import { enterOwnNetwork } from '@tollward/testkit'
import { type LocalStack, programs, startLocalStack } from '../e2e/local-stack.ts'
import { flood } from '../scenario/attack.ts'
import { type Customer, LOCAL } from '../scenario/customer.ts'

const ATTACKER = '127.0.0.66'
const STEADY = '127.0.0.10'
const BURSTING = '127.0.0.20'
const SHARED = '127.0.0.30'
const HONEST = [STEADY, BURSTING, SHARED]

const LOAD_SHARE = 0.7
const CALIBRATION_MS = 5000
const STEADY_CONNECTIONS = 16
const BURST_EVERY_MS = 15_000
const BURST_CONNECTIONS = 60
const SHARED_CUSTOMERS = 8
const SHARED_PAUSE_MS = 100
const ATTACK_EVERY_MS = 30_000
const ATTACK_CONNECTIONS_MAX = 20_000
const SAMPLE_EVERY_MS = 10_000

/**
 * Beyond this growth from the second third to the last, memory is not level. In a run of 30 minutes the first third fills the
 * memory stream of observations, which keeps ten.
 */
const MEMORY_GROWTH_MAX = 0.25
/** What stays on disk of an hour at most: state is bounded by its streams, logs by their size. */
const DISK_BYTES_PER_MINUTE_MAX = 8 * 1024 * 1024
const LAG_MAX = 500

/** Prices that a soak can pay once, and no limit that the load itself would meet. */
const DOCUMENTS = `apiVersion: tollward.dev/v1
kind: Plan
metadata: { name: orders }
spec: { priceSats: 10000, requests: 100000000, confirmations: 1, payWithin: 15m, confirmWithin: 2h }
---
apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: example }
spec:
  hosts: ["*"]
  rules:
    - { name: public, match: { methods: [GET], path: /public }, anonymous: true }
    - name: orders
      match: { methods: [GET, POST], path: /orders }
      require: { token: { scopes: [orders] }, payment: { plan: orders } }
`

interface Sample {
  readonly atMs: number
  /** Resident memory of each program, bytes. */
  readonly memory: ReadonlyMap<string, number>
  readonly diskBytes: number
  readonly lag: number
}

/**
 * Runs the stack at 70 % of what it can do, with honest bursts, several clients behind one address and one attacker, and sees
 * that no honest source is blocked, and that memory, disk and consumer lag stay level. Needs root: the sensor is part of it.
 */
export async function soakStack(minutes: number): Promise<boolean> {
  enterOwnNetwork()
  await using stack = await startLocalStack()
  await stack.tollward(['apply', '-f', '-'], DOCUMENTS)
  const steady = await stack.payingCustomer('steady')
  const bursting = await stack.payingCustomer('bursting')
  const shared = await Promise.all(
    Array.from({ length: SHARED_CUSTOMERS }, (_, index) => stack.payingCustomer(`shared-${index}`)),
  )
  const counts = new Map<string, number>()
  const count = (who: string, status: number | string) =>
    counts.set(`${who} ${status}`, (counts.get(`${who} ${status}`) ?? 0) + 1)

  const capacity = await calibrate(steady, count)
  const perSecond = capacity * LOAD_SHARE
  process.stdout.write(
    `capacity ${capacity.toFixed(0)} requests/s; soaking at ${perSecond.toFixed(0)}/s for ${minutes} min\n`,
  )
  counts.clear()

  const endMs = performance.now() + minutes * 60_000
  const running = () => performance.now() < endMs
  const samples: Sample[] = []
  const blockedHonest = new Set<string>()
  let attacks = 0
  let attacksBlocked = 0
  await Promise.all([
    pacedLoad(steady, perSecond, running, count),
    every(BURST_EVERY_MS, running, () => burst(bursting, count)),
    ...shared.map((customer) =>
      every(SHARED_PAUSE_MS, running, () => callOnce(customer, SHARED, new Agent(), 'shared', count)),
    ),
    every(ATTACK_EVERY_MS, running, async () => {
      attacks += 1
      const met = await flood(ATTACKER, '127.0.0.1', 8080, ATTACK_CONNECTIONS_MAX, 32)
      if (met.silentAfterMs !== undefined) attacksBlocked += 1
      await stack.tollward(['blocks', 'remove', ATTACKER])
    }),
    every(SAMPLE_EVERY_MS, running, async () => {
      samples.push(await sample(stack))
      const blocks = await stack.tollward<{ cidr: string }[]>(['blocks', 'list'])
      for (const { cidr } of blocks) if (cidr !== ATTACKER) blockedHonest.add(cidr)
      await keepTokens([steady, bursting, ...shared])
      report(samples, counts)
    }),
  ])
  return verdict({ samples, counts, blockedHonest, attacks, attacksBlocked })
}

type Count = (who: string, status: number | string) => void

/** How many requests a second the gateway answers when as many connections as the load has ask without a pause. */
async function calibrate(customer: Customer, count: Count): Promise<number> {
  const agent = new Agent({ keepAlive: true, maxSockets: STEADY_CONNECTIONS })
  const endMs = performance.now() + CALIBRATION_MS
  let done = 0
  const worker = async () => {
    while (performance.now() < endMs) {
      await callOnce(customer, STEADY, agent, 'steady', count)
      done += 1
    }
  }
  await Promise.all(Array.from({ length: STEADY_CONNECTIONS }, worker))
  agent.destroy()
  return done / (CALIBRATION_MS / 1000)
}

/** An open load: what is due is sent whether or not earlier answers came, up to the connections there are. */
async function pacedLoad(customer: Customer, perSecond: number, running: () => boolean, count: Count): Promise<void> {
  const agent = new Agent({ keepAlive: true, maxSockets: STEADY_CONNECTIONS })
  const startMs = performance.now()
  let sent = 0
  const open = new Set<Promise<void>>()
  while (running()) {
    const due = ((performance.now() - startMs) / 1000) * perSecond
    while (sent < due && open.size < STEADY_CONNECTIONS * 4) {
      sent += 1
      const call = callOnce(customer, STEADY, agent, 'steady', count).finally(() => open.delete(call))
      open.add(call)
    }
    if (sent < due - perSecond) sent = due - perSecond
    await pause(2)
  }
  await Promise.all(open)
  agent.destroy()
}

async function burst(customer: Customer, count: Count): Promise<void> {
  await Promise.all(
    Array.from({ length: BURST_CONNECTIONS }, () => callOnce(customer, BURSTING, new Agent(), 'burst', count)),
  )
}

function callOnce(customer: Customer, from: string, agent: Agent, who: string, count: Count): Promise<void> {
  return new Promise((resolve) => {
    const headers = { authorization: `Bearer ${customer.token}`, 'x-bitcoin-txid': customer.txid ?? '' }
    const outgoing = request(
      `${LOCAL.gateway}/orders`,
      { agent, localAddress: from, headers, timeout: 10_000 },
      (incoming) => {
        incoming.resume()
        incoming.on('end', () => {
          count(who, incoming.statusCode ?? 0)
          resolve()
        })
      },
    )
    outgoing.on('timeout', () => outgoing.destroy(new Error('no answer')))
    outgoing.on('error', (error: NodeJS.ErrnoException) => {
      count(who, error.code ?? error.message)
      resolve()
    })
    outgoing.end()
  })
}

async function every(intervalMs: number, running: () => boolean, act: () => Promise<unknown>): Promise<void> {
  while (running()) {
    const startMs = performance.now()
    await act()
    await pause(Math.max(0, intervalMs - (performance.now() - startMs)))
  }
}

const tokenSince = new Map<Customer, number>()

/** Tokens last ten minutes; each customer gets a new one in good time. */
async function keepTokens(customers: readonly Customer[]): Promise<void> {
  for (const customer of customers) {
    const since = tokenSince.get(customer) ?? 0
    if (performance.now() - since < 5 * 60_000 && since !== 0) continue
    await customer.getToken()
    tokenSince.set(customer, performance.now())
  }
}

async function sample(stack: LocalStack): Promise<Sample> {
  const memory = new Map<string, number>()
  for (const { pid, commandLine } of programs(stack.state)) {
    const name =
      /services\/([^/]+)\//.exec(commandLine)?.[1] ?? /(nats-server|bitcoind|example-api)/.exec(commandLine)?.[1]
    if (name === undefined) continue
    try {
      const kilobytes = /^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]
      memory.set(name, Number(kilobytes) * 1024)
    } catch {
      // A command that the sampling itself ran has ended.
    }
  }
  const diskBytes = Number(execFileSync('du', ['-sb', stack.state], { encoding: 'utf8' }).split('\t')[0])
  return { atMs: performance.now(), memory, diskBytes, lag: await consumerLag(stack) }
}

async function consumerLag(stack: LocalStack): Promise<number> {
  const seed = readFileSync(join(stack.state, 'keys/nats/provisioner.nk'))
  const connection = await connect({ servers: '127.0.0.1:4222', authenticator: nkeyAuthenticator(seed) })
  try {
    const manager = await jetstreamManager(connection)
    const lags = await Promise.all(
      Object.entries(DURABLES)
        // Nobody pulls the SIEM's findings here; they are kept for it.
        .filter(([name]) => name !== 'siem-default')
        .map(async ([name, { stream }]) => Number((await manager.consumers.info(stream, name)).num_pending)),
    )
    return Math.max(...lags)
  } finally {
    await connection.close()
  }
}

function report(samples: readonly Sample[], counts: ReadonlyMap<string, number>): void {
  const last = samples.at(-1)
  const first = samples[0]
  if (!last || !first) return
  const memory = [...last.memory].map(([name, bytes]) => `${name} ${(bytes / 2 ** 20).toFixed(0)}`).join(', ')
  process.stdout.write(
    `${((last.atMs - first.atMs) / 60_000).toFixed(1)} min  ${[...counts].map(([key, value]) => `${key} ×${value}`).join(', ')}  MiB: ${memory}  disk ${(last.diskBytes / 2 ** 20).toFixed(0)} MiB  lag ${last.lag}\n`,
  )
}

function verdict(result: {
  samples: readonly Sample[]
  counts: ReadonlyMap<string, number>
  blockedHonest: ReadonlySet<string>
  attacks: number
  attacksBlocked: number
}): boolean {
  const faults: string[] = []
  const { samples, counts, blockedHonest, attacks, attacksBlocked } = result
  for (const cidr of blockedHonest)
    faults.push(`${cidr} was blocked${HONEST.includes(cidr) ? ', an honest source' : ''}`)
  for (const [key, value] of counts)
    if (!key.endsWith(' 200')) faults.push(`an honest request was not served: ${key} ×${value}`)
  if (attacksBlocked < attacks) faults.push(`only ${attacksBlocked} of ${attacks} attacks were dropped`)
  const third = Math.floor(samples.length / 3)
  assert.ok(third > 0, 'too short to tell anything')
  const [early, late] = [samples.slice(third, 2 * third), samples.slice(-third)]
  for (const name of samples[0]?.memory.keys() ?? []) {
    const growth = median(late, name) / median(early, name) - 1
    process.stdout.write(
      `memory of ${name}: ${(median(late, name) / 2 ** 20).toFixed(0)} MiB, ${(growth * 100).toFixed(1)} % more than early on\n`,
    )
    if (growth > MEMORY_GROWTH_MAX) faults.push(`memory of ${name} grew by ${(growth * 100).toFixed(0)} %`)
  }
  const [from, to] = [early[0], late.at(-1)]
  if (from && to) {
    const perMinute = (to.diskBytes - from.diskBytes) / ((to.atMs - from.atMs) / 60_000)
    process.stdout.write(
      `disk: ${(perMinute / 2 ** 20).toFixed(2)} MiB a minute; attacks dropped: ${attacksBlocked} of ${attacks}\n`,
    )
    if (perMinute > DISK_BYTES_PER_MINUTE_MAX)
      faults.push(`the disk fills by ${(perMinute / 2 ** 20).toFixed(1)} MiB a minute`)
  }
  const lag = Math.max(...late.map((one) => one.lag))
  if (lag > LAG_MAX) faults.push(`consumers lag by ${lag} messages`)
  for (const fault of faults) process.stdout.write(`✖ ${fault}\n`)
  if (faults.length === 0)
    process.stdout.write('✔ no honest source was blocked or refused; memory, disk and consumer lag are level\n')
  return faults.length === 0
}

function median(samples: readonly Sample[], name: string): number {
  const values = samples.map(({ memory }) => memory.get(name) ?? 0).sort((a, b) => a - b)
  return values[values.length >> 1] ?? 0
}
