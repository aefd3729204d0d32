import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import process from 'node:process'
import { after, before, describe, test } from 'node:test'
import { eventually } from '@tollward/testkit'
import { bootTimeNs, wallTimeToBootNs } from './clock.ts'
import { decodeFirstHit, type FirstHit } from './layout.ts'
import { testRun } from './object.ts'
import { RingReader } from './ring.ts'
import {
  address,
  authentication,
  ETHERTYPE,
  ethernet,
  extension,
  fragment,
  frameFrom,
  ipv4,
  ipv6,
  PROTOCOL,
  tcp,
  udp,
} from './test-packets.ts'
import { loadSensor, needsKernel, type TestSensor } from './test-sensor.ts'

/** Some 100 ms of a CPU. */
const FLOOD_PACKETS = 1_000_000
const XDP_PASS = 2

/** This thread stays on one CPU until what is returned is disposed of. */
function boundToOneCpu(): Disposable {
  const thread = String(process.pid)
  const taskset = (...args: string[]) => execFileSync('taskset', ['--pid', ...args, thread], { encoding: 'utf8' })
  const mask = /([0-9a-f]+)$/.exec(taskset().trim())?.[1]
  assert(mask !== undefined)
  const lowest = BigInt(`0x${mask}`) & -BigInt(`0x${mask}`)
  taskset(lowest.toString(16))
  return { [Symbol.dispose]: () => void taskset(mask) }
}

const VERDICTS = [
  'passed',
  'off',
  'guardedAddress',
  'managementPort',
  'droppedExact',
  'droppedCidr',
  'audited',
  'notIp',
  'malformed',
  'vlanTooDeep',
] as const

