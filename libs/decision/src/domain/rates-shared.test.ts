import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { type Limit, RateTable } from './rate.ts'
import { RatesUntold, type Use } from './rates-untold.ts'

const none = () => assert.fail('nothing is evicted')

/** A replica: its table, what it has not told, and what is on the way to it. */
class Replica {
  readonly untold = new RatesUntold(100)
  readonly rates = new RateTable(100, none, (charge, nowMs) => void this.untold.add(charge, nowMs))
  readonly inbox: Use[] = []
}

type Step =
  | { readonly does: 'ask' | 'tell' | 'hear'; readonly replica: number }
  | { readonly does: 'wait'; readonly forMs: number }

const LIMITS: readonly Limit[] = [
  { requests: 1, perSeconds: 1 },
  { requests: 5, perSeconds: 1 },
  { requests: 40, perSeconds: 1 },
  { requests: 100, perSeconds: 2 },
]

const step = (replicas: number): fc.Arbitrary<Step> => {
  const replica = fc.nat({ max: replicas - 1 })
  const at = (does: 'ask' | 'tell' | 'hear') => fc.record({ does: fc.constant(does), replica })
  return fc.oneof(
    { weight: 20, arbitrary: at('ask') },
    { weight: 4, arbitrary: at('tell') },
    { weight: 4, arbitrary: at('hear') },
    {
      weight: 3,
      arbitrary: fc.record({ does: fc.constant('wait' as const), forMs: fc.integer({ min: 1, max: 300 }) }),
    },
  )
}

const story = fc.integer({ min: 1, max: 4 }).chain((count) =>
  fc.record({
    count: fc.constant(count),
    limit: fc.constantFrom(...LIMITS),
    steps: fc.array(step(count), { minLength: 50, maxLength: 400 }),
  }),
)

interface Run {
  /** When each request was admitted. */
  readonly admittedAtMs: number[]
  /** The most that one replica had admitted at any time without another one having counted it. */
  readonly unheardMax: number
}

/** Plays a story; nothing of it is told or heard but by its own steps. */
function play(count: number, limit: Limit, steps: readonly Step[]): Run {
  const replicas = Array.from({ length: count }, () => new Replica())
  const unheard = Array.from({ length: count }, () => new Array<number>(count).fill(0))
  const admittedAtMs: number[] = []
  let [nowMs, unheardMax] = [1_000_000, 0]
  for (const step of steps) {
    if (step.does === 'wait') {
      nowMs += step.forMs
      continue
    }
    const replica = replicas[step.replica]
    const own = unheard[step.replica]
    assert.ok(replica && own)
    if (step.does === 'ask') {
      if (!replica.rates.take('k', limit, nowMs).conforms) continue
      admittedAtMs.push(nowMs)
      for (const other of replicas.keys()) if (other !== step.replica) own[other] = (own[other] ?? 0) + 1
      unheardMax = Math.max(unheardMax, ...own)
    } else if (step.does === 'tell') {
      for (const use of replica.untold.take(100, 'all')) {
        for (const other of replicas)
          if (other !== replica) other.inbox.push({ ...use, key: `${step.replica}`, sinceMs: nowMs - use.sinceMs })
      }
    } else {
      for (const { key: teller, requests, sinceMs: ageMs } of replica.inbox.splice(0)) {
        replica.rates.addOthers({ key: 'k', limit, hits: requests }, nowMs, ageMs)
        const told = unheard[Number(teller)]
        assert.ok(told)
        told[step.replica] = (told[step.replica] ?? 0) - requests
      }
    }
  }
  return { admittedAtMs, unheardMax }
}

