import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { test } from 'node:test'
import { create } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { type ConnectedBlock, hashBytes, type WatchedOutput } from '@tollward/bitcoin'
import { CreditAdjustedSchema, InvoiceRedeemedSchema } from '@tollward/contracts/ledger'
import { PlanSchema } from '@tollward/documents'
import fc from 'fast-check'
import { booksOf } from './books.ts'
import { creditFor, creditOf, moneyOf, uncoveredUses } from './credit.ts'
import { entryOf, type Fact, nextChainFact, nextReplacedFact, nextSeenFact } from './facts.ts'
import { standingOf, type View } from './invoice.ts'
import { Ledger, outpointKey } from './ledger.ts'
import { openedFact } from './opening.ts'
import { passIdOf } from './pass.ts'
import { priceOf } from './price.ts'
import { decideRedemption } from './redemption.ts'

const START_MS = 1_700_000_000_000
const MINUTE_MS = 60_000
/** How far the median time past may lie behind the clock: what a miner can make a payment look older. */
const MEDIAN_LAG_MS = 60 * MINUTE_MS
const PRICE_SATS = 10_000n
const FOUND_SCRIPT = 'ff'
const FOUND_INDEX = 500

const planOf = (credit: { late: boolean; short: boolean; excess: boolean }) =>
  PlanSchema.parse({
    apiVersion: 'tollward.dev/v1',
    kind: 'Plan',
    metadata: { name: 'orders' },
    spec: {
      priceSats: Number(PRICE_SATS),
      requests: 10,
      confirmations: 2,
      payWithin: '15m',
      confirmWithin: '2h',
      redeemWithin: '1d',
      credit,
    },
  })
const PLANS = [
  planOf({ late: true, short: true, excess: true }),
  planOf({ late: false, short: true, excess: true }),
  planOf({ late: true, short: false, excess: false }),
] as const
const hash = (text: string) => createHash('sha256').update(text).digest('hex')

/** A ledger with a chain, a mempool and a clock around it. */
class World {
  readonly ledger = new Ledger()
  readonly chain: ConnectedBlock[] = []
  mempool: WatchedOutput[] = []
  nowMs = START_MS
  #serial = 0

  view(): View {
    const medianTimePastsMs = new Map(this.chain.map(({ height, medianTimePastMs }) => [height, medianTimePastMs]))
    const view = { nowMs: this.nowMs, tipHeight: this.chain.length, medianTimePastsMs, uncovered: new Set<string>() }
    const lacking = [...this.ledger.creditTaken].flatMap((clientId) => uncoveredUses(clientId, this.ledger, view))
    return { ...view, uncovered: new Set(lacking) }
  }

  credit(clientId = 'a') {
    return creditOf(clientId, this.ledger, this.view())
  }

  standing(id: string) {
    const invoice = this.ledger.invoice(id)
    assert.ok(invoice)
    return { ...standingOf(invoice, this.view()), ...moneyOf(invoice, this.view()) }
  }

  append(next: () => Fact | undefined): void {
    for (let fact = next(); fact !== undefined; fact = next())
      this.ledger.apply(entryOf(fact, this.nowMs), this.ledger.sequence + 1)
  }

  open({ clientId = 'a', plan = 0, useCredit = true } = {}): string {
    const invoiceId = `invoice ${this.ledger.invoiceCount}`
    const index = this.ledger.nextAddressIndex
    const chosen = PLANS[plan] ?? PLANS[0]
    const price = priceOf(chosen, { score: 0, ageMs: 0, paidSats: 0n })
    const creditSats = useCredit ? creditFor(price.sats, this.credit(clientId).balanceSats) : 0n
    const order = { invoiceId, clientId, plan: chosen, idempotencyKey: '', pageKey: new Uint8Array() }
    const script = new Uint8Array(4)
    new DataView(script.buffer).setUint32(0, index)
    const tip = { hash: this.chain.at(-1)?.hash ?? hash('genesis'), height: this.chain.length }
    const fact = openedFact(order, { price, creditSats }, { index, address: `${index}`, script }, tip, this.nowMs)
    this.ledger.apply(entryOf(fact, this.nowMs), this.ledger.sequence + 1)
    return invoiceId
  }

