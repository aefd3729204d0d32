import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { test } from 'node:test'
import { contract } from '@tollward/contracts'
import { ConsentGivenSchema, GrantRevokedSchema, RefreshReusedSchema } from '@tollward/contracts/token'
import { eventually, requires } from '@tollward/testkit'
import { errors } from 'oidc-provider'
import { grantHash, grantId } from '../domain/grant.ts'
import { failingEvents, nowSeconds, type Replica, startTestStores, type TestStores } from '../test-stores.ts'

const skip = await requires({ tools: ['nats-server'] })

function newGrant(subject: string, clientId: string) {
  const id = grantId(subject, clientId, randomBytes(32).toString('base64url'))
  const payload = {
    jti: id,
    accountId: subject,
    clientId,
    iat: nowSeconds(),
    exp: nowSeconds() + 60,
    openid: { scope: 'openid' },
    resources: { 'urn:tollward:audience:orders%20api': 'orders stock' },
  }
  return { id, payload }
}

async function given({ grants }: Replica, subject: string, clientId: string): Promise<string> {
  const { id, payload } = newGrant(subject, clientId)
  await grants.save(id, payload, 60)
  return id
}

/** Two people and two clients. */
async function prepared(): Promise<TestStores> {
  const setup = await startTestStores()
  for (const person of ['ann', 'bob']) setup.people.set(person, { generation: '1', enabled: true })
  for (const client of ['web', 'phone']) await setup.apply(client)
  return setup
}

test('a grant is found by id, hash, person and client, with what was granted', { skip }, async () => {
  await using setup = await prepared()
  const replica = await setup.replica()
  const id = await given(replica, 'ann', 'web')
  const others = [await given(replica, 'ann', 'phone'), await given(replica, 'bob', 'web')]
  assert.equal((await replica.grants.find(id))?.accountId, 'ann')
  const hashes = async (of: { subject?: string; clientId?: string }) =>
    (await replica.grants.list(of)).map((grant) => grant.grantHash).sort()
  assert.deepEqual(await hashes({ subject: 'ann' }), [grantHash(id), grantHash(others[0] ?? '')].sort())
  assert.deepEqual(await hashes({ clientId: 'web' }), [grantHash(id), grantHash(others[1] ?? '')].sort())
  assert.equal((await hashes({})).length, 3)
  const [grant] = await replica.grants.list({ subject: 'ann', clientId: 'web' })
  assert.deepEqual(grant?.scopes, ['openid', 'orders', 'stock'])
  assert.deepEqual(grant?.audience, ['orders api'])
  const [entry] = await replica.bus.rawBucket('oidc-Grant').entries()
  assert(!Buffer.from(entry?.value ?? []).includes(id) && !entry?.key.includes(id.split('.')[2] ?? ''), 'no id is kept')
})

test('an ended grant is found no more, stays ended when its consent is saved late, and is announced once', {
  skip,
}, async () => {
  await using setup = await prepared()
  const [first, second] = [await setup.replica(), await setup.replica()]
  const { id, payload } = newGrant('ann', 'web')
  await first.grants.save(id, payload, 60)
  const seen: string[] = []
  await using _events = await first.bus.follow(contract(GrantRevokedSchema), 'beginning', (event) =>
    seen.push(event.grantHash),
  )
  const ended = await Promise.all([
    first.grants.revokeByHash(grantHash(id), 'test'),
    second.grants.revoke(id, { reason: 'test' }),
  ])
  assert(ended.includes(true))
  assert.equal(await second.grants.find(id), undefined)
  await assert.rejects(second.grants.save(id, payload, 60), errors.InvalidGrant)
  assert.equal(await first.grants.find(id), undefined)
  assert.deepEqual(await first.grants.list({ subject: 'ann' }), [])
  assert.equal(await first.grants.revokeByHash(grantHash(id), 'again'), false)
  assert.equal(await first.grants.revokeByHash(grantHash('never'), 'test'), false)
  await eventually(() => seen.length > 0, { what: 'the end is announced' })
  assert.deepEqual(seen, [grantHash(id)])
})

test('the end of a grant whose event was lost is announced by the next look at it, with the reuse that caused it', {
  skip,
}, async () => {
  await using setup = await prepared()
  const events = failingEvents()
  const [failing, whole] = [await setup.replica(events.wrap), await setup.replica()]
  const id = await given(failing, 'ann', 'web')
  events.refuse = true
  await assert.rejects(failing.grants.revoke(id, { reason: 'reuse', reusedToken: 'aa' }), /the event is lost/)
  await assert.rejects(failing.grants.find(id), /the event is lost/, 'nobody gets it meanwhile')
  const ended: string[] = []
  const reused: string[] = []
  await using _ends = await whole.bus.follow(contract(GrantRevokedSchema), 'beginning', (event) =>
    ended.push(event.grantHash),
  )
  await using _reuses = await whole.bus.follow(contract(RefreshReusedSchema), 'beginning', (event) =>
    reused.push(event.tokenHash),
  )
  assert.deepEqual([ended, reused], [[], []])
  assert.equal(await whole.grants.find(id), undefined)
  await eventually(() => ended.length === 1 && reused.length === 1, { what: 'both are announced' })
  assert.deepEqual([ended, reused], [[grantHash(id)], ['aa']])
})

test('a grant is good only under the generations of its person and its client', { skip }, async () => {
  await using setup = await prepared()
  const replica = await setup.replica()
  const [byPerson, byClient, kept] = [
    await given(replica, 'ann', 'phone'),
    await given(replica, 'bob', 'web'),
    await given(replica, 'bob', 'phone'),
  ]
  setup.people.set('ann', { generation: '2', enabled: true })
  assert.equal(await replica.grants.find(byPerson), undefined)
  assert.equal(await replica.clients.endTokens('web', 'test'), true)
  assert.equal(await replica.grants.find(byClient), undefined)
  assert.notEqual(await replica.grants.find(kept), undefined)
  setup.people.set('bob', { generation: '1', enabled: false })
  assert.equal(await replica.grants.find(kept), undefined)
  setup.people.set('bob', { generation: '1', enabled: true })
  await setup.apply('phone', { disabled: true })
  assert.equal(await replica.grants.find(kept), undefined)
})

test('a consent that is given after an extension of the grant keeps the generation of the first', {
  skip,
}, async () => {
  await using setup = await prepared()
  const replica = await setup.replica()
  const { id, payload } = newGrant('ann', 'web')
  await replica.grants.save(id, payload, 60)
  setup.people.set('ann', { generation: '2', enabled: true })
  await replica.grants.save(id, payload, 60)
  assert.equal(await replica.grants.find(id), undefined)
})

test('a consent is announced with scopes and audience', { skip }, async () => {
  await using setup = await prepared()
  const replica = await setup.replica()
  const seen: { grantHash: string; scopes: string[]; audience: string[] }[] = []
  await using _events = await replica.bus.follow(contract(ConsentGivenSchema), 'beginning', (event) => seen.push(event))
  const id = await given(replica, 'ann', 'web')
  await eventually(() => seen.length === 1, { what: 'the consent is announced' })
  assert.equal(seen[0]?.grantHash, grantHash(id))
  assert.deepEqual(seen[0]?.scopes, ['openid', 'orders', 'stock'])
  assert.deepEqual(seen[0]?.audience, ['orders api'])
})
