import assert from 'node:assert/strict'
import { hash } from 'node:crypto'
import { test } from 'node:test'
import { contract } from '@tollward/contracts'
import { TokenIssuedSchema, TokenRevokedSchema } from '@tollward/contracts/token'
import { eventually, requires } from '@tollward/testkit'
import { grantHash } from '../domain/grant.ts'
import { tokenHash } from '../domain/token.ts'
import { failingEvents, nowSeconds, startTestStores } from '../test-stores.ts'

const skip = await requires({ tools: ['nats-server'] })

const payload = (extra = {}) => ({ clientId: 'c', iat: nowSeconds(), exp: nowSeconds() + 60, ...extra })

test('a stored token has no id in it, and its key is the id’s hash', { skip }, async () => {
  await using setup = await startTestStores()
  const { tokens, bus } = await setup.replica()
  await tokens.issue('ClientCredentials', 'the-bearer-secret', { jti: 'the-bearer-secret', ...payload() })
  const [entry, ...others] = await bus.rawBucket('oidc-ClientCredentials').entries()
  assert.equal(others.length, 0)
  assert.equal(entry?.key, hash('sha256', 'the-bearer-secret', 'base64url'))
  assert(!Buffer.from(entry?.value ?? []).includes('the-bearer-secret'))
  assert(entry?.expiresAtMs !== undefined && entry.expiresAtMs <= Date.now() + 60_000)
  assert.equal((await tokens.find('ClientCredentials', 'the-bearer-secret'))?.clientId, 'c')
  assert.equal(await tokens.find('AccessToken', 'the-bearer-secret'), undefined)
})

test('a token that is over is worth nothing while it is still kept', { skip }, async () => {
  await using setup = await startTestStores()
  const { tokens, bus } = await setup.replica()
  const bucket = bus.rawBucket('oidc-AccessToken')
  const record = { format: 1, payload: payload({ exp: nowSeconds() - 1 }) }
  await bucket.put(hash('sha256', 'late', 'base64url'), Buffer.from(JSON.stringify(record)))
  assert.notEqual(await bucket.get(hash('sha256', 'late', 'base64url')), undefined)
  assert.equal(await tokens.find('AccessToken', 'late'), undefined)
  assert.equal(await tokens.findByHash(tokenHash('late')), undefined)
})

test('a revoked token keeps its end', { skip }, async () => {
  await using setup = await startTestStores()
  const { tokens, bus } = await setup.replica()
  await tokens.issue('ClientCredentials', 'revoked', payload({ exp: nowSeconds() + 2 }))
  await tokens.revoke(tokenHash('revoked'), 'test')
  const kept = async () => bus.rawBucket('oidc-ClientCredentials').get(hash('sha256', 'revoked', 'base64url'))
  assert.notEqual(await kept(), undefined)
  await eventually(async () => (await kept()) === undefined, { what: 'it has lapsed' })
})

test('a person’s token is announced with its grant and person, by hashes', { skip }, async () => {
  await using setup = await startTestStores()
  const { tokens, bus } = await setup.replica()
  const events: { tokenHash: string; grantHash: string; subject: string }[] = []
  await using _events = await bus.follow(contract(TokenIssuedSchema), 'beginning', (event) => events.push(event))
  await tokens.issue('AccessToken', 'persons', payload({ grantId: 'g', accountId: 'someone', scope: 'a b' }))
  await eventually(() => events.length === 1, { what: 'the token is announced' })
  assert.equal(events[0]?.tokenHash, tokenHash('persons'))
  assert.equal(events[0]?.grantHash, grantHash('g'))
  assert.equal(events[0]?.subject, 'someone')
})

test('a revocation whose event was not acknowledged is not complete, and the next look at the token completes it', {
  skip,
}, async () => {
  await using setup = await startTestStores()
  const events = failingEvents()
  const { tokens, bus } = await setup.replica(events.wrap)
  await tokens.issue('ClientCredentials', 'half', payload())
  const find = () => tokens.find('ClientCredentials', 'half')
  events.refuse = true
  await assert.rejects(tokens.revoke(tokenHash('half'), 'test'), /the event is lost/)
  await assert.rejects(find(), /the event is lost/, 'nobody gets the token meanwhile')

  const seen: string[] = []
  await using _events = await bus.follow(contract(TokenRevokedSchema), 'beginning', (event) =>
    seen.push(event.tokenHash),
  )
  assert.deepEqual(seen, [])
  events.refuse = false
  assert.equal(await find(), undefined)
  await eventually(() => seen.length > 0, { what: 'the revocation is announced' })
  assert.equal(await find(), undefined)
  assert.equal(await tokens.revoke(tokenHash('half'), 'test'), false)
  assert.deepEqual(seen, [tokenHash('half')], 'it is announced once')
})

test('of many who revoke one token at once, each hears that it is over, and the event is stored once', {
  skip,
}, async () => {
  await using setup = await startTestStores()
  const [first, second] = [await setup.replica(), await setup.replica()]
  await first.tokens.issue('ClientCredentials', 'popular', payload())
  const results = await Promise.all(
    Array.from({ length: 10 }, (_, index) =>
      (index % 2 === 0 ? first : second).tokens.revoke(tokenHash('popular'), 'test'),
    ),
  )
  assert(results.includes(true))
  const events = await first.bus.history('EVENTS', contract(TokenRevokedSchema).subject, { sinceMs: 0, limit: 100 })
  assert.equal(events.length, 1)
  assert.equal(await second.tokens.find('ClientCredentials', 'popular'), undefined)
})

test('bytes that are no record are an error, not a token', { skip }, async () => {
  await using setup = await startTestStores()
  const { tokens, bus } = await setup.replica()
  for (const [id, text] of Object.entries({ damaged: '{', older: '{"format":0,"payload":{}}', list: '[]' })) {
    await bus.rawBucket('oidc-ClientCredentials').put(hash('sha256', id, 'base64url'), Buffer.from(text))
    await assert.rejects(tokens.find('ClientCredentials', id), { code: 'internal' })
  }
})