  scriptOf(id: string): string {
    const script = new Uint8Array(4)
    new DataView(script.buffer).setUint32(0, this.ledger.invoice(id)?.addressIndex ?? 0)
    return Buffer.from(script).toString('hex')
  }

  /** Into the mempool, and if it is seen there, into the ledger. */
  pay(script: string, amountSats: bigint, seen = true): WatchedOutput {
    this.#serial += 1
    const output = { txid: hash(`tx ${this.#serial}`), vout: 0, amountSats, script }
    this.mempool.push(output)
    if (seen) this.append(() => nextSeenFact([output], this.ledger, indexOf, this.nowMs))
    return output
  }

  /** Takes blocks back and mines others: the first of them with some of what waits, by default all of it. */
  mine(count: number, { back = 0, only = (_index: number): boolean => true } = {}): void {
    const disconnected = this.chain.splice(Math.max(0, this.chain.length - back)).reverse()
    const waiting = [...disconnected.flatMap(({ outputs }) => outputs), ...this.mempool]
    const mined = waiting.filter((_, index) => only(index))
    this.mempool = waiting.filter((output) => !mined.includes(output))
    const connected = Array.from({ length: count }, (_, offset): ConnectedBlock => {
      this.#serial += 1
      const before = this.chain.at(-1)?.medianTimePastMs ?? 0
      const block = {
        hash: hash(`block ${this.#serial}`),
        height: this.chain.length + 1,
        medianTimePastMs: Math.max(before, this.nowMs - MEDIAN_LAG_MS),
        outputs: offset === 0 ? mined : [],
      }
      this.chain.push(block)
      return block
    })
    this.append(() => nextChainFact({ disconnected, connected }, this.ledger, indexOf, this.nowMs))
  }

  replace(output: WatchedOutput): void {
    this.mempool = this.mempool.filter(({ txid }) => txid !== output.txid)
    this.append(() => nextReplacedFact([{ txid: output.txid }], this.ledger))
  }

  redeem(id: string): string {
    const invoice = this.ledger.invoice(id)
    const txid = [...(invoice?.payments.values() ?? [])][0]?.txid ?? hash('none')
    const presentation = { clientId: invoice?.clientId ?? '', plan: 'orders', txid }
    const redemption = decideRedemption(presentation, this.ledger, this.view(), () => 'usable')
    if (redemption.outcome !== 'redeem') return redemption.outcome
    const { id: invoiceId } = redemption.invoice
    const redeemedAt = timestampFromMs(this.nowMs)
    const value = create(InvoiceRedeemedSchema, { invoiceId, passId: passIdOf(invoiceId), redeemedAt })
    this.ledger.apply(entryOf({ case: 'invoiceRedeemed', value }, this.nowMs), this.ledger.sequence + 1)
    return 'redeem'
  }

  adjust(clientId: string, amountSats: bigint, output?: WatchedOutput): void {
    this.#serial += 1
    const outpoint = output && { txid: hashBytes(output.txid), vout: output.vout }
    const value = create(CreditAdjustedSchema, {
      adjustmentId: `${this.#serial}`,
      clientId,
      amountSats,
      ...(outpoint && { outpoint }),
    })
    this.ledger.apply(entryOf({ case: 'creditAdjusted', value }, this.nowMs), this.ledger.sequence + 1)
  }

  wait(minutes: number): void {
    this.nowMs += minutes * MINUTE_MS
  }
}

function indexOf(script: string): number | undefined {
  return script === FOUND_SCRIPT ? FOUND_INDEX : undefined
}

const sum = (amounts: Iterable<bigint>) => [...amounts].reduce((total, each) => total + each, 0n)

const atLeastNothing = (sats: bigint) => (sats > 0n ? sats : 0n)