/** Each test has addresses of its own in one loaded sensor. */
describe('the guard', { skip: needsKernel }, () => {
  let sensor: TestSensor
  before(async () => {
    sensor = await loadSensor()
  })
  after(() => sensor?.[Symbol.dispose]())

  test('drops a blocked address and not its neighbour', () => {
    for (const [blocked, neighbour] of [
      ['192.0.2.1', '192.0.2.2'],
      ['2001:db8::1', '2001:db8::2'],
    ] as const) {
      sensor.block(blocked)
      assert.equal(sensor.judge(frameFrom(blocked)), 'drop')
      assert.equal(sensor.judge(frameFrom(neighbour)), 'pass')
    }
  })

  test('drops a blocked range up to its edges and nothing outside', () => {
    for (const [cidr, inside, outside] of [
      ['10.1.16.0/20', ['10.1.16.0', '10.1.31.255'], ['10.1.15.255', '10.1.32.0']],
      [
        '2001:db8:1::/48',
        ['2001:db8:1::', '2001:db8:1:ffff:ffff:ffff:ffff:ffff'],
        ['2001:db8:0:ffff::1', '2001:db8:2::'],
      ],
    ] as const) {
      sensor.block(cidr)
      for (const source of inside) assert.equal(sensor.judge(frameFrom(source)), 'drop', source)
      for (const source of outside) assert.equal(sensor.judge(frameFrom(source)), 'pass', source)
    }
  })

  test('an IPv6 range that spans the mapped addresses does not block IPv4', async () => {
    using other = await loadSensor()
    other.block('::/0')
    assert.equal(other.judge(frameFrom('10.9.9.9')), 'pass')
    assert.equal(other.judge(frameFrom('2001:db8::9')), 'drop')
  })

  test('an entry lapses by its expiry with nobody there to remove it', async () => {
    const frame = frameFrom('192.0.2.10')
    sensor.block('192.0.2.10', { expiresNs: wallTimeToBootNs(Date.now() + 60_000) })
    assert.equal(sensor.judge(frame), 'drop')
    const before = sensor.counters()
    sensor.block('192.0.2.10', { expiresNs: bootTimeNs() + 50_000_000n })
    assert.equal(sensor.judge(frame), 'drop')
    await eventually(() => sensor.judge(frame) === 'pass', { what: 'the entry lapses' })
    assert.equal(sensor.counters(before).expiredSeen, 1)
  })

  test('an entry lapses amid a flood of nothing but its packets', async () => {
    // Each CPU looks at the clock for itself: on another one, the flood would begin anew.
    using _bound = boundToOneCpu()
    const lapsesAmid = () => {
      sensor.block('192.0.2.11', { expiresNs: bootTimeNs() + 20_000_000n })
      const before = sensor.counters()
      // In one call, so that no other packet makes its CPU look at the clock.
      const { result } = testRun(sensor.object.program('xdp_guard'), frameFrom('192.0.2.11'), FLOOD_PACKETS)
      assert.equal(result, XDP_PASS)
      const { droppedExact = 0, passed = 0 } = sensor.counters(before)
      assert.equal(droppedExact + passed, FLOOD_PACKETS)
      return droppedExact > 1
    }
    // On a busy machine it may have lapsed before the first, which looks at the clock.
    await eventually(lapsesAmid, { what: 'a flood begins in time' })
  })

  test('an expired entry hides no live one that is wider', () => {
    // An exact address ends up to a millisecond later than it says.
    const expiresNs = bootTimeNs() - 2_000_000n
    sensor.block('10.2.3.4', { expiresNs })
    sensor.block('10.2.3.0/24', { expiresNs })
    sensor.block('10.2.2.0/23', { expiresNs })
    assert.equal(sensor.judge(frameFrom('10.2.3.4')), 'pass')
    sensor.block('10.2.0.0/16')
    assert.equal(sensor.judge(frameFrom('10.2.3.4')), 'drop')
    sensor.block('2001:db8:3:4::/64', { expiresNs })
    sensor.block('2001:db8:3::/48')
    assert.equal(sensor.judge(frameFrom('2001:db8:3:4::5')), 'drop')
  })

  test('an entry in audit mode drops nothing, is counted, and hides no wider one that drops', () => {
    using ring = new RingReader(sensor.object.map('first_hits'))
    ring.read(() => undefined)
    sensor.block('10.3.3.3', { mode: 'audit' })
    sensor.block('10.3.3.0/24', { mode: 'audit' })
    const before = sensor.counters()
    assert.equal(sensor.judge(frameFrom('10.3.3.3')), 'pass')
    assert.deepEqual(sensor.counters(before), { audited: 1 })
    assert.equal(sensor.blockOf('10.3.3.3').hits, 1n)
    ring.read(() => assert.fail('nothing was dropped'))
    sensor.block('10.3.0.0/16')
    assert.equal(sensor.judge(frameFrom('10.3.3.3')), 'drop')
  })

  test('the whole guard in audit mode drops nothing and counts what it would; off, it judges nothing', async () => {
    using other = await loadSensor()
    other.block('10.4.4.4')
    other.block('10.4.5.0/24')
    other.configure({ mode: 'audit' })
    assert.equal(other.judge(frameFrom('10.4.4.4')), 'pass')
    assert.equal(other.judge(frameFrom('10.4.5.5')), 'pass')
    assert.deepEqual(other.counters(), { audited: 2 })
    other.configure({ mode: 'off' })
    assert.equal(other.judge(frameFrom('10.4.4.4')), 'pass')
    assert.deepEqual(other.counters(), { audited: 2, off: 1 })
    assert.equal(other.blockOf('10.4.4.4').hits, 1n)
  })

  test('an address whose guard is exact passes though its range is blocked, and the rest of the range drops', () => {
    for (const cidr of ['127.0.0.0/8', '127.0.0.1', '::1', '::/64', '10.5.0.0/16']) sensor.block(cidr)
    sensor.guard('10.5.0.9')
    for (const source of ['127.0.0.1', '::1', '10.5.0.9']) assert.equal(sensor.judge(frameFrom(source)), 'pass', source)
    for (const source of ['127.0.0.66', '127.0.0.2', '::2', '10.5.0.8'])
      assert.equal(sensor.judge(frameFrom(source)), 'drop', source)
  })

  test('as many addresses as a node has can be guarded, and each is until it is guarded no more', async () => {
    using other = await loadSensor()
    const own = Array.from({ length: 300 }, (_, index) =>
      index % 3 === 0 ? `2001:db8:5:${index.toString(16)}::${index}` : `10.5.${index % 7}.${index % 256}`,
    )
    const dropped = () => own.filter((source) => other.judge(frameFrom(source)) === 'drop')
    for (const cidr of ['10.5.0.0/16', '2001:db8:5::/48']) other.block(cidr)
    other.guard(...own)
    assert.deepEqual(dropped(), [])
    other.guard(...own.slice(0, 100))
    assert.deepEqual(dropped(), own.slice(100))
  })

  test('a blocked source still reaches the management ports, by TCP and UDP, and no other', () => {
    const source = '10.6.6.6'
    sensor.block(source)
    const datagram = (destinationPort: number) =>
      ethernet(ETHERTYPE.ipv4, ipv4({ source, protocol: PROTOCOL.udp, payload: udp({ destinationPort }) }))
    for (const destinationPort of [22, 4222, 9090]) {
      assert.equal(sensor.judge(frameFrom(source, { destinationPort })), 'pass')
      assert.equal(sensor.judge(datagram(destinationPort)), 'pass')
    }
    for (const destinationPort of [0, 23, 8080, 8443]) {
      assert.equal(sensor.judge(frameFrom(source, { destinationPort })), 'drop')
      assert.equal(sensor.judge(datagram(destinationPort)), 'drop')
    }
    assert.equal(sensor.judge(frameFrom(source, { sourcePort: 22 })), 'drop')
  })

  test('no fragment but the first is granted what a port grants', () => {
    const payload = tcp({ destinationPort: 22 })
    sensor.block('10.7.7.7')
    sensor.block('2001:db8:7::7')
    const v4 = (fragmentOffset: number) =>
      ethernet(ETHERTYPE.ipv4, ipv4({ source: '10.7.7.7', payload, fragmentOffset }))
    const v6 = (offset: number) =>
      ethernet(ETHERTYPE.ipv6, ipv6({ source: '2001:db8:7::7', payload, extensions: [fragment(offset)] }))
    const before = sensor.counters()
    assert.equal(sensor.judge(v4(0x2000)), 'pass')
    assert.equal(sensor.judge(v6(0)), 'pass')
    for (const offset of [1, 185, 0x1fff]) {
      assert.equal(sensor.judge(v4(offset)), 'drop')
      assert.equal(sensor.judge(v6(offset)), 'drop')
    }
    assert.equal(sensor.counters(before).nonFirstFragment, 6)
  })

  test('VLAN tags hide no source; more than four are let through and counted', () => {
    const source = '10.8.8.8'
    sensor.block(source)
    const tags = [ETHERTYPE.qinq, ETHERTYPE.vlan, ETHERTYPE.qinqOld, ETHERTYPE.vlan, ETHERTYPE.vlan].map(
      (ethertype) => ({
        ethertype,
        vlan: 100,
      }),
    )
    for (const depth of [1, 2, 3, 4])
      assert.equal(sensor.judge(frameFrom(source, { tags: tags.slice(0, depth) })), 'drop')
    const before = sensor.counters()
    assert.equal(sensor.judge(frameFrom(source, { tags })), 'pass')
    assert.deepEqual(sensor.counters(before), { vlanTooDeep: 1 })
  })

  test('IPv4 options are stepped over, whatever they hold', () => {
    const source = '10.10.10.10'
    sensor.block(source)
    for (const length of [4, 20, 40]) {
      // Options that look like a header to port 22, in front of the real one to 8080, and the other way round.
      const options = Buffer.alloc(length, Buffer.from([0, 22, 0, 22]))
      const to = (destinationPort: number) =>
        sensor.judge(ethernet(ETHERTYPE.ipv4, ipv4({ source, options, payload: tcp({ destinationPort }) })))
      assert.equal(to(8080), 'drop')
      assert.equal(to(22), 'pass')
    }
  })

  test('IPv6 extension headers are stepped over by their own lengths', () => {
    const source = '2001:db8:11::11'
    sensor.block(source)
    const to = (destinationPort: number, ...extensions: (readonly [number, Buffer])[]) =>
      sensor.judge(ethernet(ETHERTYPE.ipv6, ipv6({ source, extensions, payload: tcp({ destinationPort }) })))
    const chain = [
      extension(PROTOCOL.hopByHop),
      extension(PROTOCOL.destination, 3),
      extension(PROTOCOL.routing, 2),
      fragment(0),
      authentication(6),
      extension(PROTOCOL.destination, 31),
      extension(PROTOCOL.mobility),
    ]
    for (let length = 1; length <= chain.length; length++) {
      assert.equal(to(22, ...chain.slice(0, length)), 'pass', `${length} headers`)
      assert.equal(to(8080, ...chain.slice(0, length)), 'drop', `${length} headers`)
    }
    // A header that nobody knows ends the chain: what follows it is no port.
    assert.equal(to(22, [PROTOCOL.none, Buffer.alloc(8)]), 'drop')
  })

  test('a chain of more than eight extension headers is judged by its source, and grants no port', () => {
    sensor.block('2001:db8:12::12')
    const frame = (source: string, headers: number) => {
      // Wherever the parser gives up, the bytes look like the port 22.
      const looksLikePort = Buffer.from([0, 0, 0, 22, 0, 22, 0, 22])
      const extensions = Array.from({ length: headers }, () => [PROTOCOL.destination, looksLikePort] as const)
      return ethernet(ETHERTYPE.ipv6, ipv6({ source, extensions, payload: tcp({ destinationPort: 22 }) }))
    }
    assert.equal(sensor.judge(frame('2001:db8:12::12', 8)), 'pass')
    const before = sensor.counters()
    assert.equal(sensor.judge(frame('2001:db8:12::12', 9)), 'drop')
    assert.equal(sensor.judge(frame('2001:db8:12::13', 9)), 'pass')
    assert.equal(sensor.counters(before).tooManyExtensionHeaders, 2)
  })

  test('a frame cut anywhere never passes as a management port, and drops as soon as its source is whole', () => {
    sensor.block('10.13.13.13')
    sensor.block('2001:db8:13::13')
    const extensions = [extension(PROTOCOL.hopByHop), fragment(0)]
    const payload = tcp({ destinationPort: 22 })
    for (const [frame, sourceEnd] of [
      [ethernet(ETHERTYPE.ipv4, ipv4({ source: '10.13.13.13', payload, options: Buffer.alloc(8) })), 34],
      [ethernet(ETHERTYPE.ipv6, ipv6({ source: '2001:db8:13::13', payload, extensions })), 54],
    ] as const) {
      assert.equal(sensor.judge(frame), 'pass')
      for (let length = 14; length < frame.length; length++)
        assert.equal(sensor.judge(frame.subarray(0, length)), length < sourceEnd ? 'pass' : 'drop', `${length} bytes`)
    }
  })

  test('what is not IP, or no valid IP header, passes and is counted', () => {
    const broken = ipv4({ source: '10.14.14.14' })
    broken.writeUInt8(0x44, 0)
    const before = sensor.counters()
    assert.equal(sensor.judge(ethernet(ETHERTYPE.arp, Buffer.alloc(28))), 'pass')
    assert.equal(sensor.judge(ethernet(ETHERTYPE.ipv4, broken)), 'pass')
    assert.equal(sensor.judge(ethernet(ETHERTYPE.ipv6, ipv4({ source: '10.14.14.14' }))), 'pass')
    assert.deepEqual(sensor.counters(before), { notIp: 1, malformed: 2 })
  })

  test('the first drop of an entry is timed once, and every hit is counted', () => {
    using ring = new RingReader(sensor.object.map('first_hits'))
    ring.read(() => undefined)
    const blockedAt = bootTimeNs()
    sensor.block('10.15.0.0/16', { ruleId: 4711 })
    for (let packet = 0; packet < 3; packet++) assert.equal(sensor.judge(frameFrom(`10.15.0.${packet}`)), 'drop')
    const hits: FirstHit[] = []
    ring.read((data, at) => hits.push(decodeFirstHit(data, at)))
    const atNs = hits[0]?.atNs ?? 0n
    assert.deepEqual(hits, [{ atNs, source: address('10.15.0.0'), ruleId: 4711, prefixLength: 16 }])
    assert(blockedAt < atNs && atNs < bootTimeNs())
    assert.equal(sensor.blockOf('10.15.0.0/16').hits, 3n)
  })

  test('mutated frames always get a verdict, exactly one, and never a drop of a source that nobody blocked', async () => {
    using other = await loadSensor()
    const extensions = [extension(PROTOCOL.hopByHop), authentication(), fragment(0)]
    const seeds = [
      frameFrom('10.16.16.16', { tags: [{ ethertype: ETHERTYPE.qinq, vlan: 7 }] }),
      ethernet(ETHERTYPE.ipv4, ipv4({ source: '10.16.16.17', options: Buffer.alloc(40) })),
      ethernet(ETHERTYPE.ipv6, ipv6({ source: '2001:db8:16::16', extensions })),
    ]
    const random = randomNumbers(20_261_121)
    const frames = 6000
    for (let count = 0; count < frames; count++) {
      const frame = Buffer.from(seeds[count % seeds.length] ?? [])
      for (let change = random(6); change >= 0; change--) frame[12 + random(frame.length - 12)] = random(256)
      assert.equal(other.judge(frame.subarray(0, 14 + random(frame.length - 13))), 'pass', frame.toString('hex'))
    }
    const counters = other.counters()
    const verdicts = VERDICTS.reduce((sum, name) => sum + (counters[name] ?? 0), 0)
    assert.equal(verdicts, frames, JSON.stringify(counters))
  })
})

/** Numbers below a bound, the same at every run (mulberry32). */
function randomNumbers(seed: number): (below: number) => number {
  let state = seed
  return (below) => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below
  }
}
