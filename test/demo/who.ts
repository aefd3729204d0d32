import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { Customer, clientDocument, LOCAL } from '../scenario/customer.ts'
import { problemOf, type Tour } from './tour.ts'

/** The address of this machine from which the demo attacks. */
export const ATTACKER = '127.0.0.66'

/** Where an honest client sits while the attack goes on. */
export const NEIGHBOUR = '127.0.0.67'

interface ServiceRow {
  readonly name: string
  readonly state: string
  readonly detail: string
}

/** A client that the issuer knows, and that is refused without its token. */
export async function getKnown(tour: Tour): Promise<{ customer: Customer; isSensorOn: boolean }> {
  let isSensorOn = false
  await tour.step('Every service is ready, and nothing is left of an earlier tour', async () => {
    const services = await tour.tollward<ServiceRow[]>(['status'])
    for (const { name, state, detail } of services) {
      tour.say(`${name.padEnd(20)} ${state} ${detail}`)
      assert.ok(state === 'ready' || state === 'off', `${name} is ${state}: ${detail}`)
    }
    isSensorOn = services.some(({ name, state }) => name === 'node-sensor' && state === 'ready')
    const blocks = await tour.tollward<{ cidr: string }[]>(['blocks', 'list'])
    if (blocks.some(({ cidr }) => cidr === ATTACKER)) await tour.tollward(['blocks', 'remove', ATTACKER])
  })

  await tour.step('Anybody may read what is public; the rest wants to know who calls', async () => {
    assert.equal((await tour.http(`${LOCAL.gateway}/public`)).status, 200)
    const refused = await tour.http(`${LOCAL.gateway}/orders`)
    assert.equal(refused.status, 401)
    assert.equal(problemOf(refused), 'token-missing')
    const forged = await tour.http(`${LOCAL.gateway}/orders`, { headers: { authorization: 'Bearer made-up' } })
    assert.equal(problemOf(forged), 'token-invalid')
  })

  const customer = await newCustomer(tour, 'An operator makes a client; the client gets an opaque token', NEIGHBOUR)
  await tour.step('The API sees who it is in a signed token of its own, and never what the client forged', async () => {
    const { status, body, headers } = await customer.call(`${LOCAL.gateway}/echo`, {
      headers: { 'x-tollward-client': 'somebody-else', 'x-tollward-scopes': 'admin' },
    })
    assert.equal(status, 200)
    const seen = (JSON.parse(body) as { headers: Record<string, string> }).headers
    assert.equal(seen['x-tollward-client'], customer.clientId)
    assert.equal(seen['x-tollward-scopes'], 'orders')
    assert.match(seen.authorization ?? '', /^Bearer eyJ/, 'upstream got no JWT')
    assert.doesNotMatch(body, new RegExp(customer.token), 'the opaque token reached the API')
    assert.ok(headers['x-tollward-decision'], 'the answer has no decision id')
  })
  return { customer, isSensorOn }
}

/** Makes a client by its document and gets its first token. */
export async function newCustomer(tour: Tour, title: string, from?: string): Promise<Customer> {
  const name = `demo-${randomBytes(4).toString('hex')}`
  let customer: Customer | undefined
  await tour.step(title, async () => {
    const [applied] = await tour.tollward<{ clientSecret?: string }[]>(['apply', '-f', '-'], clientDocument(name))
    assert.ok(applied?.clientSecret, 'the new client has no secret')
    customer = new Customer(name, applied.clientSecret, { send: tour.http, ...(from === undefined ? {} : { from }) })
    await customer.getToken()
  })
  assert.ok(customer)
  return customer
}
