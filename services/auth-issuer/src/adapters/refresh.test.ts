import assert from 'node:assert/strict'
import { hash } from 'node:crypto'
import { test } from 'node:test'
import type { Bus } from '@tollward/bus'
import { contract } from '@tollward/contracts'
import { RefreshRotatedSchema } from '@tollward/contracts/token'
import { requires } from '@tollward/testkit'
import { errors } from 'oidc-provider'
import { REFRESH_GRACE_SECONDS } from '../domain/refresh.ts'
import { tokenHash } from '../domain/token.ts'
import { failingEvents, nowSeconds, type Replica, startTestStores } from '../test-stores.ts'

const skip = await requires({ tools: ['nats-server'] })

const payload = (extra = {}) => ({
  clientId: 'c',
  accountId: 'someone',
  grantId: 'g',
  iat: nowSeconds(),
  exp: nowSeconds() + 60,
  ...extra,
})

/** What the token endpoint does with a refresh token. */
async function rotate({ refreshTokens }: Replica, id: string): Promise<string> {
  const found = await refreshTokens.find(id)
  if (!found || found.consumed !== undefined) throw new errors.InvalidGrant('refresh token already used')
  const successor = await refreshTokens.consume(id)
  await refreshTokens.save(successor, payload({ rotations: 1 }), id)
  return successor
}

const isRefused = (error: unknown) => error instanceof errors.InvalidGrant

async function rotations({ bus }: Replica): Promise<number> {
  const { subject } = contract(RefreshRotatedSchema)
  return (await bus.history('EVENTS', subject, { sinceMs: 0, limit: 100 })).length
}

async function live({ bus, refreshTokens }: Replica, ids: readonly string[]): Promise<number> {
  const entries = await bus.rawBucket('oidc-RefreshToken').entries()
  assert.equal(entries.length, ids.length, 'nothing else is kept')
  const found = await Promise.all(ids.map((id) => refreshTokens.find(id)))
  const unused = await Promise.all(
    entries.map(async ({ value }) => JSON.parse(Buffer.from(value).toString()).usedAtMs === undefined),
  )
  assert(found.length > 0)
  return unused.filter((is) => is).length
}

/** Moves the use of a token into the past, as if the grace window were over. */
async function age({ bus }: Replica, id: string): Promise<void> {
  const bucket = bus.rawBucket('oidc-RefreshToken')
  const entry = await bucket.get(hash('sha256', id, 'base64url'))
  assert(entry)
  const record = JSON.parse(Buffer.from(entry.value).toString())
  record.usedAtMs -= REFRESH_GRACE_SECONDS * 1000 + 1
  await bucket.update(entry.key, Buffer.from(JSON.stringify(record)), entry.revision)
}

test('16 uses of one refresh token at once, at two replicas, lead to one successor and one event', {
  skip,
}, async () => {
  await using setup = await startTestStores()
  const replicas = [await setup.replica(), await setup.replica()] as const
  await replicas[0].refreshTokens.save('first', payload(), undefined)
  const successors = await Promise.all(
    Array.from({ length: 16 }, (_, index) => rotate(replicas[index % 2 ? 1 : 0], 'first')),
  )
  assert.equal(new Set(successors).size, 1)
  assert.match(successors[0] ?? '', /^[\w-]{43}$/)
  assert.equal(await live(replicas[0], ['first', successors[0] ?? '']), 1)
  assert.equal(await rotations(replicas[0]), 1)
})

test('a rotation that ended between using the token and making its successor is finished by a retry elsewhere', {
  skip,
}, async () => {
  await using setup = await startTestStores()
  const [first, second] = [await setup.replica(), await setup.replica()]
  await first.refreshTokens.save('cut', payload(), undefined)
  await first.refreshTokens.consume('cut')
  assert.equal(await live(first, ['cut']), 0)
  const successor = await rotate(second, 'cut')
  assert.equal(await rotate(first, 'cut'), successor)
  assert.equal(await live(first, ['cut', successor]), 1)
  assert.equal(await rotations(first), 1)
})

