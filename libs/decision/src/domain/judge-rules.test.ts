import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { parseAddress } from '@tollward/contracts'
import { ApiPolicySchema } from '@tollward/documents'
import { type Admission, admission, rejection } from './answer.ts'
import { BlockList } from './block-list.ts'
import { CallerBlocks } from './caller-blocks.ts'
import { judge, type KnownToken, type PaymentStanding, type RequestFacts, type Verdict, type World } from './judge.ts'
import { compilePolicies } from './policy.ts'
import { RateTable } from './rate.ts'
import { STAGES } from './stages.ts'

const NOW = 1_000_000
const ADDRESS = parseAddress('192.0.2.1') ?? assert.fail()
const PAID: PaymentStanding = { paid: true, passId: 'pass' }
const UNPAID: PaymentStanding = { paid: false, refusal: { reason: 'payment-required' } }

/** A token by its text: "tenant" has the claim, "bound" is bound to a key that nobody proves, others are worth nothing. */
function known(text: string): KnownToken | undefined {
  if (!['tenant', 'plain', 'bound', 'other'].includes(text)) return undefined
  return {
    hash: `hash of ${text}`,
    clientId: text === 'other' ? 'c2' : 'c1',
    subject: 'person',
    grantHash: '',
    claims: () => (text === 'plain' ? {} : { tenant: 't' }),
    scopes: new Set(['orders']),
    scope: 'orders',
    audience: [],
    selfRegistered: false,
    binding: text === 'bound' ? { to: 'dpop', thumbprint: 'k' } : undefined,
    identity: [['authorization', 'Bearer internal']],
  }
}

interface Place {
  readonly world: World
  readonly counts: { looked: number; proved: number; spent: number }
  ask(request: Partial<RequestFacts> & { readonly token?: string }): Promise<Verdict>
}

/** A world with one policy of these rules. */
function place(
  rules: object[],
  { mode = 'enforce', ...spec }: Record<string, unknown> = {},
  own: Partial<World> = {},
): Place {
  const document = ApiPolicySchema.parse({
    apiVersion: 'tollward.dev/v1',
    kind: 'ApiPolicy',
    metadata: { name: 'p' },
    spec: { hosts: ['*'], mode, rules: rules.map((rule, index) => ({ name: `r${index}`, ...rule })), ...spec },
  })
  const counts = { looked: 0, proved: 0, spent: 0 }
  const world: World = {
    policies: compilePolicies([document]),
    blocks: new BlockList([]),
    callerBlocks: new CallerBlocks(),
    sourceRates: new RateTable(100, () => {}),
    callerRates: new RateTable(100, () => {}),
    hashToken: (text) => `hash of ${text}`,
    findToken: (text) => {
      counts.looked += 1
      return known(text)
    },
    prove: (binding) => {
      counts.proved += 1
      return binding && { reason: 'proof-missing' }
    },
    standing: () => PAID,
    spend: () => {
      counts.spent += 1
      return PAID
    },
    quote: () => undefined,
    failed: () => ({ reason: 'unavailable' }),
    ...own,
  }
  return {
    world,
    counts,
    ask: async ({ token, headers = [], ...request }) => {
      const facts: RequestFacts = {
        ...{ method: 'GET', scheme: 'https', host: 'api.example', target: '/orders', address: ADDRESS },
        headers: token === undefined ? headers : [...headers, 'authorization', `Bearer ${token}`],
        ...request,
      }
      return judge(facts, world, NOW)
    },
  }
}

const reasonOf = ({ refusal }: Verdict) => refusal?.reason

