import assert from 'node:assert/strict'
import { parseBtc } from '@tollward/bitcoin'
import { TreasuryService } from '@tollward/contracts/payment'
import { eventually } from '@tollward/testkit'
import type { TestStack } from './test-stack.ts'

/** More addresses than a test gives out. */
const ADDRESSES = 2_000

/** Each satoshi that the account has on the chain, by the node's own count, is in the books, and became something. */
export async function booksBalance({ node, bus, accountKey }: TestStack): Promise<void> {
  const account = [{ desc: `wpkh(${accountKey}/0/*)`, range: ADDRESSES }]
  const treasury = bus.client(TreasuryService, { timeoutMs: 5_000 })
  await eventually(
    async () => {
      const { total_amount: btc } = await node.rpc<{ total_amount: number }>('scantxoutset', ['start', account])
      const books = await treasury.getBooks({})
      const { receivedSats, boughtSats, creditedSats, heldSats, confirmingSats, unclaimedSats } = books
      assert.equal(receivedSats, parseBtc(btc.toFixed(8)))
      assert.equal(boughtSats + creditedSats + heldSats + confirmingSats + unclaimedSats, receivedSats)
      assert.deepEqual(books.difficulties, [])
      return receivedSats > 0n
    },
    { what: 'the books balance' },
  )
}
