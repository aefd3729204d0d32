import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type Conversation, countBlocks, fuzz } from './fuzz.ts'
import { instrumented } from './fuzz-coverage.ts'

countBlocks(/test-labyrinth/)
const { labyrinth, treadmill } = await import('./test-labyrinth.ts')

const SEED: Conversation = ['hello', 'world, and all'].map((text) => ({
  ...{ lane: 0, bytes: Buffer.from(text), skipped: 0, unseen: 0 },
}))
const CONVERSATIONS = 300_000
const how = { seeds: [SEED], dictionary: [], lanes: 2 }
const budget = { seed: 1, conversations: CONVERSATIONS, minutes: Number.POSITIVE_INFINITY }

test('what is behind many conditions is found by going on from what reached more, and told by the shortest conversation', () => {
  assert.throws(
    () => fuzz({ ...how, target: labyrinth, budget }),
    (error: Error) => {
      assert.match(error.message, /^found \(seed 1, after \d+ conversations\): \[/)
      const told = JSON.parse(error.message.slice(error.message.indexOf('[')))
      assert.deepEqual(
        told.map(({ lane, bytes }: { lane: number; bytes: string }) => [lane, bytes.length]),
        [
          [0, 0],
          [1, 9],
          [1, 1],
        ],
      )
      return true
    },
  )
})

test('twice as many blind changes do not find it', () => {
  const { conversations } = fuzz({
    ...{ ...how, target: labyrinth, isGuided: false },
    budget: { ...budget, conversations: 2 * CONVERSATIONS },
  })
  assert.equal(conversations, 2 * CONVERSATIONS)
})

test('what does not come to an end is told', () => {
  assert.throws(() => fuzz({ ...how, target: treadmill, budget, endsMsMax: 500 }), /^Error: it does not end \(seed 1, /)
})

test('the same seed makes the same conversations', () => {
  const [one, other] = [1, 2].map(() => {
    const all: string[] = []
    const target = (conversation: Conversation) => void all.push(JSON.stringify(conversation))
    fuzz({ ...how, target, budget: { ...budget, seed: 7, conversations: 500 } })
    return all
  })
  assert.deepEqual(one, other)
  assert(new Set(one).size > 250, `only ${new Set(one).size} different ones`)
})

test('code that counts its blocks does what it did', () => {
  const source = `const f = (a) => ({ a });
  let sum = 0;
  for (const n of [1, 2, 3]) if (n > 1) sum += n; else if (n > 5) sum = 9
  for (let n = 0; n < 3; n++);
  do sum++; while (sum < 7)
  switch (sum) { case 6: sum = 0; break; case 7: { sum *= 2 } default: sum += 1 }
  const g = (a, b) => a ?? b ?? (sum > 1 && sum < 99 ? a : f(b))
  try { throw new Error('x') } catch { sum += 1 }
  class C { #x = 1; get x() { return this.#x || 2 } static y = (z) => z > 1 ? z : -z }
  return JSON.stringify([f(1), g(undefined, 4), g(), sum, new C().x, C.y(3), C.y(0.5)])`
  const run = (body: string) => new Function('tollwardBlockCounts', body)(new Uint32Array(100))
  const counting = instrumented(`const all = () => {${source}}`).replace(/^const all = \(\) => \{|\}$/g, '')
  assert.notEqual(counting, source)
  assert.equal(run(counting), run(source))
})
