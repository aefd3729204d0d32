import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { after, test } from 'node:test'
import { contract } from '@tollward/contracts'
import {
  PassActivatedSchema,
  PassExhaustedSchema,
  PassState,
  PassSuspendedSchema,
  PaymentConfirmedSchema,
  RedeemOutcome,
} from '@tollward/contracts/payment'
import { AppError } from '@tollward/errors'
import { eventually, requires } from '@tollward/testkit'
import { PRICE_SATS, TestStack, together } from './test-stack.ts'

const skip = await requires({ tools: ['nats-server', 'bitcoind'] })
const resources = new AsyncDisposableStack()
after(() => resources.disposeAsync())

// The tests share one chain and one ledger, as clients do; each has clients of its own.
const stack = skip ? undefined : resources.use(await TestStack.start())
const replica = stack && resources.use(await stack.replica())
const other = stack && resources.use(await stack.replica())

function shared() {
  assert.ok(stack && replica && other)
  return { stack, replica: together(replica, other), other, node: stack.node, verifier: stack.verifier }
}

const isCode = (code: string) => (error: unknown) => error instanceof AppError && error.code === code
const sha256 = (text: string) => createHash('sha256').update(text).digest('hex')

test('an invoice that is paid becomes one pass for its owner, and asking again gives the same', { skip }, async () => {
  const { stack, replica, node, verifier } = shared()
  const activated: string[] = []
  const confirmed: string[] = []
  await using _activated = await stack.bus.follow(contract(PassActivatedSchema), 'now', ({ passId }) =>
    activated.push(passId),
  )
  await using _confirmed = await stack.bus.follow(contract(PaymentConfirmedSchema), 'now', ({ txidHash }) =>
    confirmed.push(txidHash),
  )
  const opened = await replica.open('alice', 'orders')
  assert.equal(opened.state, 'issued')
  assert.match(opened.uri, /^bitcoin:bcrt1q[a-z0-9]+\?amount=0\.0001&label=orders$/)
  const txid = await stack.pay(opened)
  const seen = await replica.reaches('alice', opened.id, 'seen')
  assert.deepEqual([seen.pendingSats, seen.receivedSats, seen.payments[0]?.txid], ['10000', '0', txid])
  const pending = await verifier.redeem({ clientId: 'alice', plan: 'orders', txid })
  assert.deepEqual([pending.outcome, pending.confirmationsMissing], [RedeemOutcome.PENDING, 1])
  assert.ok(pending.retryAfterSeconds > 0)
  await node.mine(1)
  await replica.reaches('alice', opened.id, 'paid')

  const { outcome, pass } = await verifier.redeem({ clientId: 'alice', plan: 'orders', txid: txid.toUpperCase() })
  assert.equal(outcome, RedeemOutcome.REDEEMED)
  assert.deepEqual(
    [pass?.clientId, pass?.plan, pass?.quotaRequests, pass?.state],
    ['alice', 'orders', 1000n, PassState.ACTIVE],
  )
  assert.equal((pass?.expiresAt?.seconds ?? 0n) - (pass?.activatedAt?.seconds ?? 0n), 86_400n)
  assert.deepEqual(await stack.pass(pass?.passId), pass)
  assert.deepEqual((await verifier.redeem({ clientId: 'alice', plan: 'orders', txid })).pass, pass)
  assert.equal((await replica.read('alice', opened.id)).state, 'redeemed')
  await eventually(() => activated.length > 0, { what: 'the pass is announced' })
  assert.deepEqual(activated, [pass?.passId])
  assert.deepEqual(confirmed, [sha256(txid)])
})

test('whoever did not pay learns nothing from a txid, and gets nothing for it', { skip }, async () => {
  const { stack, replica, node, verifier } = shared()
  const invoice = await replica.open('bob', 'orders')
  const txid = await stack.pay(invoice)
  const unrelated = await node.pay(await node.rpc('getnewaddress'), PRICE_SATS)
  await node.mine(1)
  await replica.reaches('bob', invoice.id, 'paid')
  const txids = [txid, unrelated, '00'.repeat(32)]
  const ask = async (clientId: string) =>
    await Promise.all(txids.map((each) => verifier.redeem({ clientId, plan: 'orders', txid: each })))
  const without = await ask('thief')
  assert.equal(without[0]?.outcome, RedeemOutcome.NOTHING_OPEN)
  assert.deepEqual(without[1], without[0])
  assert.deepEqual(without[2], without[0])
  await replica.open('thief', 'orders')
  const having = await ask('thief')
  assert.equal(having[0]?.outcome, RedeemOutcome.NOT_SEEN)
  assert.ok((having[0]?.retryAfterSeconds ?? 0) > 0)
  assert.deepEqual(having[1], having[0])
  assert.deepEqual(having[2], having[0])
  const elsewhere = await verifier.redeem({ clientId: 'bob', plan: 'three', txid })
  assert.equal(elsewhere.outcome, RedeemOutcome.NOTHING_OPEN)
  assert.equal((await verifier.redeem({ clientId: 'bob', plan: 'orders', txid })).outcome, RedeemOutcome.REDEEMED)
  assert.equal((await replica.request('GET', `/invoices/${invoice.id}`, 'thief')).status, 404)
})

