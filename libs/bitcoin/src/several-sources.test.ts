import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { test } from 'node:test'
import { type Bitcoind, eventually, requires, startBitcoind } from '@tollward/testkit'
import { NodeSource, nodeClient, SeveralSources, type SourceState } from './mod.ts'
import { best, follow, sourceOf } from './test-follower.ts'

const skip = await requires({ tools: ['bitcoind'] })
const AMOUNT_SATS = 12_345n
const POLL_INTERVAL_MS = 100
/** Nodes connect to each other when they like. */
const TIMEOUT_MS = 30_000

/** Sources as one, and what was told of them. */
function several(...sources: NodeSource[]) {
  const told: string[] = []
  const one = new SeveralSources(sources, (name, state) => told.push(`${name} ${state}`))
  const states = () => one.states.map(({ state }) => state)
  const become = async (...wanted: SourceState[]) =>
    await eventually(() => assert.deepEqual(states(), wanted) ?? true, {
      what: `the nodes are ${wanted.join(', ')}`,
      timeoutMs: TIMEOUT_MS,
    })
  return { one, told, become }
}

/** Two nodes with the same chain; the second may be cut off. */
async function pair() {
  await using nodes = new AsyncDisposableStack()
  const first = nodes.use(await startBitcoind({ listen: true }))
  const second = nodes.use(await startBitcoind({ blocks: 0, connect: first.peerAddress ?? '' }))
  await hasBlocks(second, await best(first))
  const owned = nodes.move()
  return { first, second, [Symbol.asyncDispose]: () => owned.disposeAsync() }
}

async function hasBlocks(node: Bitcoind, hash: string): Promise<void> {
  await eventually(async () => (await best(node)) === hash, { what: 'the node has the blocks', timeoutMs: TIMEOUT_MS })
}

test('when the followed node dies another one is asked, and nothing is taken back or missed', { skip }, async () => {
  await using nodes = await pair()
  const { first, second } = nodes
  const { one, become } = several(sourceOf(first), sourceOf(second))
  await using chain = follow(first, { source: one, pollIntervalMs: POLL_INTERVAL_MS })
  await chain.reaches(await best(first))
  await become('followed', 'equal')
  const txid = await first.pay(await chain.watch(), AMOUNT_SATS)
  const [paid] = await first.mine(1)
  await chain.reaches(paid)
  await hasBlocks(second, paid ?? '')
  await first.kill()
  await become('silent', 'followed')
  const [later] = await second.mine(1)
  await chain.reaches(later)
  assert.deepEqual(chain.paid(), [{ txid, amountSats: AMOUNT_SATS, height: 102 }])
  assert.deepEqual(chain.blocks(), [102, 103])
  await first.start()
  await become('equal', 'followed')
})

test('a node that lags is left, and if it is the only one nothing is taken back for it', { skip }, async () => {
  await using nodes = await pair()
  const { first, second } = nodes
  const { one, become } = several(sourceOf(second), sourceOf(first))
  await using chain = follow(first, { source: one, pollIntervalMs: POLL_INTERVAL_MS })
  await chain.reaches(await best(first))
  await second.rpc('setnetworkactive', [false])
  const txid = await first.pay(await chain.watch(), AMOUNT_SATS)
  const [paid] = await first.mine(1)
  await chain.reaches(paid)
  await become('behind', 'followed')
  await first.stop()
  await become('followed', 'silent')
  await eventually(() => !chain.follower.caughtUp, { what: 'nothing new is decided' })
  assert.match(
    chain.follower.trouble?.message ?? '',
    /is behind: it has only 101 blocks, and 102 were followed already/,
  )
  assert.equal(chain.follower.tip?.hash, paid)
  // Another chain with as much work and more is a better one all the same.
  const hashes = await second.mine(2)
  await chain.reaches(hashes.at(-1))
  assert.deepEqual(chain.blocks(), [102, -102, 102, 103])
  assert.deepEqual(
    chain.paid().map((payment) => payment.txid),
    [txid],
  )
})

