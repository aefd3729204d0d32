import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { test } from 'node:test'
import { create } from '@bufbuild/protobuf'
import { nodeClient } from '@tollward/bitcoin'
import { MineRegtestRequestSchema, PayRegtestRequestSchema } from '@tollward/contracts/admin'
import { requires, startBitcoind } from '@tollward/testkit'
import { regtestMethods } from './regtest.ts'

const action = { caller: { clientId: 'operator', subject: 'operator', tokenHash: '', grantHash: '' }, target: '' }
const payment = (uri: string) => create(PayRegtestRequestSchema, { uri })
const mining = (blocks: number) => create(MineRegtestRequestSchema, { blocks })

test('a regtest node pays a URI to the satoshi and mines', {
  skip: await requires({ tools: ['bitcoind'] }),
}, async () => {
  await using bitcoind = await startBitcoind()
  const methods = regtestMethods(nodeClient({ url: bitcoind.rpcUrl, cookieFile: bitcoind.cookieFile }))
  const address = await bitcoind.rpc<string>('getnewaddress')
  const { txid } = await methods.payRegtest(payment(`bitcoin:${address}?amount=0.00010001`), action)
  const { height } = await methods.mineRegtest(mining(2), action)
  assert.equal(height, await bitcoind.rpc('getblockcount'))
  const transaction = await bitcoind.rpc<{ confirmations: number; details: { address: string; amount: number }[] }>(
    'gettransaction',
    [txid],
  )
  assert.equal(transaction.confirmations, 2)
  assert.ok(transaction.details.some((detail) => detail.address === address && detail.amount === 0.00010001))
  await assert.rejects(
    methods.payRegtest(payment('bitcoin:bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq?amount=1'), action),
    {
      code: 'invalid_argument',
    },
  )
  await assert.rejects(methods.payRegtest(payment(`bitcoin:${address}`), action), { code: 'invalid_argument' })
  await assert.rejects(methods.mineRegtest(mining(1001), action), { code: 'invalid_argument' })
})

test('a node on any other chain is never asked to pay or mine, and without a node nothing is', async () => {
  const asked: string[] = []
  const mainnet = createServer(async (request, response) => {
    const { method } = JSON.parse(Buffer.concat(await Array.fromAsync(request)).toString())
    asked.push(method)
    response.end(JSON.stringify({ id: 0, result: { chain: 'main' }, error: null }))
  })
  mainnet.listen(0, '127.0.0.1')
  await once(mainnet, 'listening')
  try {
    const url = `http://127.0.0.1:${(mainnet.address() as AddressInfo).port}`
    for (const methods of [regtestMethods(nodeClient({ url, user: 'u', password: 'p' })), regtestMethods(undefined)]) {
      await assert.rejects(methods.mineRegtest(mining(1), action), { code: 'failed_precondition' })
      await assert.rejects(methods.payRegtest(payment('bitcoin:x?amount=1'), action), { code: 'failed_precondition' })
    }
    assert.deepEqual(asked, ['getblockchaininfo', 'getblockchaininfo'])
  } finally {
    mainnet.closeAllConnections()
    mainnet.close()
  }
})
