import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import type { Bus } from '@tollward/bus'
import { contract } from '@tollward/contracts'
import { KeyChange, KeyRotatedSchema, KeyService } from '@tollward/contracts/token'
import { createLog } from '@tollward/runtime'
import { eventually, type NatsServer, requires } from '@tollward/testkit'
import { createLocalJWKSet, decodeProtectedHeader, type JSONWebKeySet, jwtVerify } from 'jose'
import { Registry } from 'prom-client'
import { KEY_ALGORITHMS, lineOf } from '../../domain/key-ring.ts'
import { issuerMetrics } from '../../metrics.ts'
import { openTestIssuer, startTestBus } from '../../test-issuer.ts'
import { readMasterSecret } from '../master-secret.ts'
import { type KeyRing, openKeyRing } from './key-ring.ts'
import type { PrivateJwk } from './stored-key.ts'

const skip = await requires({ tools: ['nats-server'] })

const MAX_AGE_MS = 400
const LONG_MS = 3_600_000
const CLAIMS = {
  iss: 'i',
  sub: 's',
  aud: 'a',
  client_id: 'c',
  scope: '',
  iat: 0,
  exp: 4_000_000_000,
  jti: 'j',
  origin: 'o',
}

interface ReplicaOptions {
  secretFile?: string
  rotationIntervalMs?: number
  maxAgeMs?: number
  retentionMs?: number
}

/** A bus of its own, with whatever replicas want to share it. */
interface Site extends AsyncDisposable {
  readonly nats: NatsServer
  readonly bus: Bus
  /** Writes a master secret file of these lines. */
  secretFile(...lines: string[]): Promise<string>
  replica(options?: ReplicaOptions): Promise<KeyRing>
}

const [secret, laterSecret] = [randomBytes(32).toString('base64url'), randomBytes(32).toString('base64url')]

async function openSite(): Promise<Site> {
  const resources = new AsyncDisposableStack()
  const { nats, directory, connected } = resources.use(await startTestBus())
  const bus = await connected()
  const secretFile = async (...lines: string[]) => {
    const file = join(directory, randomBytes(8).toString('hex'))
    await writeFile(file, lines.join('\n'), { mode: 0o600 })
    return file
  }
  return {
    nats,
    bus,
    secretFile,
    replica: async (options = {}) => {
      const ring = await openKeyRing({
        bus: await connected(),
        masterSecret: readMasterSecret(options.secretFile ?? (await secretFile(secret))),
        rotationIntervalMs: options.rotationIntervalMs ?? LONG_MS,
        maxAgeMs: options.maxAgeMs ?? MAX_AGE_MS,
        retentionMs: options.retentionMs ?? LONG_MS,
        metrics: issuerMetrics(new Registry()),
        log: createLog('test', 'silent'),
      })
      return resources.use(ring)
    },
    [Symbol.asyncDispose]: () => resources.disposeAsync(),
  }
}

const kidsOf = (ring: Pick<KeyRing, 'jwks'>) => ring.jwks().keys.map(({ kid }) => kid)
const mintedBy = async (ring: KeyRing) => decodeProtectedHeader(await ring.mint(CLAIMS)).kid ?? ''

function publicKeys(ring: Pick<KeyRing, 'jwks'>): JSONWebKeySet {
  return { keys: ring.jwks().keys.map(({ d: _private, ...jwk }: PrivateJwk) => jwk) }
}

async function verifies(token: string, keys: JSONWebKeySet): Promise<void> {
  await jwtVerify(token, createLocalJWKSet(keys), { algorithms: ['ES256'], typ: 'at+jwt' })
}

/** Looks until it is so. Unlike with `eventually`, what throws in between is a failure. */
async function watch(look: () => Promise<boolean>, what: string): Promise<void> {
  let failure: { error: unknown } | undefined
  const careful = async () => {
    try {
      return await look()
    } catch (error) {
      failure = { error }
      return true
    }
  }
  await eventually(careful, { what, intervalMs: 10 })
  if (failure) throw failure.error
}

