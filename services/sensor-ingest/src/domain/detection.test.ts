import assert from 'node:assert/strict'
import { test } from 'node:test'
import { create } from '@bufbuild/protobuf'
import { timestampFromMs, timestampMs } from '@bufbuild/protobuf/wkt'
import { parseRange, rangeKey } from '@tollward/contracts'
import { Disposition, Severity } from '@tollward/contracts/detection'
import { type Block, BlockSchema } from '@tollward/contracts/enforcement'
import { Direction, type Flow } from '@tollward/contracts/sensor'
import fc from 'fast-check'
import { address, batch, flood, flow, scan } from '../test-flows.ts'
import { type Action, Detection } from './detection.ts'
import { DEFAULT_SETTINGS, type Settings } from './settings.ts'

const NOW_MS = Date.UTC(2026, 0, 1)
const ATTACKER = '203.0.113.66'
const FLOOD_MS = 400

function newDetection({ machineBlocksMax = 1000, settings = DEFAULT_SETTINGS } = {}): Detection {
  const guarded = ['127.0.0.1', '::1', '10.1.2.3'].map(range)
  const detection = new Detection({ guarded, machineBlocksMax, scanSeed: 7 })
  detection.settings = settings
  return detection
}

function range(text: string) {
  const parsed = parseRange(text)
  assert(parsed)
  return parsed
}

function observeFlood(detection: Detection, from: string, { sequence = 1, atMs = NOW_MS } = {}) {
  return detection.observe(batch(sequence, flood(from, 1200, atMs - FLOOD_MS, FLOOD_MS), atMs), atMs)
}

function theBlock(actions: readonly Action[]): Block {
  const [action] = actions
  assert(action?.kind === 'block' && actions.length === 1)
  return action.block
}

test('a flood becomes a block of the one address, with its end, evidence and alert', () => {
  const { actions, detections } = observeFlood(newDetection(), ATTACKER)
  const block = theBlock(actions)
  assert.deepEqual(detections, [{ detector: 'connection-flood', result: 'block' }])
  assert.deepEqual([block.address, block.prefixLength], [address(ATTACKER), 128])
  assert(block.expiresAt && timestampMs(block.expiresAt) === NOW_MS + 5 * 60_000)
  assert.equal(block.decidedBy, 'detector:connection-flood')
  assert(block.alert && block.alert.evidence.length === 5)
  assert.equal(block.alert.disposition, Disposition.BLOCKED)
  assert.equal(block.alert.severity, Severity.HIGH)
  assert.match(block.reason, /^1200 new connections within 0\.4 s; the setting is 400 within 2 s\.$/)
})

test('what is not a completed arriving connection never blocks, however much of it comes', () => {
  const notConnections = fc.record({
    from: fc.constantFrom(ATTACKER, '203.0.113.67', '2001:db8::1'),
    port: fc.integer({ min: 1, max: 65_535 }),
    sourcePort: fc.integer({ min: 1, max: 65_535 }),
    atMs: fc.integer({ min: NOW_MS - 400, max: NOW_MS }),
    kind: fc.constantFrom<Partial<Parameters<typeof flow>[0]>>(
      { established: false },
      { established: true, syns: 0 },
      { established: true, direction: Direction.EGRESS },
      { established: true, protocol: 17 },
    ),
  })
  const flows = fc.array(notConnections, { minLength: 200, maxLength: 300 })
  fc.assert(
    fc.property(flows, (list) => {
      const detection = newDetection({
        settings: {
          flood: { connections: 10, withinSeconds: 1, blockForMs: 1000, mode: 'block' },
          scan: { ports: 5, withinSeconds: 10 },
          allow: [],
        },
      })
      // A connection's SYN and its completion in one batch each would be one: give each kind its own ports.
      const made = list.map(({ kind, ...rest }) =>
        flow({ ...rest, ...kind, to: kind?.established ? '127.0.0.2' : '127.0.0.1' }),
      )
      const { actions } = detection.observe(batch(1, made, NOW_MS), NOW_MS)
      assert(actions.every(({ kind }) => kind === 'alert'))
    }),
  )
})

