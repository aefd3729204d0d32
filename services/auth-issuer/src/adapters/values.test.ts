import assert from 'node:assert/strict'
import { test } from 'node:test'
import { contract } from '@tollward/contracts'
import { GrantRevokedSchema } from '@tollward/contracts/token'
import { eventually, requires } from '@tollward/testkit'
import { errors } from 'oidc-provider'
import { grantHash, grantId } from '../domain/grant.ts'
import { nowSeconds, startTestStores } from '../test-stores.ts'

const skip = await requires({ tools: ['nats-server'] })

const payload = (extra = {}) => ({ clientId: 'web', iat: nowSeconds(), exp: nowSeconds() + 60, ...extra })

test('of many who use one code at once, at two replicas, one may, and the code’s grant ends', { skip }, async () => {
  await using setup = await startTestStores()
  setup.people.set('ann', { generation: '1', enabled: true })
  await setup.apply('web')
  const replicas = [await setup.replica(), await setup.replica()] as const
  const [first] = replicas
  const grant = grantId('ann', 'web', 'random')
  await first.grants.save(grant, { accountId: 'ann', ...payload() }, 60)
  const adapters = replicas.map((replica) => replica.adapter('AuthorizationCode'))
  await adapters[0]?.upsert('code', payload({ grantId: grant }), 60)
  const uses = Array.from({ length: 32 }, (_, index) => adapters[index % 2]?.consume('code'))
  const results = await Promise.allSettled(uses)
  assert.equal(results.filter(({ status }) => status === 'fulfilled').length, 1)
  for (const result of results) {
    if (result.status === 'rejected') assert(result.reason instanceof errors.InvalidGrant, String(result.reason))
  }
  assert.equal(typeof (await adapters[1]?.find('code'))?.consumed, 'number')
  assert.equal(await first.grants.find(grant), undefined)
  const ends: string[] = []
  await using _events = await first.bus.follow(contract(GrantRevokedSchema), 'beginning', (event) =>
    ends.push(event.grantHash),
  )
  await eventually(() => ends.includes(grantHash(grant)), { what: 'the end of the grant is announced' })
})

test('a code that was never issued cannot be used, and one that was used stays so when it is saved again', {
  skip,
}, async () => {
  await using setup = await startTestStores()
  const replica = await setup.replica()
  const codes = replica.adapter('DeviceCode')
  await assert.rejects(codes.consume('never'), errors.InvalidGrant)
  await codes.upsert('device', payload({ userCode: 'BCDF-GHJK' }), 60)
  await codes.consume('device')
  await codes.upsert('device', payload({ userCode: 'BCDF-GHJK', grantId: 'x' }), 60)
  await assert.rejects(codes.consume('device'), errors.InvalidGrant)
  const requests = replica.adapter('PushedAuthorizationRequest')
  await requests.upsert('par', payload(), 60)
  await requests.consume('par')
  await assert.rejects(requests.consume('par'), errors.InvalidRequestUri)
})

test('a device code is found by its user code, and neither of them nor a cookie is kept', { skip }, async () => {
  await using setup = await startTestStores()
  const [first, second] = [await setup.replica(), await setup.replica()]
  const userCode = 'BCDF-GHJK'
  await first.adapter('DeviceCode').upsert('the-device-code', payload({ userCode }), 60)
  const found = await second.adapter('DeviceCode').findByUserCode(userCode)
  assert.equal(found?.jti, 'the-device-code')
  assert.equal(found?.userCode, userCode)
  assert.equal((await second.adapter('DeviceCode').find('the-device-code'))?.userCode, userCode)
  assert.equal(await second.adapter('DeviceCode').findByUserCode('BCDF-GHJL'), undefined)
  const interaction = { returnTo: '/auth/the-uid', session: { cookie: 'the-cookie' }, deviceCode: 'the-device-code' }
  await first.adapter('Interaction').upsert('the-uid', payload(interaction), 60)
  assert.deepEqual((await second.adapter('Interaction').find('the-uid'))?.session, { cookie: 'the-cookie' })
  const kept = [
    ...(await first.bus.rawBucket('oidc-DeviceCode').entries()),
    ...(await first.bus.rawBucket('oidc-Interaction').entries()),
  ]
  assert.equal(kept.length, 3)
  for (const { key, value } of kept) {
    const text = `${key}${Buffer.from(value)}`
    for (const secret of ['the-device-code', 'BCDF', 'the-cookie', 'the-uid']) assert(!text.includes(secret), secret)
  }
})

test('a value is kept until its end and what clocks may differ, for whoever asks whether it is over', {
  skip,
}, async () => {
  await using setup = await startTestStores()
  const replica = await setup.replica()
  const codes = replica.adapter('AuthorizationCode')
  const exp = nowSeconds() - 1
  await codes.upsert('over', payload({ exp }), 60)
  assert.equal((await codes.find('over'))?.exp, exp)
  const [entry] = await replica.bus.rawBucket('oidc-AuthorizationCode').entries()
  assert.equal(entry?.expiresAtMs, (exp + 15) * 1000)
})
