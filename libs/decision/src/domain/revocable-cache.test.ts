import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { type Remembered, RevocableCache } from './revocable-cache.ts'

const NOW = 1_800_000_000_000

function cacheOf(entriesMax = 100, forgottenMax = 100) {
  let evictions = 0
  const evicted = () => {
    evictions += 1
  }
  const cache = new RevocableCache<Remembered & { readonly value: string }>({ entriesMax, forgottenMax, evicted })
  const keep = (key: string, tags: string[] = [], usableUntilMs = NOW + 1) =>
    cache.finish(cache.begin(), key, { value: key, tags, usableUntilMs })
  return { cache, keep, evictions: () => evictions }
}

test('an entry is used until it is over, and not a millisecond longer', () => {
  const { cache, keep } = cacheOf()
  keep('a', ['t'], NOW + 10)
  assert.equal(cache.get('a', NOW + 9)?.value, 'a')
  assert.equal(cache.get('a', NOW + 10), undefined)
  assert.equal(cache.size, 0)
})

test('a full cache forgets the oldest entry, and counts it', () => {
  const { cache, keep, evictions } = cacheOf(2)
  for (const key of ['a', 'b', 'a', 'c']) keep(key)
  assert.deepEqual(
    ['a', 'b', 'c'].map((key) => cache.get(key, NOW)?.value),
    ['a', undefined, 'c'],
  )
  assert.equal(evictions(), 1)
})

test('an answer that was asked for before its key or one of its tags was forgotten is thrown away', () => {
  for (const forgotten of ['key', 'grant g', 'client c']) {
    const { cache } = cacheOf()
    const begun = cache.begin()
    cache.forget(forgotten, NOW)
    const entry = { value: 'v', tags: ['grant g', 'client c'], usableUntilMs: NOW + 1 }
    assert.equal(cache.finish(begun, 'key', entry), false, forgotten)
    assert.equal(cache.get('key', NOW), undefined)
    assert.equal(cache.finish(cache.begin(), 'key', entry), true, 'one that is asked for afterwards is taken')
    const unrelated = cache.begin()
    cache.forget('client other', NOW)
    assert.equal(cache.finish(unrelated, 'key', entry), true)
  }
})

test('more forgotten than can be remembered outdates every answer from before, not only theirs', () => {
  const { cache } = cacheOf(10, 2)
  const begun = cache.begin()
  for (const tag of ['a', 'b', 'c']) cache.forget(tag, NOW)
  assert.equal(cache.wasForgotten('a'), false)
  assert.equal(cache.finish(begun, 'key', { value: 'v', tags: [], usableUntilMs: NOW + 1 }), false)
  assert.equal(cache.wasForgottenSince(['x'], NOW), true)
  assert.equal(cache.wasForgottenSince(['x'], NOW + 1), false)
})

test('what is forgotten takes all that has its tag, whether that is one entry or many, and nothing else', () => {
  const { cache, keep } = cacheOf()
  for (const key of ['a', 'b', 'c']) keep(key, ['client c', `grant of ${key}`])
  keep('d', ['client d'])
  assert.deepEqual(cache.forget('grant of b', NOW), ['b'])
  assert.deepEqual(cache.forget('grant of b', NOW), [])
  assert.deepEqual(cache.forget('client c', NOW), ['a', 'c'])
  keep('e', ['client c'])
  assert.deepEqual(cache.forget('client c', NOW), ['e'], 'a tag of many that are gone is one of few again')
  assert.equal(cache.get('d', NOW)?.value, 'd')
  assert.equal(cache.size, 1)
})

test('it is remembered when something was forgotten last', () => {
  const { cache } = cacheOf()
  cache.forget('a', NOW)
  cache.forget('a', NOW + 5)
  assert.equal(cache.wasForgottenSince(['x', 'a'], NOW + 5), true)
  assert.equal(cache.wasForgottenSince(['x', 'a'], NOW + 6), false)
})

test('nothing is answered that depends on what was forgotten since it was asked for, in any order of events', () => {
  const key = fc.constantFrom('k1', 'k2', 'k3')
  const tag = fc.constantFrom('t1', 't2', 't3')
  const step = fc.oneof(
    fc.record({ begin: fc.record({ key, tags: fc.uniqueArray(tag, { maxLength: 3 }) }) }),
    fc.record({ finish: fc.nat(5) }),
    fc.record({ forget: fc.oneof(key, tag) }),
  )
  fc.assert(
    fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
      const { cache } = cacheOf(2, 3)
      const forgottenAt = new Map<string, number>()
      const asked: { key: string; tags: string[]; begun: number; at: number }[] = []
      const kept = new Map<string, { tags: string[]; at: number }>()
      const isHonest = (name: string, { tags, at }: { tags: string[]; at: number }) =>
        [name, ...tags].every((dependency) => (forgottenAt.get(dependency) ?? -1) < at)
      steps.forEach((taken, at) => {
        if ('begin' in taken) asked.push({ ...taken.begin, begun: cache.begin(), at })
        else if ('forget' in taken) {
          cache.forget(taken.forget, at)
          forgottenAt.set(taken.forget, at)
        } else {
          const [question] = asked.splice(taken.finish, 1)
          if (!question) return
          const entry = { value: question.key, tags: question.tags, usableUntilMs: NOW }
          if (cache.finish(question.begun, question.key, entry)) kept.set(question.key, question)
        }
        for (const name of ['k1', 'k2', 'k3']) {
          const entry = kept.get(name)
          if (cache.get(name, 0) !== undefined) assert(entry && isHonest(name, entry))
        }
      })
    }),
    { numRuns: 500 },
  )
})
