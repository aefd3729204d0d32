import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { parseAddress } from '@tollward/contracts'
import { ApiPolicySchema } from '@tollward/documents'
import fc from 'fast-check'
import { BlockList } from './block-list.ts'
import { CallerBlocks } from './caller-blocks.ts'
import {
  judge,
  type KnownToken,
  type PaymentStanding,
  type RequestFacts,
  sourceKey,
  type Verdict,
  type World,
} from './judge.ts'
import { compilePolicies } from './policy.ts'
import { RateTable } from './rate.ts'
import { REASONS, type Reason } from './reasons.ts'

/** Everything that can be wrong with a request, in the order in which it must be told. */
const ORDER = [
  'malformed-request',
  'blocked',
  'source-limit',
  'token-missing',
  'token-invalid',
  'proof-invalid',
  'caller-blocked',
  'no-rule',
  'rule-denied',
  'self-registered',
  'scope-missing',
  'claim-missing',
  'binding-missing',
  'audience-mismatch',
  'nothing-to-redeem',
  'client-limit',
  'payment-required',
] as const satisfies readonly Reason[]

type Wrong = (typeof ORDER)[number]

const NOW = 1_000_000
const ADDRESS = '192.0.2.1'
const QUOTE = {
  listPriceSats: 10_000n,
  priceSats: 9_000n,
  discounts: [],
  creditSats: 0n,
  invoicesUrl: 'https://pay.example/invoices',
}

function address(text: string): Uint8Array {
  const parsed = parseAddress(text)
  assert.ok(parsed)
  return parsed
}

/** A request, and a world, in which exactly these things are wrong. */
function scene(
  wrong: ReadonlySet<Wrong>,
  { observe = false, later = false, selfRegistered = wrong.has('self-registered') } = {},
): { request: RequestFacts; world: World; spent: () => number; quoted: () => number } {
  const token = {
    scopes: ['orders'],
    audience: 'https://api.example',
    claims: [{ claim: 'tenant', equals: 't' }],
    boundTo: 'any',
  }
  const payment = { payment: { plan: 'orders' } }
  const rule = wrong.has('rule-denied')
    ? { deny: { reason: 'Not for you.' } }
    : {
        require: { token, ...(wrong.has('self-registered') ? {} : payment) },
        limit: { requests: 1, perSeconds: 60, by: 'client' },
      }
  const policy = ApiPolicySchema.parse({
    apiVersion: 'tollward.dev/v1',
    kind: 'ApiPolicy',
    metadata: { name: 'p' },
    spec: {
      hosts: ['*'],
      mode: observe ? 'observe' : 'enforce',
      sourceLimit: { requests: 1, perSeconds: 60 },
      rules: [{ name: 'r', match: { path: '/orders' }, ...rule }],
    },
  })
  const table = () => new RateTable(100, () => {})
  const [sourceRates, callerRates, blocks] = [table(), table(), new BlockList([])]
  const source = { requests: 1, perSeconds: 60 }
  if (wrong.has('source-limit')) sourceRates.take(`p ${sourceKey(address(ADDRESS))}`, source, NOW)
  if (wrong.has('client-limit')) callerRates.take('p/r client c', source, NOW)
  if (wrong.has('blocked'))
    blocks.set({ range: { address: address(ADDRESS), prefixLength: 128 }, expiresAtMs: NOW + 1 })
  const callerBlocks = new CallerBlocks()
  if (wrong.has('caller-blocked')) callerBlocks.set({ kind: 'client', value: 'c', expiresAtMs: NOW + 1 })
  const known: KnownToken = {
    hash: 'h',
    clientId: 'c',
    subject: 'c',
    grantHash: '',
    claims: () => (wrong.has('claim-missing') ? {} : { tenant: 't' }),
    scopes: new Set(wrong.has('scope-missing') ? [] : ['orders']),
    scope: wrong.has('scope-missing') ? '' : 'orders',
    audience: wrong.has('audience-mismatch') ? [] : ['https://api.example'],
    selfRegistered,
    binding: wrong.has('binding-missing') ? undefined : { to: 'dpop', thumbprint: 'k' },
    identity: [],
  }
  const paid: PaymentStanding = { paid: true, passId: 'pass' }
  const standing = (): PaymentStanding => {
    if (wrong.has('nothing-to-redeem')) return { paid: false, refusal: { reason: 'nothing-to-redeem' } }
    return wrong.has('payment-required') ? { paid: false, refusal: { reason: 'payment-required' } } : paid
  }
  let spent = 0
  let quoted = 0
  const answer = <T>(value: T) => (later ? Promise.resolve(value) : value)
  const world: World = {
    policies: compilePolicies([policy]),
    blocks,
    callerBlocks,
    sourceRates,
    callerRates,
    hashToken: (text) => `hash of ${text}`,
    findToken: () => answer(wrong.has('token-invalid') ? undefined : known),
    prove: () => answer(wrong.has('proof-invalid') ? { reason: 'proof-invalid' } : undefined),
    standing: () => answer(standing()),
    spend: () => {
      spent += 1
      return answer(paid)
    },
    quote: () => {
      quoted += 1
      return answer(QUOTE)
    },
    failed: () => ({ reason: 'unavailable' }),
  }
  const request: RequestFacts = {
    method: 'GET',
    scheme: 'https',
    host: 'api.example',
    target: wrong.has('malformed-request') ? '//orders' : wrong.has('no-rule') ? '/other' : '/orders',
    address: address(ADDRESS),
    headers: wrong.has('token-missing') ? [] : ['authorization', 'Bearer t'],
  }
  return { request, world, spent: () => spent, quoted: () => quoted }
}

