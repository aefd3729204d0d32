import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { type ApiPolicy, ApiPolicySchema } from '@tollward/documents'
import { type SimulatedCaller, type SimulatedRequest, simulate } from './simulate.ts'

function policy(name: string, rules: unknown[], spec: object = {}): ApiPolicy {
  return ApiPolicySchema.parse({
    apiVersion: 'tollward.dev/v1',
    kind: 'ApiPolicy',
    metadata: { name },
    spec: { hosts: ['*'], rules, ...spec },
  })
}

function request(url: string, parts: Partial<SimulatedRequest> = {}): SimulatedRequest {
  return { method: 'GET', url, headers: {}, from: '192.0.2.1', bodyIsWhole: true, isBlocked: false, ...parts }
}

function caller(parts: Partial<SimulatedCaller> = {}): SimulatedCaller {
  const none = { scopes: [], audience: [], claims: {}, selfRegistered: false, passes: [], isBlocked: false }
  return { client: 'shop', ...none, ...parts }
}

const ORDERS = policy('orders', [
  {
    name: 'read',
    match: { methods: ['GET'], path: '/orders/{id}' },
    require: { token: { scopes: ['orders'] }, payment: { plan: 'orders' } },
    limit: { requests: 5, perSeconds: 1, by: 'client' },
  },
  { name: 'write', match: { methods: ['POST'], path: '/orders/{id}' }, require: { token: { scopes: ['write'] } } },
  { name: 'test', match: { path: '/orders/{id}', headers: { 'X-Test': 'yes' } }, anonymous: true },
  { name: 'public', match: { path: '/public' }, anonymous: true },
])
const ORDER = 'https://api.example/orders/7'

describe('a simulation', () => {
  test('says what the client would get, which rule decides, and why the others do not', () => {
    const simulation = simulate([ORDERS], request(ORDER), caller())
    assert.deepEqual(
      [simulation.outcome, simulation.reason, simulation.rule],
      ['refused', 'scope-missing', 'orders/read'],
    )
    assert.equal(simulation.decision.admitted, false)
    assert.deepEqual(simulation.candidates, [
      { rule: 'orders/write', failed: 'methods', wanted: ['POST'] },
      { rule: 'orders/test', failed: 'header X-Test', wanted: 'yes' },
    ])
    assert.equal(simulation.otherPaths, 1)
    const test = simulate([ORDERS], request(ORDER, { headers: { 'x-test': 'yes' } }), undefined)
    assert.deepEqual([test.outcome, test.rule], ['admitted', 'orders/test'])
    assert.deepEqual(test.candidates[0], { rule: 'orders/read', failed: undefined, wanted: undefined })
  })

  test('shows what the API would get, without any token, and under which limits it counts', () => {
    const { decision, charges, outcome } = simulate(
      [ORDERS],
      request(ORDER, { headers: { cookie: 'a=b' } }),
      caller({ subject: 'ada', scopes: ['orders'], passes: ['orders'] }),
    )
    assert.equal(outcome, 'admitted')
    assert.ok(decision.admitted)
    const set = Object.fromEntries(decision.upstream.set)
    assert.equal(set.authorization, 'Bearer <internal token>')
    assert.deepEqual([set['x-tollward-client'], set['x-tollward-subject']], ['shop', 'ada'])
    assert.equal(decision.target.path, '/orders/7')
    assert.equal(charges.length, 1)
    assert.match(charges[0]?.name ?? '', /^orders\/read .*shop$/)
    assert.equal(charges[0]?.requests, 5)
  })

  test('follows what is said of the caller: blocked, registered by itself, without a pass, with a key', () => {
    const reasonOf = (parts: Partial<SimulatedCaller>, asked: Partial<SimulatedRequest> = {}) =>
      simulate([ORDERS], request(ORDER, asked), caller({ scopes: ['orders'], ...parts })).reason
    const passes = ['orders']
    assert.equal(reasonOf({ passes }), undefined)
    assert.equal(reasonOf({}), 'payment-required')
    assert.equal(reasonOf({ passes, isBlocked: true }), 'caller-blocked')
    assert.equal(reasonOf({ passes }, { isBlocked: true }), 'blocked')
    assert.equal(reasonOf({ passes, boundTo: 'dpop' }), undefined)
    assert.equal(reasonOf({ passes, boundTo: 'certificate' }), undefined)
    assert.equal(reasonOf({ passes, boundTo: 'dpop' }, { headers: { authorization: 'Bearer x' } }), 'proof-missing')
    assert.equal(reasonOf({ passes, selfRegistered: true }), undefined)
    assert.equal(reasonOf({ scopes: ['write'], selfRegistered: true }, { method: 'POST' }), 'self-registered')
    assert.equal(simulate([ORDERS], request(ORDER), undefined).reason, 'token-missing')
    assert.equal(simulate([ORDERS], request('https://api.example/a//b'), undefined).reason, 'malformed-request')
  })

  test('a policy that observes would refuse, and lets through; what cannot be known is said', () => {
    const observing = policy('orders', [{ name: 'no', match: { path: '/no' }, deny: { reason: 'Closed.' } }], {
      mode: 'observe',
    })
    const would = simulate([observing], request('http://api.example/no'), caller())
    assert.deepEqual([would.outcome, would.detail, would.decision.admitted], ['would-refuse', 'Closed.', true])
    const unknown = simulate([ORDERS], request(ORDER, { headers: { authorization: 'Bearer x' } }), undefined)
    assert.equal(unknown.reason, 'token-invalid')
    assert.match(unknown.notes.join(), /^Whose token that is cannot be known/)
    const rpc = policy('rpc', [{ name: 'list', match: { path: '/rpc', rpcMethods: ['list'] }, anonymous: true }])
    const bodiless = simulate([rpc], request('http://api.example/rpc', { method: 'POST' }), undefined)
    assert.match(bodiless.notes.join(), /looks into the body/)
  })
})
