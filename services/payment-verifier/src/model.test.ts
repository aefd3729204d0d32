import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { formatBtc, parseBtc } from '@tollward/bitcoin'
import { PassState, RedeemOutcome, TreasuryService } from '@tollward/contracts/payment'
import { eventually, requires } from '@tollward/testkit'
import fc from 'fast-check'
import { type InvoiceModel, Model, QUOTA_REQUESTS, type TransactionModel } from './test-model.ts'
import { type Coin, Payer } from './test-payer.ts'
import { PRICE_SATS, type Replica, TestStack } from './test-stack.ts'

const skip = await requires({ tools: ['nats-server', 'bitcoind'] })
const resources = new AsyncDisposableStack()
after(() => resources.disposeAsync())

/** Each sequence has clients of its own; chain and ledger go on. */
const SEQUENCES = 3
/** Alone with a number of minutes, this file goes on for so long: `node model.test.ts 30`. */
const MINUTES = Number(process.argv[2] ?? 0)
const ACTIONS_MIN = 16
const ACTIONS_MAX = 28
/** One for each payment of a sequence. */
const COINS = ACTIONS_MAX + 1
const COIN_SATS = 100_000n
const FEE_SATS = 2_000n
/** What nodes want more, to take one transaction in the place of another. */
const FEE_OF_REPLACEMENT_SATS = 20_000n
const CONFIRMATIONS = { orders: 1, three: 3, hasty: 1 } as const
/** A replica that was killed begins with the whole ledger. */
const SETTLED_TIMEOUT_MS = 30_000

interface Real {
  readonly stack: TestStack
  readonly replicas: readonly Replica[]
  readonly payer: Payer
  readonly coins: Coin[]
  /** Of all invoices of all sequences. */
  readonly addresses: string[]
}

const client = fc.constantFrom('a', 'b')
/** Counted from the newest of what it is about. */
const index = fc.nat(3)
const subset = fc.oneof({ weight: 3, arbitrary: fc.constant(255) }, { weight: 1, arbitrary: fc.nat(255) })
/** Undefined: what the invoice asks for. */
const amountSats = fc.constantFrom(undefined, undefined, undefined, 4_000n, 12_000n, 31_000n)
const plan = fc.constantFrom('orders', 'three', 'hasty')
const action = fc.oneof(
  { weight: 3, arbitrary: fc.record({ do: fc.constant('open'), client, plan }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constant('buy'), client, plan, amountSats }) },
  { weight: 4, arbitrary: fc.record({ do: fc.constant('pay'), index, amountSats, also: fc.option(index) }) },
  { weight: 4, arbitrary: fc.record({ do: fc.constant('mine'), blocks: fc.integer({ min: 1, max: 3 }), subset }) },
  { weight: 4, arbitrary: fc.record({ do: fc.constant('redeem'), index, client: fc.option(client) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('serve'), index }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('replace'), index }) },
  {
    weight: 2,
    arbitrary: fc.record({
      do: fc.constant('reorganise'),
      depth: fc.integer({ min: 1, max: 4 }),
      subset,
      doubleSpent: fc.option(index),
    }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('kill'), replica: fc.nat(1) }) },
)
type Action = {
  readonly do: string
  readonly index?: number
  readonly client?: string | null
  readonly plan?: keyof typeof CONFIRMATIONS
  readonly amountSats?: bigint | undefined
  readonly also?: number | null
  readonly blocks?: number
  readonly subset?: number
  readonly depth?: number
  readonly doubleSpent?: number | null
  readonly replica?: number
}

async function start(): Promise<Real> {
  const stack = resources.use(await TestStack.start())
  const replicas = [resources.use(await stack.replica()), resources.use(await stack.replica())]
  return { stack, replicas, payer: new Payer(stack.node), coins: [], addresses: [] }
}

