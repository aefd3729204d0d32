import assert from 'node:assert/strict'
import { Agent } from 'node:http'
import { setTimeout as pause } from 'node:timers/promises'
import { createRemoteJWKSet, decodeProtectedHeader, jwtVerify } from 'jose'
import { Customer, LOCAL } from '../scenario/customer.ts'
import { problemOf, type Tour, until } from './tour.ts'

const ORDERS = `${LOCAL.gateway}/orders`
const ECHO = `${LOCAL.gateway}/echo`
/** Between two requests of a client that goes on and on: below every limit of the example API. */
const PAUSE_MS = 5
/** Between two tokens of one that wants a new one each time. */
const TOKEN_PAUSE_MS = 50
/** After the issuer said that it is done. A few milliseconds where nothing else runs; a busy machine may take longer. */
const REFUSED_WITHIN_MS = 500
/** With the new key. */
const REQUESTS_AFTER = 10
/** How long the local stack lets verifiers keep the published keys. */
const KEYS_MAX_AGE_MS = 2000

interface Discovery {
  readonly issuer: string
  readonly jwks_uri: string
  readonly registration_endpoint: string
  readonly revocation_endpoint: string
  readonly grant_types_supported: readonly string[]
}

interface KeyRow {
  readonly kid: string
  readonly state: string
}

/** A stranger who asks nobody for leave, tokens that end at once, and keys that change under way. */
export async function identify(tour: Tour, customer: Customer): Promise<void> {
  const discovery = await discover(tour)
  await strangerBuys(tour, discovery)
  await tokensEnd(tour, discovery, customer)
  await keysChange(tour, discovery, customer)
}

async function discover(tour: Tour): Promise<Discovery> {
  let discovery: Discovery | undefined
  await tour.step('The issuer says by itself what it offers and where', async () => {
    const { status, body } = await tour.http(`${LOCAL.issuer}/.well-known/openid-configuration`)
    assert.equal(status, 200)
    discovery = JSON.parse(body) as Discovery
    tour.say(`grants: ${discovery.grant_types_supported.join(', ')}`)
    tour.say(`registration: ${discovery.registration_endpoint}`)
    assert.equal(discovery.issuer, LOCAL.issuer)
  })
  assert.ok(discovery)
  return discovery
}

async function strangerBuys(tour: Tour, discovery: Discovery): Promise<void> {
  let stranger: Customer | undefined
  await tour.step('A stranger registers a client without asking anybody, and gets a token', async () => {
    const { status, body } = await tour.http(discovery.registration_endpoint, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({
        client_name: 'A stranger',
        grant_types: ['client_credentials'],
        response_types: [],
        redirect_uris: [],
        scope: 'orders',
      }),
    })
    assert.equal(status, 201, body)
    const { client_id, client_secret } = JSON.parse(body) as { client_id: string; client_secret: string }
    stranger = new Customer(client_id, client_secret, { send: tour.http })
    await stranger.getToken()
    const clients = await tour.tollward<{ name: string; origin: string }[]>(['clients'])
    assert.equal(clients.find(({ name }) => name === client_id)?.origin, 'self-registered')
  })
  const buyer = stranger
  assert.ok(buyer)

  await tour.step('He may buy, and use what he bought: 402, an invoice, a payment, 200', async () => {
    assert.equal(problemOf(await buyer.call(ORDERS)), 'payment-required')
    const { uri } = await buyer.getInvoice('orders')
    const { txid } = await tour.tollward<{ txid: string }>(['regtest', 'pay', uri])
    await tour.tollward(['regtest', 'mine', '1'])
    buyer.txid = txid
    await until('the first paid request', async () => (await buyer.quiet().call(ORDERS)).status === 200)
    assert.equal((await buyer.call(ORDERS)).status, 200)
  })

  await tour.step('What nobody pays for is not for a client that nobody looked at', async () => {
    const refused = await buyer.call(ECHO)
    assert.equal(refused.status, 403)
    assert.equal(problemOf(refused), 'self-registered')
    await tour.tollward(['clients', 'remove', buyer.clientId])
    assert.equal((await buyer.call(ORDERS)).status, 401)
  })
}

