import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { type CachedToken, type Fill, TokenCache } from './token-cache.ts'

const NOW = 1_800_000_000_000
const MINUTE = 60_000

const token = (clientId: string, lifeMs = 10 * MINUTE, internalLifeMs = MINUTE): CachedToken => ({
  clientId,
  expiresAtMs: NOW + lifeMs,
  internalTokenExpiresAtMs: NOW + Math.min(lifeMs, internalLifeMs),
})

function cacheOf(capacity = 100) {
  let evictions = 0
  const cache = new TokenCache<CachedToken>(capacity, () => {
    evictions += 1
  })
  const keep = (hash: string, value: CachedToken) => assert(cache.finish(cache.begin(hash), value, NOW))
  return { cache, keep, evictions: () => evictions }
}

test('an entry is used until its internal token has 15 seconds left, or the access token ends', () => {
  const { cache, keep } = cacheOf()
  keep('long', token('c'))
  assert(cache.get('long', NOW + 44_999))
  assert.equal(cache.get('long', NOW + 45_000), undefined)
  keep('ending', token('c', 5000))
  assert(cache.get('ending', NOW + 4999))
  assert.equal(cache.get('ending', NOW + 5000), undefined)
  assert.equal(cache.size, 0)
})

test('a full cache forgets what was unused for longest, and counts it', () => {
  const { cache, keep, evictions } = cacheOf(2)
  keep('a', token('c'))
  keep('b', token('c'))
  assert(cache.get('a', NOW))
  keep('x', token('c'))
  assert.equal(cache.get('b', NOW), undefined)
  assert(cache.get('a', NOW))
  assert(cache.get('x', NOW))
  assert.equal(evictions(), 1)
})

test('an answer that was asked for before a revocation is thrown away', () => {
  const { cache } = cacheOf()
  const byToken = cache.begin('t')
  cache.revokeToken('t')
  assert.equal(cache.finish(byToken, token('c'), NOW), false)
  const byClient = cache.begin('t')
  cache.revokeClient('c')
  assert.equal(cache.finish(byClient, token('c'), NOW), false)
  assert.equal(cache.get('t', NOW), undefined)
  const unrelated = cache.begin('t')
  cache.revokeToken('other')
  cache.revokeClient('other')
  assert.equal(cache.finish(unrelated, token('c'), NOW), true)
})

test('whatever happens in whatever order, nothing is answered that is older than a revocation', () => {
  type Step = readonly ['begin' | 'finish' | 'revokeToken' | 'revokeClient' | 'get', token: number]
  const step: fc.Arbitrary<Step> = fc.tuple(
    fc.constantFrom('begin', 'finish', 'revokeToken', 'revokeClient', 'get'),
    fc.integer({ min: 0, max: 3 }),
  )
  const clientOf = (index: number) => `client-${index % 2}`
  fc.assert(
    fc.property(fc.array(step, { minLength: 30, maxLength: 60, size: 'max' }), (steps) => {
      const { cache } = cacheOf(3)
      // The model: for each token the time of its last revocation; every answer carries the time it was asked for.
      const revokedAt = [0, 0, 0, 0]
      const running: { index: number; fill: Fill; askedAt: number }[] = []
      const answers = new Map<CachedToken, number>()
      for (const [time, [action, index]] of steps.entries()) {
        if (action === 'begin') running.push({ index, fill: cache.begin(`t${index}`), askedAt: time + 1 })
        else if (action === 'revokeToken') {
          cache.revokeToken(`t${index}`)
          revokedAt[index] = time + 1
        } else if (action === 'revokeClient') {
          cache.revokeClient(clientOf(index))
          for (const other of revokedAt.keys()) if (clientOf(other) === clientOf(index)) revokedAt[other] = time + 1
        } else if (action === 'finish') {
          const done = running.shift()
          if (!done) continue
          const value = token(clientOf(done.index))
          answers.set(value, done.askedAt)
          const used = cache.finish(done.fill, value, NOW)
          assert.equal(used, done.askedAt > (revokedAt[done.index] ?? 0))
        } else {
          const value = cache.get(`t${index}`, NOW)
          if (value) assert((answers.get(value) ?? 0) > (revokedAt[index] ?? 0), 'older than a revocation')
        }
        assert(cache.size <= 3)
      }
    }),
    { numRuns: 500 },
  )
})