/** What a sequence may spend, in a block that it does not take back. */
async function mintCoins({ stack: { node }, payer, coins }: Real): Promise<void> {
  const addresses: string[] = []
  while (addresses.length < COINS) addresses.push(await payer.address())
  const amounts = Object.fromEntries(addresses.map((address) => [address, formatBtc(COIN_SATS)]))
  // What waits of the sequence before may be a chain as long as the mempool takes.
  await node.mine(1)
  const txid = await node.rpc<string>('sendmany', ['', amounts])
  await node.mine(1)
  const unspent = await node.rpc<{ txid: string; vout: number; address: string }[]>('listunspent', [1, 1])
  const minted = unspent
    .filter((each) => each.txid === txid && addresses.includes(each.address))
    .map(({ vout }) => ({ txid, vout, amountSats: COIN_SATS }))
  assert.equal(minted.length, COINS)
  await node.rpc('lockunspent', [false, minted.map(({ vout }) => ({ txid, vout }))])
  coins.splice(0, coins.length, ...minted)
}

async function act(step: Action, model: Model, real: Real, suffix: string, baseHeight: number): Promise<void> {
  const invoice = among(model.invoices, step.index)
  const waiting = model.transactions.filter(({ where }) => where === 'mempool')
  if (step.do === 'open') await open(`${step.client}-${suffix}`, step.plan ?? 'orders', model, real)
  else if (step.do === 'buy') {
    const bought = await open(`${step.client}-${suffix}`, step.plan ?? 'orders', model, real)
    if (bought.amountSats === 0n) return
    const paying = await pay([{ invoice: bought, amountSats: step.amountSats ?? bought.amountSats }], real)
    model.transactions.push(paying)
    await agrees(model, real)
    await mine([paying], bought.confirmationsNeeded, model, real)
    await agrees(model, real)
    await redeem(paying, bought.client, model, real)
  } else if (step.do === 'pay' && invoice !== undefined) {
    const also = step.also == null ? undefined : among(model.invoices, step.also)
    const outputs = [invoice, ...(also === undefined ? [] : [also])].map((each) => ({
      invoice: each,
      // One that credit covers asks for nothing, and may be paid all the same.
      amountSats: step.amountSats ?? (each.amountSats || PRICE_SATS),
    }))
    model.transactions.push(await pay(outputs, real))
  } else if (step.do === 'mine') {
    await mine(waiting.filter(isIn(step.subset)), step.blocks ?? 1, model, real)
  } else if (step.do === 'redeem') {
    const presented = among(model.transactions, step.index)
    const presenter = step.client == null ? presented?.outputs[0]?.invoice.client : `${step.client}-${suffix}`
    if (presented !== undefined && presenter !== undefined) await redeem(presented, presenter, model, real)
  } else if (step.do === 'serve') {
    const redeemed = model.invoices.filter(({ passId }) => passId !== undefined)
    const served = among(redeemed, step.index)
    if (served !== undefined) await serve(served, model, real)
  }
  if (step.do === 'replace') {
    const replaced = among(waiting, step.index)
    if (replaced === undefined) return
    await real.payer.send(replaced.conflict)
    replaced.where = 'gone'
  } else if (step.do === 'reorganise') {
    const depth = Math.min(step.depth ?? 1, model.tipHeight - baseHeight)
    if (depth > 0) await reorganise(depth, step, model, real)
  } else if (step.do === 'kill') {
    const killed = real.replicas[step.replica ?? 0]
    await killed?.service.kill()
    await killed?.service.start()
  }
}

function among<T>(all: readonly T[], index = 0): T | undefined {
  return all.at(-1 - (index % Math.max(1, all.length)))
}

const isIn =
  (subset = 255) =>
  (_: unknown, index: number) =>
    (subset >> (index % 8)) % 2 === 1

async function open(owner: string, plan: keyof typeof CONFIRMATIONS, model: Model, real: Real): Promise<InvoiceModel> {
  const creditSats = model.creditFor(owner, PRICE_SATS)
  const [replica] = real.replicas
  assert.ok(replica)
  const { id, address, passId, ...shown } = await replica.open(owner, plan)
  assert.deepEqual(
    [shown.listPriceSats, shown.creditUsedSats, shown.amountSats],
    [PRICE_SATS, creditSats, PRICE_SATS - creditSats].map(String),
  )
  assert.ok(!real.addresses.includes(address), 'the address is new')
  real.addresses.push(address)
  const invoice: InvoiceModel = {
    id,
    client: owner,
    plan,
    confirmationsNeeded: CONFIRMATIONS[plan],
    amountSats: PRICE_SATS - creditSats,
    creditSats,
    isLate: plan === 'hasty',
    served: 0,
    address,
  }
  model.invoices.push(invoice)
  assert.equal(passId !== undefined, invoice.amountSats === 0n)
  if (passId !== undefined) model.redeem(invoice, passId)
  else if (invoice.isLate) await replica.reaches(owner, id, 'expired')
  return invoice
}