test('a payment admits only with all its confirmations, and says how many are missing', { skip }, async () => {
  const { stack, replica, other, node, verifier } = shared()
  const invoice = await replica.open('carol', 'three')
  const txid = await stack.pay(invoice)
  await replica.reaches('carol', invoice.id, 'seen')
  for (const missing of [2, 1]) {
    await node.mine(1)
    for (const each of [replica, other]) {
      await eventually(async () => (await each.read('carol', invoice.id)).confirmations === 3 - missing, {
        what: 'a confirmation',
      })
    }
    const { outcome, confirmationsMissing, pass } = await verifier.redeem({ clientId: 'carol', plan: 'three', txid })
    assert.deepEqual([outcome, confirmationsMissing, pass], [RedeemOutcome.PENDING, missing, undefined])
  }
  await node.mine(1)
  await replica.reaches('carol', invoice.id, 'paid')
  assert.equal((await verifier.redeem({ clientId: 'carol', plan: 'three', txid })).outcome, RedeemOutcome.REDEEMED)
})

test('too little can be topped up, too much is shown as excess', { skip }, async () => {
  const { stack, replica, node, verifier } = shared()
  const invoice = await replica.open('dave', 'orders')
  const txid = await stack.pay(invoice, 4_000n)
  await node.mine(1)
  await replica.reaches('dave', invoice.id, 'underpaid')
  const short = await verifier.redeem({ clientId: 'dave', plan: 'orders', txid })
  assert.equal(short.outcome, RedeemOutcome.INSUFFICIENT)
  assert.match(short.detail, /6000 sats short: pay them to the same address/)
  await stack.pay(invoice, 7_000n)
  await node.mine(1)
  const paid = await replica.reaches('dave', invoice.id, 'overpaid')
  assert.deepEqual([paid.receivedSats, paid.excessSats], ['11000', '1000'])
  assert.equal((await verifier.redeem({ clientId: 'dave', plan: 'orders', txid })).outcome, RedeemOutcome.REDEEMED)
})

test('a payment that comes late is on record and buys nothing', { skip }, async () => {
  const { stack, replica, node, verifier } = shared()
  const invoice = await replica.open('erin', 'hasty')
  await replica.reaches('erin', invoice.id, 'expired')
  const txid = await stack.pay(invoice)
  await replica.reaches('erin', invoice.id, 'seen')
  const pending = await verifier.redeem({ clientId: 'erin', plan: 'hasty', txid })
  assert.equal(pending.outcome, RedeemOutcome.INSUFFICIENT)
  assert.match(pending.detail, /after the time/)
  await node.mine(1)
  assert.equal((await replica.reaches('erin', invoice.id, 'paid-late')).receivedSats, '10000')
  assert.equal((await verifier.redeem({ clientId: 'erin', plan: 'hasty', txid })).outcome, RedeemOutcome.INSUFFICIENT)
})

test('a reorganisation after redemption suspends the pass, and mining the payment again restores it', {
  skip,
}, async () => {
  const { stack, replica, node, verifier } = shared()
  const suspended: string[] = []
  await using _suspended = await stack.bus.follow(contract(PassSuspendedSchema), 'now', ({ passId }) =>
    suspended.push(passId),
  )
  const invoice = await replica.open('frank', 'orders')
  const txid = await stack.pay(invoice)
  const [block] = await node.mine(1)
  await replica.reaches('frank', invoice.id, 'paid')
  const { pass } = await verifier.redeem({ clientId: 'frank', plan: 'orders', txid })
  const passId = pass?.passId ?? ''
  await node.rpc('invalidateblock', [block])
  const miner = await node.rpc('getnewaddress')
  await node.rpc('generateblock', [miner, []])
  await node.rpc('generateblock', [miner, []])
  await eventually(async () => (await stack.pass(passId))?.state === PassState.SUSPENDED, {
    what: 'the pass is suspended',
  })
  await replica.reaches('frank', invoice.id, 'reorganised')
  assert.equal((await verifier.redeem({ clientId: 'frank', plan: 'orders', txid })).outcome, RedeemOutcome.PENDING)
  assert.equal((await verifier.lease({ passId, holder: 'h', wantedRequests: 1 })).grantedRequests, 0)
  await eventually(() => suspended.length > 0, { what: 'the suspension is announced' })
  assert.deepEqual(suspended, [passId])
  await node.mine(1)
  await eventually(async () => (await stack.pass(passId))?.state === PassState.ACTIVE, { what: 'the pass is restored' })
  await replica.reaches('frank', invoice.id, 'redeemed')
  assert.equal((await verifier.redeem({ clientId: 'frank', plan: 'orders', txid })).pass?.passId, passId)
})

