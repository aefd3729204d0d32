import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { formatBtc } from '@tollward/bitcoin'
import { PassState, RedeemOutcome } from '@tollward/contracts/payment'
import { type Bitcoind, requires } from '@tollward/testkit'
import { Payer, privateKey } from './test-payer.ts'
import { PRICE_SATS, TestStack } from './test-stack.ts'

const skip = await requires({ tools: ['nats-server', 'bitcoind'] })

/** OP_TRUE: whoever works for a block may make it. */
const CHALLENGE = '51'
/**
 * The first 101 blocks of this signet, a line each, because a coinbase is spent after 100 others and each takes some five million
 * hashes. Made by the node: `-signet -signetchallenge=51 -mocktime=1600000000`, and `generatetoaddress` to the key below.
 */
const FIRST_BLOCKS = join(import.meta.dirname, '../fixtures/private-signet.hex')
const MINERS_KEY = privateKey(new Uint8Array(32).fill(1))
const COINBASE_SATS = 5_000_000_000n
const FEE_SATS = 2_000n

test('a client buys on a signet of its own challenge, whose blocks are worked for', { skip }, async () => {
  await using stack = await TestStack.start({ signetChallenge: CHALLENGE, blocks: 0 })
  const { node, verifier } = stack
  const blocks = (await readFile(FIRST_BLOCKS, 'utf8')).trim().split('\n')
  for (const block of blocks) assert.equal(await node.rpc('submitblock', [block]), null)
  assert.equal(await node.rpc('getblockcount'), blocks.length)
  await using replica = await stack.replica({
    TOLLWARD_NETWORK: 'signet',
    TOLLWARD_SIGNET_CHALLENGE: CHALLENGE,
    TOLLWARD_ACCOUNT_BIRTHDAY: '0',
  })
  const invoice = await replica.open('alice', 'orders')
  assert.match(invoice.address, /^tb1q/)
  const txid = await node.rpc<string>('sendrawtransaction', [await payment(node, invoice.address)])
  await replica.reaches('alice', invoice.id, 'seen')
  assert.equal((await verifier.redeem({ clientId: 'alice', plan: 'orders', txid })).outcome, RedeemOutcome.PENDING)
  await node.mine(1)
  await replica.reaches('alice', invoice.id, 'paid')
  const { outcome, pass } = await verifier.redeem({ clientId: 'alice', plan: 'orders', txid })
  assert.deepEqual([outcome, pass?.state], [RedeemOutcome.REDEEMED, PassState.ACTIVE])
  await replica.reaches('alice', invoice.id, 'redeemed')
})

/** A transaction, in hexadecimal, that pays the price with the first coinbase. */
async function payment(node: Bitcoind, address: string): Promise<string> {
  const { tx } = await node.rpc<{ tx: string[] }>('getblock', [await node.rpc('getblockhash', [1])])
  const outputs = [
    { [address]: formatBtc(PRICE_SATS) },
    { [await new Payer(node).address()]: formatBtc(COINBASE_SATS - PRICE_SATS - FEE_SATS) },
  ]
  const unsigned = await node.rpc('createrawtransaction', [[{ txid: tx[0], vout: 0 }], outputs])
  return (await node.rpc<{ hex: string }>('signrawtransactionwithkey', [unsigned, [MINERS_KEY]])).hex
}
