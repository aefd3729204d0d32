import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type Bitcoind, eventually, requires, startBitcoind } from '@tollward/testkit'
import { z } from 'zod'
import { formatBtc, nodeClient, parseBtc } from './mod.ts'
import { best, follow, sourceOf } from './test-follower.ts'

const skip = await requires({ tools: ['bitcoind'] })
const AMOUNT_SATS = 12_345n
/** A fee that any replacement of a wallet's payment exceeds. */
const HIGH_FEE_SATS = 100_000n

/** A signed transaction, in hexadecimal, that spends the coins of another one and pays nobody that is watched. */
async function rivalOf(node: Bitcoind, txid: string): Promise<string> {
  const { hex } = await node.rpc<{ hex: string }>('gettransaction', [txid])
  const { vin } = await node.rpc<{ vin: { txid: string; vout: number }[] }>('decoderawtransaction', [hex])
  let sats = -HIGH_FEE_SATS
  for (const input of vin) {
    const source = await node.rpc<{ hex: string }>('gettransaction', [input.txid])
    const { vout } = await node.rpc<{ vout: { value: number }[] }>('decoderawtransaction', [source.hex])
    sats += parseBtc((vout[input.vout]?.value ?? 0).toFixed(8))
  }
  const inputs = vin.map((input) => ({ txid: input.txid, vout: input.vout }))
  const outputs = [{ [await node.rpc<string>('getnewaddress')]: formatBtc(sats) }]
  const unsigned = await node.rpc('createrawtransaction', [inputs, outputs])
  return (await node.rpc<{ hex: string }>('signrawtransactionwithwallet', [unsigned])).hex
}

async function spendOtherwise(node: Bitcoind, txid: string): Promise<string> {
  return await node.rpc<string>('sendrawtransaction', [await rivalOf(node, txid)])
}

test('notices alone bring a payment into the mempool and into a block', { skip }, async () => {
  await using node = await startBitcoind()
  await using chain = follow(node)
  await chain.reaches(await best(node))
  const address = await chain.watch()
  const txid = await node.pay(address, AMOUNT_SATS)
  const [output] = await eventually(() => chain.seen.length > 0 && chain.seen, { what: 'the payment is seen' })
  assert.equal(output?.txid, txid)
  assert.equal(output.amountSats, AMOUNT_SATS)
  const [hash] = await node.mine(1)
  await chain.reaches(hash)
  assert.deepEqual(chain.paid(), [{ txid, amountSats: AMOUNT_SATS, height: 102 }])
  const header = await node.rpc<{ mediantime: number }>('getblockheader', [hash])
  assert.equal(chain.changes.at(-1)?.connected[0]?.medianTimePastMs, header.mediantime * 1000)
  assert.deepEqual([...(await chain.follower.medianTimePasts([102, 103, -1]))], [[102, header.mediantime * 1000]])
})

test('polling alone finds payments and blocks', { skip }, async () => {
  await using node = await startBitcoind()
  await using chain = follow(node, { zmq: false, pollIntervalMs: 50 })
  const txid = await node.pay(await chain.watch(), AMOUNT_SATS)
  await eventually(() => chain.seen.some((output) => output.txid === txid), { what: 'the payment is seen' })
  const [hash] = await node.mine(1)
  await chain.reaches(hash)
  assert.equal(chain.paid().length, 1)
})

test('a payment that waits in the mempool is seen at the start', { skip }, async () => {
  await using node = await startBitcoind()
  const address = await node.rpc<string>('getnewaddress', ['', 'bech32'])
  const txid = await node.pay(address, AMOUNT_SATS)
  await using chain = follow(node)
  chain.watchAddress(address)
  await eventually(() => chain.seen.some((output) => output.txid === txid), { what: 'the payment is seen' })
})

test('a payment that is replaced by one to somebody else is told of, and by which transaction', { skip }, async () => {
  await using node = await startBitcoind()
  await using chain = follow(node)
  await chain.reaches(await best(node))
  const txid = await node.pay(await chain.watch(), AMOUNT_SATS)
  await eventually(() => chain.seen.length > 0, { what: 'the payment is seen' })
  const replacedBy = await spendOtherwise(node, txid)
  await eventually(() => chain.vanished.length > 0, { what: 'the payment is missed' })
  assert.deepEqual(chain.vanished, [{ txid, replacedBy }])
})

