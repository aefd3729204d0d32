import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { contract } from '@tollward/contracts'
import { EntryAppendedSchema } from '@tollward/contracts/ledger'
import { PassState, RedeemOutcome, VerifierService } from '@tollward/contracts/payment'
import { eventually, requires, startBitcoind, startTcpProxy } from '@tollward/testkit'
import { booksBalance } from './test-books.ts'
import { Payer } from './test-payer.ts'
import { PRICE_SATS, type Replica, type ShownInvoice, TestStack } from './test-stack.ts'

const skip = await requires({ tools: ['nats-server', 'bitcoind'] })
const resources = new AsyncDisposableStack()
after(() => resources.disposeAsync())

/** Longer than the time after which payments are looked for without a notice. */
const FOUND_WITHOUT_NOTICE_MS = 30_000
const FORK_BLOCKS = 3
/** Coins of the node's wallet that can be spent without waiting for one another. */
const WALLET_COINS = 20

const stack = skip ? undefined : resources.use(await TestStack.start({ listen: true }))
await stack?.node.mine(WALLET_COINS)

function shared(): TestStack {
  assert.ok(stack)
  return stack
}

async function redeem({ verifier }: TestStack, clientId: string, txid: string, plan = 'orders') {
  return await eventually(() => verifier.redeem({ clientId, plan, txid }), { what: 'an answer' })
}

/** What happens in a purchase, one after the other, and what becomes of the invoice. */
interface Step {
  readonly what: string
  readonly state: string
  readonly confirmations: number
  act(): Promise<unknown>
}

/** Whoever hears no answer asks again: these calls may get none. */
const UNANSWERED_AFTER_MS = 1_000

/** A purchase with three confirmations that is reorganised before and after it is redeemed. */
function purchase({ node, bus }: TestStack, replica: Replica, client: string) {
  const payer = new Payer(node)
  const impatient = bus.client(VerifierService, { timeoutMs: UNANSWERED_AFTER_MS })
  const bought: { invoice?: ShownInvoice; txid: string } = { txid: '' }
  const order = async () => {
    await replica.request('POST', '/invoices', client, { plan: 'three', idempotencyKey: 'once' }).catch(() => undefined)
  }
  const pay = async () => {
    bought.txid = await node.pay(bought.invoice?.address ?? '', PRICE_SATS)
  }
  const buy = async () => {
    await impatient.redeem({ clientId: client, plan: 'three', txid: bought.txid }).catch(() => undefined)
  }
  const reorganise = async () => {
    const { blockhash } = await node.rpc<{ blockhash: string }>('gettransaction', [bought.txid])
    await node.rpc('invalidateblock', [blockhash])
    for (let count = 0; count < FORK_BLOCKS + 1; count += 1) await payer.mineOnly()
  }
  const steps: readonly Step[] = [
    { what: 'ordering', state: 'issued', confirmations: 0, act: order },
    { what: 'paying', state: 'seen', confirmations: 0, act: pay },
    { what: 'the first block', state: 'confirming', confirmations: 1, act: () => node.mine(1) },
    { what: 'a reorganisation', state: 'reorganised', confirmations: 0, act: reorganise },
    { what: 'its end', state: 'paid', confirmations: 3, act: () => node.mine(3) },
    { what: 'redeeming', state: 'redeemed', confirmations: 3, act: buy },
    { what: 'a reorganisation after that', state: 'reorganised', confirmations: 0, act: reorganise },
    { what: 'the end of it', state: 'redeemed', confirmations: 3, act: () => node.mine(3) },
  ]
  return { steps, bought }
}

for (const { when, waits } of [
  { when: 'at each step of a purchase', waits: false },
  { when: 'at each line that a purchase writes', waits: true },
]) {
  test(`a service that is killed ${when} goes on from there`, { skip }, async () => {
    const stack = shared()
    await using replica = await stack.replica()
    let written = Promise.withResolvers<void>()
    await using _lines = await stack.bus.follow(contract(EntryAppendedSchema), 'now', () => written.resolve())
    const client = `anna-${waits}`
    const { steps, bought } = purchase(stack, replica, client)
    let passId = ''
    for (const { what, state, confirmations, act } of steps) {
      written = Promise.withResolvers()
      const killed = (async () => {
        if (waits) await written.promise
        await replica.service.kill()
      })()
      await Promise.all([act(), killed])
      await replica.service.start()
      bought.invoice ??= await replica.open(client, 'three', 'once')
      if (what === 'redeeming') passId = (await redeem(stack, client, bought.txid, 'three')).pass?.passId ?? ''
      const reached = await replica.reaches(client, bought.invoice.id, state)
      assert.equal(reached.confirmations, confirmations, what)
      assert.equal(reached.payments.length, bought.txid === '' ? 0 : 1, what)
      if (passId === '') continue
      const wanted = state === 'redeemed' ? PassState.ACTIVE : PassState.SUSPENDED
      await eventually(async () => (await stack.pass(passId))?.state === wanted, { what: `the pass after ${what}` })
    }
    assert.equal((await redeem(stack, client, bought.txid, 'three')).pass?.passId, passId)
  })
}