async function follow(bus: Bus) {
  const seen: string[] = []
  const following = await bus.follow(contract(KeyRotatedSchema), 'beginning', ({ kid, change }) => {
    const name = Object.entries(KeyChange).find(([, value]) => value === change)?.[0]
    seen.push(`${name} ${kid}`)
  })
  return { seen, [Symbol.asyncDispose]: () => following[Symbol.asyncDispose]() }
}

test('replicas that start at once make one key of each algorithm, and sign with the same', { skip }, async () => {
  await using site = await openSite()
  await using events = await follow(site.bus)
  const rings = await Promise.all([1, 2, 3, 4].map(() => site.replica()))
  const [first] = rings
  assert(first)
  assert.deepEqual(
    first.jwks().keys.map(({ alg }) => alg),
    ['ES256', 'EdDSA'],
  )
  for (const ring of rings) {
    assert.deepEqual(kidsOf(ring), kidsOf(first))
    await verifies(await ring.mint(CLAIMS), publicKeys(first))
  }
  assert.equal(first.keys().length, 2)
  await eventually(() => events.seen.length >= 4, { what: 'what was made is told' })
  const told = kidsOf(first).flatMap((kid) => [`ACTIVATED ${kid}`, `PUBLISHED ${kid}`])
  assert.deepEqual(events.seen.toSorted(), told.toSorted())
})

test('what is stored tells nothing of a private key without the master secret', { skip }, async () => {
  await using site = await openSite()
  const ring = await site.replica()
  await ring.rotate()
  const entries = await site.bus.rawBucket('oidc-SigningKey').entries()
  assert.equal(entries.length, 4)
  await eventually(() => ring.jwks().keys.length === 4, { what: 'all keys are there' })
  const stored = Buffer.concat(entries.map(({ value }) => value))
  for (const { kid, d } of ring.jwks().keys) {
    assert(stored.includes(kid), 'the scan finds what is there')
    assert(!stored.includes(d), 'the private part as text')
    assert(!stored.includes(Buffer.from(d, 'base64url')), 'the private part as bytes')
  }
  assert(!stored.includes('"d"'))
  const other = site.replica({ secretFile: await site.secretFile(laterSecret) })
  await assert.rejects(other, { code: 'failed_precondition', message: /cannot be decrypted; add the master secret/ })
})

test('after a change of the master secret the keys of the earlier one still sign', { skip }, async () => {
  await using site = await openSite()
  const before = await site.replica()
  const after = await site.replica({ secretFile: await site.secretFile(laterSecret, secret) })
  assert.deepEqual(kidsOf(after), kidsOf(before))
  assert.equal(await mintedBy(after), await mintedBy(before))
  // A key of the new secret reaches a replica that only has the old one: it says so, and signs with what it can read.
  await after.rotate()
  await eventually(() => before.fault(), { what: 'the replica says what it misses' })
  await eventually(() => after.jwks().keys.length === 4, { what: 'the others publish it' })
  assert.equal(after.fault(), undefined)
  assert.equal(kidsOf(before).length, 2)
  await before.mint(CLAIMS)
})

