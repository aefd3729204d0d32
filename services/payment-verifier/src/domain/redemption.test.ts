import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { test } from 'node:test'
import { PlanSchema } from '@tollward/documents'
import fc from 'fast-check'
import { entryOf, nextChainFact, nextReplacedFact, nextSeenFact } from './facts.ts'
import { Ledger } from './ledger.ts'
import { openedFact } from './opening.ts'
import { priceOf } from './price.ts'
import { decideRedemption } from './redemption.ts'

const NOW_MS = 1_700_000_000_000
const MINUTE_MS = 60_000
const hash = (text: string) => createHash('sha256').update(text).digest('hex')
const plan = PlanSchema.parse({
  apiVersion: 'tollward.dev/v1',
  kind: 'Plan',
  metadata: { name: 'orders' },
  spec: { priceSats: 10_000, requests: 10, confirmations: 1, payWithin: '15m', confirmWithin: '2h' },
})
const none = () => undefined

/** A client with so many invoices, of which it pays the first by a transaction of its own; its txid. */
function trade(ledger: Ledger, clientId: string, invoices: number, payment: 'none' | 'seen' | 'mined' | 'replaced') {
  const write = (fact: Parameters<typeof entryOf>[0] | undefined) => {
    if (fact !== undefined) ledger.apply(entryOf(fact, NOW_MS), ledger.sequence + 1)
  }
  const tip = { hash: hash('tip'), height: 0 }
  const price = priceOf(plan, { score: 0, ageMs: 0, paidSats: 0n })
  const scripts = Array.from({ length: invoices }, (_, count) => {
    const index = ledger.nextAddressIndex
    const script = Buffer.from(hash(`script ${index}`), 'hex')
    const order = { invoiceId: `${clientId} ${count}`, clientId, plan, idempotencyKey: '', pageKey: new Uint8Array() }
    write(openedFact(order, { price, creditSats: 0n }, { index, address: '', script }, tip, NOW_MS))
    return script.toString('hex')
  })
  const txid = hash(`payment of ${clientId}`)
  const [script] = scripts
  if (script === undefined || payment === 'none') return txid
  const output = { txid, vout: 0, amountSats: 10_000n, script }
  write(nextSeenFact([output], ledger, none, NOW_MS))
  const block = { hash: hash(`block of ${clientId}`), height: 1, medianTimePastMs: NOW_MS, outputs: [output] }
  if (payment === 'mined') write(nextChainFact({ disconnected: [], connected: [block] }, ledger, none, NOW_MS))
  if (payment === 'replaced') write(nextReplacedFact([{ txid }], ledger))
  return txid
}

const payment = fc.constantFrom('none', 'seen', 'mined', 'replaced')

test('what others pay, and whether they do, changes nothing in the answer to a txid that is not the own', () => {
  fc.assert(
    fc.property(fc.nat(2), payment, fc.nat(2), payment, fc.nat(40), (own, ownPayment, foreign, paid, minutes) => {
      const decide = (others: boolean) => {
        const ledger = new Ledger()
        trade(ledger, 'thief', own, ownPayment)
        const txid = trade(ledger, 'owner', others ? foreign : 0, paid)
        const medianTimePastsMs = new Map([0, 1].map((height) => [height, NOW_MS]))
        const nowMs = NOW_MS + minutes * MINUTE_MS
        const view = { nowMs, tipHeight: 1, medianTimePastsMs, uncovered: new Set<string>() }
        return decideRedemption({ clientId: 'thief', plan: 'orders', txid }, ledger, view, () => 'usable')
      }
      const answer = decide(true)
      assert.deepEqual(answer, decide(false))
      assert.ok(answer.outcome === 'not-seen' || answer.outcome === 'nothing-open')
    }),
  )
})
