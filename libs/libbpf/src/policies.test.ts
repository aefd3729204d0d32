import assert from 'node:assert/strict'
import { once } from 'node:events'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { Worker } from 'node:worker_threads'
import { eventually } from '@tollward/testkit'
import { type Anomaly, decodeGuardEvent, type GuardEvent } from './layout.ts'
import { RingReader } from './ring.ts'
import {
  address,
  ETHERTYPE,
  ethernet,
  extension,
  fragment,
  frameFrom,
  ipv4,
  ipv6,
  PROTOCOL,
  TCP_FLAG,
  tcp,
} from './test-packets.ts'
import { loadSensor, needsKernel, type TestSensor } from './test-sensor.ts'

const SENDER = join(import.meta.dirname, 'test-sender.ts')
/** So slow that no test sees a bucket empty itself. */
const slow = (burst: number) => ({ packetsPerSecond: 0.001, burst })
const syn = (source: string, destinationPort = 8080) => frameFrom(source, { destinationPort })
const segment = (source: string) => frameFrom(source, { flags: TCP_FLAG.ack })

describe('policies of the guard', { skip: needsKernel }, () => {
  let sensor: TestSensor
  before(async () => {
    sensor = await loadSensor()
  })
  after(() => sensor?.[Symbol.dispose]())

  test('a block with a rate lets its sources have it, each its own, drops the rest, and hides no wider block', async () => {
    sensor.block('10.1.0.0/16', { mode: 'rateLimit', packetsPerSecond: 1, ruleId: 5 })
    const earlier = sensor.counters()
    const started = performance.now()
    const verdicts = ['10.1.0.1', '10.1.0.1', '10.1.0.2', '10.1.0.2'].map((source) => sensor.judge(segment(source)))
    assert(performance.now() - started < 1000, 'all within one second')
    assert.deepEqual(verdicts, ['pass', 'drop', 'pass', 'drop'])
    assert.deepEqual(sensor.counters(earlier), { passed: 2, droppedRate: 2 })
    assert.equal(sensor.blockOf('10.1.0.0/16').hits, 4n)
    assert.equal(sensor.blockOf('10.1.0.0/16').packetsPerSecond, 1)
    await eventually(() => sensor.judge(segment('10.1.0.1')) === 'pass', { what: 'a second later there is more' })
    sensor.block('10.0.0.0/8')
    assert.equal(sensor.judge(segment('10.1.0.3')), 'drop')
    sensor.block('10.0.0.0/8', { mode: 'audit' })
  })

  test('SYNs beyond the budget of their source drop; its other packets, other sources and management do not', () => {
    sensor.configure({ synsOfSource: slow(2) })
    const earlier = sensor.counters()
    const flood = () => [1, 2, 3, 4].map(() => sensor.judge(syn('11.2.2.2')))
    assert.deepEqual(flood(), ['pass', 'pass', 'drop', 'drop'])
    assert.equal(sensor.judge(segment('11.2.2.2')), 'pass')
    assert.equal(sensor.judge(frameFrom('11.2.2.2', { flags: TCP_FLAG.syn | TCP_FLAG.ack })), 'pass')
    assert.equal(sensor.judge(syn('11.2.2.3')), 'pass')
    for (let packet = 0; packet < 4; packet++) assert.equal(sensor.judge(syn('11.2.2.2', 22)), 'pass')
    for (let packet = 0; packet < 4; packet++) assert.equal(sensor.judge(syn('127.0.0.1')), 'pass')
    assert.equal(sensor.counters(earlier).droppedSyn, 2)
    sensor.configure({})
    assert.deepEqual(flood(), ['pass', 'pass', 'pass', 'pass'])
  })

  test('SYNs to one port from ever new sources drop beyond the budget of the port, and other ports do not feel it', () => {
    sensor.configure({ synsToPort: slow(3) })
    const verdicts = [1, 2, 3, 4, 5].map((host) => sensor.judge(syn(`11.3.3.${host}`, 8443)))
    assert.deepEqual(verdicts, ['pass', 'pass', 'pass', 'drop', 'drop'])
    assert.equal(sensor.judge(syn('11.3.3.1', 8444)), 'pass')
    sensor.configure({ synsToPort: slow(3), synMode: 'audit' })
    const earlier = sensor.counters()
    assert.equal(sensor.judge(syn('11.3.3.6', 8443)), 'pass')
    sensor.configure({ synsToPort: slow(3), mode: 'audit' })
    assert.equal(sensor.judge(syn('11.3.3.7', 8443)), 'pass')
    assert.deepEqual(sensor.counters(earlier), { audited: 2 })
    sensor.configure({})
  })

  test('CPUs that draw from one bucket at once get together what it holds, and no packet more', async () => {
    // Enough for both to be under way before it is empty.
    const burst = 3_000_000
    await sensor.rules({ id: 1, action: 'rate-limit', rate: slow(burst) })
    const earlier = sensor.counters()
    const stop = new Int32Array(new SharedArrayBuffer(4))
    const { fd } = sensor.object.program('xdp_guard')
    const frames = [segment('11.5.5.5')]
    const workers = [1, 2].map(() => new Worker(SENDER, { workerData: { fd, frames, stop } }))
    const sent = Promise.all(workers.map(async (worker) => Number((await once(worker, 'message'))[0])))
    await eventually(() => (sensor.counters(earlier).droppedRate ?? 0) > 100_000, { what: 'the bucket is empty' })
    Atomics.store(stop, 0, 1)
    const total = (await sent).reduce((sum, count) => sum + count, 0)
    await Promise.all(workers.map((worker) => worker.terminate()))
    const { passed = 0, droppedRate = 0, rateContended = 0 } = sensor.counters(earlier)
    assert.deepEqual({ passed: passed - rateContended, all: passed + droppedRate }, { passed: burst, all: total })
    await sensor.rules()
  })

  test('what an allow rule lets through has no budget of SYNs', async () => {
    sensor.configure({ synsOfSource: slow(1) })
    await sensor.rules({ id: 1, action: 'allow', sources: ['11.4.4.4'] })
    for (let packet = 0; packet < 4; packet++) assert.equal(sensor.judge(syn('11.4.4.4')), 'pass')
    assert.deepEqual(
      [1, 2].map(() => sensor.judge(syn('11.4.4.5'))),
      ['pass', 'drop'],
    )
    await sensor.rules()
    sensor.configure({})
  })

  test('each anomaly passes, counted, unless it is to be dropped; then it drops, and others pass', () => {
    const source = '12.1.1.1'
    const v4 = (options: Partial<Parameters<typeof ipv4>[0]>) => ethernet(ETHERTYPE.ipv4, ipv4({ source, ...options }))
    const broken = v4({})
    broken.writeUInt8(0x44, 14)
    const tags = Array.from({ length: 5 }, () => ({ ethertype: ETHERTYPE.vlan, vlan: 1 }))
    const headers = Array.from({ length: 9 }, () => extension(PROTOCOL.destination))
    const bad = (flags: number) => v4({ payload: tcp({ flags }) })
    const shortHeader = v4({})
    shortHeader.writeUInt8(0x40, 14 + 20 + 12)
    const frames: [Anomaly, Buffer][] = [
      ['malformed', broken],
      ['malformed', ethernet(ETHERTYPE.ipv6, ipv4({ source }))],
      ['vlanTooDeep', frameFrom(source, { tags })],
      ['truncatedTransport', v4({ payload: tcp().subarray(0, 19) })],
      ['truncatedTransport', v4({ totalLength: 39 })],
      ['tooManyExtensionHeaders', ethernet(ETHERTYPE.ipv6, ipv6({ source: '2001:db8::1', extensions: headers }))],
      ['lengthBeyondFrame', v4({ totalLength: 41 })],
      ['tinyFragment', v4({ payload: tcp().subarray(0, 16), fragmentOffset: 0x2000 })],
      ['tinyFragment', v4({ payload: tcp(), fragmentOffset: 1 })],
      [
        'tinyFragment',
        ethernet(
          ETHERTYPE.ipv6,
          ipv6({ source: '2001:db8::1', extensions: [fragment(0)], payload: tcp().subarray(0, 8) }),
        ),
      ],
      ...[0, TCP_FLAG.fin, TCP_FLAG.syn | TCP_FLAG.fin, TCP_FLAG.syn | TCP_FLAG.rst, TCP_FLAG.fin | TCP_FLAG.push].map(
        (flags): [Anomaly, Buffer] => ['badTcp', bad(flags)],
      ),
      ['badTcp', shortHeader],
    ]
    const sound = [TCP_FLAG.syn, TCP_FLAG.ack, TCP_FLAG.rst, TCP_FLAG.rst | TCP_FLAG.ack, TCP_FLAG.fin | TCP_FLAG.ack]
    for (const [anomaly, frame] of frames) {
      sensor.configure({})
      const earlier = sensor.counters()
      assert.equal(sensor.judge(frame), 'pass', anomaly)
      assert.equal(sensor.counters(earlier)[anomaly], 1, anomaly)
      sensor.configure({ dropAnomalies: [anomaly] })
      const between = sensor.counters()
      assert.equal(sensor.judge(frame), 'drop', `${anomaly} ${frame.toString('hex')}`)
      assert.equal(sensor.counters(between).droppedAnomaly, 1)
      for (const flags of sound) assert.equal(sensor.judge(bad(flags)), 'pass', `${anomaly} ${flags}`)
      sensor.configure({ dropAnomalies: [anomaly], mode: 'audit' })
      assert.equal(sensor.judge(frame), 'pass', `${anomaly} in audit mode`)
    }
    sensor.configure({ dropAnomalies: ['badTcp'] })
    assert.equal(sensor.judge(frameFrom('127.0.0.1', { flags: 0 })), 'pass')
    assert.equal(sensor.judge(ethernet(ETHERTYPE.arp, Buffer.alloc(28))), 'pass')
    sensor.configure({})
  })

  test('what is dropped, audited or alerted is reported with its reason, at most at the rate of each', async () => {
    using ring = new RingReader(sensor.object.map('guard_events'))
    const events = (): GuardEvent[] => {
      const found: GuardEvent[] = []
      ring.read((data, at) => found.push(decodeGuardEvent(data, at)))
      return found
    }
    sensor.block('13.1.1.1', { ruleId: 71 })
    assert.equal(sensor.judge(syn('13.1.1.1')), 'drop')
    assert.deepEqual(events(), [], 'without a rate nothing is reported')

    sensor.configure({ events: { packetsPerSecond: 0.001, burst: 1 }, dropAnomalies: ['badTcp'] })
    await sensor.rules(
      { id: 72, action: 'alert', sources: ['13.2.0.0/16'] },
      { id: 73, action: 'drop', sources: ['13.2.2.2'] },
      { id: 74, action: 'drop', mode: 'audit', direction: 'egress' },
    )
    for (let packet = 0; packet < 50; packet++) sensor.judge(syn('13.1.1.1', 80))
    const blocked = events()
    assert(blocked.length >= 1 && blocked.length <= availableParallelism(), `${blocked.length} of 50, one a CPU`)
    assert.deepEqual(
      { ...blocked[0], atNs: 0n },
      {
        ...{ atNs: 0n, source: address('13.1.1.1'), destination: address('198.51.100.1'), protocol: 6 },
        ...{ sourcePort: 40_000, destinationPort: 80, direction: 'ingress', origin: 'block', id: 71 },
        ...{ verdict: 'droppedExact', ipBytes: 40, prefixLength: 128, ifindex: blocked[0]?.ifindex },
      },
    )
    sensor.judge(syn('13.2.2.2'))
    sensor.judge(frameFrom('13.3.3.3', { flags: 0 }))
    sensor.judgeLeaving(syn('13.4.4.4'))
    assert.deepEqual(
      events().map(({ direction, origin, verdict, id }) => [direction, origin, verdict, id]),
      [
        ['ingress', 'rule', 'ruleAlerted', 72],
        ['ingress', 'rule', 'droppedRule', 73],
        ['ingress', 'policy', 'droppedAnomaly', 64],
        ['egress', 'rule', 'audited', 74],
      ],
    )
    await sensor.rules()
    sensor.configure({ events: { packetsPerSecond: 1_000_000, burst: 1_000_000 } })
    const earlier = sensor.counters()
    for (let packet = 0; packet < 5000; packet++) sensor.judge(syn('13.1.1.1'))
    const lost = sensor.counters(earlier).guardEventLost ?? 0
    assert(lost > 0)
    assert.equal(events().length + lost, 5000)
    sensor.configure({})
  })
})
