import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { fromBinary } from '@bufbuild/protobuf'
import { EntryAppendedSchema } from '@tollward/contracts/ledger'
import { TreasuryService } from '@tollward/contracts/payment'
import { eventually, requires } from '@tollward/testkit'
import { newAccountKey, TestStack } from './test-stack.ts'

const skip = await requires({ tools: ['nats-server', 'bitcoind'] })
const PATIENCE_MS = 60_000

let stack: TestStack

before(async () => {
  if (skip === false) stack = await TestStack.start()
})
after(() => stack?.[Symbol.asyncDispose]())

const treasuryOf = ({ bus }: TestStack) => bus.client(TreasuryService, { timeoutMs: 20_000 })

test('an adjustment of credit counts once, whatever its caller asks again, and says who did it and why', {
  skip,
}, async () => {
  await using replica = await stack.replica()
  await replica.open('ada', 'orders')
  const treasury = treasuryOf(stack)
  const adjustment = {
    ...{ adjustmentId: 'first-adjustment-of-ada', clientId: 'ada', amountSats: 500n },
    ...{ reason: 'an apology', operator: 'treasurer' },
  }
  const balanceOf = async () => (await treasury.listCredits({ clientId: 'ada' })).credits[0]?.balanceSats ?? 0n
  await treasury.adjustCredit(adjustment)
  assert.equal((await treasury.adjustCredit(adjustment)).credit?.balanceSats, 500n)
  await assert.rejects(treasury.adjustCredit({ ...adjustment, amountSats: 900n }), { code: 'conflict' })
  const unknown = 'ab'.repeat(32)
  const wrong = [
    [{ adjustmentId: 'short' }, 'invalid_argument'],
    [{ adjustmentId: 'second-adjustment-x', amountSats: 0n }, 'invalid_argument'],
    [{ adjustmentId: 'second-adjustment-x', reason: ' ' }, 'invalid_argument'],
    [{ adjustmentId: 'second-adjustment-x', operator: '' }, 'invalid_argument'],
    [{ adjustmentId: 'second-adjustment-x', clientId: '' }, 'invalid_argument'],
    [{ adjustmentId: 'second-adjustment-x', txid: 'AB' }, 'invalid_argument'],
    [{ adjustmentId: 'second-adjustment-x', txid: unknown }, 'not_found'],
  ] as const
  for (const [change, code] of wrong)
    await assert.rejects(treasury.adjustCredit({ ...adjustment, ...change }), { code })
  assert.equal(await balanceOf(), 500n)
  await treasury.adjustCredit({ ...adjustment, adjustmentId: 'taken-back-from-ada', amountSats: -600n })
  assert.equal(await balanceOf(), -100n)
  await assert.rejects(treasury.listPayments({ pageToken: 'x' }), { code: 'invalid_argument' })
})

test('while a back-up is written no replica writes anything else; then all of them follow the chain from where it ended', {
  skip,
}, async () => {
  const account = newAccountKey()
  const { entries, descriptor, nextAddressIndex, invoice } = await lostLedger(account)
  await using heir = await TestStack.beside(stack.node, account)
  await using one = await heir.replica()
  await using two = await heir.replica()
  const treasury = treasuryOf(heir)
  const whole = { network: 'regtest', descriptor, nextAddressIndex, entriesTotal: BigInt(entries.length) }
  const send = (from: number, until: number) =>
    treasury.importLedger({ ...whole, fromSequence: BigInt(from), entries: entries.slice(from - 1, until) })
  await assert.rejects(treasury.importLedger({ ...whole, network: 'mainnet' }), { code: 'failed_precondition' })
  await assert.rejects(treasury.importLedger({ ...whole, descriptor: 'wpkh(other)' }), { code: 'failed_precondition' })
  await send(1, 2)
  for (const replica of [one, two]) {
    await eventually(
      async () => (await replica.request('POST', '/invoices', 'eve', { plan: 'orders' })).status === 503,
      {
        what: 'orders have to wait',
        timeoutMs: PATIENCE_MS,
      },
    )
  }
  // With a payment to the restored invoice, which both of them see.
  await heir.node.mine(1)
  for (const { service } of [one, two]) await service.line(/being restored.*chain not followed/, PATIENCE_MS)
  await assert.rejects(treasury.exportLedger({ fromSequence: 1n }), { code: 'unavailable' })
  await assert.rejects(treasury.getBooks({}), { code: 'unavailable' })
  for (let from = 3; from <= entries.length; from += 1) await send(from, from)
  assert.equal((await send(1, entries.length)).nextSequence, BigInt(entries.length + 1))
  for (const replica of [one, two]) {
    const paid = async () => {
      const { state, payments } = await replica.read('ada', invoice)
      return state === 'paid' && payments.length === 3
    }
    await eventually(paid, { what: 'all three payments count', timeoutMs: PATIENCE_MS })
  }
  const [marker, ...kept] = (await treasury.exportLedger({ fromSequence: 1n })).entries
  assert.deepEqual(kept.slice(0, entries.length), entries)
  const { entry } = fromBinary(EntryAppendedSchema, marker ?? new Uint8Array())
  assert.ok(entry.case === 'addressesSkipped')
  assert.equal(entry.value.nextIndex, nextAddressIndex + 1000, 'addresses after the back-up may have been given out')
})

/** A ledger of which nothing is left but its entries: an invoice, some of it paid before they were copied, the rest after. */
async function lostLedger(account: string) {
  await using past = await TestStack.beside(stack.node, account)
  await using replica = await past.replica()
  const opened = await replica.open('ada', 'orders')
  await past.pay(opened, 4_000n)
  await past.node.mine(1)
  await replica.reaches('ada', opened.id, 'underpaid')
  const treasury = treasuryOf(past)
  const copied = await eventually(
    async () => {
      const part = await treasury.exportLedger({ fromSequence: 1n })
      return part.entries.length >= 3 && part
    },
    { what: 'the payment is confirmed in the ledger', timeoutMs: PATIENCE_MS },
  )
  await replica.service.stop()
  // In a block that is there before the heir is, and in one that comes while the back-up is written.
  await past.pay(opened, 3_000n)
  await past.node.mine(1)
  await past.pay(opened, 3_000n)
  return { ...copied, invoice: opened.id }
}