test('a scan is told as an alert, and never blocks: its source may be forged', () => {
  const { actions } = newDetection().observe(batch(1, scan(ATTACKER, 2000, NOW_MS), NOW_MS), NOW_MS)
  const [action] = actions
  assert(action?.kind === 'alert' && actions.length === 1)
  assert.equal(action.alert.severity, Severity.MEDIUM)
  assert.equal(action.alert.attackTechnique, 'T1046')
  assert.equal(action.alert.disposition, Disposition.DETECTED)
})

test('a connection whose handshake ends in a later batch than it began is counted once', () => {
  const detection = newDetection()
  const begun = [
    flow({ from: ATTACKER, established: false }),
    flow({ from: ATTACKER, sourcePort: 2, established: false }),
  ]
  assert.equal(detection.observe(batch(1, begun, NOW_MS), NOW_MS).connections, 0)
  const completed = [flow({ from: ATTACKER, syns: 0 }), flow({ from: ATTACKER, sourcePort: 3, syns: 0 })]
  assert.equal(detection.observe(batch(2, completed, NOW_MS), NOW_MS).connections, 1)
  assert.equal(detection.observe(batch(3, completed, NOW_MS), NOW_MS).connections, 0)
})

test('SYNs forged into a connection that is known to be real count no more than that connection', () => {
  const forged = batch(1, [flow({ syns: 100_000 })], NOW_MS)
  assert.equal(newDetection().observe(forged, NOW_MS).connections, 1)
})

test("the node's own addresses and those the operator allows are never blocked", () => {
  const settings: Settings = { ...DEFAULT_SETTINGS, allow: [range('198.51.100.0/24')] }
  const detection = newDetection({ settings })
  for (const [index, [source, why]] of [
    ['127.0.0.1', 'guarded'],
    ['::1', 'guarded'],
    ['10.1.2.3', 'guarded'],
    ['198.51.100.7', 'allowed'],
  ].entries()) {
    const { actions, detections } = observeFlood(detection, source ?? '', { sequence: index + 1 })
    assert.deepEqual([actions.length, detections[0]?.result], [0, why])
  }
  assert.equal(observeFlood(detection, '127.0.0.66', { sequence: 9 }).detections[0]?.result, 'block')
})

test('in mode observe a flood is told as what would have been blocked, and nothing is', () => {
  const flood = { connections: 400, withinSeconds: 2, blockForMs: 300_000, mode: 'observe' } as const
  const { actions } = observeFlood(newDetection({ settings: { flood, allow: [] } }), ATTACKER)
  const [action] = actions
  assert(action?.kind === 'alert')
  assert.equal(action.alert.disposition, Disposition.WOULD_BLOCK)
})

test('machines never have more blocks in force than their share; beyond it they tell', () => {
  const detection = newDetection({ machineBlocksMax: 2 })
  const sources = ['203.0.113.1', '203.0.113.2', '203.0.113.3']
  const flows = sources.flatMap((source) => flood(source, 1200, NOW_MS - FLOOD_MS, FLOOD_MS))
  const { detections, actions } = detection.observe(batch(1, flows, NOW_MS), NOW_MS)
  assert.deepEqual(
    detections.map(({ result }) => result),
    ['block', 'block', 'share_exceeded'],
  )
  const last = actions.at(-1)
  assert(last?.kind === 'alert' && last.alert.disposition === Disposition.DETECTED)
  const later = NOW_MS + 6 * 60_000
  assert.equal(observeFlood(detection, '203.0.113.4', { sequence: 2, atMs: later }).detections[0]?.result, 'block')
})

test('each earlier block doubles the next one up to an hour; a block that an operator lifted does not count', () => {
  const detection = newDetection()
  const minutes: number[] = []
  let atMs = NOW_MS
  for (let sequence = 1; sequence <= 6; sequence++) {
    const block = theBlock(observeFlood(detection, ATTACKER, { sequence, atMs }).actions)
    assert(block.expiresAt)
    minutes.push((timestampMs(block.expiresAt) - atMs) / 60_000)
    detection.ledger.notePrior(block)
    atMs = timestampMs(block.expiresAt) + 1000
  }
  assert.deepEqual(minutes, [5, 10, 20, 40, 60, 60])
  detection.ledger.forgetPriors({ address: address(ATTACKER), prefixLength: 128 })
  const block = theBlock(observeFlood(detection, ATTACKER, { sequence: 7, atMs }).actions)
  assert(block.expiresAt && timestampMs(block.expiresAt) - atMs === 5 * 60_000)
})

