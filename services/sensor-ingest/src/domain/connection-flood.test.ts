import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { address } from '../test-flows.ts'
import { ConnectionFloodDetector, type Flood } from './connection-flood.ts'
import type { Attempt } from './connections.ts'
import { DEFAULT_SETTINGS, type FloodSettings } from './settings.ts'

const DRAIN_MS = 150
const SLOT_MS = 100
const START_MS = Date.UTC(2026, 0, 1)

const settings: FloodSettings = { connections: 20, withinSeconds: 1, blockForMs: 300_000, mode: 'block' }
const defaults = DEFAULT_SETTINGS.flood ?? settings

function attempts(timesMs: readonly number[], source = '192.0.2.1'): Attempt[] {
  const bytes = address(source)
  const common = { sourceKey: source, source: bytes, destination: bytes, destinationPort: 8080 }
  return timesMs.map((timeMs) => ({ ...common, atMs: START_MS + timeMs }))
}

/** Feeds connections as a sensor's batches; the first flood and the time of the batch that told it. */
function feed(timesMs: readonly number[], limits: FloodSettings): { flood: Flood; toldMs: number } | undefined {
  const detector = new ConnectionFloodDetector()
  const sorted = [...timesMs].sort((a, b) => a - b)
  for (let from = 0; from < sorted.length; ) {
    const drainMs = (Math.floor((sorted[from] ?? 0) / DRAIN_MS) + 1) * DRAIN_MS
    let to = from
    while (to < sorted.length && (sorted[to] ?? 0) < drainMs) to += 1
    const flood = detector.observe(attempts(sorted.slice(from, to)), limits)
    if (flood) return { flood, toldMs: drainMs }
    from = to
  }
  return undefined
}

/** Drops what would bring any window above the setting. */
function withinSetting(timesMs: readonly number[], { connections, withinSeconds }: FloodSettings): number[] {
  const kept: number[] = []
  for (const timeMs of [...timesMs].sort((a, b) => a - b)) {
    const oldest = kept[kept.length - connections]
    if (oldest === undefined || timeMs - oldest > withinSeconds * 1000) kept.push(timeMs)
  }
  return kept
}

test('a source that stays within the setting in every window is never a flood, however its connections fall', () => {
  const bursts = fc.array(
    fc.record({
      atMs: fc.integer({ min: 0, max: 20_000 }),
      size: fc.integer({ min: 1, max: 40 }),
      spanMs: fc.nat(400),
    }),
    { maxLength: 60, size: 'max' },
  )
  const times = bursts.map((list) =>
    list.flatMap(({ atMs, size, spanMs }) =>
      Array.from({ length: size }, (_, i) => atMs + Math.floor((i * spanMs) / size)),
    ),
  )
  fc.assert(fc.property(times, (timesMs) => assert.equal(feed(withinSetting(timesMs, settings), settings), undefined)))
})

test('one spike of any size is not a flood: a hundred clients behind one address reconnect at once and go on', () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 5000 }), fc.nat(SLOT_MS), fc.nat(999), (size, spanMs, offsetMs) => {
      const spike = Array.from({ length: size }, (_, index) => offsetMs + Math.floor((index * spanMs) / size))
      const afterwards = Array.from({ length: 50 }, (_, index) => offsetMs + 200 + index * SLOT_MS)
      assert.equal(feed([...spike, ...afterwards], defaults), undefined)
    }),
    { numRuns: 50 },
  )
})

test('sixty browsers and a CI runner behind one address are not a flood with the default settings', () => {
  const browsers = fc.array(fc.nat(2000), { minLength: 60, maxLength: 60 })
  fc.assert(
    fc.property(browsers, (starts) => {
      // Each opens six connections, and again every 2.1 s at the earliest; the runner opens twenty a second.
      const rounds = [0, 1, 2, 3, 4].flatMap((round) => starts.map((start) => start + round * 2100))
      const pages = rounds.flatMap((time) => Array.from({ length: 6 }, (_, index) => time + index * 3))
      const runner = Array.from({ length: 200 }, (_, index) => index * 60)
      const quiet = pages.filter((_, index) => index % 7 !== 0)
      assert.equal(feed([...quiet, ...runner], defaults), undefined)
    }),
    { numRuns: 30 },
  )
})