async function pay(outputs: TransactionModel['outputs'], { payer, coins }: Real): Promise<TransactionModel> {
  const coin = coins.pop()
  assert.ok(coin)
  // Two outputs to one address are two payments.
  const paid = outputs.map(({ invoice, amountSats }) => ({ address: invoice.address, amountSats }))
  const spentSats = paid.reduce((sum, each) => sum + each.amountSats, FEE_SATS)
  const own = await payer.address()
  const payment = await payer.transaction(
    [coin],
    [...merged(paid), { address: own, amountSats: COIN_SATS - spentSats }],
  )
  const conflict = await payer.transaction([coin], [{ address: own, amountSats: COIN_SATS - FEE_OF_REPLACEMENT_SATS }])
  return { txid: await payer.send(payment), conflict, outputs, where: 'mempool', takenBack: false }
}

/** The node's call takes each address once. */
function merged(outputs: readonly { address: string; amountSats: bigint }[]) {
  const sums = new Map<string, bigint>()
  for (const { address, amountSats } of outputs) sums.set(address, (sums.get(address) ?? 0n) + amountSats)
  return [...sums].map(([address, amountSats]) => ({ address, amountSats }))
}

async function mine(mined: readonly TransactionModel[], blocks: number, model: Model, real: Real): Promise<void> {
  await real.payer.mineOnly(mined.map(({ txid }) => txid))
  for (let count = 1; count < blocks; count += 1) await real.payer.mineOnly()
  for (const transaction of mined) Object.assign(transaction, { where: model.tipHeight + 1, takenBack: false })
  model.tipHeight += blocks
}

async function reorganise(depth: number, step: Action, model: Model, real: Real): Promise<void> {
  const { node } = real.stack
  const from = model.tipHeight - depth + 1
  await node.rpc('invalidateblock', [await node.rpc('getblockhash', [from])])
  for (const transaction of model.transactions) {
    if (typeof transaction.where === 'number' && transaction.where >= from)
      Object.assign(transaction, { where: 'mempool', takenBack: true })
  }
  const waiting = model.transactions.filter(({ where }) => where === 'mempool')
  const doubleSpent = step.doubleSpent == null ? undefined : among(waiting, step.doubleSpent)
  const mined = waiting.filter(isIn(step.subset)).filter((transaction) => transaction !== doubleSpent)
  const conflicts = doubleSpent === undefined ? [] : [doubleSpent.conflict]
  await real.payer.mineOnly([...mined.map(({ txid }) => txid), ...conflicts])
  for (let count = 0; count < depth; count += 1) await real.payer.mineOnly()
  for (const transaction of mined) Object.assign(transaction, { where: from, takenBack: false })
  if (doubleSpent !== undefined) doubleSpent.where = 'gone'
  model.tipHeight = from + depth
}

async function redeem(paying: TransactionModel, presenter: string, model: Model, { stack }: Real): Promise<void> {
  const { txid, outputs } = paying
  const plan = outputs[0]?.invoice.plan ?? ''
  const { outcome, fresh } = model.presented(presenter, plan, txid)
  const request = { clientId: presenter, plan, txid }
  const answer = await eventually(() => stack.verifier.redeem(request), { what: 'an answer' })
  assert.equal(answer.outcome, outcome)
  assert.equal(answer.pass !== undefined, outcome === RedeemOutcome.REDEEMED)
  if (answer.pass === undefined) return
  assert.equal(answer.pass.clientId, presenter, 'nobody gets the pass of another')
  const { passId, invoiceId } = answer.pass
  const known = model.invoices.find((each) => each.passId === passId)
  if (known !== undefined) assert.equal(known.id, invoiceId)
  else {
    const redeemed = fresh.find(({ id }) => id === invoiceId)
    assert.ok(redeemed, 'a new pass is that of an invoice that is paid')
    model.redeem(redeemed, passId)
  }
}

