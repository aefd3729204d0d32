import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { test } from 'node:test'
import type { ChainChange, ConnectedBlock } from '@tollward/bitcoin'
import { PlanSchema } from '@tollward/documents'
import fc from 'fast-check'
import { entryOf, nextChainFact, nextSeenFact } from './facts.ts'
import { standingOf } from './invoice.ts'
import { Ledger } from './ledger.ts'
import { mustWait, openedFact } from './opening.ts'
import { priceOf } from './price.ts'

const NOW_MS = 1_700_000_000_000
const plan = PlanSchema.parse({
  apiVersion: 'tollward.dev/v1',
  kind: 'Plan',
  metadata: { name: 'orders' },
  spec: { priceSats: 10_000, requests: 10, confirmations: 1, payWithin: '15m', confirmWithin: '2h' },
})
const hash = (text: string) => createHash('sha256').update(text).digest('hex')
const tip = { hash: hash('genesis'), height: 0 }

function append(ledger: Ledger, fact: ReturnType<typeof nextChainFact>): void {
  if (fact !== undefined) ledger.apply(entryOf(fact, NOW_MS), ledger.sequence + 1)
}

function open(ledger: Ledger, id: string, clientId = 'c'): string {
  const index = ledger.nextAddressIndex
  const order = { invoiceId: id, clientId, plan, idempotencyKey: '', pageKey: new Uint8Array() }
  const terms = { price: priceOf(plan, { score: 0, ageMs: 0, paidSats: 0n }), creditSats: 0n }
  const at = { index, address: `address ${index}`, script: Buffer.from([index]) }
  append(ledger, openedFact(order, terms, at, tip, NOW_MS))
  return Buffer.from([index]).toString('hex')
}

/** Writes all facts of a change; how many there were. */
function record(ledger: Ledger, change: ChainChange): number {
  for (let count = 0; ; count += 1) {
    const fact = nextChainFact(change, ledger, () => undefined, NOW_MS)
    if (fact === undefined) return count
    append(ledger, fact)
  }
}

// A chain of blocks, each with some of six payments to three invoices; a step takes some blocks back and adds some.
const PAYMENTS = 6
const step = fc.record({
  back: fc.integer({ min: 0, max: 4 }),
  blocks: fc.array(fc.array(fc.integer({ min: 0, max: PAYMENTS - 1 }), { maxLength: 3 }), { maxLength: 3 }),
})

test('through any reorganisations the ledger holds exactly what the best chain pays', () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 20 }), (steps) => {
      const ledger = new Ledger()
      const scripts = ['a', 'b', 'c'].map((id) => open(ledger, id))
      const chain: ConnectedBlock[] = []
      let serial = 0
      for (const { back, blocks } of steps) {
        const disconnected = chain.splice(Math.max(0, chain.length - back)).reverse()
        const connected: ConnectedBlock[] = []
        for (const wanted of blocks) {
          const mined = new Set([...chain, ...connected].flatMap(({ outputs }) => outputs.map(({ txid }) => txid)))
          const outputs = [...new Set(wanted)]
            .map((number) => ({
              txid: hash(`tx ${number}`),
              vout: 0,
              amountSats: BigInt(number + 1),
              script: scripts[number % 3] ?? '',
            }))
            .filter(({ txid }) => !mined.has(txid))
          serial += 1
          const height = chain.length + connected.length + 1
          connected.push({ hash: hash(`block ${serial}`), height, medianTimePastMs: NOW_MS, outputs })
        }
        chain.push(...connected)
        record(ledger, { disconnected, connected })
        assert.equal(record(ledger, { disconnected, connected }), 0, 'the same change again is nothing new')
        for (const [index, id] of ['a', 'b', 'c'].entries()) {
          const invoice = ledger.invoice(id)
          assert.ok(invoice)
          const view = {
            nowMs: NOW_MS,
            tipHeight: chain.length,
            medianTimePastsMs: new Map(),
            uncovered: new Set<string>(),
          }
          const outputs = chain.flatMap((block) => block.outputs).filter(({ script }) => script === scripts[index])
          assert.equal(
            standingOf(invoice, view).receivedSats,
            outputs.reduce((sum, each) => sum + each.amountSats, 0n),
          )
        }
      }
    }),
  )
})

test('one transaction may pay several invoices, and one invoice several times', () => {
  const ledger = new Ledger()
  const [first = '', second = ''] = [open(ledger, 'a'), open(ledger, 'b')]
  const txid = hash('tx')
  const outputs = [first, second, first].map((script, vout) => ({ txid, vout, amountSats: 10n, script }))
  for (
    let fact = nextSeenFact(outputs, ledger, () => undefined, NOW_MS);
    fact;
    fact = nextSeenFact(outputs, ledger, () => undefined, NOW_MS)
  )
    append(ledger, fact)
  assert.deepEqual(
    ledger.invoicesPaidBy(txid).map(({ id, payments }) => [id, payments.size]),
    [
      ['a', 2],
      ['b', 1],
    ],
  )
})

test('an entry that is repeated, or speaks of nothing known, changes nothing but the sequence', () => {
  const ledger = new Ledger()
  const script = open(ledger, 'a')
  const fact = nextSeenFact([{ txid: hash('tx'), vout: 0, amountSats: 5n, script }], ledger, () => undefined, NOW_MS)
  append(ledger, fact)
  const before = ledger.invoice('a')
  append(ledger, fact)
  assert.equal(ledger.invoice('a'), before)
  assert.equal(ledger.sequence, 3)
  ledger.apply(entryOf({ case: undefined }, NOW_MS), 4)
  assert.deepEqual([ledger.sequence, ledger.unknownEntries], [4, 1])
})

test('addresses go up and never come again, whoever opens', () => {
  const ledger = new Ledger()
  const scripts = Array.from({ length: 20 }, (_, index) => open(ledger, `i${index}`, `c${index % 3}`))
  assert.equal(new Set(scripts).size, 20)
  assert.equal(ledger.nextAddressIndex, 20)
})

test('the limits of one client are its own, and end when invoices expire', () => {
  const ledger = new Ledger()
  for (let index = 0; index < 3; index += 1) open(ledger, `i${index}`)
  const limits = { openInvoicesMax: 3, invoicesPerMinute: 10 }
  assert.equal(mustWait('c', ledger, limits, NOW_MS)?.reason, 'open-invoices')
  assert.equal(mustWait('c', ledger, limits, NOW_MS)?.retryAfterSeconds, 900)
  assert.equal(mustWait('d', ledger, limits, NOW_MS), undefined)
  assert.equal(mustWait('c', ledger, limits, NOW_MS + 900_001), undefined)
  const rate = { openInvoicesMax: 10, invoicesPerMinute: 3 }
  assert.deepEqual(mustWait('c', ledger, rate, NOW_MS), { reason: 'invoice-rate', retryAfterSeconds: 60 })
  assert.equal(mustWait('c', ledger, rate, NOW_MS + 60_001), undefined)
})