/** The books beside the chain, which knows nothing of them. */
function assertBooks(world: World): void {
  const books = booksOf(world.ledger, world.view())
  const onChain = sum(world.chain.flatMap(({ outputs }) => outputs.map(({ amountSats }) => amountSats)))
  assert.equal(books.receivedSats, onChain, 'received is what the chain pays')
  const { boughtSats, creditedSats, heldSats, confirmingSats, unclaimedSats } = books
  const parts = [boughtSats, creditedSats, heldSats, confirmingSats, unclaimedSats]
  assert.ok(
    parts.every((part) => part >= 0n),
    `no part is negative: ${parts.join(' ')}`,
  )
  assert.equal(sum(parts), books.receivedSats, 'the parts add up')
  assert.equal(
    books.creditedSats + books.creditAdjustedSats - books.creditSpentSats,
    books.creditLeftSats - books.creditLackingSats,
    'credit is spent or left',
  )
}

/** What passes in force cost, beside what their clients paid and were given. */
function assertPaidFor(world: World): void {
  const view = world.view()
  for (const clientId of world.ledger.clients()) {
    const invoices = world.ledger.invoicesOf(clientId)
    const inForce = invoices.filter((invoice) => standingOf(invoice, view).state === 'redeemed')
    const cost = sum(inForce.map(({ amountSats, creditSats }) => amountSats + creditSats))
    const money = invoices.map((invoice) => moneyOf(invoice, view))
    const paid = sum(money.map(({ receivedSats, confirmingSats }) => receivedSats - confirmingSats))
    const { adjustedSats, grantedSats } = creditOf(clientId, world.ledger, view)
    const given = atLeastNothing(adjustedSats)
    assert.ok(cost <= paid + given, `${clientId} paid ${paid}, was given ${given}, and has passes for ${cost}`)
    const used = sum(inForce.map(({ creditSats }) => creditSats))
    assert.ok(used <= atLeastNothing(grantedSats + adjustedSats), `${used} used`)
  }
}

const clientId = fc.constantFrom('a', 'b')
/** Counted from the newest. */
const index = fc.nat(4)
const subset = fc.oneof(fc.constant(255), fc.nat(255))
const amountSats = fc.constantFrom(300n, 4_000n, 6_000n, 10_000n, 10_001n, 23_000n)
const calm = [
  fc.record({ do: fc.constant('open'), clientId, plan: fc.nat(2), useCredit: fc.boolean() }),
  fc.record({ do: fc.constant('pay'), index, amountSats, seen: fc.boolean() }),
  fc.record({ do: fc.constant('mine'), blocks: fc.integer({ min: 1, max: 3 }), subset }),
  fc.record({ do: fc.constant('redeem'), index }),
  fc.record({ do: fc.constant('buy'), clientId, plan: fc.nat(2), amountSats }),
  fc.record({ do: fc.constant('wait'), minutes: fc.constantFrom(1, 10, 14, 50, 120, 1500) }),
  fc.record({ do: fc.constant('replace'), index }),
  fc.record({ do: fc.constant('find'), amountSats, clientId: fc.option(clientId) }),
] as const
const rough = [
  ...calm,
  fc.record({
    do: fc.constant('mine'),
    blocks: fc.integer({ min: 1, max: 5 }),
    back: fc.integer({ min: 1, max: 4 }),
    subset,
  }),
  fc.record({ do: fc.constant('adjust'), clientId, amountSats: fc.constantFrom(-7_000n, -1n, 5_000n) }),
] as const

type Step = {
  readonly do: string
  readonly clientId?: string | null
  readonly plan?: number
  readonly useCredit?: boolean
  readonly index?: number
  readonly amountSats?: bigint
  readonly seen?: boolean
  readonly blocks?: number
  readonly back?: number
  readonly subset?: number
  readonly minutes?: number
}

function take(world: World, step: Step): void {
  const ids = [...world.ledger.invoices()].map(({ id }) => id)
  const id = ids.at(-1 - (step.index ?? 0)) ?? ''
  const client = step.clientId ?? 'a'
  const amount = step.amountSats ?? 0n
  if (step.do === 'open') world.open({ clientId: client, plan: step.plan ?? 0, useCredit: step.useCredit ?? true })
  else if (step.do === 'pay' && id !== '') world.pay(world.scriptOf(id), amount, step.seen ?? true)
  else if (step.do === 'mine') {
    const only = (each: number) => ((step.subset ?? 0) >> (each % 8)) % 2 === 1
    world.mine(step.blocks ?? 1, { back: step.back ?? 0, only })
  } else if (step.do === 'buy') {
    const bought = world.open({ clientId: client, plan: step.plan ?? 0 })
    world.pay(world.scriptOf(bought), amount)
    world.mine(2)
    world.redeem(bought)
  } else if (step.do === 'redeem') world.redeem(id)
  else if (step.do === 'wait') world.wait(step.minutes ?? 1)
  else if (step.do === 'replace') {
    const waiting = world.mempool[(step.index ?? 0) % Math.max(1, world.mempool.length)]
    if (waiting !== undefined) world.replace(waiting)
  } else if (step.do === 'find') {
    const found = world.pay(FOUND_SCRIPT, amount)
    if (step.clientId != null) world.adjust(client, amount, found)
  } else if (step.do === 'adjust') world.adjust(client, amount)
}