test('a rotation: published first, then used by all, and no verifier with kept keys meets an unknown one', {
  skip,
}, async () => {
  await using site = await openSite()
  await using events = await follow(site.bus)
  const rings = [await site.replica(), await site.replica()]
  const [one, other] = rings as [KeyRing, KeyRing]
  const old = await mintedBy(one)
  const early = await one.mint(CLAIMS)
  let kept = { keys: publicKeys(other), atMs: Date.now() }
  const [listed] = await Promise.all([one.rotate(), other.rotate(), one.rotate()])
  assert.equal(listed.length, 4, 'asking several times makes one successor of each')
  const { signsFromMs = 0 } = listed.find(({ algorithm, number }) => algorithm === 'ES256' && number === 2) ?? {}
  assert(signsFromMs > Date.now(), 'it is published before it signs')

  let looks = 0
  await watch(async () => {
    const tokens = await Promise.all(rings.map((ring) => ring.mint(CLAIMS)))
    const kids = tokens.map((token) => decodeProtectedHeader(token).kid)
    if (Date.now() < signsFromMs) assert.deepEqual([...new Set(kids)], [old], 'nobody is early')
    // A verifier keeps what it fetched, now here, now there, for as long as it may.
    if (Date.now() - kept.atMs >= MAX_AGE_MS) kept = { keys: publicKeys(looks % 2 ? one : other), atMs: Date.now() }
    for (const token of tokens) await verifies(token, kept.keys)
    looks += 1
    return kids.every((kid) => kid !== old)
  }, 'both sign with the new key')
  assert(Date.now() >= signsFromMs)
  assert.equal(await mintedBy(one), await mintedBy(other))
  await verifies(early, publicKeys(other))
  await eventually(() => events.seen.length === 10, { what: 'all events are there' })
  assert.deepEqual(new Set(events.seen).size, 10, 'each change is told of once')
  assert.deepEqual(events.seen.map((text) => text.split(' ')[0]).sort(), [
    ...Array(4).fill('ACTIVATED'),
    ...Array(4).fill('PUBLISHED'),
    ...Array(2).fill('RETIRED'),
  ])
})

test('an old key is published until what it signed is over, and then it is gone everywhere', { skip }, async () => {
  await using site = await openSite()
  await using events = await follow(site.bus)
  const retentionMs = 700
  const [one, other] = [await site.replica({ retentionMs }), await site.replica({ retentionMs })]
  const [old] = kidsOf(one)
  assert(old)
  const successor = (await one.rotate()).find(({ algorithm, number }) => algorithm === 'ES256' && number === 2)
  assert(successor)
  await eventually(async () => (await mintedBy(other)) !== old, { what: 'the new key signs', timeoutMs: 5000 })
  const token = await one.mint(CLAIMS)
  await eventually(() => !kidsOf(other).includes(old), { what: 'the old key is gone' })
  assert(Date.now() >= successor.signsFromMs + retentionMs, 'not before its time')
  await eventually(async () => one.keys().length === 2, { what: 'it is removed from the bucket' })
  await verifies(token, publicKeys(other))
  await eventually(() => events.seen.includes(`REMOVED ${old}`), { what: 'its removal is told' })
  assert.deepEqual(
    events.seen.filter((text) => text.endsWith(old)),
    [`PUBLISHED ${old}`, `ACTIVATED ${old}`, `RETIRED ${old}`, `REMOVED ${old}`],
  )
})

test('by schedule each interval has one new key, whichever of the replicas makes it', { skip }, async () => {
  await using site = await openSite()
  const options = { rotationIntervalMs: 3 * MAX_AGE_MS, retentionMs: 1 }
  const rings = await Promise.all([1, 2, 3].map(() => site.replica(options)))
  const [one] = rings
  assert(one)
  const seen = new Set<string>()
  await eventually(
    async () => {
      const kids = await Promise.all(rings.map(mintedBy))
      for (const kid of kids) seen.add(kid)
      return seen.size === 4
    },
    { what: 'three rotations', timeoutMs: 15_000, intervalMs: 10 },
  )
  for (const algorithm of KEY_ALGORITHMS) {
    const line = lineOf(one.keys(), algorithm)
    for (const [index, key] of line.entries()) {
      const next = line[index + 1]
      assert(!next || next.signsFromMs - key.signsFromMs >= options.rotationIntervalMs, 'no replica made one too many')
    }
  }
})

