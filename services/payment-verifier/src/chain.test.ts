import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { parseAccountKey } from '@tollward/bitcoin'
import { contract } from '@tollward/contracts'
import { EntryAppendedSchema } from '@tollward/contracts/ledger'
import { RedeemOutcome } from '@tollward/contracts/payment'
import { eventually, requires, startBitcoind } from '@tollward/testkit'
import { newAccountKey, type Replica, TestStack } from './test-stack.ts'

const skip = await requires({ tools: ['nats-server', 'bitcoind'] })
const resources = new AsyncDisposableStack()
after(() => resources.disposeAsync())
const started = skip ? undefined : resources.use(await TestStack.start({ listen: true }))

function shared(): TestStack {
  assert.ok(started)
  return started
}

test('addresses that others gave out are given to nobody, and money there is found', { skip }, async () => {
  const stack = shared()
  const account = parseAccountKey(stack.accountKey, 'regtest')
  const at = (index: number) => account.address(index).address
  const found: number[] = []
  await using _entries = await stack.bus.follow(contract(EntryAppendedSchema), 'now', ({ entry }) => {
    if (entry.case === 'moneyFound' && entry.value.blockHeight > 0) found.push(entry.value.addressIndex)
  })
  await using replica = await stack.replica()
  const address = async () => (await replica.open('alice', 'orders')).address
  // Before the first invoice nothing is written, and the address is passed over all the same.
  await eventually(async () => (await fetch(`${replica.service.healthUrl}/healthz/ready`)).ok, { what: 'it is ready' })
  await stack.node.pay(at(2), 5_000n)
  const [first] = await stack.node.mine(1)
  await hasHandled(stack, replica, first)
  assert.equal(await address(), at(3))
  await stack.node.pay(at(7), 5_000n)
  const [second] = await stack.node.mine(1)
  await eventually(() => found.includes(7), { what: 'the money is found' })
  await hasHandled(stack, replica, second)
  assert.equal(await address(), at(8))
  await replica.service.kill()
  // An address that was passed over may have been given out too, by whoever has lost that.
  for (const index of [0, 12]) await stack.node.pay(at(index), 5_000n)
  await stack.node.mine(1)
  await replica.service.start()
  await eventually(() => found.includes(12) && found.includes(0), { what: 'the money is found' })
  assert.equal(await address(), at(13))
  assert.deepEqual(new Set(found), new Set([7, 0, 12]))
})

test('an account of taproot addresses sells like any other', { skip }, async () => {
  const stack = shared()
  await using replica = await stack.replica({ TOLLWARD_ACCOUNT_KEY: `tr(${newAccountKey()}/0/*)` })
  const invoice = await replica.open('bertha', 'orders')
  assert.match(invoice.address, /^bcrt1p/)
  const txid = await stack.pay(invoice)
  await stack.node.mine(1)
  await replica.reaches('bertha', invoice.id, 'paid')
  const { outcome } = await stack.verifier.redeem({ clientId: 'bertha', plan: 'orders', txid })
  assert.equal(outcome, RedeemOutcome.REDEEMED)
})

test('of several nodes one of another network is told of, and when the followed one dies another goes on', {
  skip,
}, async () => {
  const stack = shared()
  await using foreign = await startBitcoind({ blocks: 0, signetChallenge: '51' })
  await using second = await startBitcoind({ blocks: 0, connect: stack.node.peerAddress ?? '' })
  const nodes = [foreign, stack.node, second]
  await using replica = await stack.replica({
    TOLLWARD_NODE_URL: nodes.map(({ rpcUrl }) => rpcUrl).join(','),
    TOLLWARD_NODE_COOKIE_FILE: nodes.map(({ cookieFile }) => cookieFile).join(','),
    TOLLWARD_NODE_ZMQ_URL: `,${stack.node.zmqUrl},${second.zmqUrl}`,
  })
  const isTold = async (line: string) =>
    (await (await fetch(`${replica.service.healthUrl}/metrics`)).text()).includes(`tollward_payment_nodes${line}`)
  await eventually(() => isTold('{state="equal"} 1'), { what: 'both nodes have the chain', timeoutMs: 30_000 })
  assert.ok(await isTold('{state="wrong-network"} 1'))
  const invoice = await replica.open('carla', 'orders')
  const txid = await stack.pay(invoice)
  const [hash] = await stack.node.mine(1)
  await replica.reaches('carla', invoice.id, 'paid')
  await eventually(async () => (await second.rpc('getbestblockhash')) === hash, {
    what: 'the other node has the block',
  })
  await stack.node.kill()
  await eventually(() => isTold('{state="silent"} 1'), { what: 'the death is noticed' })
  const { outcome } = await stack.verifier.redeem({ clientId: 'carla', plan: 'orders', txid })
  assert.equal(outcome, RedeemOutcome.REDEEMED)
  const next = await replica.open('carla', 'three')
  await second.mine(1)
  await eventually(() => isTold('{state="followed"} 1'), { what: 'a node is followed' })
  assert.equal((await replica.read('carla', next.id)).state, 'issued')
  assert.equal((await replica.read('carla', invoice.id)).state, 'redeemed')
  await stack.node.start()
})

/** Orders are refused while a block is looked at, so the block's height in the metrics is waited for. */
async function hasHandled(stack: TestStack, { service }: Replica, hash: string | undefined): Promise<void> {
  const { height } = await stack.node.rpc<{ height: number }>('getblockheader', [hash])
  const line = `tollward_payment_tip_height ${height}`
  await eventually(async () => (await (await fetch(`${service.healthUrl}/metrics`)).text()).includes(line), {
    what: 'the block is handled',
  })
}