test('each satoshi received is bought, credited, held, confirming or unclaimed, and every pass in force is paid for', () => {
  fc.assert(
    fc.property(fc.array(fc.oneof(...rough), { maxLength: 60, size: 'max' }), (steps) => {
      const world = new World()
      for (const step of steps) {
        take(world, step)
        assertBooks(world)
        assertPaidFor(world)
      }
    }),
    { numRuns: 150 },
  )
})

test('as long as the chain is not reorganised no credit that was spent is taken back, whatever payers try', () => {
  fc.assert(
    fc.property(fc.array(fc.oneof(...calm), { maxLength: 60, size: 'max' }), (steps) => {
      const world = new World()
      for (const step of steps) {
        take(world, step)
        for (const client of world.ledger.clients()) {
          const invoices = world.ledger.invoicesOf(client).filter(({ redeemed }) => redeemed !== undefined)
          const { grantedSats, adjustedSats } = world.credit(client)
          const used = sum(invoices.map(({ creditSats }) => creditSats))
          assert.ok(used <= grantedSats + adjustedSats, `${used} used of ${grantedSats + adjustedSats}`)
        }
        assert.equal(world.view().uncovered.size, 0)
      }
    }),
    { numRuns: 150 },
  )
})

test('credit covers an order, or leaves what nodes relay', () => {
  assert.deepEqual(
    [-5n, 0n, 1n, 9_000n, 9_454n, 9_455n, 9_999n, 10_000n, 99_999n].map((balance) => creditFor(10_000n, balance)),
    [0n, 0n, 1n, 9_000n, 9_454n, 9_454n, 9_454n, 10_000n, 10_000n],
  )
  assert.equal(creditFor(546n, 545n), 0n)
})

test('money that is short, late or too much becomes credit when the invoice is closed, and pays the next one', () => {
  const world = new World()
  const short = world.open()
  world.pay(world.scriptOf(short), 4_000n)
  world.mine(2)
  assert.equal(world.credit().balanceSats, 0n, 'it may still be topped up')
  world.wait(16)
  assert.deepEqual([world.standing(short).state, world.credit().balanceSats], ['underpaid', 4_000n])
  const late = world.open({ useCredit: false })
  world.wait(16)
  world.pay(world.scriptOf(late), 10_000n)
  world.mine(1)
  assert.equal(world.credit().balanceSats, 4_000n, 'it is not settled')
  world.mine(1)
  assert.equal(world.credit().balanceSats, 14_000n)
  const covered = world.open()
  assert.deepEqual([world.standing(covered).state, world.credit().balanceSats], ['redeemed', 4_000n])
  const part = world.open()
  const invoice = world.ledger.invoice(part)
  assert.deepEqual([invoice?.amountSats, invoice?.creditSats, world.credit().balanceSats], [6_000n, 4_000n, 0n])
  world.pay(world.scriptOf(part), 6_500n)
  world.mine(2)
  assert.equal(world.redeem(part), 'redeem')
  assert.equal(world.credit().balanceSats, 500n)
})

test('credit that an unpaid invoice uses comes back, and a paid one that nobody redeems becomes credit', () => {
  const world = new World()
  world.adjust('a', 3_000n)
  const unpaid = world.open()
  assert.equal(world.credit().balanceSats, 0n)
  world.wait(16)
  assert.deepEqual([world.standing(unpaid).state, world.credit().balanceSats], ['expired', 3_000n])
  const unredeemed = world.open({ useCredit: false })
  world.pay(world.scriptOf(unredeemed), 10_100n)
  world.mine(2)
  assert.deepEqual([world.standing(unredeemed).state, world.credit().balanceSats], ['overpaid', 3_100n])
  world.wait(24 * 60 + 1)
  assert.deepEqual([world.standing(unredeemed).state, world.credit().balanceSats], ['expired', 13_100n])
  assert.equal(world.redeem(unredeemed), 'insufficient')
})

