import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { KEY_ALGORITHMS, type RingKey, type RingState, type RingTimes, ringAt, rotationNow } from './key-ring.ts'

const START_MS = 1_800_000_000_000

const times = fc.record({
  rotationIntervalMs: fc.integer({ min: 1, max: 5000 }),
  leadMs: fc.integer({ min: 1, max: 1000 }),
  retentionMs: fc.integer({ min: 1, max: 3000 }),
})

/** What one of several replicas does with the tasks that it sees. */
function doTasks(keys: RingKey[], { tasks }: Pick<RingState, 'tasks'>, nowMs: number): RingKey[] {
  let after = [...keys]
  for (const task of tasks) {
    if (task.do === 'publish') {
      const { algorithm, number, signsFromMs } = task
      // Create-if-absent: whoever comes second changes nothing.
      if (after.some((key) => key.algorithm === algorithm && key.number === number)) continue
      const kid = `${algorithm}.${number}.${nowMs}`
      after.push({ kid, algorithm, number, signsFromMs, createdAtMs: nowMs, readable: true })
    } else if (task.do === 'retire') {
      after = after.map((key) => (key.kid === task.key.kid ? { ...key, retired: task.life } : key))
    } else {
      after = after.filter((key) => key.kid !== task.key.kid)
    }
  }
  return after
}

interface Seen {
  readonly firstPublishedMs: number
  readonly firstSignedMs?: number
  readonly lastSignedMs?: number
}

/** Lets the ring turn; `stepsMs` is how long nobody looks, and at the steps of `byHand` somebody asks for new keys. */
function turned(ringTimes: RingTimes, stepsMs: readonly number[], byHand: readonly number[]) {
  let keys: RingKey[] = []
  const seen = new Map<string, Seen>()
  let nowMs = START_MS
  for (const [index, stepMs] of stepsMs.entries()) {
    nowMs += stepMs
    if (byHand.includes(index)) {
      const tasks = KEY_ALGORITHMS.flatMap((name) => rotationNow(keys, name, nowMs, ringTimes) ?? [])
      keys = doTasks(keys, { tasks }, nowMs)
    }
    keys = doTasks(keys, ringAt(keys, nowMs, ringTimes), nowMs)
    const { published, signing, nextAtMs } = ringAt(keys, nowMs, ringTimes)
    for (const { kid } of published) if (!seen.has(kid)) seen.set(kid, { firstPublishedMs: nowMs })
    for (const { kid } of signing.values()) {
      const before = seen.get(kid)
      assert(before, 'what signs is published')
      seen.set(kid, { ...before, firstSignedMs: before.firstSignedMs ?? nowMs, lastSignedMs: nowMs })
    }
    for (const [kid, { lastSignedMs }] of seen) {
      if (lastSignedMs === undefined || nowMs - lastSignedMs >= ringTimes.retentionMs) continue
      assert(
        published.some((key) => key.kid === kid),
        'what it signed may still be presented',
      )
    }
    assert.equal(signing.size, KEY_ALGORITHMS.length, 'a key of each algorithm signs at every moment')
    assert(nextAtMs > nowMs)
  }
  return { keys, seen }
}

const history = [
  times,
  fc.array(fc.integer({ min: 0, max: 700 }), { minLength: 1, maxLength: 60 }),
  fc.array(fc.nat(60), { maxLength: 5 }),
] as const

test('a key is published for the whole lead before it signs, but for the very first', () => {
  fc.assert(
    fc.property(...history, (ringTimes, stepsMs, byHand) => {
      const { seen } = turned(ringTimes, stepsMs, byHand)
      for (const [kid, { firstPublishedMs, firstSignedMs }] of seen) {
        if (firstSignedMs === undefined || /^\w+\.1\./.test(kid)) continue
        assert(firstSignedMs - firstPublishedMs >= ringTimes.leadMs)
      }
    }),
  )
})

test('a key stays published until what it signed last is over, and then it goes', () => {
  fc.assert(
    fc.property(...history, (ringTimes, stepsMs, byHand) => {
      const { leadMs, retentionMs } = ringTimes
      const atRest = { ...ringTimes, rotationIntervalMs: 1_000_000 }
      // Long enough for whatever is on its way to sign, for the one before to be retired and then removed.
      const { keys } = turned(
        atRest,
        [...stepsMs, leadMs, retentionMs, 1],
        byHand.filter((index) => index < stepsMs.length),
      )
      assert.equal(keys.length, KEY_ALGORITHMS.length, 'only those that sign are left')
    }),
  )
})

test('two replicas that see the same keys come to the same state, and do each step once', () => {
  const ringTimes = { rotationIntervalMs: 1000, leadMs: 100, retentionMs: 500 }
  let keys: RingKey[] = []
  for (let nowMs = START_MS; nowMs < START_MS + 10_000; nowMs += 50) {
    const [one, other] = [ringAt(keys, nowMs, ringTimes), ringAt(keys.toReversed(), nowMs, ringTimes)]
    assert.deepEqual([...one.signing].sort(), [...other.signing].sort())
    assert.deepEqual(one.published.map(({ kid }) => kid).sort(), other.published.map(({ kid }) => kid).sort())
    keys = doTasks(doTasks(keys, one, nowMs), other, nowMs)
  }
  for (const algorithm of KEY_ALGORITHMS) {
    const line = keys.filter((key) => key.algorithm === algorithm)
    assert.equal(new Set(line.map(({ number }) => number)).size, line.length)
    assert.equal(line.at(-1)?.number, 11)
    assert.equal(line.at(-1)?.signsFromMs, START_MS + 10_000, 'the interval is kept')
  }
})

test('the ones that sign come first, and asking for new keys twice makes one', () => {
  const ringTimes = { rotationIntervalMs: 1_000_000, leadMs: 100, retentionMs: 500 }
  let keys = doTasks([], ringAt([], START_MS, ringTimes), START_MS)
  for (const algorithm of KEY_ALGORITHMS) {
    const task = rotationNow(keys, algorithm, START_MS + 10, ringTimes)
    assert.equal(task?.signsFromMs, START_MS + 110)
    keys = doTasks(keys, { tasks: [task] }, START_MS + 10)
    assert.equal(rotationNow(keys, algorithm, START_MS + 20, ringTimes), undefined)
  }
  const numbersAt = (nowMs: number) => ringAt(keys, nowMs, ringTimes).published.map(({ number }) => number)
  assert.deepEqual(numbersAt(START_MS + 109), [1, 1, 2, 2])
  assert.deepEqual(numbersAt(START_MS + 110), [2, 2, 1, 1])
  assert.deepEqual(numbersAt(START_MS + 609), [2, 2, 1, 1])
  assert.deepEqual(numbersAt(START_MS + 610), [2, 2])
})

test('a key that this replica cannot decrypt neither signs nor is published, and is not made again', () => {
  const ringTimes = { rotationIntervalMs: 1000, leadMs: 100, retentionMs: 500 }
  const first = doTasks([], ringAt([], START_MS, ringTimes), START_MS)
  const keys = first.map((key) => ({ ...key, readable: key.algorithm !== 'ES256' }))
  const state = ringAt(keys, START_MS + 1, ringTimes)
  assert.deepEqual([...state.signing.keys()], ['EdDSA'])
  assert.deepEqual(
    state.published.map(({ algorithm }) => algorithm),
    ['EdDSA'],
  )
  assert.deepEqual(state.tasks, [])
})