describe('rules that compare claims', () => {
  const RULES = [
    { match: { path: '/orders', conditions: [{ claim: 'tenant', equals: 't' }] }, require: { token: {} } },
    { match: { path: '/orders' }, anonymous: true },
  ]

  test('match callers whose token has them; for others the next rule decides', async () => {
    const { ask, counts } = place(RULES)
    for (const [token, rule] of [
      ['tenant', 'p/r0'],
      ['plain', 'p/r1'],
      [undefined, 'p/r1'],
      ['worthless', 'p/r1'],
      ['bound', 'p/r1'],
    ] as const) {
      const verdict = await ask(token === undefined ? {} : { token })
      assert.deepEqual([verdict.refusal, verdict.rule?.id], [undefined, rule], token)
      assert.equal(
        verdict.token !== undefined,
        rule === 'p/r0',
        'the API hears of whom a rule requires, and of nobody else',
      )
    }
    assert.deepEqual(counts, { looked: 4, proved: 3, spent: 0 })
  })

  test('look a token up once and have its key proved once, also where the rule that decides requires it', async () => {
    const [first] = RULES
    const { ask, counts } = place([first ?? assert.fail(), { match: { path: '/orders' }, require: { token: {} } }])
    assert.equal((await ask({ token: 'plain' })).rule?.id, 'p/r1')
    assert.deepEqual(counts, { looked: 1, proved: 1, spent: 0 })
    assert.equal(reasonOf(await ask({ token: 'bound' })), 'proof-missing')
    assert.equal(reasonOf(await ask({ token: 'worthless' })), 'token-invalid')
    assert.equal(reasonOf(await ask({})), 'token-missing')
  })

  test('refuse everybody while nobody can say what tokens are worth, rather than pass on to the next rule', async () => {
    for (const findToken of [() => assert.fail('thrown'), () => Promise.reject(new Error('rejected'))]) {
      const { ask } = place(RULES, {}, { findToken })
      assert.equal(reasonOf(await ask({ token: 'tenant' })), 'unavailable')
    }
  })

  test('find out about blocked callers, who get nothing then', async () => {
    const { ask, world } = place(RULES)
    world.callerBlocks.set({ kind: 'subject', value: 'person', expiresAtMs: NOW + 1 })
    assert.equal(reasonOf(await ask({ token: 'plain' })), 'caller-blocked')
    assert.equal(reasonOf(await ask({})), undefined)
  })
})

describe('rules that look into bodies', () => {
  const RULES = [
    { match: { path: '/orders', rpcMethods: ['delete'] }, deny: { reason: 'No.' } },
    { match: { path: '/orders' }, anonymous: true },
  ]
  const post = (text: string | undefined, isWhole = true) => ({
    method: 'POST',
    headers: ['content-type', 'application/json', 'content-length', '9'],
    token: 'plain',
    body: text === undefined ? undefined : { bytes: Buffer.from(text), isWhole },
  })
  const UNREADABLE = [
    post(undefined),
    post('{"method":"list"}', false),
    post('{"method":"list","method":"delete"}'),
    post('[{"method":"list"},{"method":"delete"}]'),
    post('method=list'),
  ]

  test('are not got past by a body that cannot be read', async () => {
    const { ask } = place(RULES)
    assert.equal((await ask(post('{"method":"list"}'))).rule?.id, 'p/r1')
    assert.equal(reasonOf(await ask(post('{"method":"delete"}'))), 'rule-denied')
    for (const request of UNREADABLE) assert.equal(reasonOf(await ask(request)), 'malformed-request')
    assert.equal((await ask({ target: '/orders' })).rule?.id, 'p/r1', 'where there is no body, there is no call')
  })

  test('cost nobody anything while their policy observes', async () => {
    const { ask } = place(RULES, { mode: 'observe' })
    for (const request of UNREADABLE) {
      const verdict = await ask(request)
      assert.deepEqual([reasonOf(verdict), verdict.observed], ['malformed-request', true])
    }
  })
})

