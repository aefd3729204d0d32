import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { bucketContract } from '@tollward/contracts'
import { PassSchema } from '@tollward/contracts/payment'
import { eventually, requires } from '@tollward/testkit'
import { type PaidAccess, startPaidAccess } from '../scenario/paid-access.ts'

const skip = await requires({ tools: ['nats-server', 'bitcoind'] })

/** Longer than a busy machine may leave a decision point without a turn, so that only those lapse that were killed. */
const LEASE_LASTS_MS = 4_000
const BOUGHT = 2_000
/** Seven services are started again on the way, on a machine that may run other tests beside. */
const PATIENCE_MS = 120_000
const DOCUMENTS = `
apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: paid }
spec:
  hosts: ["*"]
  rules:
    - { name: some, match: { path: /some }, require: { token: { scopes: [orders] }, payment: { plan: some } } }
    - { name: many, match: { path: /many }, require: { token: { scopes: [orders] }, payment: { plan: many } } }
---
apiVersion: tollward.dev/v1
kind: Plan
metadata: { name: some }
spec: { priceSats: 10000, requests: ${BOUGHT}, confirmations: 1, payWithin: 15m, confirmWithin: 2h }
---
apiVersion: tollward.dev/v1
kind: Plan
metadata: { name: many }
spec: { priceSats: 10000, requests: 100000, confirmations: 1, payWithin: 15m, confirmWithin: 2h }
`

let access: PaidAccess
before(async () => {
  if (skip === false) access = await startPaidAccess(DOCUMENTS, LEASE_LASTS_MS)
})
after(() => access?.[Symbol.asyncDispose]())

const passes = () => access.neighbours.bus.bucket(bucketContract(PassSchema)).entries()

test('ten thousand redemptions of one transaction at once, by its owner and by thieves: one pass, and nothing for a thief', {
  skip,
}, async () => {
  const { neighbours, authorizers } = access
  const owner = neighbours.issue('owner', ['orders'])
  const { txid } = await access.buy(owner, 'many')
  const thieves = Array.from({ length: 500 }, (_, index) => neighbours.issue(`thief-${index}`, ['orders']))
  let waiting = Array.from({ length: 10_000 }, (_, index) => {
    const token = index % 2 === 0 ? owner : (thieves[(index >> 1) % thieves.length] ?? '')
    return { token, point: authorizers[(index >> 2) % 2] }
  })
  const statuses = { owner: new Map<number, number>(), thieves: new Map<number, number>() }
  const settle = async () => {
    const answers = await Promise.all(
      waiting.map(async (asked) => ({ asked, status: (await asked.point?.status('/many', asked.token, txid)) ?? 0 })),
    )
    for (const { asked, status } of answers) {
      const counted = asked.token === owner ? statuses.owner : statuses.thieves
      if (status !== 503) counted.set(status, (counted.get(status) ?? 0) + 1)
    }
    // Who came while too much was under way is told to come again.
    waiting = answers.filter(({ status }) => status === 503).map(({ asked }) => asked)
    return waiting.length === 0
  }
  await eventually(settle, { what: 'everybody has an answer', timeoutMs: PATIENCE_MS })
  assert.deepEqual([...statuses.owner], [[200, 5_000]])
  assert.deepEqual([...statuses.thieves], [[403, 5_000]])
  assert.deepEqual(
    (await passes()).map(({ value }) => value.clientId),
    ['owner'],
  )
})

test('decision points and a verifier that are killed under load serve no more than was bought, and lose no more than their bound', {
  skip,
}, async (t) => {
  const { neighbours, authorizers, verifiers } = access
  const token = neighbours.issue('loyal', ['orders'])
  const { id, txid } = await access.buy(token, 'some')
  const counts = { served: 0, unheard: 0, kills: 0 }
  const bound = Math.ceil(BOUGHT / 100)
  let isUsedUp = false
  const worker = async (point: PaidAccess['authorizers'][number]) => {
    while (!isUsedUp) {
      const status = await point.status('/some', token, txid).catch(() => undefined)
      if (status === 200) counts.served += 1
      if (status === undefined) {
        counts.unheard += 1
        return
      }
    }
  }
  const load = (point: PaidAccess['authorizers'][number]) => Promise.all(Array.from({ length: 4 }, () => worker(point)))
  const hammering = authorizers.map(async (point, index) => {
    // Each of its crashes comes at another point of a chunk and of what is unrecorded.
    for (const at of [150, 400, 650].map((served) => served + index * 97)) {
      const loading = load(point)
      await eventually(() => counts.served >= at, { what: `${at} are served`, timeoutMs: PATIENCE_MS })
      counts.kills += 1
      await point.crash()
      await loading
    }
    await load(point)
  })
  const verifierKilled = (async () => {
    await eventually(() => counts.served >= 900, { what: '900 are served', timeoutMs: PATIENCE_MS })
    await verifiers[1]?.kill()
    await verifiers[1]?.start()
  })()
  const usedUp = eventually(async () => (await access.invoice(token, id)).state === 'exhausted', {
    what: 'the pass is used up',
    timeoutMs: PATIENCE_MS,
  }).finally(() => {
    isUsedUp = true
  })
  await Promise.all([usedUp, verifierKilled, ...hammering])
  assert.equal(counts.kills, 6)
  assert.ok(counts.served <= BOUGHT, `${counts.served} of ${BOUGHT} served`)
  t.diagnostic(`${counts.served} of ${BOUGHT} served, ${counts.unheard} unheard, ${counts.kills} killed`)
  const accounted = counts.served + counts.unheard + counts.kills * bound
  assert.ok(accounted >= BOUGHT, `${counts.served} served, ${counts.unheard} unheard of ${BOUGHT}`)
  assert.deepEqual((await access.invoice(token, id)).pass, { requests: BOUGHT, served: BOUGHT, lossBound: bound })
})
