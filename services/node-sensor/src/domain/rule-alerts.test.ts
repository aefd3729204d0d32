import assert from 'node:assert/strict'
import { test } from 'node:test'
import { timestampMs } from '@bufbuild/protobuf/wkt'
import { parseAddress } from '@tollward/contracts'
import { type Alert, Disposition } from '@tollward/contracts/detection'
import { type PacketSample, type Reading, RuleAlerts } from './rule-alerts.ts'

const MINUTE_MS = 60_000
const START_MS = 1_800_000_000_000

const reading = (packets: number, change: Partial<Reading> = {}): Reading => ({
  ...{ key: 'rule/a', name: 'KernelRule/a', when: 'alert', packets: BigInt(packets), audited: false },
  ...change,
})
const packet = (source: string, atMs: number): PacketSample => ({
  ...{ source: parseAddress(source) ?? new Uint8Array(), sourcePort: 1234 },
  ...{ destination: parseAddress('192.0.2.1') ?? new Uint8Array(), destinationPort: 23, protocol: 6 },
  ...{ direction: 'egress', seenAtMs: atMs },
})
/** Looks with these counts at these minutes, and says how many packets each alert tells of. */
const told = (alerts: RuleAlerts, counts: readonly (readonly [minute: number, packets: number])[], change = {}) =>
  counts.map(([minute, packets]) =>
    alerts.look([reading(packets, change)], START_MS + minute * MINUTE_MS).map(({ count }) => Number(count)),
  )

test('a rule that alerts tells of its first packet at once, and then of all of them, but not more often than can be read', () => {
  const alerts = new RuleAlerts('n')
  const counts = [
    ...([
      [0, 0],
      [0.1, 3],
      [0.2, 10],
      [4.9, 11],
      [5.2, 12],
      [5.3, 12],
      [30, 12],
      [31, 13],
    ] as const),
  ] as const
  assert.deepEqual(told(alerts, counts), [[], [3], [], [], [9], [], [], [1]])
})

test('a rule that drops tells when drops begin, once, and again after none came for a while', () => {
  const alerts = new RuleAlerts('n')
  const counts = [
    ...([
      [0, 5],
      [1, 6],
      [2, 7],
      [9, 8],
      [18, 9],
      [29, 9],
      [29.1, 12],
      [30, 13],
    ] as const),
  ] as const
  assert.deepEqual(told(alerts, counts, { when: 'drop' }), [[5], [], [], [], [], [], [3], []])
})

test('what was counted before is no news, and another rule of the same name counts from nothing', () => {
  const alerts = new RuleAlerts('n')
  alerts.begin([reading(100)])
  assert.deepEqual(
    told(alerts, [
      [0, 100],
      [1, 102],
    ]),
    [[], [2]],
  )
  assert.deepEqual(told(alerts, [[2, 1]]), [[1]])
  const forgotten = new RuleAlerts('n')
  assert.deepEqual(told(forgotten, [[0, 7]]), [[7]])
  assert.deepEqual(forgotten.look([], START_MS + MINUTE_MS), [])
  assert.deepEqual(told(forgotten, [[2, 7]]), [[7]])
})

test('however many rules match at once, one look raises 20 alerts at most, and the next ones the rest', () => {
  const alerts = new RuleAlerts('n')
  const all = Array.from({ length: 50 }, (_, index) => reading(index + 1, { key: `rule/${index}`, when: 'drop' }))
  const counts = [0, 1, 2, 3].map((second) => alerts.look(all, START_MS + second * 1000))
  assert.deepEqual(
    counts.map(({ length }) => length),
    [20, 20, 10, 0],
  )
  const ids = counts.flat().map(({ alertId }) => alertId)
  assert.equal(new Set(ids).size, 50)
  const sum = counts.flat().reduce((total, { count }) => total + count, 0n)
  assert.equal(sum, (50n * 51n) / 2n)
})

test('an alert shows who sent what, a few sources at most, and accuses nobody where there are many', () => {
  const alerts = new RuleAlerts('node.one')
  const raised = (change: Partial<Reading>, key = 'rule/a') =>
    alerts.look([reading(10, { ...change, key })], START_MS)[0] as Alert
  alerts.sample('rule/a', packet('198.51.100.1', START_MS - 500))
  alerts.sample('rule/a', packet('198.51.100.1', START_MS - 400))
  const one = raised({ when: 'drop' })
  assert.deepEqual([one.node, one.detector, one.disposition], ['node.one', 'kernel-rule', Disposition.BLOCKED])
  assert.deepEqual(one.source, parseAddress('198.51.100.1'))
  const packetText = '198.51.100.1:1234 to 192.0.2.1:23 (protocol 6)'
  assert.equal(one.reason, `KernelRule/a dropped 10 packets, the first for a while, such as ${packetText}.`)
  assert.deepEqual(
    one.evidence.map(({ note, destinationPort, outbound }) => [note, destinationPort, outbound]),
    [['from 198.51.100.1:1234', 23, true]],
  )
  assert.equal(one.lastSeenAt && timestampMs(one.lastSeenAt), START_MS)

  for (let host = 1; host <= 9; host++) alerts.sample('rule/b', packet(`198.51.100.${host}`, START_MS))
  alerts.sample('rule/c', packet('2001:db8::1', START_MS - 2 * MINUTE_MS))
  const many = raised({ when: 'drop', audited: true }, 'rule/b')
  assert.deepEqual([many.evidence.length, many.source.length, many.disposition], [5, 0, Disposition.WOULD_BLOCK])
})

test('an alert shows no packet of long ago', () => {
  const alerts = new RuleAlerts('n')
  const change = { when: 'drop' } as const
  assert.deepEqual(told(alerts, [[0, 1]], change), [[1]])
  alerts.sample('rule/a', packet('198.51.100.1', START_MS + MINUTE_MS))
  alerts.look([reading(1, change)], START_MS + 20 * MINUTE_MS)
  alerts.sample('rule/a', packet('198.51.100.2', START_MS + 21 * MINUTE_MS))
  const [alert] = alerts.look([reading(2, change)], START_MS + 21 * MINUTE_MS)
  assert.deepEqual(
    alert?.evidence.map(({ note }) => note),
    ['from 198.51.100.2:1234'],
  )
})