test('a flood is found within its bound: connections / (rate - leak) seconds, at the least three slots, and one drain', () => {
  fc.assert(
    fc.property(fc.double({ min: 1.3, max: 100, noNaN: true }), fc.nat(999), (timesLeak, offsetMs) => {
      const leakPerSecond = defaults.connections / defaults.withinSeconds
      const perSecond = leakPerSecond * timesLeak
      const boundMs = Math.max(3 * SLOT_MS, (defaults.connections / (perSecond - leakPerSecond)) * 1000) + SLOT_MS
      const count = Math.ceil((perSecond * (boundMs + 2 * DRAIN_MS)) / 1000)
      const found = feed(
        Array.from({ length: count }, (_, index) => offsetMs + (index * 1000) / perSecond),
        defaults,
      )
      assert(found, `no flood in ${count} connections`)
      assert(found.toldMs <= offsetMs + boundMs + DRAIN_MS, `${found.toldMs - offsetMs} ms, bound ${boundMs} ms`)
      assert(found.flood.count > defaults.connections)
    }),
    { numRuns: 60 },
  )
})

test('a flood is found whatever order its connections come in, as in a drain of seconds after a pause of the sensor', () => {
  const spanMs = 4000
  const times = Array.from({ length: 6000 }, (_, index) => (index * spanMs) / 6000)
  const perMessage = 300
  fc.assert(
    fc.property(fc.array(fc.nat(), { minLength: times.length, maxLength: times.length }), (order) => {
      const shuffled = times
        .map((timeMs, index) => ({ timeMs, rank: order[index] ?? 0 }))
        .sort((a, b) => a.rank - b.rank)
        .map(({ timeMs }) => timeMs)
      const detector = new ConnectionFloodDetector()
      const messages = Array.from({ length: times.length / perMessage }, (_, index) =>
        shuffled.slice(index * perMessage, (index + 1) * perMessage).sort((a, b) => a - b),
      )
      assert(messages.some((message) => detector.observe(attempts(message), defaults) !== undefined))
    }),
    // A counterexample of 6,000 connections is not worth shrinking.
    { numRuns: 5, endOnFailure: true },
  )
})

test('a source within the setting is no flood in whatever order its connections come', () => {
  const orders = fc.record({
    timesMs: fc.array(fc.nat(5000), { maxLength: 300, size: 'max' }),
    seed: fc.infiniteStream(fc.nat()),
  })
  fc.assert(
    fc.property(orders, ({ timesMs, seed }) => {
      const detector = new ConnectionFloodDetector()
      const within = withinSetting(timesMs, settings)
      const order = new Map(within.map((timeMs) => [timeMs, seed.next().value]))
      const shuffled = [...within].sort((a, b) => (order.get(a) ?? 0) - (order.get(b) ?? 0))
      for (const timeMs of shuffled) assert.equal(detector.observe(attempts([timeMs]), settings), undefined)
    }),
  )
})

test('memory is bounded whatever sources come, and what was let go is counted', () => {
  const detector = new ConnectionFloodDetector(100)
  for (let index = 0; index < 5000; index++)
    detector.observe(attempts([index], `2001:db8::${index.toString(16)}`), settings)
  assert.equal(detector.size, 100)
  assert.equal(detector.evictions, 4900)
})

test('a source in use is not pushed out by others that come once', () => {
  const detector = new ConnectionFloodDetector(10)
  const told: (Flood | undefined)[] = []
  for (let index = 0; index < 100; index++) {
    told.push(detector.observe(attempts(Array.from({ length: 10 }, () => index * 20)), settings))
    detector.observe(attempts([index * 20], `2001:db8::${index.toString(16)}`), settings)
  }
  assert(told.some((flood) => flood !== undefined))
})

test('a clock that was set back does not blind the detector', () => {
  const detector = new ConnectionFloodDetector()
  detector.observe(attempts([3_600_000]), settings)
  const floods = [0, 100, 200, 300].map((atMs) => detector.observe(attempts(new Array(50).fill(atMs)), settings))
  assert(floods.some((flood) => flood !== undefined))
})