describe('limits', () => {
  const limit = (requests: number, by: string, perSeconds = 60) => ({ requests, perSeconds, by })
  const rule = (limits: object[], payment = {}) => ({
    match: { path: '/orders' },
    require: { token: {}, ...payment },
    limits,
  })
  const plan = { payment: { plan: 'orders' } }

  test('count by client, person, token, source or all together', async () => {
    const other = { token: 'other', address: parseAddress('192.0.2.2') ?? assert.fail() }
    for (const [by, limitsOther] of [
      ['client', false],
      ['subject', true],
      ['token', false],
      ['source', false],
      ['route', true],
    ] as const) {
      const { ask } = place([rule([limit(1, by)])])
      assert.equal(reasonOf(await ask({ token: 'plain' })), undefined)
      assert.equal(reasonOf(await ask({ token: 'plain' })), 'client-limit', by)
      assert.equal(reasonOf(await ask(other)), limitsOther ? 'client-limit' : undefined, by)
    }
  })

  test('count a request under all of them or under none, and name the one that refuses', async () => {
    const { ask } = place([rule([limit(1, 'token'), limit(2, 'client', 3600), limit(9, 'client')])])
    assert.equal(reasonOf(await ask({ token: 'plain' })), undefined)
    for (let refused = 0; refused < 5; refused++) {
      const { refusal } = await ask({ token: 'plain' })
      assert.deepEqual([refusal?.reason, refusal?.limited?.name], ['client-limit', 'token'])
    }
    assert.equal(
      reasonOf(await ask({ token: 'tenant' })),
      undefined,
      'refused requests were not counted for the client',
    )
    const { refusal } = await ask({ token: 'bound' })
    assert.equal(refusal?.reason, 'proof-missing')
    const over = await place([rule([limit(1, 'client', 3600), limit(9, 'client')])])
    await over.ask({ token: 'plain' })
    const last = (await over.ask({ token: 'plain' })).refusal ?? assert.fail()
    assert.deepEqual(Object.fromEntries(rejection('id', last, '').headers).ratelimit, '"client-3600s";r=0;t=3600')
  })

  test('of rules for anybody count by source or all together, each apart', async () => {
    const other = parseAddress('192.0.2.2') ?? assert.fail()
    const { ask } = place([
      { match: { path: '/orders' }, anonymous: true, limits: [limit(1, 'source'), limit(2, 'route')] },
    ])
    assert.equal(reasonOf(await ask({})), undefined)
    assert.equal(reasonOf(await ask({})), 'source-limit')
    assert.equal(reasonOf(await ask({ address: other })), undefined)
    assert.equal(reasonOf(await ask({ address: parseAddress('192.0.2.3') ?? assert.fail() })), 'client-limit')
  })

  test('of sources that several policies set are counted all or none', async () => {
    const sourceLimit = (requests: number) => ({ requests, perSeconds: 60 })
    const { world, ask } = place([{ match: { path: '/orders' }, anonymous: true }])
    const document = (name: string, limit: object) =>
      ApiPolicySchema.parse({
        ...{ apiVersion: 'tollward.dev/v1', kind: 'ApiPolicy', metadata: { name } },
        spec: { hosts: ['*'], sourceLimit: limit, rules: [{ name: 'r', match: { path: '/orders' }, anonymous: true }] },
      })
    Object.assign(world, { policies: compilePolicies([document('a', sourceLimit(2)), document('b', sourceLimit(1))]) })
    assert.equal(reasonOf(await ask({})), undefined)
    for (let asked = 0; asked < 3; asked++) assert.equal(reasonOf(await ask({})), 'source-limit')
    Object.assign(world, { policies: compilePolicies([document('a', sourceLimit(2))]) })
    assert.equal(reasonOf(await ask({})), undefined, 'what b refused was not counted by a')
  })

  test('that refuse leave the quota alone', async () => {
    const { ask, counts } = place([rule([limit(1, 'client')], plan)])
    assert.equal(reasonOf(await ask({ token: 'plain' })), undefined)
    assert.equal(reasonOf(await ask({ token: 'plain' })), 'client-limit')
    assert.equal(counts.spent, 1)
  })

  test('do not count requests that are not paid for, whether that shows before or while they are charged', async () => {
    let standing: PaymentStanding = UNPAID
    let spend: World['spend'] = () => UNPAID
    const { ask } = place(
      [rule([limit(1, 'client'), limit(1, 'source')], plan)],
      {},
      {
        standing: () => standing,
        spend: (...call) => spend(...call),
      },
    )
    for (let asked = 0; asked < 3; asked++) assert.equal(reasonOf(await ask({ token: 'plain' })), 'payment-required')
    standing = PAID
    assert.equal(reasonOf(await ask({ token: 'plain' })), 'payment-required')
    spend = () => Promise.resolve(UNPAID)
    assert.equal(reasonOf(await ask({ token: 'plain' })), 'payment-required')
    spend = () => Promise.reject(new Error('gone'))
    assert.equal(reasonOf(await ask({ token: 'plain' })), 'unavailable')
    spend = () => PAID
    assert.equal(reasonOf(await ask({ token: 'plain' })), undefined)
    standing = UNPAID
    assert.equal(reasonOf(await ask({ token: 'plain' })), 'client-limit', 'who has to wait is not asked to pay')
  })
})

