import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { json } from 'node:stream/consumers'
import { after, test } from 'node:test'
import { parseAccountKey } from '@tollward/bitcoin'
import { contract } from '@tollward/contracts'
import { EntryAppendedSchema } from '@tollward/contracts/ledger'
import { PassState, PaymentReorgedSchema, RedeemOutcome } from '@tollward/contracts/payment'
import { AppError } from '@tollward/errors'
import { eventually, requires, startProcess, startService } from '@tollward/testkit'
import { z } from 'zod'
import { type Replica, TestStack } from './test-stack.ts'

const skip = await requires({ tools: ['nats-server', 'bitcoind'] })
const resources = new AsyncDisposableStack()
after(() => resources.disposeAsync())
const started = skip ? undefined : resources.use(await TestStack.start())

const RpcCall = z.object({ id: z.number(), method: z.string() })

function shared(): TestStack {
  assert.ok(started)
  return started
}

const isCode = (code: string) => (error: unknown) => error instanceof AppError && error.code === code
const readiness = async ({ service }: Replica) => await (await fetch(`${service.healthUrl}/healthz/ready`)).text()

test('without the node nothing new is decided, what was bought stays, and everything goes on when it is back', {
  skip,
}, async () => {
  const stack = shared()
  await using replica = await stack.replica()
  const [paid, ready] = [await replica.open('alice', 'orders'), await replica.open('alice', 'orders')]
  const [txid, readyTxid] = [await stack.pay(paid), await stack.pay(ready)]
  await stack.node.mine(1)
  await replica.reaches('alice', ready.id, 'paid')
  const { pass } = await stack.verifier.redeem({ clientId: 'alice', plan: 'orders', txid })
  await stack.node.stop()
  await eventually(async () => (await readiness(replica)).includes('node does not answer'), { what: 'it is not ready' })
  const refused = await replica.request('POST', '/invoices', 'alice', { plan: 'orders' })
  assert.equal(refused.status, 503)
  assert.ok(Number(refused.headers.get('retry-after')) > 0)
  await assert.rejects(
    stack.verifier.redeem({ clientId: 'alice', plan: 'orders', txid: readyTxid }),
    isCode('unavailable'),
  )
  assert.deepEqual((await stack.verifier.redeem({ clientId: 'alice', plan: 'orders', txid })).pass, pass)
  assert.equal(
    (await stack.verifier.lease({ passId: pass?.passId ?? '', holder: 'h', wantedRequests: 5 })).grantedRequests,
    5,
  )
  await stack.node.start()
  await eventually(async () => (await readiness(replica)).includes('"ready":true'), { what: 'it is ready again' })
  const { outcome } = await stack.verifier.redeem({ clientId: 'alice', plan: 'orders', txid: readyTxid })
  assert.equal(outcome, RedeemOutcome.REDEEMED)
})

test('a reorganisation while the service was away takes back what it bought', { skip }, async () => {
  const stack = shared()
  await using replica = await stack.replica()
  const invoice = await replica.open('bob', 'orders')
  const txid = await stack.pay(invoice)
  const [block] = await stack.node.mine(1)
  await replica.reaches('bob', invoice.id, 'paid')
  const { pass } = await stack.verifier.redeem({ clientId: 'bob', plan: 'orders', txid })
  await replica.service.kill()
  await stack.node.rpc('invalidateblock', [block])
  const miner = await stack.node.rpc('getnewaddress')
  await stack.node.rpc('generateblock', [miner, []])
  await stack.node.rpc('generateblock', [miner, []])
  const reorged: string[] = []
  await using _reorged = await stack.bus.follow(contract(PaymentReorgedSchema), 'now', ({ invoiceId }) =>
    reorged.push(invoiceId),
  )
  await replica.service.start()
  await eventually(async () => (await stack.pass(pass?.passId))?.state === PassState.SUSPENDED, {
    what: 'the pass is suspended',
  })
  await eventually(() => reorged.includes(invoice.id), { what: 'it is announced' })
  await stack.node.mine(1)
  await eventually(async () => (await stack.pass(pass?.passId))?.state === PassState.ACTIVE, {
    what: 'the pass is restored',
  })
})

test('a payment that is mined again in another block at once was never away', { skip }, async () => {
  const stack = shared()
  await using replica = await stack.replica()
  const invoice = await replica.open('carol', 'orders')
  const txid = await stack.pay(invoice)
  const [block] = await stack.node.mine(1)
  await replica.reaches('carol', invoice.id, 'paid')
  const { pass } = await stack.verifier.redeem({ clientId: 'carol', plan: 'orders', txid })
  await replica.service.kill()
  await stack.node.rpc('invalidateblock', [block])
  await stack.node.mine(2)
  const entries: string[] = []
  await using _entries = await stack.bus.follow(contract(EntryAppendedSchema), 'now', ({ entry }) =>
    entries.push(entry.case ?? ''),
  )
  await replica.service.start()
  await eventually(() => entries.length > 0, { what: 'the ledger goes on' })
  assert.deepEqual(entries, ['paymentConfirmed'])
  assert.equal((await stack.pass(pass?.passId))?.state, PassState.ACTIVE)
})

