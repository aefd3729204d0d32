import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { parseAddress } from '@tollward/contracts'
import { type ApiPolicy, parseDocuments } from '@tollward/documents'
import { createLog } from '@tollward/runtime'
import { eventually, requires } from '@tollward/testkit'
import fc from 'fast-check'
import { Registry } from 'prom-client'
import { createDecider, type Decider } from './decider.ts'
import type { Decision } from './domain/answer.ts'
import { type SimulatedCaller, type SimulatedRequest, simulate } from './domain/simulate.ts'
import { connectTestBus, type Neighbours, startNeighbours } from './testing.ts'

const skip = await requires({ tools: ['nats-server'] })
const PAYMENT_URL = '<payment-verifier>'
const BLOCKED = '198.51.100.9'

const POLICIES = `
apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: api }
spec:
  hosts: ["*"]
  sourceLimit: { requests: 100000, perSeconds: 1 }
  rules:
    - { name: public, match: { methods: [GET], path: /public }, anonymous: true }
    - name: order
      match: { path: "/orders/{id}" }
      require: { token: { scopes: [orders] } }
      rewrite: { path: "/v2/orders/{id}", query: { set: { a: b } }, headers: { set: { x-from: rule } } }
    - { name: beta, match: { path: "/orders/{id}", headers: { x-beta: "1" } }, require: { token: { scopes: [beta] } } }
    - { name: inside, match: { prefix: /inside, sources: [10.0.0.0/8] }, anonymous: true }
    - { name: outside, match: { prefix: /inside }, deny: { reason: From inside only. } }
    - { name: paid, match: { glob: "/paid/**" }, require: { token: {}, payment: { plan: gold } } }
    - { name: audience, match: { path: /audience }, require: { token: { audience: "https://api.example" } } }
---
apiVersion: tollward.dev/v1
kind: ApiPolicy
metadata: { name: trial }
spec:
  hosts: [trial.example]
  mode: observe
  rules: [{ name: echo, match: { path: "/orders/{id}" }, require: { token: { scopes: [orders] } } }]
`

const CALLERS = {
  nobody: undefined,
  reader: caller({ client: 'reader', scopes: ['orders'] }),
  tester: caller({ client: 'tester', scopes: ['beta', 'orders'], audience: ['https://api.example'] }),
  payer: caller({ client: 'payer', passes: ['gold'] }),
  stranger: caller({ client: 'stranger', scopes: ['orders'], selfRegistered: true }),
  banned: caller({ client: 'banned', scopes: ['orders'], isBlocked: true }),
} as const

function caller(parts: Partial<SimulatedCaller> & { client: string }): SimulatedCaller {
  return { scopes: [], audience: [], claims: {}, selfRegistered: false, passes: [], isBlocked: false, ...parts }
}

const request = fc.record({
  method: fc.constantFrom('GET', 'POST', 'DELETE'),
  host: fc.constantFrom('api.example', 'API.example:443', 'trial.example', '-'),
  path: fc.constantFrom(
    '/public',
    '/orders/7',
    '/orders/%37?x=1',
    '/inside/a',
    '/paid/a/b',
    '/audience',
    '/a//b',
    '/no',
  ),
  headers: fc.constantFrom([], ['x-beta', '1'], ['x-beta', '1', 'X-Beta', '2'], ['x-tollward-client', 'forged']),
  from: fc.constantFrom('192.0.2.1', '10.1.2.3', BLOCKED),
  caller: fc.constantFrom(...(Object.keys(CALLERS) as (keyof typeof CALLERS)[])),
})
type Asked = typeof request extends fc.Arbitrary<infer T> ? T : never