test('a payment whose coins a block spends otherwise is told of, and one that is in a block is not missed', {
  skip,
}, async () => {
  await using node = await startBitcoind()
  await using chain = follow(node)
  await chain.reaches(await best(node))
  const mined = await node.pay(await chain.watch(), AMOUNT_SATS)
  await node.mine(1)
  const txid = await node.pay(await chain.watch(), AMOUNT_SATS)
  await eventually(() => chain.seen.some((output) => output.txid === txid), { what: 'the payment is seen' })
  const conflict = await rivalOf(node, txid)
  await node.rpc('generateblock', [await node.rpc('getnewaddress'), [conflict]])
  await chain.reaches(await best(node))
  await eventually(() => chain.vanished.length > 0, { what: 'the payment is missed' })
  const { txid: replacedBy } = await node.rpc<{ txid: string }>('decoderawtransaction', [conflict])
  assert.deepEqual(chain.vanished, [{ txid, replacedBy }])
  assert.deepEqual(
    chain.paid().map((payment) => payment.txid),
    [mined],
  )
})

test("a payment that a node forgot is told of without a reason, and comes back with the node's memory", {
  skip,
}, async () => {
  await using node = await startBitcoind({ args: ['-persistmempool=0', '-walletbroadcast=0'] })
  await using chain = follow(node, { pollIntervalMs: 100 })
  await chain.reaches(await best(node))
  const txid = await node.pay(await chain.watch(), AMOUNT_SATS)
  const { hex } = await node.rpc<{ hex: string }>('gettransaction', [txid])
  await node.rpc('sendrawtransaction', [hex])
  await eventually(() => chain.seen.length > 0, { what: 'the payment is seen' })
  await node.stop()
  await node.start()
  await eventually(() => chain.vanished.length > 0, { what: 'the payment is missed' })
  assert.deepEqual(chain.vanished, [{ txid }])
  const before = chain.seen.length
  await node.rpc('sendrawtransaction', [hex])
  await eventually(() => chain.seen.length > before, { what: 'the payment is seen again' })
})

test('whatever happened during an absence is caught up, block by block and in order', { skip }, async () => {
  await using node = await startBitcoind()
  const known = { hash: await best(node), height: 101 }
  await using chain = follow(node, { known: [known] })
  const address = await chain.watch()
  await chain.reaches(known.hash)
  const txid = await node.pay(address, AMOUNT_SATS)
  const hashes = await node.mine(120)
  await chain.reaches(hashes.at(-1))
  assert.deepEqual(
    chain.blocks(),
    Array.from({ length: 120 }, (_, offset) => 102 + offset),
  )
  await using restarted = follow(node, { known: [known] })
  await restarted.reaches(hashes.at(-1))
  assert.deepEqual(restarted.blocks(), chain.blocks())
  assert.deepEqual(chain.paid(), [{ txid, amountSats: AMOUNT_SATS, height: 102 }])
})

test('a reorganisation takes blocks back newest first and then brings the others', { skip }, async () => {
  await using node = await startBitcoind()
  await using chain = follow(node)
  await chain.reaches(await best(node))
  const txid = await node.pay(await chain.watch(), AMOUNT_SATS)
  const [first] = await node.mine(3)
  await chain.reaches(await best(node))
  const before = chain.blocks().length
  await node.rpc('invalidateblock', [first])
  const hashes = await node.mine(4)
  await chain.reaches(hashes.at(-1))
  assert.deepEqual(chain.blocks().slice(before), [-104, -103, -102, 102, 103, 104, 105])
  assert.deepEqual(chain.paid().slice(1), [{ txid, amountSats: AMOUNT_SATS, height: 102 }])
})

