import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { PassState, RedeemOutcome } from '@tollward/contracts/payment'
import { eventually, requires } from '@tollward/testkit'
import { booksBalance } from './test-books.ts'
import { Payer, privateKey } from './test-payer.ts'
import { PRICE_SATS, TestStack } from './test-stack.ts'

const skip = await requires({ tools: ['nats-server', 'bitcoind'] })
const resources = new AsyncDisposableStack()
after(() => resources.disposeAsync())

const FEE_SATS = 2_000n
/** Coins of the node's wallet that can be spent without waiting for one another. */
const WALLET_COINS = 40

// The tests share one chain and one ledger, as clients do; each has clients of its own.
const stack = skip ? undefined : resources.use(await TestStack.start())
await stack?.node.mine(WALLET_COINS)
const replica = stack && resources.use(await stack.replica())

function shared() {
  assert.ok(stack && replica)
  const { node, verifier } = stack
  const redeem = async (clientId: string, txid: string, plan = 'orders') =>
    await verifier.redeem({ clientId, plan, txid })
  return { stack, replica, node, payer: new Payer(node), redeem }
}

/** How a payer's coin may be locked. */
const LOCKS = [
  () => `pkh(${privateKey()})`,
  () => `sh(wpkh(${privateKey()}))`,
  () => `wpkh(${privateKey()})`,
  () => `tr(${privateKey()})`,
  () => `tr(${UNSPENDABLE_KEY},multi_a(2,${privateKey()},${privateKey()}))`,
  () => `sh(multi(2,${privateKey()},${privateKey()},${privateKey()}))`,
  () => `wsh(multi(2,${privateKey()},${privateKey()},${privateKey()}))`,
]
/** BIP-341's point of which nobody knows the private key. */
const UNSPENDABLE_KEY = '50929b74c1a04954b78b4b6035e97a5e078a5a0f28ec96d547bfee9ace803ac0'

test('a payment counts whatever locks the coins that it spends', { skip }, async () => {
  const { replica, node, payer, redeem } = shared()
  const orders = []
  for (const [index, own] of (await payer.addressesOf(LOCKS.map((descriptor) => descriptor()))).entries()) {
    const coin = await payer.coin(PRICE_SATS + FEE_SATS, own)
    orders.push({ coin, client: `payer-${index}`, invoice: await replica.open(`payer-${index}`, 'orders') })
  }
  const paid = await Promise.all(
    orders.map(async ({ coin, client, invoice }) => {
      const txid = await payer.spend([coin], [{ address: invoice.address, amountSats: PRICE_SATS }])
      assert.equal((await replica.reaches(client, invoice.id, 'seen')).pendingSats, String(PRICE_SATS))
      return { client, invoice, txid }
    }),
  )
  await node.mine(1)
  for (const { client, invoice, txid } of paid) {
    await replica.reaches(client, invoice.id, 'paid')
    const { outcome, pass } = await redeem(client, txid)
    assert.equal(outcome, RedeemOutcome.REDEEMED)
    assert.equal(pass?.state, PassState.ACTIVE)
  }
})

test('one transaction pays invoices of several owners, each its own', { skip }, async () => {
  const { replica, node, payer, redeem } = shared()
  const anna = await replica.open('anna', 'orders')
  const annasThree = await replica.open('anna', 'three')
  const boris = await replica.open('boris', 'orders')
  const coin = await payer.coin(3n * PRICE_SATS + FEE_SATS)
  const txid = await payer.spend(
    [coin],
    [anna, boris, annasThree].map(({ address }) => ({ address, amountSats: PRICE_SATS })),
  )
  await node.mine(1)
  await replica.reaches('anna', anna.id, 'paid')
  await replica.reaches('boris', boris.id, 'paid')
  assert.equal((await redeem('anna', txid, 'three')).outcome, RedeemOutcome.PENDING)
  const annas = await redeem('anna', txid)
  const boriss = await redeem('boris', txid)
  assert.deepEqual([annas.pass?.invoiceId, boriss.pass?.invoiceId], [anna.id, boris.id])
  await node.mine(2)
  await replica.reaches('anna', annasThree.id, 'paid')
  assert.equal((await redeem('anna', txid, 'three')).pass?.invoiceId, annasThree.id)
  assert.equal((await redeem('boris', txid, 'three')).outcome, RedeemOutcome.NOTHING_OPEN)
})