test('what the frozen policy does not credit is held', () => {
  const world = new World()
  const late = world.open({ plan: 1 })
  world.wait(16)
  world.pay(world.scriptOf(late), 10_000n)
  world.mine(2)
  assert.deepEqual([world.standing(late).heldSats, world.credit().balanceSats], [10_000n, 0n])
})

test('credit that was spent is not undone by a payment that a block makes look early', () => {
  const world = new World()
  const short = world.open()
  world.pay(world.scriptOf(short), 4_000n)
  world.mine(2)
  world.wait(16)
  const next = world.open()
  assert.equal(world.ledger.invoice(next)?.creditSats, 4_000n)
  // Seen by nobody before its block, whose median time past lies before pay-by.
  world.pay(world.scriptOf(short), 6_000n, false)
  world.mine(2)
  assert.notEqual(world.redeem(short), 'redeem')
  assert.equal(world.standing(next).state, 'issued')
  assert.equal(world.credit().balanceSats, 6_000n)
})

test('a reorganisation that takes credit back suspends the last pass that it paid for, until it is there again', () => {
  const world = new World()
  const source = world.open()
  world.pay(world.scriptOf(source), 30_000n)
  world.mine(2)
  assert.equal(world.redeem(source), 'redeem')
  const [first, second] = [world.open(), world.open()]
  assert.deepEqual([world.standing(first).state, world.standing(second).state], ['redeemed', 'redeemed'])
  world.adjust('a', -1n)
  assert.deepEqual([world.standing(first).state, world.standing(second).state], ['redeemed', 'reorganised'])
  world.adjust('a', 1n)
  assert.equal(world.standing(second).state, 'redeemed')
  world.mine(3, { back: 2, only: () => false })
  assert.deepEqual(
    [source, first, second].map((id) => world.standing(id).state),
    ['reorganised', 'reorganised', 'reorganised'],
  )
  assert.equal(world.credit().balanceSats, -20_000n)
  world.mine(2)
  assert.deepEqual(
    [source, first, second].map((id) => world.standing(id).state),
    ['redeemed', 'redeemed', 'redeemed'],
  )
})

test('found money belongs to nobody until an operator says to whom, and its address is never given out', () => {
  const world = new World()
  const found = world.pay(FOUND_SCRIPT, 7_000n)
  assert.equal(world.ledger.nextAddressIndex, FOUND_INDEX + 1)
  world.mine(1)
  assert.deepEqual(booksOf(world.ledger, world.view()).unclaimedSats, 7_000n)
  world.adjust('a', 7_000n, found)
  const books = booksOf(world.ledger, world.view())
  assert.deepEqual([books.unclaimedSats, books.creditedSats, books.creditAdjustedSats], [0n, 7_000n, 0n])
  assert.equal(world.credit().balanceSats, 7_000n)
  world.mine(2, { back: 1, only: () => false })
  assert.equal(world.credit().balanceSats, 0n, 'a reorganisation takes it back')
  assert.equal(world.ledger.found(outpointKey(found))?.payment.takenBack, true)
})

test('a payment that conflicting nodes make come and go is written of a few times only, and a block decides', () => {
  const world = new World()
  const invoice = world.open()
  const output = world.pay(world.scriptOf(invoice), 10_000n)
  for (let round = 0; round < 50; round += 1) {
    world.append(() => nextReplacedFact([{ txid: output.txid, replacedBy: hash('other') }], world.ledger))
    world.append(() => nextSeenFact([output], world.ledger, indexOf, world.nowMs))
  }
  assert.ok(world.ledger.sequence < 25, `${world.ledger.sequence} entries`)
  assert.equal(world.standing(invoice).state, 'replaced')
  world.mine(2)
  assert.equal(world.standing(invoice).state, 'paid')
})