async function serve(invoice: InvoiceModel, model: Model, { stack }: Real): Promise<void> {
  if (invoice.passId === undefined) return
  const { passId } = invoice
  const expected = model.state(invoice) === 'redeemed' ? Math.min(400, QUOTA_REQUESTS - invoice.served) : 0
  const holder = `holder of ${invoice.id}`
  const { grantedRequests, leaseId } = await stack.verifier.lease({ passId, holder, wantedRequests: 400 })
  assert.equal(grantedRequests, expected)
  if (grantedRequests === 0) return
  await stack.verifier.record({ passId, holder, leaseId, servedRequests: grantedRequests, ends: true })
  invoice.served += grantedRequests
}

/** Every replica, and the passes, come to be as the model says. */
async function agrees(model: Model, { stack, replicas }: Real): Promise<void> {
  const clients = new Set(model.invoices.map((invoice) => invoice.client))
  const what = (subject: string) => ({ what: subject, timeoutMs: SETTLED_TIMEOUT_MS })
  for (const replica of replicas) {
    for (const invoice of model.invoices) {
      await eventually(async () => {
        const { state, receivedSats, pendingSats, passId } = await replica.read(invoice.client, invoice.id)
        const { all, confirmed } = model.sums(invoice)
        const expected = [model.state(invoice), String(confirmed), String(all - confirmed), invoice.passId]
        assert.deepEqual([state, receivedSats, pendingSats, passId], expected)
        return true
      }, what('the invoice is as it should be'))
    }
    for (const owner of clients) {
      await eventually(async () => {
        const credit = await (await replica.request('GET', '/credit', owner)).json()
        assert.equal(Object(credit).balanceSats, String(model.balanceSats(owner)))
        return true
      }, what('the credit is as it should be'))
    }
  }
  for (const invoice of model.invoices.filter(({ passId }) => passId !== undefined)) {
    await eventually(async () => {
      const isSuspended = (await stack.pass(invoice.passId))?.state === PassState.SUSPENDED
      return isSuspended === (model.state(invoice) === 'reorganised')
    }, what('the pass is as it should be'))
  }
}

/** The ledger holds what the chain pays, and each part of it is somewhere. */
async function booksBalance({ stack, addresses }: Real): Promise<void> {
  const descriptors = addresses.map((address) => `addr(${address})`)
  const { total_amount: btc } = await stack.node.rpc<{ total_amount: number }>('scantxoutset', ['start', descriptors])
  const onChain = parseBtc(btc.toFixed(8))
  const treasury = stack.bus.client(TreasuryService, { timeoutMs: 5_000 })
  await eventually(
    async () => {
      const books = await treasury.getBooks({})
      const { boughtSats, creditedSats, heldSats, confirmingSats, unclaimedSats } = books
      assert.equal(books.receivedSats, onChain)
      assert.equal(boughtSats + creditedSats + heldSats + confirmingSats + unclaimedSats, onChain)
      return true
    },
    { what: 'the books balance', timeoutMs: SETTLED_TIMEOUT_MS },
  )
}

test('whatever payers, miners and crashes do, invoices, credit, passes and books are what the chain pays for', {
  skip,
}, async () => {
  const real = await start()
  let sequence = 0
  await fc.assert(
    fc.asyncProperty(
      fc.array(action, { minLength: ACTIONS_MIN, maxLength: ACTIONS_MAX, size: 'max' }),
      async (steps) => {
        sequence += 1
        await mintCoins(real)
        const baseHeight = await real.stack.node.rpc<number>('getblockcount')
        const model = new Model(baseHeight)
        for (const step of [{ do: 'open', client: 'a', plan: 'orders' } as const, ...steps]) {
          await act(step, model, real, String(sequence), baseHeight)
          await agrees(model, real)
        }
        await booksBalance(real)
        const passes = model.invoices.flatMap(({ passId }) => passId ?? [])
        assert.equal(new Set(passes).size, passes.length, 'no two invoices have one pass')
      },
    ),
    // What fails takes too long to be made smaller.
    MINUTES === 0
      ? { numRuns: SEQUENCES, endOnFailure: true }
      : { numRuns: Number.MAX_SAFE_INTEGER, interruptAfterTimeLimit: MINUTES * 60_000, endOnFailure: true },
  )
  if (MINUTES > 0) process.stdout.write(`${sequence} sequences\n`)
})