describe('limits that replicas keep together', () => {
  test('in no time as long as the limit do replicas admit more than the limit and what they had not heard', () => {
    fc.assert(
      fc.property(story, ({ count, limit, steps }) => {
        const { admittedAtMs, unheardMax } = play(count, limit, steps)
        const windowMs = limit.perSeconds * 1000
        const intervalMs = windowMs / limit.requests
        for (const [first, fromMs] of admittedAtMs.entries()) {
          for (const [last, toMs] of admittedAtMs.entries()) {
            if (last < first || toMs - fromMs >= windowMs) continue
            const alone = limit.requests + Math.floor((toMs - fromMs + 0.02) / intervalMs)
            const most = alone + (count - 1) * unheardMax
            assert.ok(last - first + 1 <= most, `${last - first + 1} in ${toMs - fromMs} ms, not ${most}`)
          }
        }
      }),
      { numRuns: 400 },
    )
  })

  test('however traffic wanders, replicas that hear at once admit exactly what one would', () => {
    fc.assert(
      fc.property(story, ({ count, limit, steps }) => {
        const asks = steps.filter((step) => step.does === 'ask' || step.does === 'wait')
        const together = asks.flatMap((step): Step[] => {
          if (step.does === 'wait') return [step]
          const hear = Array.from({ length: count }, (_, replica): Step => ({ does: 'hear', replica }))
          return [step, { does: 'tell', replica: step.replica }, ...hear]
        })
        const alone = asks.map((step): Step => (step.does === 'wait' ? step : { does: 'ask', replica: 0 }))
        assert.deepEqual(play(count, limit, together).admittedAtMs, play(1, limit, alone).admittedAtMs)
      }),
      { numRuns: 200 },
    )
  })

  test('what is told late takes from an idle replica exactly what it took where it was admitted', () => {
    fc.assert(
      fc.property(
        fc.constantFrom(...LIMITS),
        fc.array(fc.integer({ min: 0, max: 200 }), { maxLength: 30 }),
        fc.integer({ min: 0, max: 500 }),
        (limit, gaps, delayMs) => {
          const [teller, listener] = [new Replica(), new Replica()]
          let nowMs = 1_000_000
          for (const gap of gaps) {
            nowMs += gap
            teller.rates.take('k', limit, nowMs)
          }
          nowMs += delayMs
          for (const { requests, sinceMs } of teller.untold.take(100, 'all')) {
            listener.rates.addOthers({ key: 'k', limit, hits: requests }, nowMs, nowMs - sinceMs)
          }
          const left = ({ rates }: Replica) => rates.left({ key: 'k', limit }, nowMs).fullInMs
          assert.ok(Math.abs(left(teller) - left(listener)) < 0.01)
        },
      ),
      { numRuns: 300 },
    )
  })

  test('whatever others say, nobody is refused longer than the limit lasts', () => {
    const hits = fc.integer({ min: 1, max: 2 ** 32 - 1 })
    fc.assert(
      fc.property(fc.constantFrom(...LIMITS), fc.array(hits, { minLength: 1, maxLength: 10 }), (limit, told) => {
        const rates = new RateTable(10, none)
        for (const hits of told) rates.addOthers({ key: 'k', limit, hits }, 0)
        assert.ok(rates.take('k', limit, limit.perSeconds * 1000).conforms)
      }),
    )
  })

  test('what was admitted too much is paid back', () => {
    const limit = { requests: 10, perSeconds: 10 }
    const rates = new RateTable(10, none)
    for (let n = 0; n < 10; n++) assert.ok(rates.take('k', limit, 0).conforms)
    rates.addOthers({ key: 'k', limit, hits: 4 }, 0)
    assert.deepEqual(
      [4000, 5000, 5000].map((now) => rates.take('k', limit, now).conforms),
      [false, true, false],
    )
  })

  test('what a key has untold stays below a twentieth of its limit, and below two requests, until it is urgent', () => {
    for (const [requests, atOnce] of [
      [1, 1],
      [20, 1],
      [21, 2],
      [50, 3],
      [100, 5],
      [1000, 50],
    ] as const) {
      const untold = new RatesUntold(10)
      const charge = { key: 'k', limit: { requests, perSeconds: 1 } }
      for (let n = 1; n < atOnce; n++) assert.equal(untold.add(charge, 0), 'waits', `${n} of ${requests}`)
      assert.deepEqual(untold.take(10, 'urgent'), [])
      assert.equal(untold.add(charge, 0), 'urgent', `${atOnce} of ${requests}`)
      assert.deepEqual(untold.take(10, 'urgent'), [{ ...charge, requests: atOnce, sinceMs: 0 }])
      assert.equal(untold.size, 0)
    }
  })

  test('what is told first is what is urgent, and beyond so many keys nothing is kept', () => {
    const untold = new RatesUntold(3)
    const wide = { requests: 100, perSeconds: 1 }
    assert.equal(untold.add({ key: 'a', limit: wide }, 0), 'waits')
    assert.equal(untold.add({ key: 'b', limit: wide, hits: 99 }, 0), 'urgent')
    assert.equal(untold.add({ key: 'c', limit: wide }, 0), 'waits')
    assert.equal(untold.add({ key: 'd', limit: wide, hits: 99 }, 0), 'lost')
    assert.equal(untold.add({ key: 'a', limit: wide }, 0), 'waits', 'a key that is there goes on')
    assert.deepEqual(
      untold.take(2, 'all').map(({ key, requests }) => [key, requests]),
      [
        ['b', 99],
        ['a', 2],
      ],
    )
    assert.deepEqual([untold.size, untold.urgent], [1, 0])
  })

  test('every use is told once or counted as lost, in any order of events, and memory stays bounded', () => {
    const keysMax = 4
    const limit = { requests: 100, perSeconds: 1 }
    const step = fc.oneof(
      fc.record({ key: fc.constantFrom(...'abcdefghijklmnop'), hits: fc.constantFrom(1, 3, 5) }),
      fc.record({ max: fc.nat(5), which: fc.constantFrom('urgent', 'all') }),
    )
    fc.assert(
      fc.property(fc.array(step, { maxLength: 100, size: 'max' }), (steps) => {
        const untold = new RatesUntold(keysMax)
        const waiting = new Map<string, number>()
        const isUrgent = (requests: number) => requests >= 5
        for (const taken of steps) {
          if ('key' in taken) {
            const requests = (waiting.get(taken.key) ?? 0) + taken.hits
            const isLost = !waiting.has(taken.key) && waiting.size >= keysMax
            assert.equal(untold.add({ ...taken, limit }, 0), isLost ? 'lost' : isUrgent(requests) ? 'urgent' : 'waits')
            if (!isLost) waiting.set(taken.key, requests)
          } else {
            const urgent = [...waiting.values()].filter(isUrgent).length
            const uses = untold.take(taken.max, taken.which)
            assert.equal(uses.length, Math.min(taken.max, taken.which === 'all' ? waiting.size : urgent))
            for (const [index, { key, requests }] of uses.entries()) {
              assert.equal(requests, waiting.get(key))
              assert.equal(isUrgent(requests), index < urgent)
              waiting.delete(key)
            }
          }
          assert.equal(untold.size, waiting.size)
          assert(untold.held <= 2 * keysMax)
        }
      }),
      { numRuns: 300 },
    )
  })

  test('what is left, and when all of it is, follows from what was taken', () => {
    const rates = new RateTable(10, none)
    const charge = { key: 'k', limit: { requests: 4, perSeconds: 4 } }
    assert.deepEqual(rates.left(charge, 0), { requests: 4, fullInMs: 0 })
    rates.takeAll([{ ...charge, hits: 3 }], 0)
    assert.deepEqual(rates.left(charge, 0), { requests: 1, fullInMs: 3000 })
    assert.deepEqual(rates.left(charge, 999), { requests: 1, fullInMs: 2001 })
    assert.deepEqual(rates.left(charge, 1000), { requests: 2, fullInMs: 2000 })
    rates.addOthers({ ...charge, hits: 100 }, 1000)
    assert.equal(rates.left(charge, 1000).requests, 0)
  })
})
