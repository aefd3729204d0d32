import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { contract } from '@tollward/contracts'
import { PassActivatedSchema, PassState, PaymentReplacedSchema, RedeemOutcome } from '@tollward/contracts/payment'
import { eventually, requires } from '@tollward/testkit'
import { Payer } from './test-payer.ts'
import { PRICE_SATS, type Replica, type ShownInvoice, TestStack } from './test-stack.ts'

const skip = await requires({ tools: ['nats-server', 'bitcoind'] })
const resources = new AsyncDisposableStack()
after(() => resources.disposeAsync())

const stack = skip ? undefined : resources.use(await TestStack.start())
const replica = stack && resources.use(await stack.replica())
const other = stack && resources.use(await stack.replica())

function shared() {
  assert.ok(stack && replica && other)
  return { stack, replica, other, node: stack.node, verifier: stack.verifier }
}

async function balance(at: Replica, client: string): Promise<string> {
  return Object(await (await at.request('GET', '/credit', client)).json()).balanceSats
}

/** On both replicas: either may open the next invoice. */
async function hasCredit(client: string, sats: bigint): Promise<void> {
  const { replica, other } = shared()
  for (const each of [replica, other])
    await eventually(async () => (await balance(each, client)) === String(sats), { what: `a credit of ${sats} sats` })
}

/** Pays too late, so that the client has the money in credit; returns the block. */
async function creditByPayingLate(client: string, sats = PRICE_SATS): Promise<string> {
  const { stack, replica } = shared()
  const late = await replica.open(client, 'hasty')
  await replica.reaches(client, late.id, 'expired')
  await stack.pay(late, sats)
  // Only then is it late by what this service saw, and not early by what a block says.
  await eventually(async () => (await replica.read(client, late.id)).pendingSats !== '0', { what: 'it is seen' })
  const [block] = await stack.node.mine(1)
  await hasCredit(client, sats)
  assert.ok(block)
  return block
}

async function order(at: Replica, client: string, body: object): Promise<ShownInvoice> {
  const response = await eventually(
    async () => {
      const answer = await at.request('POST', '/invoices', client, { plan: 'small', ...body })
      return answer.status !== 503 && answer
    },
    { what: 'the order is taken' },
  )
  const shown: ShownInvoice = JSON.parse(await response.text())
  return shown
}

test('money that came too late buys a pass at once, without another transaction', { skip }, async () => {
  const { stack, replica, verifier } = shared()
  const activated: string[] = []
  await using _activated = await stack.bus.follow(contract(PassActivatedSchema), 'now', ({ passId }) =>
    activated.push(passId),
  )
  await creditByPayingLate('alice')
  const invoice = await order(replica, 'alice', {})
  assert.deepEqual([invoice.state, invoice.amountSats, invoice.creditUsedSats], ['redeemed', '0', '10000'])
  const passId = invoice.passId ?? ''
  const pass = await stack.pass(passId)
  assert.deepEqual([pass?.clientId, pass?.plan, pass?.state], ['alice', 'small', PassState.ACTIVE])
  assert.equal((await verifier.lease({ passId, holder: 'h', wantedRequests: 5 })).grantedRequests, 5)
  await eventually(() => activated.length > 0, { what: 'the pass is announced' })
  assert.deepEqual(activated, [passId])
  await hasCredit('alice', 0n)
  assert.equal((await order(replica, 'alice', {})).amountSats, '10000')
})

test('credit pays a part of the price, only if the client likes, and what is left is no dust', { skip }, async () => {
  const { stack, replica, node, verifier } = shared()
  await creditByPayingLate('bob', 9_800n)
  const kept = await order(replica, 'bob', { useCredit: false })
  assert.deepEqual([kept.amountSats, kept.creditUsedSats], ['10000', '0'])
  const part = await order(replica, 'bob', {})
  assert.deepEqual([part.state, part.amountSats, part.creditUsedSats], ['issued', '546', '9454'])
  const txid = await stack.pay(part)
  await node.mine(1)
  for (const each of [replica, shared().other]) await each.reaches('bob', part.id, 'paid')
  assert.equal((await verifier.redeem({ clientId: 'bob', plan: 'small', txid })).outcome, RedeemOutcome.REDEEMED)
  await hasCredit('bob', 346n)
})

test('of twenty orders at once on two replicas credit pays one', { skip }, async () => {
  const { replica, other } = shared()
  await creditByPayingLate('carol')
  const orders = Array.from({ length: 20 }, (_, index) => order(index % 2 === 0 ? replica : other, 'carol', {}))
  const invoices = await Promise.all(orders)
  assert.equal(invoices.filter(({ state }) => state === 'redeemed').length, 1)
  assert.equal(invoices.filter(({ creditUsedSats }) => creditUsedSats !== '0').length, 1)
})

