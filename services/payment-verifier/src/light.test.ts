import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { RedeemOutcome } from '@tollward/contracts/payment'
import { eventually, requires, startElectrumx, startService } from '@tollward/testkit'
import { TestStack } from './test-stack.ts'

const skip = await requires({ tools: ['bitcoind', 'electrumx', 'nats-server'] })
/** Of BIP-84. */
const MAINNET_KEY =
  'zpub6rFR7y4Q2AijBEqTUquhVz398htDFrtymD9xYYfG1m4wAcvPhXNfE3EfH1r1ADqtfSdVCToUG868RvUUkgDKf31mGDtKsAYz2oz2AGutZYs'
/** An index follows its node at some distance, and ElectrumX gathers answers for up to a second. */
const IN_TIME = { timeoutMs: 60_000 }

const started = skip === false ? await TestStack.start({ args: ['-txindex'] }) : undefined
after(() => started?.[Symbol.asyncDispose]())

function shared(): TestStack {
  assert.ok(started)
  return started
}

test('without a node of one’s own a payment buys a pass, and a reorganisation takes it back', { skip }, async () => {
  const stack = shared()
  await using server = await startElectrumx(stack.node)
  await using replica = await stack.replica({
    ...{ TOLLWARD_NODE_URL: undefined, TOLLWARD_NODE_COOKIE_FILE: undefined, TOLLWARD_NODE_ZMQ_URL: undefined },
    ...{ TOLLWARD_LIGHT_SERVERS: server.url, TOLLWARD_NODE_SILENT_MAX_MS: '30000' },
  })
  const stateOf = async (id: string, state: string) =>
    await eventually(async () => (await replica.read('anna', id)).state === state, {
      what: `it is ${state}`,
      ...IN_TIME,
    })
  const invoice = await replica.open('anna', 'orders')
  const txid = await stack.pay(invoice)
  await stateOf(invoice.id, 'seen')
  const [hash = ''] = await stack.node.mine(1)
  await stateOf(invoice.id, 'paid')
  const { outcome } = await stack.verifier.redeem({ clientId: 'anna', plan: 'orders', txid })
  assert.equal(outcome, RedeemOutcome.REDEEMED)

  await stack.node.rpc('invalidateblock', [hash])
  const elsewhere = await stack.node.rpc('getnewaddress')
  for (const _ of [1, 2]) await stack.node.rpc('generateblock', [elsewhere, []])
  await stateOf(invoice.id, 'reorganised')
  await stack.node.mine(1)
  await stateOf(invoice.id, 'redeemed')
})

test('either nodes or light servers are configured', { skip }, async () => {
  const stack = shared()
  const refused = async (overrides: NodeJS.ProcessEnv, why: RegExp) =>
    await assert.rejects(startService('payment-verifier', await stack.env(overrides), { readyTimeoutMs: 8_000 }), why)
  await refused({ TOLLWARD_LIGHT_SERVERS: 'tcp://127.0.0.1:1' }, /either TOLLWARD_NODE_URL, or TOLLWARD_LIGHT_SERVERS/)
  const mainnet = {
    ...{ TOLLWARD_NETWORK: 'mainnet', TOLLWARD_ACCOUNT_KEY: MAINNET_KEY, TOLLWARD_ACCOUNT_BIRTHDAY: '900000' },
    ...{ TOLLWARD_NODE_URL: undefined, TOLLWARD_LIGHT_SERVERS: 'tcp://127.0.0.1:1' },
  }
  await refused(mainnet, /Give TOLLWARD_LIGHT_CHECKPOINT on mainnet/)
  await refused({ TOLLWARD_LIGHT_SERVERS: 'tcp://127.0.0.1' }, /TOLLWARD_LIGHT_SERVERS.0: is tcp/)
  await refused({ TOLLWARD_LIGHT_CHECKPOINT: '7' }, /TOLLWARD_LIGHT_CHECKPOINT: is height:hash/)
})
