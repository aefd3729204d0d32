import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { test } from 'node:test'
import { BitcoinRpcError, eventually, requires, startBitcoind } from './mod.ts'

const skip = await requires({ tools: ['bitcoind'] })

test('a payment is confirmed by mining, and outlives a crash of the node', { skip }, async () => {
  await using node = await startBitcoind()
  assert.equal(await node.rpc('getblockcount'), 101)
  const address = await node.rpc<string>('getnewaddress', ['', 'bech32m'])
  const txid = await node.pay(address, 12_345n)
  assert.deepEqual(await node.rpc('getrawmempool'), [txid])
  const [block] = await node.mine(1)
  assert.equal(await node.rpc('getbestblockhash'), block)
  await node.stop()
  await assert.rejects(node.rpc('getblockcount'))
  await node.start()
  await node.kill()
  await node.start()
  const payment = await node.rpc<{ confirmations: number; details: { amount: number; category: string }[] }>(
    'gettransaction',
    [txid],
  )
  assert.equal(payment.confirmations, 1)
  assert.equal(payment.details.find(({ category }) => category === 'receive')?.amount, 0.000_123_45)
})

test('what the node refuses comes back with its code', { skip }, async () => {
  await using node = await startBitcoind({ blocks: 1 })
  const refused = node.rpc('getrawtransaction', ['00'.repeat(32)])
  await assert.rejects(refused, (error) => error instanceof BitcoinRpcError && error.code === -5)
})

test('a second node follows the first', { skip }, async () => {
  await using first = await startBitcoind({ listen: true })
  await using second = await startBitcoind({ connect: first.peerAddress ?? '', blocks: 0 })
  const [tip] = await first.mine(1)
  await eventually(async () => (await second.rpc('getbestblockhash')) === tip, { what: 'the second node has the tip' })
})

test('a node that cannot start says why, and leaves nothing', { skip }, async () => {
  await assert.rejects(startBitcoind({ args: ['-no-such-option'] }), (error) => {
    assert.match(String(error), /bitcoind ended .*no-such-option/s)
    return true
  })
  let cookieFile: string
  {
    await using node = await startBitcoind({ blocks: 0 })
    cookieFile = node.cookieFile
    assert.ok(existsSync(cookieFile))
  }
  assert.ok(!existsSync(cookieFile))
})