test('a crash between redeeming and making the pass costs nobody anything', { skip }, async () => {
  const stack = shared()
  await using replica = await stack.replica()
  const invoice = await replica.open('dora', 'orders')
  const txid = await stack.pay(invoice)
  await stack.node.mine(1)
  await replica.reaches('dora', invoice.id, 'paid')
  const { pass } = await stack.verifier.redeem({ clientId: 'dora', plan: 'orders', txid })
  // What such a crash leaves: the ledger's line without the pass.
  await stack.passes.remove(pass?.passId ?? '')
  assert.deepEqual((await stack.verifier.redeem({ clientId: 'dora', plan: 'orders', txid })).pass, pass)
})

test('passes that the bucket lost are made again at the start, with what was drawn of them as used', {
  skip,
}, async () => {
  const stack = shared()
  await using replica = await stack.replica()
  const invoices = [await replica.open('dina', 'small'), await replica.open('dirk', 'small')] as const
  const txids = [await stack.pay(invoices[0]), await stack.pay(invoices[1])] as const
  await stack.node.mine(1)
  await replica.reaches('dina', invoices[0].id, 'paid')
  await replica.reaches('dirk', invoices[1].id, 'paid')
  const redeem = async (clientId: string, txid: string) =>
    (await stack.verifier.redeem({ clientId, plan: 'small', txid })).pass?.passId ?? ''
  const [used, unused] = [await redeem('dina', txids[0]), await redeem('dirk', txids[1])]
  await stack.verifier.lease({ passId: used, holder: 'h', wantedRequests: 150 })
  await replica.service.kill()
  for (const passId of [used, unused]) await stack.passes.remove(passId)
  await replica.service.start()
  const leased = async (passId: string) => (await stack.pass(passId))?.leasedRequests
  await eventually(async () => (await leased(used)) === 200n, { what: 'the used one is there' })
  await eventually(async () => (await leased(unused)) === 0n, { what: 'the unused one is there' })
})

test('while the bus is away nothing is acknowledged, and when it is back the payments of meanwhile count', {
  skip,
}, async () => {
  const stack = shared()
  await using replica = await stack.replica()
  const invoice = await replica.open('emil', 'orders')
  await stack.nats.stop()
  const txid = await stack.pay(invoice)
  await stack.node.mine(1)
  assert.ok([503, 504].includes((await replica.request('POST', '/invoices', 'emil', { plan: 'orders' })).status))
  await stack.nats.start()
  await eventually(async () => (await replica.read('emil', invoice.id)).state === 'paid', {
    what: 'the payment counts',
    timeoutMs: 20_000,
  })
  const redeemed = await eventually(() => stack.verifier.redeem({ clientId: 'emil', plan: 'orders', txid }), {
    what: 'an answer',
  })
  assert.equal(redeemed.outcome, RedeemOutcome.REDEEMED)
})

test('an entry that nobody can read does not stop the ledger', { skip }, async () => {
  const stack = shared()
  await using replica = await stack.replica()
  await stack.bus.publishBytes(contract(EntryAppendedSchema).subject, new TextEncoder().encode('no entry'))
  await stack.bus.publishBytes(contract(EntryAppendedSchema).subject, new Uint8Array())
  assert.equal((await replica.open('fred', 'orders')).state, 'issued')
  await replica.service.kill()
  await replica.service.start()
  assert.equal((await replica.open('fred', 'orders')).state, 'issued')
  assert.match(await (await fetch(`${replica.service.healthUrl}/metrics`)).text(), /ledger_unknown_entries 2/)
})

test('a new ledger gives out no address that the chain shows as used, be it spent, nor one soon after', {
  skip,
}, async () => {
  await using stack = await TestStack.start()
  const origin = await stack.node.rpc<string>('getnewaddress', ['', 'bech32'])
  const { descriptors } = await stack.node.rpc<{ descriptors: { desc: string }[] }>('listdescriptors')
  const external = descriptors.map(({ desc }) => desc).find((desc) => /^wpkh\(.*\/0\/\*\)/.test(desc)) ?? ''
  const account = parseAccountKey(external, 'regtest')
  const own = await stack.node.rpc<{ desc: string }>('getaddressinfo', [origin])
  const index = Number(/\/0\/(\d+)\]/.exec(own.desc)?.[1])
  assert.equal(account.address(index).address, origin)
  // Paid, and swept: there is no unspent output of the account that would tell of it.
  await stack.node.pay(origin, 5_000n)
  await stack.node.mine(1)
  await stack.node.rpc('sendall', [[await stack.node.rpc('getnewaddress', ['', 'legacy'])]])
  await stack.node.rpc('generateblock', [await stack.node.rpc('getnewaddress', ['', 'legacy']), []])
  await stack.node.mine(1)
  await using replica = await stack.replica({ TOLLWARD_ACCOUNT_KEY: external })
  const { address } = await replica.open('alice', 'orders')
  assert.equal(address, account.address(index + 1 + 1_000).address)
})