async function judged(
  wrong: Iterable<Wrong>,
  options?: { observe?: boolean; later?: boolean; selfRegistered?: boolean },
): Promise<Verdict> {
  const { request, world } = scene(new Set(wrong), options)
  return judge(request, world, NOW)
}

describe('judgement', () => {
  test('a request with nothing wrong is admitted, with its pass', async () => {
    const verdict = await judged([])
    assert.equal(verdict.refusal, undefined)
    assert.equal(verdict.passId, 'pass')
  })

  for (const [index, first] of ORDER.entries()) {
    test(`${first} is told before everything that comes after it`, async () => {
      // What cannot be reached once the path matches no rule stays out of the later ones.
      const all = ORDER.slice(index)
      assert.equal((await judged(all)).refusal?.reason, first)
      assert.equal((await judged([first])).refusal?.reason, first)
    })
  }

  test('whatever is wrong together, the first in the order is told, whether answers come at once or later', async () => {
    await fc.assert(
      fc.asyncProperty(fc.subarray([...ORDER]), fc.boolean(), async (wrong, later) => {
        assert.equal((await judged(wrong, { later })).refusal?.reason, wrong[0])
      }),
      { numRuns: 1000 },
    )
  })

  test('the list of reasons stands in the order of refusals', () => {
    const listed = Object.keys(REASONS).filter((reason) => ORDER.some((known) => known === reason))
    assert.deepEqual(listed, ORDER)
  })

  test('nothing is spent unless the request is admitted', async () => {
    await fc.assert(
      fc.asyncProperty(fc.subarray([...ORDER]), fc.boolean(), async (wrong, observe) => {
        const { request, world, spent } = scene(new Set(wrong), { observe })
        const verdict = await judge(request, world, NOW)
        assert.equal(spent(), verdict.refusal || observe ? 0 : 1)
      }),
      { numRuns: 500 },
    )
  })

  test('a price is asked for only where paying is all that is missing, and is told', async () => {
    await fc.assert(
      fc.asyncProperty(fc.subarray([...ORDER]), fc.boolean(), fc.boolean(), async (wrong, observe, later) => {
        const { request, world, quoted } = scene(new Set(wrong), { observe, later })
        const { refusal } = await judge(request, world, NOW)
        const isPriced = wrong[0] === 'payment-required' && !observe
        assert.equal(quoted(), isPriced ? 1 : 0)
        assert.equal(refusal?.quote, isPriced ? QUOTE : undefined)
      }),
      { numRuns: 500 },
    )
  })

  test('without a price the refusal is the same', async () => {
    for (const quote of [() => undefined, () => assert.fail('thrown'), () => Promise.reject(new Error('rejected'))]) {
      const { request, world } = scene(new Set(['payment-required']))
      assert.deepEqual((await judge(request, { ...world, quote }, NOW)).refusal, { reason: 'payment-required' })
    }
  })

  test('a self-registered client is admitted only where it pays or where nobody has to be known', async () => {
    assert.equal((await judged([], { selfRegistered: true })).refusal, undefined)
    assert.equal((await judged(['payment-required'], { selfRegistered: true })).refusal?.reason, 'payment-required')
    assert.equal((await judged(['self-registered'])).refusal?.reason, 'self-registered')
    assert.equal((await judged(['no-rule'], { selfRegistered: true })).refusal?.reason, 'no-rule')
    const { request, world } = scene(new Set(), { selfRegistered: true })
    const open = ApiPolicySchema.parse({
      apiVersion: 'tollward.dev/v1',
      kind: 'ApiPolicy',
      metadata: { name: 'p' },
      spec: { hosts: ['*'], rules: [{ name: 'r', match: { path: '/orders' }, anonymous: true }] },
    })
    const policies = compilePolicies([open])
    assert.equal((await judge(request, { ...world, policies }, NOW)).refusal, undefined)
  })

  test('a policy that only observes lets through what it would refuse, but neither who is blocked nor malformed requests', async () => {
    for (const wrong of ORDER) {
      const verdict = await judged([wrong], { observe: true })
      assert.equal(verdict.refusal?.reason, wrong)
      assert.equal(verdict.observed, !['blocked', 'caller-blocked', 'malformed-request'].includes(wrong), wrong)
    }
  })

  test('what cannot be asked refuses, whether it throws or rejects', async () => {
    const failures: Partial<World>[] = [
      { findToken: () => assert.fail('thrown') },
      { findToken: () => Promise.reject(new Error('rejected')) },
      { standing: () => assert.fail('thrown') },
      { standing: () => Promise.reject(new Error('rejected')) },
      { spend: () => assert.fail('thrown') },
      { spend: () => Promise.reject(new Error('rejected')) },
    ]
    for (const failing of failures) {
      const { request, world } = scene(new Set())
      assert.equal((await judge(request, { ...world, ...failing }, NOW)).refusal?.reason, 'unavailable')
    }
  })

  test('IPv6 sources are counted by /64, IPv4 ones by address', () => {
    assert.equal(sourceKey(address('2001:db8::1')), sourceKey(address('2001:db8::ffff')))
    assert.notEqual(sourceKey(address('2001:db8::1')), sourceKey(address('2001:db8:0:1::1')))
    assert.notEqual(sourceKey(address('192.0.2.1')), sourceKey(address('192.0.2.2')))
  })
})
