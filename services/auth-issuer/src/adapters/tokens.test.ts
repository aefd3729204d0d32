import assert from 'node:assert/strict'
import { hash } from 'node:crypto'
import { test } from 'node:test'
import { connect } from '@nats-io/transport-node'
import { type Bus, connectBus, provision } from '@tollward/bus'
import { contract } from '@tollward/contracts'
import { TokenRevokedSchema } from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
import { createLog } from '@tollward/runtime'
import { eventually, requires, startNatsServer } from '@tollward/testkit'
import { errors } from 'oidc-provider'
import { Registry } from 'prom-client'
import { tokenHash } from '../domain/token.ts'
import { issuerMetrics } from '../metrics.ts'
import { openClients } from './clients.ts'
import { oidcAdapters } from './oidc-adapter.ts'
import { openTokens } from './tokens.ts'

const skip = await requires({ tools: ['nats-server'] })
const log = createLog('test', 'silent')

const nowSeconds = () => Math.floor(Date.now() / 1000)

async function startBus() {
  const nats = await startNatsServer()
  const provisioner = await connect({ servers: nats.url })
  await provision(provisioner)
  await provisioner.close()
  const buses = new AsyncDisposableStack()
  return {
    nats,
    bus: async (): Promise<Bus> =>
      buses.use(await connectBus({ servers: nats.url, name: 'auth-issuer', log, registry: new Registry() })),
    [Symbol.asyncDispose]: async () => {
      await buses.disposeAsync()
      await nats[Symbol.asyncDispose]()
    },
  }
}

function tokensOn(bus: Bus) {
  const tokens = openTokens(bus, issuerMetrics(new Registry()))
  const clients = openClients({ bus, issuer: 'http://issuer.test', operator: undefined, log })
  return { tokens, adapter: oidcAdapters(clients, tokens) }
}

const payload = (extra = {}) => ({ clientId: 'c', iat: nowSeconds(), exp: nowSeconds() + 60, ...extra })

test('of many who consume one value at once, over two replicas, exactly one may', { skip }, async () => {
  await using setup = await startBus()
  const replicas = [tokensOn(await setup.bus()), tokensOn(await setup.bus())]
  const adapters = replicas.map(({ adapter }) => adapter('RefreshToken'))
  await adapters[0]?.upsert('one-time', payload(), 60)
  const attempts = Array.from({ length: 32 }, (_, index) => adapters[index % 2]?.consume('one-time'))
  const results = await Promise.allSettled(attempts)
  assert.equal(results.filter(({ status }) => status === 'fulfilled').length, 1)
  for (const result of results) {
    if (result.status === 'rejected') assert(result.reason instanceof errors.InvalidGrant, String(result.reason))
  }
  const found = await adapters[1]?.find('one-time')
  assert.equal(typeof found?.consumed, 'number')
  await assert.rejects(async () => adapters[1]?.consume('one-time'), errors.InvalidGrant)
  await assert.rejects(async () => adapters[1]?.consume('never-issued'), errors.InvalidGrant)
})

test('a stored value has no id in it, and its key is the id’s hash', { skip }, async () => {
  await using setup = await startBus()
  const bus = await setup.bus()
  const records = tokensOn(bus).tokens.records('ClientCredentials')
  await records.save('the-bearer-secret', { jti: 'the-bearer-secret', ...payload() }, 60)
  const [entry, ...others] = await bus.rawBucket('oidc-ClientCredentials').entries()
  assert.equal(others.length, 0)
  assert.equal(entry?.key, hash('sha256', 'the-bearer-secret', 'base64url'))
  assert(!Buffer.from(entry?.value ?? []).includes('the-bearer-secret'))
  assert(entry?.expiresAtMs !== undefined && entry.expiresAtMs <= Date.now() + 60_000)
  assert.equal((await records.find('the-bearer-secret'))?.clientId, 'c')
})

test('a value that is used or revoked keeps its end', { skip }, async () => {
  await using setup = await startBus()
  const bus = await setup.bus()
  const { tokens } = tokensOn(bus)
  const exp = nowSeconds() + 2
  await tokens.records('RefreshToken').save('used', payload({ exp }), 2)
  await tokens.records('RefreshToken').consume('used', nowSeconds())
  await tokens.records('ClientCredentials').save('revoked', payload({ exp }), 2)
  await tokens.revoke(tokenHash('revoked'), 'test')
  const gone = async (model: string, id: string) =>
    (await bus.rawBucket(`oidc-${model}`).get(hash('sha256', id, 'base64url'))) === undefined
  assert.equal(await gone('RefreshToken', 'used'), false)
  await eventually(async () => (await gone('RefreshToken', 'used')) && (await gone('ClientCredentials', 'revoked')), {
    what: 'both have lapsed',
  })
})

test('a revocation whose event was not acknowledged is not complete, and the next look at the token completes it', {
  skip,
}, async () => {
  await using setup = await startBus()
  const bus = await setup.bus()
  let refuse = true
  const failing: Bus = Object.assign(Object.create(bus), {
    publish: (...args: Parameters<Bus['publish']>) =>
      refuse ? Promise.reject(new AppError('unavailable', 'no')) : bus.publish(...args),
  })
  const { tokens } = tokensOn(failing)
  const records = tokens.records('ClientCredentials')
  refuse = false
  await records.save('half', payload(), 60)
  refuse = true
  await assert.rejects(tokens.revoke(tokenHash('half'), 'test'), { code: 'unavailable' })
  await assert.rejects(records.find('half'), { code: 'unavailable' }, 'nobody gets the token meanwhile')

  const seen: string[] = []
  await using _events = await bus.follow(contract(TokenRevokedSchema), 'beginning', (event) =>
    seen.push(event.tokenHash),
  )
  assert.deepEqual(seen, [])
  refuse = false
  assert.equal(await records.find('half'), undefined)
  await eventually(() => seen.length > 0, { what: 'the revocation is announced' })
  assert.equal(await records.find('half'), undefined)
  assert.equal(await tokens.revoke(tokenHash('half'), 'test'), false)
  assert.deepEqual(seen, [tokenHash('half')], 'it is announced once')
})

test('of many who revoke one token at once, each hears that it is over, and the event is stored once', {
  skip,
}, async () => {
  await using setup = await startBus()
  const [first, second] = [await setup.bus(), await setup.bus()]
  const replicas = [tokensOn(first).tokens, tokensOn(second).tokens]
  await replicas[0]?.records('ClientCredentials').save('popular', payload(), 60)
  const results = await Promise.all(
    Array.from({ length: 10 }, (_, index) => replicas[index % 2]?.revoke(tokenHash('popular'), 'test')),
  )
  assert(results.includes(true))
  const events = await first.history('EVENTS', contract(TokenRevokedSchema).subject, { sinceMs: 0, limit: 100 })
  assert.equal(events.length, 1)
  assert.equal(await replicas[1]?.records('ClientCredentials').find('popular'), undefined)
})

test('bytes that are no record are an error, not a token', { skip }, async () => {
  await using setup = await startBus()
  const bus = await setup.bus()
  const records = tokensOn(bus).tokens.records('ClientCredentials')
  for (const [id, text] of Object.entries({ damaged: '{', older: '{"format":0,"payload":{}}', list: '[]' })) {
    await bus.rawBucket('oidc-ClientCredentials').put(hash('sha256', id, 'base64url'), Buffer.from(text))
    await assert.rejects(records.find(id), { code: 'internal' })
  }
})