test('blocks that left the chain during an absence are taken back, however deep', { skip }, async () => {
  await using node = await startBitcoind()
  const hashes = await node.mine(6)
  const known = hashes.map((hash, offset) => ({ hash, height: 102 + offset }))
  await node.rpc('invalidateblock', [hashes[1]])
  const [tip] = (await node.mine(7)).slice(-1)
  // Of 102, which stays, and 104 and 107, which left, the follower knows; of the others it does not.
  await using chain = follow(node, { known: known.filter(({ height }) => [102, 104, 107].includes(height)) })
  await chain.reaches(tip)
  assert.deepEqual(chain.blocks(), [-107, -104, 103, 104, 105, 106, 107, 108, 109])
  await using stranger = follow(node, { known: [{ hash: '00'.repeat(32), height: 105 }] })
  await stranger.reaches(tip)
  assert.deepEqual(stranger.blocks(), [-105, 105, 106, 107, 108, 109])
})

test('what a handler could not take comes again, and nothing is passed over', { skip }, async () => {
  await using node = await startBitcoind()
  await using chain = follow(node)
  await chain.reaches(await best(node))
  await node.pay(await chain.watch(), AMOUNT_SATS)
  chain.faults.changes = 2
  const [hash] = await node.mine(1)
  await chain.reaches(hash)
  assert.equal(chain.paid().length, 1)
  assert.deepEqual(
    chain.troubles.map(({ code }) => code),
    ['unavailable', 'unavailable'],
  )
})

test('a node that dies is waited for, and what came meanwhile is found', { skip }, async () => {
  await using node = await startBitcoind()
  await using chain = follow(node, { pollIntervalMs: 100 })
  await chain.reaches(await best(node))
  const address = await chain.watch()
  await node.stop()
  await eventually(() => chain.troubles.some(({ code }) => code === 'unavailable'), { what: 'the absence is noticed' })
  await eventually(() => chain.follower.silentForMs > 0, { what: 'the silence is measured' })
  await node.start()
  const txid = await node.pay(address, AMOUNT_SATS)
  await eventually(() => chain.seen.some((output) => output.txid === txid), { what: 'the payment is seen' })
  const [hash] = await node.mine(2).then((hashes) => hashes.slice(-1))
  await chain.reaches(hash)
  assert.equal(chain.follower.silentForMs, 0)
})

test('a script that is watched late is looked for in the past', { skip }, async () => {
  await using node = await startBitcoind()
  await using chain = follow(node)
  await chain.reaches(await best(node))
  const address = await node.rpc<string>('getnewaddress', ['', 'bech32'])
  const txid = await node.pay(address, AMOUNT_SATS)
  await node.mine(2)
  await chain.reaches(await best(node))
  assert.equal(chain.paid().length, 0)
  chain.watchAddress(address)
  chain.follower.rescan(102)
  await eventually(() => chain.paid().length > 0, { what: 'the payment is found' })
  assert.deepEqual(chain.paid(), [{ txid, amountSats: AMOUNT_SATS, height: 102 }])
})

test('a node of another network ends the following', { skip }, async () => {
  await using node = await startBitcoind({ blocks: 0 })
  await using chain = follow(node, { source: sourceOf(node, { network: 'mainnet' }) })
  let failure: unknown
  chain.follower.failed.catch((error: unknown) => {
    failure = error
  })
  await eventually(() => failure !== undefined, { what: 'the following ends' })
  assert.match(String(failure), /follows regtest, but mainnet is configured/)
  assert.equal(chain.follower.caughtUp, false)
  assert.equal(chain.changes.length, 0)
})

test('wrong credentials and what is no node are told apart', { skip }, async () => {
  await using node = await startBitcoind({ blocks: 0 })
  const ask = async (options: Parameters<typeof nodeClient>[0]) => {
    const { call } = nodeClient({ timeoutMs: 2_000, ...options })
    return await call(z.number(), 'getblockcount').catch((error) => error.code)
  }
  assert.equal(await ask({ url: node.rpcUrl, cookieFile: node.cookieFile }), 0)
  assert.equal(await ask({ url: node.rpcUrl, user: 'a', password: 'b' }), 'unauthenticated')
  assert.equal(await ask({ url: node.rpcUrl, cookieFile: '/nonexistent/cookie' }), 'unavailable')
  assert.equal(await ask({ url: 'http://127.0.0.1:1/', user: 'a', password: 'b' }), 'unavailable')
})