test('a reorganisation before redemption takes the payment back until it is mined again', { skip }, async () => {
  const { stack, replica, node, verifier } = shared()
  const invoice = await replica.open('grace', 'orders')
  const txid = await stack.pay(invoice)
  const [block] = await node.mine(1)
  await replica.reaches('grace', invoice.id, 'paid')
  await node.rpc('invalidateblock', [block])
  await node.rpc('generateblock', [await node.rpc('getnewaddress'), []])
  await replica.reaches('grace', invoice.id, 'reorganised')
  assert.equal((await verifier.redeem({ clientId: 'grace', plan: 'orders', txid })).outcome, RedeemOutcome.PENDING)
  await node.rpc('reconsiderblock', [block])
  await node.mine(2)
  await replica.reaches('grace', invoice.id, 'paid')
})

test('of 200 redemptions at once by owner and thieves comes one pass, and nothing for a thief', { skip }, async () => {
  const { stack, replica, other, node, verifier } = shared()
  const invoice = await replica.open('heidi', 'orders')
  const txid = await stack.pay(invoice)
  await node.mine(1)
  await Promise.all([replica, other].map((each) => each.reaches('heidi', invoice.id, 'paid')))
  const before = (await stack.passes.entries()).length
  const answers = await Promise.all(
    Array.from({ length: 200 }, async (_, index) => {
      const clientId = index % 2 === 0 ? 'heidi' : `thief-${index}`
      return { clientId, ...(await verifier.redeem({ clientId, plan: 'orders', txid })) }
    }),
  )
  const owners = answers.filter(({ clientId }) => clientId === 'heidi')
  assert.ok(owners.every(({ outcome }) => outcome === RedeemOutcome.REDEEMED))
  assert.equal(new Set(owners.map(({ pass }) => pass?.passId)).size, 1)
  const thieves = answers.filter(({ clientId }) => clientId !== 'heidi')
  assert.ok(thieves.every(({ outcome, pass }) => outcome === RedeemOutcome.NOTHING_OPEN && pass === undefined))
  assert.equal((await stack.passes.entries()).length, before + 1)
})

test('two replicas that open 50 invoices at once give 50 addresses', { skip }, async () => {
  const { replica, other } = shared()
  const invoices = await Promise.all(
    Array.from({ length: 50 }, (_, index) => (index % 2 === 0 ? replica : other).open(`many-${index % 5}`, 'orders')),
  )
  assert.equal(new Set(invoices.map(({ address }) => address)).size, 50)
})

test('an order with the same key gives the same invoice, on any replica', { skip }, async () => {
  const { replica, other } = shared()
  const same = await Promise.all([replica, other, replica, other].map((each) => each.open('ivan', 'orders', 'order-1')))
  assert.equal(new Set(same.map(({ id }) => id)).size, 1)
  const changed = await replica.request('POST', '/invoices', 'ivan', { plan: 'three', idempotencyKey: 'order-1' })
  assert.equal(changed.status, 409)
  assert.notEqual((await replica.open('judy', 'orders', 'order-1')).id, same[0]?.id)
})