test('without notices of the node payments and blocks are found by asking', { skip }, async () => {
  const stack = shared()
  await using proxy = await startTcpProxy(Number(new URL(stack.node.zmqUrl).port))
  await using replica = await stack.replica({ TOLLWARD_NODE_ZMQ_URL: `tcp://127.0.0.1:${proxy.port}` })
  const invoice = await replica.open('boris', 'orders')
  proxy.pause()
  const txid = await stack.pay(invoice)
  await stack.node.mine(1)
  await eventually(async () => (await replica.read('boris', invoice.id)).state === 'paid', {
    what: 'the payment and its block are found',
    timeoutMs: FOUND_WITHOUT_NOTICE_MS,
  })
  assert.equal((await redeem(stack, 'boris', txid)).outcome, RedeemOutcome.REDEEMED)
  proxy.resume()
  const next = await replica.open('boris', 'orders')
  await stack.pay(next)
  await replica.reaches('boris', next.id, 'seen')
})

test('a node that crashes and comes back loses no payment', { skip }, async () => {
  const stack = shared()
  const { node } = stack
  await using replica = await stack.replica()
  const [before, after] = [await replica.open('clara', 'orders'), await replica.open('clara', 'orders')]
  // Brings the chain to the disk: the crash costs the mempool only.
  await node.rpc('gettxoutsetinfo')
  await stack.pay(before)
  await replica.reaches('clara', before.id, 'seen')
  await node.kill()
  await node.start()
  await stack.pay(after)
  await replica.reaches('clara', after.id, 'seen')
  await node.mine(1)
  await replica.reaches('clara', after.id, 'paid')
  // The payer's wallet sent it again.
  await replica.reaches('clara', before.id, 'paid')
})

test('a node that knows less than was followed takes nothing back, and is waited for', { skip }, async () => {
  const stack = shared()
  await using late = await startBitcoind({ blocks: 0 })
  await using replica = await stack.replica()
  const invoice = await replica.open('emil', 'orders')
  const txid = await stack.pay(invoice)
  await stack.node.mine(1)
  await replica.reaches('emil', invoice.id, 'paid')
  const { pass } = await redeem(stack, 'emil', txid)
  await replica.service.kill()
  const { rpcUrl, cookieFile, zmqUrl } = late
  const env = {
    ...replica.env,
    TOLLWARD_NODE_URL: rpcUrl,
    TOLLWARD_NODE_COOKIE_FILE: cookieFile,
    TOLLWARD_NODE_ZMQ_URL: zmqUrl,
  }
  const ready = replica.service.start(env)
  const { healthUrl } = replica.service
  await eventually(async () => (await (await fetch(`${healthUrl}/healthz/ready`)).text()).includes('is behind'), {
    what: 'it says that the node is behind',
  })
  assert.equal((await stack.pass(pass?.passId))?.state, PassState.ACTIVE)
  await late.rpc('addnode', [stack.node.peerAddress, 'onetry'])
  await ready
  await replica.reaches('emil', invoice.id, 'redeemed')
  assert.equal((await redeem(stack, 'emil', txid)).pass?.passId, pass?.passId)
})

test('what a node confirmed on a branch that lost is taken back when it meets the others', { skip }, async () => {
  const stack = shared()
  const { node } = stack
  await using others = await startBitcoind({ connect: node.peerAddress ?? '', blocks: 0 })
  const together = async () =>
    await eventually(async () => (await others.rpc('getbestblockhash')) === (await node.rpc('getbestblockhash')), {
      what: 'both nodes have one tip',
      timeoutMs: 30_000,
    })
  await together()
  await using replica = await stack.replica()
  const [alone, elsewhere] = [await replica.open('dirk', 'orders'), await replica.open('dirk', 'orders')]
  await node.rpc('setnetworkactive', [false])
  await eventually(async () => (await others.rpc('getconnectioncount')) === 0, { what: 'the nodes are apart' })
  const txid = await stack.pay(alone)
  await node.mine(1)
  await replica.reaches('dirk', alone.id, 'paid')
  const passId = (await redeem(stack, 'dirk', txid)).pass?.passId ?? ''
  // What the others know, and this node does not: a payment, and more blocks.
  await others.rpc('generatetoaddress', [FORK_BLOCKS, elsewhere.address])
  await node.rpc('setnetworkactive', [true])
  await together()
  await replica.reaches('dirk', alone.id, 'reorganised')
  await eventually(async () => (await stack.pass(passId))?.state === PassState.SUSPENDED, {
    what: 'the pass is suspended',
  })
  await replica.reaches('dirk', elsewhere.id, 'overpaid')
  await node.mine(1)
  await replica.reaches('dirk', alone.id, 'redeemed')
  await eventually(async () => (await stack.pass(passId))?.state === PassState.ACTIVE, { what: 'the pass is back' })
})

test('each satoshi of all this is in the books', { skip }, async () => {
  await using _replica = await shared().replica()
  await booksBalance(shared())
})