test('a source that is blocked, by itself or by a wider block, is not blocked again; once that is over, it is', () => {
  const detection = newDetection()
  const wide = range('203.0.113.0/24')
  const expiresAt = timestampFromMs(NOW_MS + 1000)
  detection.ledger.set(rangeKey(wide), create(BlockSchema, { ...wide, decidedBy: 'operator:alice', expiresAt }))
  assert.equal(observeFlood(detection, ATTACKER).detections[0]?.result, 'already_blocked')
  assert.equal(observeFlood(detection, ATTACKER, { sequence: 2, atMs: NOW_MS + 2000 }).detections[0]?.result, 'block')
  assert.equal(
    observeFlood(detection, ATTACKER, { sequence: 3, atMs: NOW_MS + 4000 }).detections[0]?.result,
    'already_blocked',
  )
})

test('an operator lifts a block, the flood comes again: it is blocked again, and that is another alert', () => {
  const detection = newDetection()
  const first = theBlock(observeFlood(detection, ATTACKER).actions)
  detection.ledger.set(rangeKey(first), undefined)
  const second = theBlock(observeFlood(detection, ATTACKER, { sequence: 2, atMs: NOW_MS + 2000 }).actions)
  assert.notEqual(first.alert?.alertId, second.alert?.alertId)
})

test('a batch that is delivered again is not counted again', () => {
  const detection = newDetection()
  const half = batch(1, flood(ATTACKER, 300, NOW_MS - 300, 200), NOW_MS)
  assert.equal(detection.observe(half, NOW_MS).arrival.kind, 'fresh')
  const again = detection.observe(half, NOW_MS)
  assert.deepEqual([again.arrival.kind, again.connections, again.actions.length], ['repeated', 0, 0])
})

test('batches that are missing are counted, and told from late and repeated ones', () => {
  const detection = newDetection()
  const arrivals = [1, 2, 5, 4, 4, 3, 2, 6].map(
    (sequence) => detection.observe(batch(sequence, [], NOW_MS), NOW_MS).arrival,
  )
  assert.deepEqual(
    arrivals.map((arrival) => (arrival.kind === 'fresh' ? arrival.missing : arrival.kind)),
    [0, 0, 2, 'late', 'repeated', 'late', 'repeated', 0],
  )
  assert.deepEqual(detection.observe(batch(900, [], NOW_MS, 'another'), NOW_MS).arrival, { kind: 'fresh', missing: 0 })
})

test('what goes on is told once in five minutes; what was quiet for a minute is news', () => {
  const detection = newDetection()
  const told: number[] = []
  let sequence = 0
  const scanAt = (second: number) => {
    sequence += 1
    const nowMs = NOW_MS + second * 1000
    const { actions } = detection.observe(batch(sequence, scan(ATTACKER, 300, nowMs), nowMs), nowMs)
    if (actions.length > 0) told.push(second)
  }
  for (let second = 0; second < 360; second += 5) scanAt(second)
  scanAt(480)
  assert.deepEqual(told, [0, 300, 480])
})

test('two processes that see the same scan raise the same alert', () => {
  const ids = [1, 2].map(() => {
    const [action] = newDetection().observe(batch(1, scan(ATTACKER, 300, NOW_MS), NOW_MS), NOW_MS).actions
    return action?.kind === 'alert' ? action.alert.alertId : undefined
  })
  assert(ids[0] !== undefined && ids[0] === ids[1])
})

test('flows with addresses that are none are left out and counted', () => {
  const broken: Flow[] = [flow(), flow()]
  for (const one of broken) one.source = new Uint8Array(4)
  const { malformed, connections } = newDetection().observe(batch(1, [...broken, flow()], NOW_MS), NOW_MS)
  assert.deepEqual([malformed, connections], [2, 1])
})
