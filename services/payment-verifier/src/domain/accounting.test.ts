import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { test } from 'node:test'
import { create } from '@bufbuild/protobuf'
import { type ConnectedBlock, hashBytes } from '@tollward/bitcoin'
import { AddressesSkippedSchema, CreditAdjustedSchema } from '@tollward/contracts/ledger'
import { PlanSchema } from '@tollward/documents'
import fc from 'fast-check'
import { accountOf, accountOfFound, compare, paymentsFrom } from './accounting.ts'
import { moneyOf } from './credit.ts'
import { entryOf, type Fact, nextChainFact } from './facts.ts'
import type { View } from './invoice.ts'
import { Ledger } from './ledger.ts'
import { openedFact } from './opening.ts'
import { priceOf } from './price.ts'

const NOW_MS = 1_700_000_000_000
const LATER_MS = NOW_MS + 24 * 3_600_000
const plan = PlanSchema.parse({
  apiVersion: 'tollward.dev/v1',
  kind: 'Plan',
  metadata: { name: 'orders' },
  spec: { priceSats: 10_000, requests: 10, confirmations: 2, payWithin: '15m', confirmWithin: '2h' },
})
const hash = (text: string) => createHash('sha256').update(text).digest('hex')
/** Output script of an address index, in hexadecimal; index 9 is nobody's invoice. */
const scriptOf = (index: number) => Buffer.from([index]).toString('hex')
const FOUND = 9
const indexOf = (script: string) => Number.parseInt(script, 16)

function append(ledger: Ledger, fact: Fact | undefined): void {
  if (fact !== undefined) ledger.apply(entryOf(fact, NOW_MS), ledger.sequence + 1)
}

function opened(ledger: Ledger, id: string, clientId: string): Fact {
  const index = ledger.nextAddressIndex
  const order = { invoiceId: id, clientId, plan, idempotencyKey: '', pageKey: new Uint8Array() }
  const terms = { price: priceOf(plan, { score: 0, ageMs: 0, paidSats: 0n }), creditSats: 0n }
  const at = { index, address: `address ${index}`, script: Buffer.from([index]) }
  return openedFact(order, terms, at, { hash: hash('genesis'), height: 0 }, NOW_MS)
}

function output(name: string, script: string, amountSats: bigint) {
  return { txid: hash(name), vout: 0, amountSats, script }
}

function blockAt(height: number, outputs: ConnectedBlock['outputs'], medianTimePastMs = NOW_MS): ConnectedBlock {
  return { hash: hash(`block ${height}`), height, medianTimePastMs, outputs }
}

function record(ledger: Ledger, connected: readonly ConnectedBlock[]): void {
  for (;;) {
    const fact = nextChainFact({ disconnected: [], connected }, ledger, indexOf, NOW_MS)
    if (fact === undefined) return
    append(ledger, fact)
  }
}

function viewAt(tipHeight: number, nowMs: number, medianTimePastMs: number): View {
  const heights = Array.from({ length: tipHeight + 2 }, (_, height) => [height, medianTimePastMs] as const)
  return { nowMs, tipHeight, medianTimePastsMs: new Map(heights), uncovered: new Set() }
}

test("the shares of an invoice's payments are what became of its money, to the satoshi", () => {
  const amounts = fc.array(fc.bigInt({ min: 1n, max: 25_000n }), { minLength: 1, maxLength: 5 })
  const clocks = fc.constantFrom(NOW_MS, LATER_MS)
  fc.assert(
    fc.property(amounts, fc.integer({ min: 0, max: 6 }), clocks, clocks, (paid, depth, nowMs, settledAtMs) => {
      const ledger = new Ledger()
      append(ledger, opened(ledger, 'a', 'ada'))
      for (const [index, sats] of paid.entries())
        record(ledger, [blockAt(index + 1, [output(`tx ${index}`, scriptOf(0), sats)])])
      const view = viewAt(depth, nowMs, settledAtMs)
      const invoice = ledger.invoice('a')
      assert.ok(invoice)
      const accounts = [...invoice.payments.values()].map((payment) => accountOf(invoice, payment, view))
      const money = moneyOf(invoice, view)
      for (const kind of ['boughtSats', 'creditedSats', 'heldSats'] as const)
        assert.equal(
          accounts.reduce((sum, account) => sum + account[kind], 0n),
          money[kind],
          kind,
        )
      for (const { payment, state, boughtSats, creditedSats, heldSats } of accounts)
        assert.equal(boughtSats + creditedSats + heldSats, state === 'settled' ? payment.amountSats : 0n)
    }),
    { numRuns: 300 },
  )
})

