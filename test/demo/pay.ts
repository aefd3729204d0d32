import assert from 'node:assert/strict'
import { type Customer, type Invoice, LOCAL } from '../scenario/customer.ts'
import { problemOf, type Tour, until } from './tour.ts'
import { newCustomer } from './who.ts'

const PLAN = 'orders'
const ORDERS = `${LOCAL.gateway}/orders`

/** A client that pays in bitcoin and is let through, and another that shows the same transaction and is not. Returns the other. */
export async function payAndCall(tour: Tour, customer: Customer): Promise<Customer> {
  await tour.step('Known is not enough: 402 says what it costs and where to ask for an invoice', async () => {
    const refused = await customer.call(ORDERS)
    assert.equal(refused.status, 402)
    assert.equal(problemOf(refused), 'payment-required')
  })

  let invoice: Invoice | undefined
  await tour.step('The client asks for an invoice: an address that nobody else ever gets', async () => {
    invoice = await customer.getInvoice(PLAN)
    assert.match(invoice.uri, /^bitcoin:bcrt1q/)
    customer.txid = 'ab'.repeat(32)
    assert.equal(problemOf(await customer.call(ORDERS)), 'payment-not-seen', 'a made-up transaction is not seen')
  })

  await tour.step("The node's wallet pays; without a confirmation the payment is only pending", async () => {
    const { txid } = await tour.tollward<{ txid: string }>(['regtest', 'pay', invoice?.uri ?? ''])
    customer.txid = txid
    await until(
      'the payment in the mempool',
      async () => problemOf(await customer.quiet().call(ORDERS)) === 'payment-pending',
    )
    await customer.call(ORDERS)
  })

  await tour.step('A block is mined; the same request is let through', async () => {
    await tour.tollward(['regtest', 'mine', '1'])
    const minedMs = performance.now()
    await until('the first paid request', async () => (await customer.quiet().call(ORDERS)).status === 200)
    tour.say(`mined → admitted: ${(performance.now() - minedMs).toFixed(0)} ms`)
    assert.equal((await customer.call(ORDERS)).status, 200)
    const created = await customer.call(ORDERS, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: '{"item":"book"}',
    })
    assert.equal(created.status, 201)
    const passes = await tour.tollward<{ clientId: string; state: string }[]>(['passes'])
    assert.ok(passes.some(({ clientId, state }) => clientId === customer.clientId && state === 'active'))
  })

  const stranger = await newCustomer(tour, 'Somebody else saw the transaction on the chain and tries it')
  await tour.step('A transaction id is public, so it is worth nothing to him', async () => {
    stranger.txid = customer.txid
    const refused = await stranger.call(ORDERS)
    assert.equal(refused.status, 403)
    assert.equal(problemOf(refused), 'nothing-to-redeem')
    const decision = String(refused.headers['x-tollward-decision'])
    const explained = await until('the decision to be recorded', () =>
      tour.tollward<{ reason: string; clientId: string }>(['explain', decision]).catch(() => undefined),
    )
    assert.equal(explained.reason, 'nothing-to-redeem')
    assert.equal(explained.clientId, stranger.clientId)
  })

  await tour.step('An operator revokes his token; the next request is refused', async () => {
    await tour.tollward(['tokens', 'revoke', '--client', stranger.clientId])
    const refused = await stranger.call(ORDERS)
    assert.equal(refused.status, 401)
  })
  return stranger
}