test('leases never exceed what was bought, over replicas and give-backs, and the end is announced', {
  skip,
}, async () => {
  const { stack, replica, other, node, verifier } = shared()
  const exhausted: string[] = []
  await using _exhausted = await stack.bus.follow(contract(PassExhaustedSchema), 'now', ({ passId }) =>
    exhausted.push(passId),
  )
  const invoice = await replica.open('kim', 'small')
  const txid = await stack.pay(invoice)
  await node.mine(1)
  // Either answers on the bus.
  await Promise.all([replica, other].map((each) => each.reaches('kim', invoice.id, 'paid')))
  const passId = (await verifier.redeem({ clientId: 'kim', plan: 'small', txid })).pass?.passId ?? ''
  const lease = async (holder: string) => ({
    holder,
    ...(await verifier.lease({ passId, holder, wantedRequests: 17 })),
  })
  const leases = (count: number, prefix: string) =>
    Promise.all(Array.from({ length: count }, (_, index) => lease(`${prefix}${index}`)))
  const sum = (each: { readonly grantedRequests: number }[]) =>
    each.reduce((total, { grantedRequests }) => total + grantedRequests, 0)
  const first = await leases(40, 'first-')
  assert.equal(sum(first), 40 * 17)
  assert.deepEqual(first[0]?.unrecordedRequestsMax, 10)
  const end = ({ holder, leaseId }: (typeof first)[number], servedRequests: number) =>
    verifier.record({ passId, holder, leaseId, servedRequests, ends: true })
  const [one, ...others] = first
  assert.ok(one)
  // One end, repeated as by a decision point that did not hear the answer.
  await Promise.all(Array.from({ length: 10 }, () => end(one, 5)))
  const second = await leases(60, 'second-')
  assert.equal(5 + sum(others) + sum(second), 1000)
  assert.equal((await stack.pass(passId))?.drawnRequests, 1000n)
  const holding = [...others, ...second].filter(({ grantedRequests }) => grantedRequests > 0)
  await Promise.all(holding.map((each) => end(each, each.grantedRequests)))
  assert.equal((await stack.pass(passId))?.state, PassState.EXHAUSTED)
  await replica.reaches('kim', invoice.id, 'exhausted')
  assert.equal((await verifier.redeem({ clientId: 'kim', plan: 'small', txid })).outcome, RedeemOutcome.EXHAUSTED)
  await eventually(() => exhausted.length > 0, { what: 'the end is announced' })
  assert.deepEqual(exhausted, [passId])
})

test('a pass that the bucket lost is made again by any replica, and gives nothing twice', { skip }, async () => {
  const { stack, replica, node, verifier } = shared()
  const invoice = await replica.open('lou', 'small')
  const txid = await stack.pay(invoice)
  await node.mine(1)
  await replica.reaches('lou', invoice.id, 'paid')
  const redeemed = async () => (await verifier.redeem({ clientId: 'lou', plan: 'small', txid })).pass
  const passId = (await redeemed())?.passId ?? ''
  const held = await verifier.lease({ passId, holder: 'a', wantedRequests: 150 })
  assert.equal(held.grantedRequests, 150)
  await stack.passes.remove(passId)
  const again = await redeemed()
  assert.deepEqual([again?.passId, again?.leasedRequests, again?.leases], [passId, 200n, []])
  const record = { passId, holder: 'a', leaseId: held.leaseId, servedRequests: 20 }
  assert.equal((await verifier.record(record)).inForce, false)
  assert.equal((await verifier.lease({ passId, holder: 'b', wantedRequests: 1000 })).grantedRequests, 800)
})

test('a client with too many unpaid invoices has to wait, over all replicas', { skip }, async () => {
  const { stack } = shared()
  await using strict = await stack.replica({ TOLLWARD_OPEN_INVOICES_MAX: '3' })
  for (let count = 0; count < 3; count += 1) await strict.open('leo', 'orders')
  const refused = await strict.request('POST', '/invoices', 'leo', { plan: 'orders' })
  assert.equal(refused.status, 429)
  assert.ok(Number(refused.headers.get('retry-after')) > 0)
  await using slow = await stack.replica({ TOLLWARD_INVOICES_PER_MINUTE: '3' })
  const limited = await slow.request('POST', '/invoices', 'leo', { plan: 'orders' })
  assert.equal(limited.status, 429)
  assert.match(await limited.text(), /too fast/)
  assert.equal((await slow.open('mia', 'orders')).state, 'issued')
})

test('a self-registered client buys as others do, reads its own invoices only, and may have few unpaid ones', {
  skip,
}, async () => {
  const { stack, replica, verifier } = shared()
  const [invoice] = await Promise.all([1, 2, 3].map(() => replica.open('self-olga', 'orders')))
  assert.ok(invoice)
  assert.equal((await replica.request('POST', '/invoices', 'self-olga', { plan: 'orders' })).status, 429)
  assert.equal((await replica.request('GET', `/invoices/${invoice.id}`, 'self-peter')).status, 404)
  const txid = await stack.pay(invoice)
  await stack.node.mine(1)
  await replica.reaches('self-olga', invoice.id, 'paid')
  const bought = await verifier.redeem({ clientId: 'self-olga', plan: 'orders', txid })
  assert.equal(bought.outcome, RedeemOutcome.REDEEMED)
})