test('a node of another network is told of and not asked, as long as there is one of the right network', {
  skip,
}, async () => {
  await using regtest = await startBitcoind()
  await using signet = await startBitcoind({ blocks: 0, signetChallenge: '51' })
  const { one, told, become } = several(sourceOf(signet), sourceOf(regtest))
  await using chain = follow(regtest, { source: one, pollIntervalMs: POLL_INTERVAL_MS })
  await chain.reaches(await best(regtest))
  await become('wrong-network', 'followed')
  assert.ok(told.some((line) => line.endsWith(' wrong-network')))
  await using alone = follow(regtest, { source: several(sourceOf(signet)).one })
  await assert.rejects(alone.follower.failed, /follows signet, but regtest is configured/)
})

test('a node that takes calls and never answers delays the first look only', { skip }, async () => {
  await using node = await startBitcoind()
  const hanging = createServer(() => {})
  using closing = new DisposableStack()
  closing.defer(() => {
    hanging.close()
    hanging.closeAllConnections()
  })
  hanging.listen(0, '127.0.0.1')
  await once(hanging, 'listening')
  const { port } = hanging.address() as AddressInfo
  const deaf = new NodeSource({
    node: nodeClient({ url: `http://127.0.0.1:${port}/`, user: 'u', password: 'p' }),
    name: 'deaf',
    network: 'regtest',
  })
  // After the first question, which ends by its limit, each takes as long as this test: whoever waits for one waits too long.
  const firstAnswer = deaf.best.bind(deaf)
  const over = Promise.withResolvers<never>()
  over.promise.catch(() => undefined)
  let questions = 0
  deaf.best = async () => {
    questions += 1
    return await (questions === 1 ? firstAnswer() : over.promise)
  }
  const { one, become } = several(deaf, sourceOf(node))
  await using chain = follow(node, { source: one, pollIntervalMs: POLL_INTERVAL_MS })
  using ending = new DisposableStack()
  ending.defer(() => over.reject(new Error('The test is over.')))
  await chain.reaches(await best(node))
  await become('silent', 'followed')
  const [hash] = await node.mine(1)
  await chain.reaches(hash)
  await eventually(() => questions === 2, { what: 'it is asked again, once at a time' })
})

test('a payment that only another node still knows is not missed', { skip }, async () => {
  await using nodes = await pair()
  const { first, second } = nodes
  const other = sourceOf(second)
  const asked: string[] = []
  const transactions = other.transactions.bind(other)
  other.transactions = async (txids) => {
    asked.push(...txids)
    return await transactions(txids)
  }
  const { one, become } = several(sourceOf(first), other)
  await using chain = follow(first, { source: one, pollIntervalMs: POLL_INTERVAL_MS })
  await chain.reaches(await best(first))
  await become('followed', 'equal')
  await second.rpc('setnetworkactive', [false])
  const address = await chain.watch()
  const coin = await first.rpc<{ hex: string }>('gettransaction', [await first.pay(address, AMOUNT_SATS)])
  await second.rpc('sendrawtransaction', [coin.hex])
  const { txid } = await first.rpc<{ txid: string }>('decoderawtransaction', [coin.hex])
  await eventually(() => chain.seen.length > 0, { what: 'the payment is seen' })
  const rival = await first.rpc<{ txid: string }>('bumpfee', [txid, { fee_rate: 100 }])
  await eventually(() => chain.seen.some((output) => output.txid === rival.txid), { what: 'the rival is seen' })
  // Looks follow one another: when it is asked again, what the look before concluded was told.
  const looks = () => asked.filter((asking) => asking === txid).length
  const before = looks()
  await eventually(() => looks() >= before + 2, { what: 'the other node is asked whether it has the payment' })
  assert.deepEqual(chain.vanished, [])
  await second.stop()
  await eventually(() => chain.vanished.length > 0, { what: 'nobody has it any more' })
  assert.deepEqual(chain.vanished, [{ txid, replacedBy: rival.txid }])
})