test('a rotation goes on when the replica that began it ended, and one that starts in the middle joins it', {
  skip,
}, async () => {
  await using site = await openSite()
  await using events = await follow(site.bus)
  const options = { maxAgeMs: 1000 }
  const first = await site.replica(options)
  const old = await mintedBy(first)
  await first.rotate()
  await first[Symbol.asyncDispose]()
  const second = await site.replica(options)
  assert.equal(await mintedBy(second), old, 'its time has not come')
  assert.equal(second.jwks().keys.length, 4)
  await second[Symbol.asyncDispose]()
  const dueMs = Math.max(...second.keys().map(({ signsFromMs }) => signsFromMs))
  await eventually(() => Date.now() > dueMs, { what: 'the time comes while nobody is there' })
  const third = await site.replica(options)
  const current = await mintedBy(third)
  assert.notEqual(current, old)
  await eventually(() => events.seen.includes(`ACTIVATED ${current}`) && events.seen.includes(`RETIRED ${old}`), {
    what: 'what happened meanwhile is told',
  })
  assert.equal(events.seen.filter((text) => text === `PUBLISHED ${current}`).length, 1)
})

test('without the bus the keys stay in use, copies of them may not be kept, and a rotation waits', {
  skip,
}, async () => {
  await using site = await openSite()
  const ring = await site.replica({ maxAgeMs: 1000 })
  const kid = await mintedBy(ring)
  assert.equal(ring.maxAgeSeconds(), 1)
  await site.nats.stop()
  await assert.rejects(ring.rotate())
  await eventually(() => ring.maxAgeSeconds() === 0, { what: 'copies may not be kept' })
  assert.equal(await mintedBy(ring), kid)
  assert.equal(ring.fault(), undefined)
  await site.nats.start()
  await eventually(async () => (await ring.rotate()).length === 4, { what: 'the rotation' })
  await eventually(() => ring.maxAgeSeconds() === 1 && kidsOf(ring).length === 4, { what: 'the keys are published' })
})

test('under load no request fails while the keys turn, and every token verifies with the keys that were kept', {
  skip,
}, async () => {
  await using issuer = await openTestIssuer({ grants: ['client_credentials'] })
  const settings = { TOLLWARD_JWKS_MAX_AGE: '1s' }
  const urls = [(await issuer.replica(settings)).url, (await issuer.replica(settings)).url]
  const clientSecret = await issuer.register('loaded')
  const [rpc, keys] = [issuer.rpc, issuer.bus.client(KeyService)]

  const jwksOf = async (url: string) => {
    const response = await fetch(`${url}/jwks`)
    assert.equal(response.status, 200)
    assert.match(response.headers.get('cache-control') ?? '', /^public, max-age=1, must-revalidate$/)
    return (await response.json()) as JSONWebKeySet
  }
  const kids = new Set<string>()
  let requests = 0
  let stop = false
  const load = async (url: string) => {
    let kept = { keys: await jwksOf(url), atMs: Date.now() }
    while (!stop) {
      const body = new URLSearchParams({
        grant_type: 'client_credentials',
        client_id: 'loaded',
        client_secret: clientSecret,
      })
      const response = await fetch(`${url}/token`, { method: 'POST', body })
      const text = await response.text()
      assert.equal(response.status, 200, text)
      const { info } = await rpc.exchange({ token: JSON.parse(text).access_token })
      assert(info?.active)
      if (Date.now() - kept.atMs >= 1000) kept = { keys: await jwksOf(url), atMs: Date.now() }
      await verifies(info.internalToken, kept.keys)
      kids.add(decodeProtectedHeader(info.internalToken).kid ?? '')
      requests += 1
    }
  }
  const loads = Promise.all(urls.flatMap((url) => [load(url), load(url)]))
  await eventually(() => requests > 20, { what: 'the load runs' })
  const { keys: listed } = await keys.rotateKeys({})
  assert.equal(listed.length, 4)
  assert.equal(listed.filter(({ signsUntil, removedAt }) => signsUntil && removedAt).length, 2)
  const failed = loads.then(() => assert.fail('the load ended by itself'))
  await Promise.race([failed, eventually(() => kids.size === 2, { what: 'the new key signs', timeoutMs: 10_000 })])
  const before = requests
  await Promise.race([failed, eventually(() => requests > before + 40, { what: 'both replicas go on' })])
  stop = true
  await loads
  failed.catch(() => undefined)
  assert.equal((await keys.listKeys({})).keys.length, 4)
  assert.equal(kids.size, 2)
})