test('several outputs and transactions pay one invoice, and each of their txids redeems the same pass', {
  skip,
}, async () => {
  const { replica, node, payer, redeem } = shared()
  const { id, address } = await replica.open('clara', 'orders')
  const [coin, other] = [await payer.coin(6_000n + FEE_SATS), await payer.coin(4_000n + FEE_SATS)]
  const first = await payer.send(await payer.splitTransaction(coin, address, [3_500n, 2_500n]))
  await node.mine(1)
  await replica.reaches('clara', id, 'underpaid')
  const second = await payer.spend([other], [{ address, amountSats: 4_000n }])
  await eventually(async () => (await replica.read('clara', id)).pendingSats === '4000', { what: 'the rest is seen' })
  await node.mine(1)
  const paid = await replica.reaches('clara', id, 'paid')
  assert.deepEqual(paid.payments.map(({ txid }) => txid).toSorted(), [first, first, second].toSorted())
  const [one, another] = [await redeem('clara', first), await redeem('clara', second)]
  assert.equal(one.outcome, RedeemOutcome.REDEEMED)
  assert.deepEqual(one.pass, another.pass)
})

test('dust and nothing at all count as what they are', { skip }, async () => {
  const { replica, payer, redeem, node } = shared()
  const { id, address } = await replica.open('dirk', 'orders')
  const [dust, nothing] = [await payer.coin(PRICE_SATS), await payer.coin(PRICE_SATS)]
  // The mempool takes neither; a miner may.
  const ofNothing = await payer.transaction([nothing], [{ address, amountSats: 0n }])
  await payer.mineOnly([dust.txid, nothing.txid])
  await payer.mineOnly([ofNothing])
  await eventually(async () => (await replica.read('dirk', id)).payments.length === 1, { what: 'the empty output' })
  assert.equal((await replica.read('dirk', id)).receivedSats, '0')
  const ofDust = await payer.transaction([dust], [{ address, amountSats: 1n }])
  await payer.mineOnly([ofDust])
  const short = await replica.reaches('dirk', id, 'underpaid')
  assert.equal(short.receivedSats, '1')
  const refused = await redeem('dirk', await payer.txidOf(ofDust))
  assert.equal(refused.outcome, RedeemOutcome.INSUFFICIENT)
  assert.match(refused.detail, /9999 sats/)
  const txid = await payer.spend([await payer.coin(PRICE_SATS + FEE_SATS)], [{ address, amountSats: PRICE_SATS - 1n }])
  await node.mine(1)
  await replica.reaches('dirk', id, 'paid')
  assert.equal((await redeem('dirk', txid)).outcome, RedeemOutcome.REDEEMED)
})

test('a payment that spends unconfirmed coins counts when they are mined together', { skip }, async () => {
  const { replica, node, payer, redeem } = shared()
  const { id, address } = await replica.open('gerd', 'orders')
  const coin = await payer.coin(PRICE_SATS + 3n * FEE_SATS)
  const txid = await payer.payAfter(coin, 2, { address, amountSats: PRICE_SATS }, FEE_SATS)
  await replica.reaches('gerd', id, 'seen')
  await node.mine(1)
  await replica.reaches('gerd', id, 'paid')
  assert.equal((await redeem('gerd', txid)).pass?.invoiceId, id)
})

test('a coinbase that pays an invoice is a payment like others', { skip }, async () => {
  const { replica, node, redeem } = shared()
  const { id, address } = await replica.open('hugo', 'orders')
  await node.rpc('generatetoaddress', [1, address])
  const paid = await replica.reaches('hugo', id, 'overpaid')
  const [payment] = paid.payments
  assert.equal(BigInt(paid.excessSats), BigInt(payment?.amountSats ?? 0) - PRICE_SATS)
  assert.equal((await redeem('hugo', payment?.txid ?? '')).outcome, RedeemOutcome.REDEEMED)
})

test('each satoshi of all this is in the books', { skip }, async () => {
  await booksBalance(shared().stack)
})