test('pages hold every payment once, also those that are written between two pages', () => {
  const ledger = new Ledger()
  for (const [index, client] of ['ada', 'bob', 'ada'].entries()) append(ledger, opened(ledger, `${index}`, client))
  record(ledger, [
    blockAt(
      1,
      [0, 1, 2, 0, FOUND].map((index, number) => output(`tx ${number}`, scriptOf(index), BigInt(number + 1))),
    ),
  ])
  const read = (clientId: string, between: () => void) => {
    const amounts: bigint[] = []
    let next = { payments: 0, found: 0 }
    for (;;) {
      const read = paymentsFrom(ledger, next, 2, clientId)
      amounts.push(...read.page.map(({ payment }) => payment.amountSats))
      next = read.next
      if (read.page.length < 2) return amounts
      between()
    }
  }
  assert.deepEqual(
    read('ada', () => undefined),
    [1n, 3n, 4n],
  )
  assert.deepEqual(
    read('nobody', () => undefined),
    [],
  )
  const late = () => record(ledger, [blockAt(2, [output('late', scriptOf(1), 100n)])])
  assert.deepEqual(read('', late), [1n, 2n, 3n, 4n, 100n, 5n])
})

test('found money is held until an operator makes it a credit', () => {
  const ledger = new Ledger()
  append(ledger, opened(ledger, 'a', 'ada'))
  record(ledger, [blockAt(1, [output('tx', scriptOf(FOUND), 700n)])])
  const account = () => [...ledger.foundMoney()].map((found) => accountOfFound(found, viewAt(1, NOW_MS, NOW_MS)))[0]
  assert.deepEqual([account()?.heldSats, account()?.creditedSats, account()?.clientId], [700n, 0n, ''])
  const outpoint = { txid: hashBytes(hash('tx')), vout: 0 }
  const value = create(CreditAdjustedSchema, { adjustmentId: '1', clientId: 'eve', amountSats: 700n, outpoint })
  append(ledger, { case: 'creditAdjusted', value })
  assert.deepEqual([account()?.heldSats, account()?.creditedSats, account()?.clientId], [0n, 700n, 'eve'])
})

test('chain and ledger are compared output by output, and each difference is told as what it is', () => {
  const ledger = new Ledger()
  append(ledger, opened(ledger, 'a', 'ada'))
  const [one, two] = [output('one', scriptOf(0), 1_000n), output('two', scriptOf(FOUND), 2_000n)]
  record(ledger, [blockAt(1, [one]), blockAt(2, [two])])
  const kinds = (blocks: readonly ConnectedBlock[]) => {
    const { chainSats, ledgerSats, differences } = compare(blocks, ledger, indexOf)
    return {
      sats: [chainSats, ledgerSats],
      kinds: differences.map(({ kind, addressIndex }) => `${kind} ${addressIndex}`),
    }
  }
  assert.deepEqual(kinds([blockAt(1, [one]), blockAt(2, [two])]), { sats: [3_000n, 3_000n], kinds: [] })
  assert.deepEqual(kinds([blockAt(2, [two])]), { sats: [2_000n, 2_000n], kinds: [] })
  assert.deepEqual(kinds([blockAt(1, [one, output('new', scriptOf(3), 5n)])]), {
    sats: [1_005n, 1_000n],
    kinds: ['missing-in-ledger 3'],
  })
  assert.deepEqual(kinds([blockAt(1, [])]), { sats: [0n, 1_000n], kinds: ['missing-on-chain 0'] })
  assert.deepEqual(kinds([blockAt(2, [])]), { sats: [0n, 2_000n], kinds: [`missing-on-chain ${FOUND}`] })
  assert.deepEqual(kinds([blockAt(1, [{ ...one, amountSats: 999n }])]), {
    sats: [999n, 1_000n],
    kinds: ['amount-differs 0'],
  })
  assert.deepEqual(kinds([{ ...blockAt(1, [one]), hash: hash('another') }]), {
    sats: [1_000n, 1_000n],
    kinds: ['block-differs 0'],
  })
  assert.deepEqual(kinds([blockAt(1, []), blockAt(2, [two]), blockAt(3, [one])]), {
    sats: [3_000n, 3_000n],
    kinds: ['block-differs 0'],
  })
})

test('while a back-up is written nobody looks for payments, and its end is told once', () => {
  const past = new Ledger()
  const facts = [opened(past, 'a', 'ada')]
  append(past, facts[0])
  facts.push(opened(past, 'b', 'bob'))
  const ledger = new Ledger()
  const write = (fact: Fact) => ledger.apply(entryOf(fact, NOW_MS), ledger.sequence + 1)
  const marker = (nextIndex: number, entries: number): Fact => ({
    case: 'addressesSkipped',
    value: create(AddressesSkippedSchema, { nextIndex, restoredEntries: BigInt(entries) }),
  })
  assert.equal(ledger.isRestoring, false)
  write(marker(1002, 3))
  assert.equal(ledger.isRestoring, true)
  // A back-up of a ledger that was restored itself: what it says of that restore is over.
  assert.deepEqual(write(marker(40, 2)), {})
  for (const fact of facts) {
    assert.equal(ledger.isRestoring, true)
    assert.equal(write(fact).opened, undefined)
  }
  assert.equal(ledger.isRestoring, false)
  assert.deepEqual(ledger.restore, { after: 1, last: 4 })
  assert.equal(ledger.nextAddressIndex, 1002)
  assert.deepEqual(write(opened(ledger, 'c', 'ada')), { invoiceId: 'c', opened: { tipHeight: 0 } })
})