test('a service that was killed knows everything again, and what happened meanwhile', { skip }, async () => {
  const { stack, node, verifier } = shared()
  await using killed = await stack.replica()
  const invoice = await killed.open('nina', 'orders')
  const waiting = await killed.open('nina', 'orders')
  const txid = await stack.pay(invoice)
  await node.mine(1)
  const paid = await killed.reaches('nina', invoice.id, 'paid')
  const { pass } = await verifier.redeem({ clientId: 'nina', plan: 'orders', txid })
  await killed.service.kill()
  const late = await stack.pay(waiting)
  await node.mine(2)
  await killed.service.start()
  const rebuilt = await killed.read('nina', invoice.id)
  const { passId, pass: _usage, ...before } = rebuilt
  assert.deepEqual({ ...before, state: 'paid' }, paid)
  assert.equal(passId, pass?.passId)
  await killed.reaches('nina', waiting.id, 'paid')
  assert.equal(
    (await verifier.redeem({ clientId: 'nina', plan: 'orders', txid: late })).outcome,
    RedeemOutcome.REDEEMED,
  )
  assert.notEqual((await killed.open('nina', 'orders')).address, waiting.address)
})

test('malformed requests get a clear refusal as problem+json', { skip }, async () => {
  const { replica, verifier } = shared()
  const cases: [status: number, method: string, path: string, client?: string | undefined, body?: unknown][] = [
    [401, 'POST', '/invoices', undefined, { plan: 'orders' }],
    [401, 'GET', '/invoices/x', ' x'],
    [400, 'POST', '/invoices', 'olga', '{'],
    [400, 'POST', '/invoices', 'olga', '[]'],
    [400, 'POST', '/invoices', 'olga'],
    [400, 'POST', '/invoices', 'olga', { plan: 'orders', amount: 1 }],
    [400, 'POST', '/invoices', 'olga', { plan: 'orders', idempotencyKey: 'ü' }],
    [404, 'POST', '/invoices', 'olga', { plan: 'none' }],
    [404, 'POST', '/invoices', 'olga', { plan: '__proto__' }],
    [413, 'POST', '/invoices', 'olga', { plan: 'x'.repeat(5000) }],
    [404, 'GET', '/invoices/__proto__', 'olga'],
    [404, 'GET', '/nothing'],
    [404, 'DELETE', '/invoices', 'olga'],
  ]
  for (const [status, method, path, client, body] of cases) {
    const response = await replica.request(method, path, client, body)
    const text = await response.text()
    assert.equal(response.status, status, `${method} ${path} ${text}`)
    assert.equal(response.headers.get('content-type'), 'application/problem+json; charset=utf-8')
    assert.equal(response.headers.get('cache-control'), 'no-store')
    assert.match(text, /"type":"https:\/\/tollward\.dev\/problems\/[a-z-]+"/)
    assert.doesNotMatch(text, /node_modules|at file|stack/)
    if (status === 401) assert.match(response.headers.get('www-authenticate') ?? '', /^Bearer/)
  }
  for (const txid of ['', 'zz', '00'.repeat(33), `${'00'.repeat(31)}0g`]) {
    await assert.rejects(verifier.redeem({ clientId: 'olga', plan: 'orders', txid }), isCode('invalid_argument'))
  }
  await assert.rejects(verifier.redeem({ plan: 'orders', txid: '00'.repeat(32) }), isCode('invalid_argument'))
  await assert.rejects(verifier.lease({ holder: 'h' }), isCode('invalid_argument'))
  await assert.rejects(verifier.record({ passId: 'p', holder: 'h', servedRequests: 1 }), isCode('invalid_argument'))
  assert.equal((await verifier.record({ passId: 'p', holder: 'h', leaseId: 'l' })).inForce, false)
  for (const passId of ['no such pass', '*', '00'.repeat(16)]) {
    assert.equal((await verifier.lease({ passId, holder: 'h', wantedRequests: 5 })).grantedRequests, 0)
  }
  const plans = await (await replica.request('GET', '/plans')).text()
  assert.match(plans, /"name":"orders","priceSats":"10000","requests":1000,"durationSeconds":86400,"confirmations":1/)
})

test('invoices are listed newest first, for one client or all', { skip }, async () => {
  const { replica, verifier } = shared()
  const first = await replica.open('pia', 'orders')
  const second = await replica.open('pia', 'three')
  const { invoices } = await verifier.listInvoices({ clientId: 'pia' })
  assert.deepEqual(
    invoices.map(({ invoiceId }) => invoiceId),
    [second.id, first.id],
  )
  assert.deepEqual(
    [invoices[0]?.state, invoices[0]?.amountSats, invoices[0]?.confirmationsNeeded],
    ['issued', PRICE_SATS, 3],
  )
  assert.equal((await verifier.listInvoices({ limit: 1 })).invoices[0]?.invoiceId, second.id)
})