test('a payment that miners confirm too late is on record as late', { skip }, async () => {
  await using stack = await TestStack.start()
  await using replica = await stack.replica()
  const invoice = await replica.open('alice', 'orders')
  const txid = await stack.pay(invoice)
  await replica.reaches('alice', invoice.id, 'seen')
  const miner = await stack.node.rpc('getnewaddress')
  // Eleven blocks of three hours later, none with the payment, move the median time past beyond confirm-by.
  await stack.node.rpc('setmocktime', [Math.floor(Date.now() / 1000) + 3 * 3600])
  for (let count = 0; count < 11; count += 1) await stack.node.rpc('generateblock', [miner, []])
  await replica.reaches('alice', invoice.id, 'expired')
  await stack.node.mine(1)
  await replica.reaches('alice', invoice.id, 'paid-late')
  const { outcome } = await stack.verifier.redeem({ clientId: 'alice', plan: 'orders', txid })
  assert.equal(outcome, RedeemOutcome.INSUFFICIENT)
})

test('a service that is asked to stop does not wait for a node that hangs', { skip }, async () => {
  const stack = shared()
  // What is asked first is answered; what comes then hangs for longer than a service may take to stop.
  const answered: Readonly<Record<string, unknown>> = {
    getblockchaininfo: await stack.node.rpc('getblockchaininfo'),
    getblockhash: await stack.node.rpc('getblockhash', [0]),
  }
  const { promise: asked, resolve: hangs } = Promise.withResolvers<void>()
  const hanging = createServer(async (request, response) => {
    const call = await json(request)
    const { id, method } = RpcCall.safeParse(call).data ?? {}
    if (method === undefined || !(method in answered)) hangs()
    else response.end(JSON.stringify({ id, result: answered[method], error: null }))
  })
  using closing = new DisposableStack()
  closing.defer(() => {
    hanging.close()
    hanging.closeAllConnections()
  })
  hanging.listen(0, '127.0.0.1')
  await once(hanging, 'listening')
  const { port } = hanging.address() as AddressInfo
  const env = await stack.env({ TOLLWARD_NODE_URL: `http://127.0.0.1:${port}/` })
  await using service = await startProcess(process.execPath, [join(import.meta.dirname, 'main.ts')], { env })
  await service.line(/"msg":"ready"/)
  await asked
  assert.equal(await service.stop(), 0)
})

test('what is configured wrongly is refused at the start, in words', { skip }, async () => {
  const stack = shared()
  const mainnetKey =
    'zpub6rFR7y4Q2AijBEqTUquhVz398htDFrtymD9xYYfG1m4wAcvPhXNfE3EfH1r1ADqtfSdVCToUG868RvUUkgDKf31mGDtKsAYz2oz2AGutZYs'
  const refused = async (overrides: NodeJS.ProcessEnv, message: RegExp) => {
    const env = await stack.env(overrides)
    await assert.rejects(startService('payment-verifier', env, { readyTimeoutMs: 8_000 }), message)
  }
  const mainnet = { TOLLWARD_NETWORK: 'mainnet', TOLLWARD_ACCOUNT_KEY: mainnetKey }
  await refused(mainnet, /Give TOLLWARD_ACCOUNT_BIRTHDAY on mainnet/)
  await refused({ ...mainnet, TOLLWARD_ACCOUNT_BIRTHDAY: '900000' }, /follows regtest, but mainnet is configured/)
  await refused({ TOLLWARD_ACCOUNT_KEY: mainnetKey }, /not for regtest/)
  await refused({ TOLLWARD_NODE_URL: 'http://user:secret@127.0.0.1:1/' }, /TOLLWARD_NODE_URL.0: holds no credentials/)
  await refused({ TOLLWARD_NODE_COOKIE_FILE: undefined }, /either TOLLWARD_NODE_COOKIE_FILE/)
  await refused({ TOLLWARD_NODE_URL: 'http://127.0.0.1:1,http://127.0.0.1:2' }, /ZMQ_URL lists 1, but .+_URL 2/)
  await refused({ TOLLWARD_NETWORK: 'testnet', TOLLWARD_PUBLIC_URL: 'x' }, /TOLLWARD_PUBLIC_URL(.|\n)*TOLLWARD_NETWORK/)
})