describe('a simulation beside a decider', { skip }, () => {
  const resources = new AsyncDisposableStack()
  const tokens = new Map<string, string>()
  const policies = parseDocuments(POLICIES, 'test').filter(
    (document): document is ApiPolicy => document.kind === 'ApiPolicy',
  )
  let neighbours: Neighbours
  let decider: Decider

  before(async () => {
    neighbours = resources.use(await startNeighbours())
    await neighbours.apply(POLICIES)
    await neighbours.block(BLOCKED)
    await neighbours.blockCaller({ kind: 'client', value: 'banned' })
    await neighbours.activatePass('payer', 'gold', 1_000_000)
    for (const [name, who] of Object.entries(CALLERS)) {
      if (!who) continue
      const { audience, selfRegistered } = who
      tokens.set(name, neighbours.issue(who.client, who.scopes, { audience: [...audience], selfRegistered }))
    }
    const bus = resources.use(await connectTestBus(neighbours.nats.url, 'gateway'))
    const config = { source: 'gateway', paymentUrl: PAYMENT_URL, guardedAddresses: [] } as const
    const options = { bus, log: createLog('gateway', 'silent'), registry: new Registry(), config }
    decider = resources.use(await createDecider(options))
    const payer = { ...NOTHING, path: '/paid/a/b', caller: 'payer' } as const
    await eventually(async () => (await decided(payer)).outcome === 'admitted', { what: 'the pass is known' })
  })
  after(() => resources.disposeAsync())

  async function decided(asked: Asked) {
    const { method, host, path, from } = asked
    const token = tokens.get(asked.caller)
    const headers = [...asked.headers, ...(token === undefined ? [] : ['authorization', `Bearer ${token}`])]
    const address = parseAddress(from) ?? new Uint8Array()
    return comparable(await decider.decide({ method, scheme: 'https', host, target: path, address, headers }))
  }

  function foretold({ method, host, path, headers, from, caller: who }: Asked) {
    const sent: Record<string, string[]> = {}
    for (let at = 0; at < headers.length; at += 2) sent[headers[at] ?? ''] = [headers[at + 1] ?? '']
    const asked: SimulatedRequest = {
      ...{ method, url: `https://${host}${path}`, headers: sent, from, bodyIsWhole: true, isBlocked: from === BLOCKED },
    }
    return comparable(simulate(policies, asked, CALLERS[who]).decision)
  }

  test('says of each request what a decider then decides: status, reason, words, headers and path', async () => {
    const met = new Set<string>()
    await fc.assert(
      fc.asyncProperty(request, async (asked) => {
        const real = await decided(asked)
        assert.deepEqual(foretold(asked), real)
        met.add(real.outcome)
      }),
      { numRuns: 1000 },
    )
    for (const outcome of ['admitted', 'malformed-request', 'blocked', 'caller-blocked', 'token-missing', 'no-rule']) {
      assert.ok(met.has(outcome), `${outcome} never came up`)
    }
    for (const outcome of [
      'rule-denied',
      'scope-missing',
      'self-registered',
      'audience-mismatch',
      'payment-required',
    ]) {
      assert.ok(met.has(outcome), `${outcome} never came up`)
    }
  })
})

const NOTHING = { method: 'GET', host: 'api.example', headers: [], from: '192.0.2.1' } satisfies Partial<Asked>

/** A decision without what is another one's by its nature: its id, the internal token, the pass and the price. */
function comparable(decision: Decision) {
  const fields = (list: readonly (readonly [string, string])[]) =>
    Object.fromEntries(
      list.map(([name, value]) => [name, /^(authorization|x-tollward-(pass|decision))$/.test(name) ? '…' : value]),
    )
  if (decision.admitted) {
    const { target, rewritten, upstream, headers } = decision
    const would = decision.metadata['would-refuse']
    return {
      ...{ outcome: 'admitted', would, target, rewritten, headers: fields(headers) },
      ...{ set: fields(upstream.set), remove: [...upstream.remove].sort() },
    }
  }
  const { status, reason, headers, body } = decision
  const { type, title, detail, plan } = JSON.parse(body)
  return { outcome: reason, status, headers: fields(headers), problem: { type, title, detail, plan } }
}
