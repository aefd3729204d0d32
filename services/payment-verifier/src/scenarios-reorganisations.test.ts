import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { PassState, RedeemOutcome } from '@tollward/contracts/payment'
import { eventually, requires } from '@tollward/testkit'
import { booksBalance } from './test-books.ts'
import { Payer } from './test-payer.ts'
import { PRICE_SATS, type Replica, type ShownInvoice, TestStack, together } from './test-stack.ts'

const skip = await requires({ tools: ['nats-server', 'bitcoind'] })
const resources = new AsyncDisposableStack()
after(() => resources.disposeAsync())

const FEE_SATS = 2_000n
const DEPTHS = [1, 2, 3, 4, 5, 6]
/** Coins of the node's wallet that can be spent without waiting for one another. */
const WALLET_COINS = 20

const stack = skip ? undefined : resources.use(await TestStack.start())
await stack?.node.mine(WALLET_COINS)
const replica = stack && resources.use(await stack.replica())
const other = stack && resources.use(await stack.replica())

function shared() {
  assert.ok(stack && replica && other)
  return { stack, replica: together(replica, other), node: stack.node, payer: new Payer(stack.node) }
}

/** An invoice and the transaction that pays it, which depends on no other payment, and another that spends the same coin. */
interface Purchase {
  readonly client: string
  readonly invoice: ShownInvoice
  readonly payment: string
  readonly conflict: string
  readonly txid: string
}

/** Invoices that are paid in one block, and what a reorganisation does to them: redeemed before it or not. */
interface Scene {
  /** The payment leaves its block and waits in the mempool. */
  readonly waiting: readonly [Purchase, Purchase]
  /** The payment moves to another block. */
  readonly moved: readonly [Purchase, Purchase]
  /** Another transaction spends its coin. */
  readonly conflicting: readonly [Purchase, Purchase]
}

async function order(payer: Payer, replica: Replica, client: string): Promise<Purchase> {
  const invoice = await replica.open(client, 'orders')
  const coin = await payer.coin(PRICE_SATS + FEE_SATS)
  const payment = await payer.transaction([coin], [{ address: invoice.address, amountSats: PRICE_SATS }])
  const conflict = await payer.transaction([coin], [{ address: await payer.address(), amountSats: PRICE_SATS }])
  return { client, invoice, payment, conflict, txid: await payer.txidOf(payment) }
}

for (const depth of DEPTHS) {
  test(`a reorganisation ${depth} deep takes back what it took, and gives it back when it is mined again`, {
    skip,
  }, async () => {
    const { stack, replica, node, payer } = shared()
    const both = async (name: string): Promise<[Purchase, Purchase]> => [
      await order(payer, replica, `${name}-${depth}`),
      await order(payer, replica, `${name}-${depth}-redeemed`),
    ]
    const scene: Scene = {
      waiting: await both('waiting'),
      moved: await both('moved'),
      conflicting: await both('conflicting'),
    }
    const all = Object.values(scene).flat()
    await node.mine(1)

    const old = await payer.mineOnly(all.map(({ payment }) => payment))
    for (let above = 1; above < depth; above += 1) await payer.mineOnly()
    const passes = new Map<Purchase, string>()
    for (const purchase of all) await replica.reaches(purchase.client, purchase.invoice.id, 'paid')
    for (const [, purchase] of Object.values(scene)) passes.set(purchase, await redeemed(stack, purchase))

    const holds = async (purchase: Purchase, states: readonly [string, string]) => {
      const passId = passes.get(purchase)
      await replica.reaches(purchase.client, purchase.invoice.id, states[passId === undefined ? 0 : 1])
      if (passId === undefined) return
      const isActive = states[1] === 'redeemed'
      await passIs(stack, passId, isActive ? PassState.ACTIVE : PassState.SUSPENDED)
      const { outcome } = await stack.verifier.redeem({
        clientId: purchase.client,
        plan: 'orders',
        txid: purchase.txid,
      })
      assert.equal(outcome === RedeemOutcome.REDEEMED, isActive)
    }

    await node.rpc('invalidateblock', [old])
    const [fork] = [await payer.mineOnly(scene.conflicting.map(({ conflict }) => conflict))]
    await payer.mineOnly(scene.moved.map(({ payment }) => payment))
    for (let above = 2; above < depth + 1; above += 1) await payer.mineOnly()
    for (const purchase of scene.waiting) await holds(purchase, ['reorganised', 'reorganised'])
    for (const purchase of scene.moved) await holds(purchase, ['paid', 'redeemed'])
    for (const purchase of scene.conflicting) await holds(purchase, ['replaced', 'reorganised'])

    await node.mine(1)
    for (const purchase of scene.waiting) await holds(purchase, ['paid', 'redeemed'])

    // The first chain wins after all.
    await node.rpc('reconsiderblock', [old])
    await node.rpc('invalidateblock', [fork])
    for (const purchase of all) await holds(purchase, ['paid', 'redeemed'])
    for (const [purchase, passId] of passes) assert.equal(await redeemed(stack, purchase), passId)
  })
}

test('a reorganisation while confirmations are missing counts them anew', { skip }, async () => {
  const { stack, replica, node, payer } = shared()
  const invoice = await replica.open('counting', 'three')
  const txid = await stack.pay(invoice)
  const [block] = await node.mine(2)
  await eventually(async () => (await replica.read('counting', invoice.id)).confirmations === 2, {
    what: 'two confirmations',
  })
  await node.rpc('invalidateblock', [block])
  for (let count = 0; count < 3; count += 1) await payer.mineOnly()
  const back = await replica.reaches('counting', invoice.id, 'reorganised')
  assert.deepEqual([back.confirmations, back.receivedSats, back.pendingSats], [0, '0', '10000'])
  await node.mine(1)
  assert.equal((await replica.reaches('counting', invoice.id, 'confirming')).confirmations, 1)
  const { outcome, confirmationsMissing } = await stack.verifier.redeem({ clientId: 'counting', plan: 'three', txid })
  assert.deepEqual([outcome, confirmationsMissing], [RedeemOutcome.PENDING, 2])
  await node.mine(2)
  await replica.reaches('counting', invoice.id, 'paid')
})

test('each satoshi of all this is in the books', { skip }, async () => {
  await booksBalance(shared().stack)
})

async function redeemed({ verifier }: TestStack, { client, txid }: Purchase): Promise<string> {
  const { outcome, pass } = await verifier.redeem({ clientId: client, plan: 'orders', txid })
  assert.equal(outcome, RedeemOutcome.REDEEMED)
  return pass?.passId ?? ''
}

async function passIs(stack: TestStack, passId: string, state: PassState): Promise<void> {
  await eventually(async () => (await stack.pass(passId))?.state === state, { what: 'the pass changes' })
}