describe('stages', () => {
  test('are told in the order in which they ran, with their times and whether somebody was asked', async () => {
    const { world } = place(
      [{ match: { path: '/orders' }, require: { token: {}, payment: { plan: 'orders' } } }],
      {},
      {
        standing: () => Promise.resolve(UNPAID),
      },
    )
    const request: RequestFacts = {
      ...{ method: 'GET', scheme: 'https', host: 'api.example', target: '/orders', address: ADDRESS },
      headers: ['authorization', 'Bearer plain'],
    }
    let ticks = 0
    const { stages } = await judge(request, world, NOW, () => ticks++)
    assert.deepEqual(
      stages.map(({ name }) => name),
      STAGES,
    )
    assert.ok(stages.every(({ ms }) => ms === 1))
    assert.deepEqual(
      stages.filter(({ isAsked }) => isAsked).map(({ name }) => name),
      ['payment'],
    )
  })

  test('that a refusal came before are not there', async () => {
    const { ask, world } = place([{ match: { path: '/orders' }, anonymous: true }])
    world.blocks.set({ range: { address: ADDRESS, prefixLength: 128 }, expiresAtMs: NOW + 1 })
    assert.deepEqual(
      (await ask({})).stages.map(({ name }) => name),
      ['canonical', 'blocks'],
    )
  })
})

describe('what goes on to the API', () => {
  const REWRITE = {
    path: '/v2/orders',
    query: { set: { a: '1' }, remove: ['b'] },
    headers: { set: { 'X-Tenant': 't' }, remove: ['cookie'] },
    responseHeaders: { set: { 'x-served-by': 'v2' } },
  }
  const RULES = [{ match: { path: '/orders' }, require: { token: {} }, rewrite: REWRITE }]
  const SENT = ['Cookie', 'c=1', 'x_tenant', 'other', 'X-Tollward-Client', 'admin']

  async function admitted(spec: Record<string, unknown>): Promise<Admission> {
    const verdict = await place(RULES, spec).ask({ token: 'plain', target: '/orders?b=2&c=3', headers: SENT })
    const { target, refusal, observed } = verdict
    assert.ok(target && (!refusal || observed))
    return admission('id', verdict, target, SENT)
  }

  test('is what the rule makes of it, and what Tollward says of the caller wins', async () => {
    const { target, rewritten, upstream, headers, metadata } = await admitted({})
    assert.deepEqual([target.path, target.query], ['/v2/orders', '?c=3&a=1'])
    assert.deepEqual(rewritten, { path: true, query: { set: [['a', '1']], remove: ['b'] } })
    assert.deepEqual(upstream.set, [
      ['authorization', 'Bearer internal'],
      ['x-tenant', 't'],
    ])
    for (const name of ['cookie', 'x_tenant', 'x-tollward-client', 'x-tollward-pass']) {
      assert.ok(upstream.remove.includes(name), `${name} is removed`)
    }
    assert.deepEqual(headers, [
      ['x-tollward-decision', 'id'],
      ['x-served-by', 'v2'],
    ])
    assert.deepEqual(metadata, { decision: 'id', rule: 'p/r0', client: 'c1', subject: 'person', scopes: 'orders' })
  })

  test('cannot lose what a rule sets by a client’s Connection', async () => {
    const { ask } = place(RULES)
    assert.equal(
      reasonOf(await ask({ token: 'plain', headers: ['Connection', 'close, X-Tenant'] })),
      'malformed-request',
    )
    assert.equal(reasonOf(await ask({ token: 'plain', headers: ['Connection', 'close, x-other'] })), undefined)
  })

  test('is as it came where the policy only observes, which is told', async () => {
    const { target, rewritten, upstream, headers } = await admitted({ mode: 'observe' })
    assert.deepEqual([target.path, target.query], ['/orders', '?b=2&c=3'])
    assert.deepEqual(rewritten, { path: false, query: undefined })
    assert.ok(!upstream.remove.includes('cookie') && upstream.set.every(([name]) => name !== 'x-tenant'))
    assert.equal(headers.length, 1)
    const verdict = await place([{ match: { path: '/other' }, anonymous: true }], { mode: 'observe' }).ask({
      token: 'plain',
    })
    assert.ok(verdict.target && verdict.observed)
    assert.equal(admission('id', verdict, verdict.target, []).metadata['would-refuse'], 'no-rule')
  })
})