test('a pass on credit that a crash left unmade is made by the same order', { skip }, async () => {
  const { stack, replica } = shared()
  await creditByPayingLate('dave')
  const { passId = '' } = await order(replica, 'dave', { idempotencyKey: 'one' })
  await eventually(async () => (await stack.pass(passId)) !== undefined, { what: 'the pass is there' })
  // What such a crash leaves: the ledger's line without the pass.
  await stack.passes.remove(passId)
  assert.equal((await order(replica, 'dave', { idempotencyKey: 'one' })).passId, passId)
  assert.equal((await stack.pass(passId))?.state, PassState.ACTIVE)
})

test('an order that is repeated when its pass is over says so', { skip }, async () => {
  const { stack, replica } = shared()
  await creditByPayingLate('gwen')
  const body = { plan: 'brief', idempotencyKey: 'one' }
  const { id, passId = '' } = await order(replica, 'gwen', body)
  await replica.reaches('gwen', id, 'exhausted')
  await eventually(async () => (await stack.pass(passId)) === undefined, { what: 'the pass is gone' })
  const again = await order(replica, 'gwen', body)
  assert.deepEqual([again.id, again.state, again.passId], [id, 'exhausted', passId])
})

test('a reorganisation that takes credit back suspends the pass that it bought, until it is mined again', {
  skip,
}, async () => {
  const { stack, replica, node, verifier } = shared()
  const block = await creditByPayingLate('erin')
  const invoice = await order(replica, 'erin', {})
  const passId = invoice.passId ?? ''
  const payer = new Payer(node)
  await node.rpc('invalidateblock', [block])
  await payer.mineOnly()
  await payer.mineOnly()
  await eventually(async () => (await stack.pass(passId))?.state === PassState.SUSPENDED, { what: 'it is suspended' })
  await replica.reaches('erin', invoice.id, 'reorganised')
  await hasCredit('erin', -PRICE_SATS)
  assert.equal((await verifier.lease({ passId, holder: 'h', wantedRequests: 1 })).grantedRequests, 0)
  assert.equal((await order(replica, 'erin', {})).creditUsedSats, '0')
  await node.mine(1)
  await eventually(async () => (await stack.pass(passId))?.state === PassState.ACTIVE, { what: 'it is restored' })
  await replica.reaches('erin', invoice.id, 'redeemed')
})

test('a pass that is made while its payment is away is suspended, and one that was suspended wrongly is restored', {
  skip,
}, async () => {
  const { stack, replica, other, node } = shared()
  const block = await creditByPayingLate('ivan')
  const { id, passId = '' } = await order(replica, 'ivan', { idempotencyKey: 'one' })
  const payer = new Payer(node)
  const state = async () => (await stack.pass(passId))?.state
  await node.rpc('invalidateblock', [block])
  await payer.mineOnly()
  await payer.mineOnly()
  await eventually(async () => (await state()) === PassState.SUSPENDED, { what: 'it is suspended' })
  await stack.passes.remove(passId)
  assert.equal((await order(replica, 'ivan', { idempotencyKey: 'one' })).passId, passId)
  await payer.mineOnly()
  await eventually(async () => (await state()) === PassState.SUSPENDED, { what: 'it is suspended again' })
  await node.mine(1)
  await eventually(async () => (await state()) === PassState.ACTIVE, { what: 'it is restored' })
  for (const each of [replica, other]) await each.reaches('ivan', id, 'redeemed')
  // As a replica would that had not heard of the last block.
  const entry = await stack.passes.get(passId)
  assert.ok(entry)
  await stack.passes.update(passId, { ...entry.value, state: PassState.SUSPENDED }, entry.revision)
  await payer.mineOnly()
  await eventually(async () => (await state()) === PassState.ACTIVE, { what: 'it is restored again' })
})

test('a payment that another transaction replaces is announced once, and the invoice can be paid again', {
  skip,
}, async () => {
  const { stack, replica, other, node, verifier } = shared()
  const replaced: string[] = []
  await using _replaced = await stack.bus.follow(contract(PaymentReplacedSchema), 'now', ({ invoiceId }) =>
    replaced.push(invoiceId),
  )
  const payer = new Payer(node)
  const coin = await payer.coin(PRICE_SATS * 5n)
  await node.mine(1)
  const invoice = await replica.open('frank', 'orders')
  const txid = await payer.spend([coin], [{ address: invoice.address, amountSats: PRICE_SATS * 5n - 1_000n }])
  for (const each of [replica, other]) await each.reaches('frank', invoice.id, 'seen')
  await payer.spend([coin], [{ address: await payer.address(), amountSats: PRICE_SATS }])
  for (const each of [replica, other]) await each.reaches('frank', invoice.id, 'replaced')
  const refused = await verifier.redeem({ clientId: 'frank', plan: 'orders', txid })
  assert.equal(refused.outcome, RedeemOutcome.INSUFFICIENT)
  assert.match(refused.detail, /replaced/)
  await eventually(() => replaced.length > 0, { what: 'it is announced' })
  assert.deepEqual(replaced, [invoice.id])
  await stack.pay(invoice)
  await node.mine(1)
  await replica.reaches('frank', invoice.id, 'paid')
})
