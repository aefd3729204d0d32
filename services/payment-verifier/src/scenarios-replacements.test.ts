import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { RedeemOutcome } from '@tollward/contracts/payment'
import { eventually, requires } from '@tollward/testkit'
import { booksBalance } from './test-books.ts'
import { Payer } from './test-payer.ts'
import { PRICE_SATS, TestStack } from './test-stack.ts'

const skip = await requires({ tools: ['nats-server', 'bitcoind'] })
const resources = new AsyncDisposableStack()
after(() => resources.disposeAsync())

const FEE_SATS = 2_000n
/** So much higher that every node takes it for a replacement. */
const HIGHER_FEE_SATS = 20_000n
/** Longer than the time after which the mempool is looked at without a notice. */
const FOUND_WITHOUT_NOTICE_MS = 30_000
/** Coins of the node's wallet that can be spent without waiting for one another. */
const WALLET_COINS = 20

const stack = skip ? undefined : resources.use(await TestStack.start())
await stack?.node.mine(WALLET_COINS)
const replica = stack && resources.use(await stack.replica())

function shared() {
  assert.ok(stack && replica)
  const { node, verifier } = stack
  const redeem = async (clientId: string, txid: string) => await verifier.redeem({ clientId, plan: 'orders', txid })
  return { stack, replica, node, payer: new Payer(node), redeem }
}

test('a payment whose fee is raised is one payment, of the transaction that is mined', { skip }, async () => {
  const { replica, node, payer, redeem } = shared()
  const { id, address } = await replica.open('egon', 'orders')
  const coin = await payer.coin(PRICE_SATS + HIGHER_FEE_SATS)
  const change = await payer.address()
  const cheap = await payer.spend(
    [coin],
    [
      { address, amountSats: PRICE_SATS },
      { address: change, amountSats: HIGHER_FEE_SATS - FEE_SATS },
    ],
  )
  await replica.reaches('egon', id, 'seen')
  const dear = await payer.spend([coin], [{ address, amountSats: PRICE_SATS }])
  const both = await eventually(
    async () => {
      const invoice = await replica.read('egon', id)
      return invoice.payments.some(({ txid }) => txid === dear) && invoice.pendingSats === '10000' && invoice
    },
    { what: 'only the second transaction counts' },
  )
  assert.equal(both.state, 'seen')
  await node.mine(1)
  const paid = await replica.reaches('egon', id, 'paid')
  assert.deepEqual([paid.receivedSats, paid.pendingSats, paid.excessSats], ['10000', '0', '0'])
  assert.equal((await redeem('egon', dear)).outcome, RedeemOutcome.REDEEMED)
  assert.equal((await redeem('somebody', cheap)).outcome, RedeemOutcome.NOTHING_OPEN)
})

for (const [how, isFinal] of [
  ['that says it may be replaced', false],
  ['that says it may not', true],
] as const) {
  test(`a payment ${how}, and that the payer takes back, is replaced until another one comes`, { skip }, async () => {
    const { replica, node, payer, redeem } = shared()
    const client = `fritz-${isFinal}`
    const { id, address } = await replica.open(client, 'orders')
    const coin = await payer.coin(PRICE_SATS + HIGHER_FEE_SATS)
    const taken = await payer.spend([coin], [{ address, amountSats: PRICE_SATS + HIGHER_FEE_SATS - FEE_SATS }], {
      isFinal,
    })
    await replica.reaches(client, id, 'seen')
    await payer.spend([coin], [{ address: await payer.address(), amountSats: PRICE_SATS }])
    const replaced = await replica.reaches(client, id, 'replaced')
    assert.equal(replaced.pendingSats, '0')
    await node.mine(1)
    assert.notEqual((await redeem(client, taken)).outcome, RedeemOutcome.REDEEMED)
    assert.equal((await replica.read(client, id)).state, 'replaced')
    const again = await payer.spend([await payer.coin(PRICE_SATS + FEE_SATS)], [{ address, amountSats: PRICE_SATS }])
    await replica.reaches(client, id, 'seen')
    await node.mine(1)
    await replica.reaches(client, id, 'paid')
    assert.equal((await redeem(client, again)).outcome, RedeemOutcome.REDEEMED)
  })
}

test('a payment is gone when what it descends from is replaced', { skip }, async () => {
  const { replica, node, payer, redeem } = shared()
  const { id, address } = await replica.open('gerd', 'orders')
  const coin = await payer.coin(PRICE_SATS + 3n * FEE_SATS)
  await node.mine(1)
  const txid = await payer.payAfter(coin, 2, { address, amountSats: PRICE_SATS }, FEE_SATS)
  await replica.reaches('gerd', id, 'seen')
  // Nobody spends what the payment itself spends, so no notice tells of it.
  await payer.spend([coin], [{ address: await payer.address(), amountSats: FEE_SATS }])
  await node.mine(1)
  await eventually(async () => (await replica.read('gerd', id)).state === 'replaced', {
    what: 'the payment is missed',
    timeoutMs: FOUND_WITHOUT_NOTICE_MS,
  })
  assert.notEqual((await redeem('gerd', txid)).outcome, RedeemOutcome.REDEEMED)
})

test('each satoshi of all this is in the books', { skip }, async () => {
  await booksBalance(shared().stack)
})