async function tokensEnd(tour: Tour, discovery: Discovery, customer: Customer): Promise<void> {
  await tour.step('A client gives its token up (RFC 7009); the gateway refuses it within milliseconds', async () => {
    await customer.getToken()
    await using calling = keepCalling(customer)
    await until('the first answer', async () => calling.lastAdmittedMs > 0)
    const startMs = performance.now()
    const { status } = await customer.giveUp(discovery.revocation_endpoint)
    const answeredMs = performance.now()
    assert.equal(status, 200)
    await until('the refusal', async () => calling.refusedMs !== undefined)
    const refusedMs = calling.refusedMs ?? Number.POSITIVE_INFINITY
    tour.say(
      `asked → done: ${(answeredMs - startMs).toFixed(1)} ms; done → refused: ${(refusedMs - answeredMs).toFixed(1)} ms`,
    )
    assert.ok(refusedMs - answeredMs < REFUSED_WITHIN_MS, `not refused within ${REFUSED_WITHIN_MS} ms`)
    assert.equal(calling.admittedAfter, 0, 'a request was admitted after the first refusal')
  })

  await tour.step('An operator ends the tokens of a client in the middle of its work', async () => {
    await customer.getToken()
    await using calling = keepCalling(customer)
    await until('the first answer', async () => calling.lastAdmittedMs > 0)
    await tour.tollward(['tokens', 'revoke', '--client', customer.clientId])
    const doneMs = performance.now()
    await until('the refusal', async () => calling.refusedMs !== undefined)
    const { lastAdmittedMs, refusedMs = Number.POSITIVE_INFINITY, requests } = calling
    const apart = doneMs - refusedMs
    tour.say(
      `${requests} requests; the first refusal came ${Math.abs(apart).toFixed(0)} ms ${apart > 0 ? 'before' : 'after'} the command had ended`,
    )
    tour.say(`last admitted → first refused: ${(refusedMs - lastAdmittedMs).toFixed(1)} ms`)
    assert.ok(refusedMs - doneMs < REFUSED_WITHIN_MS, `not refused within ${REFUSED_WITHIN_MS} ms`)
    assert.equal(calling.admittedAfter, 0, 'a request was admitted after the first refusal')
    await customer.getToken()
    assert.equal((await customer.call(ECHO)).status, 200, 'a new token is not good')
  })
}

async function keysChange(tour: Tour, { jwks_uri, issuer }: Discovery, customer: Customer): Promise<void> {
  await tour.step('The signing keys are replaced while requests go on, and each of their tokens verifies', async () => {
    const before = await tour.tollward<KeyRow[]>(['keys', 'list'])
    // As an API behind the gateway would: it asks for the keys again only when it may keep them no longer.
    const keys = createRemoteJWKSet(new URL(jwks_uri), { cacheMaxAge: KEYS_MAX_AGE_MS })
    const quiet = customer.quiet()
    const counts = new Map<string, number>()
    const callAndVerify = async () => {
      await quiet.getToken()
      const { status, body } = await quiet.call(ECHO)
      assert.equal(status, 200, `a request failed: ${body}`)
      const { headers } = JSON.parse(body) as { headers: { authorization: string } }
      const token = headers.authorization.slice('Bearer '.length)
      await jwtVerify(token, keys, { issuer, typ: 'at+jwt' })
      const { kid = '' } = decodeProtectedHeader(token)
      counts.set(kid, (counts.get(kid) ?? 0) + 1)
      return kid
    }
    const old = await callAndVerify()
    assert.ok(before.some(({ kid, state }) => kid === old && state === 'signs'))
    const rotated = await tour.tollward<KeyRow[]>(['keys', 'rotate'])
    for (const { kid, state } of rotated) tour.say(`${kid}  ${state}`)
    const startMs = performance.now()
    let signsMs: number | undefined
    await until('the new key to sign', async () => {
      await pause(TOKEN_PAUSE_MS)
      const kid = await callAndVerify()
      if (kid !== old) signsMs ??= performance.now()
      return (counts.get(kid) ?? 0) >= REQUESTS_AFTER && kid !== old
    })
    for (const [kid, count] of counts) tour.say(`${count} requests verified with ${kid}`)
    tour.say(
      `none failed; the new key signs ${((Number(signsMs) - startMs) / 1000).toFixed(1)} s after it was published`,
    )
    assert.equal(counts.size, 2)
  })
}

/** A client that calls again and again on one connection, and what came of it. */
function keepCalling(customer: Customer) {
  const quiet = customer.quiet()
  const ended = new AbortController()
  const seen = {
    requests: 0,
    lastAdmittedMs: 0,
    refusedMs: undefined as number | undefined,
    /** Requests that were let through after one had been refused. */
    admittedAfter: 0,
  }
  const work = async () => {
    const agent = new Agent({ keepAlive: true, maxSockets: 1 })
    while (!ended.signal.aborted) {
      const { status, body } = await quiet.call(ECHO, { agent })
      assert.ok(status === 200 || status === 401, `neither admitted nor refused: ${status} ${body}`)
      seen.requests += 1
      if (status === 401) seen.refusedMs ??= performance.now()
      else if (seen.refusedMs === undefined) seen.lastAdmittedMs = performance.now()
      else seen.admittedAfter += 1
      await pause(PAUSE_MS)
    }
    agent.destroy()
  }
  const working = work()
  // What went wrong is told when it is disposed of; until then nobody waits for it.
  working.catch(() => undefined)
  return Object.assign(seen, {
    [Symbol.asyncDispose]: async () => {
      ended.abort()
      await working
    },
  })
}
