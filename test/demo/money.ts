import assert from 'node:assert/strict'
import { type Customer, type Invoice, LOCAL } from '../scenario/customer.ts'
import { send } from '../scenario/http.ts'
import { reorganise } from '../scenario/node.ts'
import { problemOf, type Tour, until } from './tour.ts'
import { newCustomer } from './who.ts'

const PLAN = 'orders'
const ORDERS = `${LOCAL.gateway}/orders`

/** Money that bought nothing buys later, and a reorganisation takes back what it bought until it is confirmed again. */
export async function accountForMoney(tour: Tour): Promise<void> {
  const customer = await newCustomer(tour, 'Another client, who pays by hand')

  let invoice: Invoice | undefined
  await tour.step('His invoice is a page as well, for whoever pays; it works without scripts', async () => {
    invoice = await customer.getInvoice(PLAN)
    tour.say(`list price ${invoice.listPriceSats} sats, less for paying in bitcoin: ${invoice.amountSats} sats`)
    const page = await send(invoice.pageUrl)
    assert.equal(page.status, 200)
    assert.ok(page.body.includes(invoice.address) && page.body.includes('<svg'), 'the page has no address or QR code')
    tour.say(`the page: ${invoice.pageUrl}`)
  })

  await tour.step('He pays twice as much as he was asked for: a pass, and the rest is credit', async () => {
    const { address, amountSats } = invoice ?? assert.fail('no invoice')
    const uri = `bitcoin:${address}?amount=${(2 * Number(amountSats)) / 1e8}`
    const { txid } = await tour.tollward<{ txid: string }>(['regtest', 'pay', uri])
    await tour.tollward(['regtest', 'mine', '1'])
    customer.txid = txid
    await until('the request to be let through', async () => (await customer.quiet().call(ORDERS)).status === 200)
    const { balanceSats } = await creditOf(customer)
    tour.say(`credit: ${balanceSats} sats`)
    assert.equal(balanceSats, amountSats)
  })

  await tour.step('The chain reorganises: the payment is in no block, and the pass buys nothing', async () => {
    await reorganise()
    await until('the refusal', async () => (await customer.quiet().call(ORDERS)).status === 402)
    assert.equal(problemOf(await customer.call(ORDERS)), 'payment-pending')
    assert.equal((await creditOf(customer)).balanceSats, '0', 'the credit of a payment that is gone')
  })

  await tour.step('The next block has the payment: everything is back', async () => {
    await tour.tollward(['regtest', 'mine', '1'])
    await until('the pass', async () => (await customer.quiet().call(ORDERS)).status === 200)
    assert.equal((await creditOf(customer)).balanceSats, invoice?.amountSats)
  })

  await tour.step('His credit pays the next invoice: there is nothing left to pay', async () => {
    const next = await customer.getInvoice(PLAN)
    tour.say(`to pay: ${next.amountSats} sats, from credit: ${next.creditUsedSats} sats, state: ${next.state}`)
    assert.deepEqual([next.amountSats, next.creditUsedSats, next.state], ['0', invoice?.amountSats, 'redeemed'])
    assert.equal((await creditOf(customer)).balanceSats, '0')
  })

  await tour.step(
    'The treasurer’s books: each satoshi on the chain is in the ledger, and what became of it',
    async () => {
      const { accountedFor, books } = await tour.tollward<Reconciled>(['payments', 'reconcile'])
      const { receivedSats, boughtSats, creditedSats, heldSats, confirmingSats, unclaimedSats } = books
      tour.say(
        `received ${receivedSats} sats: ${boughtSats} bought passes, ${creditedSats} became credit, ${heldSats} held,`,
      )
      tour.say(`${confirmingSats} still confirming, ${unclaimedSats} nobody's`)
      assert.ok(accountedFor)
    },
  )
}

/** What `tollward payments reconcile` found; amounts in sats. */
interface Reconciled {
  readonly accountedFor: boolean
  readonly books: Readonly<Record<string, number>>
}

async function creditOf(customer: Customer): Promise<{ balanceSats: string }> {
  const { status, body } = await customer.quiet().call(`${LOCAL.verifier}/credit`)
  assert.equal(status, 200, body)
  return JSON.parse(body) as { balanceSats: string }
}