test('a rotation whose event or successor was lost is finished by a retry, with both', { skip }, async () => {
  await using setup = await startTestStores()
  const events = failingEvents()
  const lostWrites = {
    refuse: true,
    wrap: (bus: Bus): Bus =>
      Object.assign(Object.create(bus), {
        codedBucket: (...args: Parameters<Bus['codedBucket']>) => {
          const bucket = bus.codedBucket(...args)
          const lost = () => Promise.reject(new Error('the write is lost'))
          return {
            ...bucket,
            create: (...given: Parameters<typeof bucket.create>) =>
              lostWrites.refuse ? lost() : bucket.create(...given),
          }
        },
      }),
  }
  const [eventless, writeless, whole] = [
    await setup.replica(events.wrap),
    await setup.replica(lostWrites.wrap),
    await setup.replica(),
  ]
  for (const [name, broken, message] of [
    ['event', eventless, /the event is lost/],
    ['write', writeless, /the write is lost/],
  ] as const) {
    await whole.refreshTokens.save(name, payload(), undefined)
    events.refuse = true
    await assert.rejects(rotate(broken, name), message)
    events.refuse = false
    const successor = await rotate(whole, name)
    assert.notEqual(await whole.refreshTokens.find(successor), undefined)
    await whole.refreshTokens.consume(successor)
  }
  assert.equal(await rotations(whole), 2)
})

test('within the grace window a retry gets the same successor; once that was used or ended, nothing', {
  skip,
}, async () => {
  await using setup = await startTestStores()
  const replica = await setup.replica()
  const { refreshTokens } = replica
  for (const end of ['consume', 'remove'] as const) {
    await refreshTokens.save(end, payload(), undefined)
    const successor = await rotate(replica, end)
    assert.equal(await rotate(replica, end), successor)
    await refreshTokens[end](successor)
    assert.equal((await refreshTokens.find(end))?.consumed, undefined, 'it does not look reused')
    await assert.rejects(rotate(replica, end), isRefused)
  }
})

test('after the grace window a used token shows that it was used, and leads nowhere', { skip }, async () => {
  await using setup = await startTestStores()
  const replica = await setup.replica()
  await replica.refreshTokens.save('old', payload(), undefined)
  const successor = await rotate(replica, 'old')
  await age(replica, 'old')
  assert.equal(typeof (await replica.refreshTokens.find('old'))?.consumed, 'number')
  await assert.rejects(replica.refreshTokens.consume('old'), isRefused)
  assert.equal((await replica.refreshTokens.find(successor))?.consumed, undefined)
})

test('a token that was ended stays so, whatever comes late', { skip }, async () => {
  await using setup = await startTestStores()
  const replica = await setup.replica()
  const { refreshTokens } = replica
  await refreshTokens.save('ended', payload(), undefined)
  const successor = await rotate(replica, 'ended')
  await refreshTokens.remove(successor)
  await refreshTokens.save(successor, payload(), 'ended')
  assert.equal(await refreshTokens.find(successor), undefined)
  await refreshTokens.remove('ended')
  await assert.rejects(rotate(replica, 'ended'), isRefused)
  await assert.rejects(refreshTokens.consume('never issued'), isRefused)
})

test('neither a token nor its successor is kept: only hashes are, and none follows from another', {
  skip,
}, async () => {
  await using setup = await startTestStores()
  const replica = await setup.replica()
  await replica.refreshTokens.save('secret-value', payload(), undefined)
  const successor = await rotate(replica, 'secret-value')
  const kept = await replica.bus.rawBucket('oidc-RefreshToken').entries()
  const text = kept.map(({ key, value }) => key + Buffer.from(value).toString()).join()
  assert(!text.includes('secret-value') && !text.includes(successor))
  assert.notEqual(successor, hash('sha256', 'secret-value', 'base64url'))
  assert.deepEqual(
    kept.map(({ key }) => key).sort(),
    [tokenHash('secret-value'), tokenHash(successor)]
      .map((hex) => Buffer.from(hex, 'hex').toString('base64url'))
      .sort(),
  )
})
