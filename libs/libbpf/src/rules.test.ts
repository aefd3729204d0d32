import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { eventually } from '@tollward/testkit'
import { bootTimeNs } from './clock.ts'
import {
  authentication,
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
  udp,
} from './test-packets.ts'
import { loadSensor, needsKernel, type TestSensor } from './test-sensor.ts'

const MORE = 0x2000
const TELNET = 23
const V4 = '10.1.1.1'
const V6 = '2001:db8:1::1'
/** So slow that no test sees a bucket empty itself. */
const NEVER_AGAIN = { packetsPerSecond: 0.001, burst: 3 }
const dropTelnet = { id: 1, action: 'drop', protocol: 'tcp', ports: [[TELNET, TELNET]] } as const
const telnet = tcp({ destinationPort: TELNET })
const http = tcp({ destinationPort: 8080 })

const v4 = (payload: Buffer, options: Partial<Parameters<typeof ipv4>[0]> = {}) =>
  ethernet(ETHERTYPE.ipv4, ipv4({ source: V4, payload, ...options }))
const v6 = (payload: Buffer, options: Partial<Parameters<typeof ipv6>[0]> = {}) =>
  ethernet(ETHERTYPE.ipv6, ipv6({ source: V6, payload, ...options }))

describe('rules in the kernel', { skip: needsKernel }, () => {
  let sensor: TestSensor
  before(async () => {
    sensor = await loadSensor()
  })
  after(() => sensor?.[Symbol.dispose]())

  test('are looked at in their order: the first that allows or drops ends it', async () => {
    const allow = { id: 1, action: 'allow', sources: ['10.1.0.0/16'] } as const
    const drop = { id: 2, action: 'drop', sources: ['10.0.0.0/8'] } as const
    await sensor.rules(allow, drop)
    assert.equal(sensor.judge(frameFrom('10.1.2.3')), 'pass')
    assert.equal(sensor.judge(frameFrom('10.2.2.3')), 'drop')
    assert.equal(sensor.judge(frameFrom('11.2.2.3')), 'pass')
    await sensor.rules(drop, allow)
    assert.equal(sensor.judge(frameFrom('10.1.2.3')), 'drop')
    assert.deepEqual([sensor.countOf(1).matched, sensor.countOf(2).matched, sensor.countOf(2).over], [1n, 2n, 2n])
  })

  test('an allowed source passes though it is blocked, for what the rule allows and nothing else', async () => {
    sensor.block('10.3.0.0/16')
    sensor.block('10.3.3.3')
    await sensor.rules({ id: 3, action: 'allow', sources: ['10.3.3.3'], protocol: 'tcp', ports: [[443, 443]] })
    const earlier = sensor.counters()
    assert.equal(sensor.judge(frameFrom('10.3.3.3', { destinationPort: 443 })), 'pass')
    assert.equal(sensor.judge(frameFrom('10.3.3.3', { destinationPort: 444 })), 'drop')
    assert.equal(sensor.judge(frameFrom('10.3.3.4', { destinationPort: 443 })), 'drop')
    assert.deepEqual(sensor.counters(earlier), { allowed: 1, droppedExact: 1, droppedCidr: 1 })
  })

  test('ranges of addresses and ports hold up to their edges and no further, each protocol for itself', async () => {
    const ports = [[1000, 1999] as const, [65_535, 65_535] as const]
    const rule = { id: 4, action: 'drop', protocol: 'udp', ports, destinations: ['198.51.100.0/25'] } as const
    await sensor.rules(rule)
    const to = (destination: string, destinationPort: number, protocol: 'tcp' | 'udp' = 'udp') =>
      sensor.judge(
        v4(protocol === 'udp' ? udp({ destinationPort }) : tcp({ destinationPort }), {
          destination,
          protocol: PROTOCOL[protocol],
        }),
      )
    for (const port of [1000, 1001, 1999, 65_535]) assert.equal(to('198.51.100.127', port), 'drop', String(port))
    for (const port of [999, 2000, 65_534, 0]) assert.equal(to('198.51.100.127', port), 'pass', String(port))
    assert.equal(to('198.51.100.128', 1000), 'pass')
    assert.equal(to('198.51.100.1', 1000, 'tcp'), 'pass')
    await sensor.rules({ id: 5, action: 'drop', protocol: 'icmp' })
    assert.equal(sensor.judge(v4(Buffer.from([8, 0, 0, 0]), { protocol: PROTOCOL.icmp })), 'drop')
    assert.equal(sensor.judge(v6(Buffer.from([128, 0, 0, 0]), { protocol: PROTOCOL.icmp6 })), 'drop')
    assert.equal(sensor.judge(v4(http)), 'pass')
  })

  test('guarded addresses and management ports pass whatever rules say, and a lapsed rule says nothing', async () => {
    sensor.guard('10.4.4.4')
    await sensor.rules({ id: 6, action: 'drop' })
    for (const source of ['127.0.0.1', '::1', '10.4.4.4']) assert.equal(sensor.judge(frameFrom(source)), 'pass', source)
    assert.equal(sensor.judge(frameFrom(V4, { destinationPort: 22 })), 'pass')
    assert.equal(sensor.judge(frameFrom(V4)), 'drop')
    await sensor.rules({ id: 6, action: 'drop', expiresNs: bootTimeNs() + 3_600_000_000_000n })
    assert.equal(sensor.judge(frameFrom(V4)), 'drop')
    await sensor.rules({ id: 6, action: 'drop', expiresNs: bootTimeNs() + 300_000_000n })
    await eventually(() => sensor.judge(frameFrom(V4)) === 'pass', { what: 'the rule lapses' })
  })

  test('an alert and a rule in audit mode count and let the later rules be looked at; so do 32 of them', async () => {
    const onTrial = { id: 7, action: 'drop', mode: 'audit' } as const
    await sensor.rules(onTrial, { id: 8, action: 'alert' })
    let earlier = sensor.counters()
    assert.equal(sensor.judge(frameFrom(V4)), 'pass')
    assert.deepEqual(sensor.counters(earlier), { audited: 1, ruleAlerted: 1 })
    assert.equal(sensor.countOf(7).over, 1n)
    await sensor.rules(onTrial, { id: 9, action: 'drop' })
    assert.equal(sensor.judge(frameFrom(V4)), 'drop')
    const alerts = Array.from({ length: 48 }, (_, index) => ({ id: 100 + index, action: 'alert' }) as const)
    await sensor.rules(...alerts.slice(0, 32), { id: 9, action: 'drop' })
    assert.equal(sensor.judge(frameFrom(V4)), 'drop')
    await sensor.rules(...alerts, { id: 9, action: 'drop' })
    earlier = sensor.counters()
    assert.equal(sensor.judge(frameFrom(V4)), 'pass')
    assert.equal(sensor.counters(earlier).ruleChainTooLong, 1)
  })

  test('the whole guard in audit mode drops nothing by a rule and counts what it would', async () => {
    await sensor.rules({ id: 10, action: 'drop' }, { id: 11, action: 'allow' })
    sensor.configure({ mode: 'audit' })
    const earlier = sensor.counters()
    assert.equal(sensor.judge(frameFrom(V4)), 'pass')
    assert.equal(sensor.judgeLeaving(frameFrom(V4)), 'pass')
    assert.deepEqual(sensor.counters(earlier), { audited: 1, egressPassed: 1 })
    sensor.configure({ mode: 'off' })
    assert.equal(sensor.judge(frameFrom(V4)), 'pass')
    assert.equal(sensor.countOf(10).matched, 1n)
    sensor.configure({})
  })

  test('the last of 1,024 rules is found, behind all words of bits', async () => {
    const others = Array.from({ length: 1023 }, (_, index) => ({
      ...({ id: index, action: 'drop', protocol: 'tcp' } as const),
      sources: [`11.${index >> 8}.${index & 255}.0/24`],
    }))
    await sensor.rules(...others, { id: 2000, action: 'drop', sources: ['10.0.0.0/8'] })
    assert.equal(sensor.judge(frameFrom(V4)), 'drop')
    assert.equal(sensor.countOf(2000).over, 1n)
    assert.equal(sensor.judge(frameFrom('11.3.254.1')), 'drop')
    assert.equal(sensor.countOf(1022).over, 1n)
    assert.equal(sensor.judge(frameFrom('11.3.255.1')), 'pass')
  })

  test('a rate is of each source: its burst passes, more drops, others are not touched; of IPv6 a /64 is one source', async () => {
    await sensor.rules({ id: 12, action: 'rate-limit', rate: NEVER_AGAIN })
    const verdicts = (...sources: string[]) => sources.map((source) => sensor.judge(frameFrom(source)))
    const earlier = sensor.counters()
    assert.deepEqual(verdicts(V4, V4, V4, V4, V4), ['pass', 'pass', 'pass', 'drop', 'drop'])
    assert.deepEqual(verdicts('10.1.1.2'), ['pass'])
    assert.deepEqual(verdicts(V6, '2001:db8:1::2', '2001:db8:1:0:ffff::3', '2001:db8:1::4', '2001:db8:1:1::1'), [
      ...['pass', 'pass', 'pass', 'drop', 'pass'],
    ])
    assert.deepEqual(sensor.counters(earlier), { passed: 8, droppedRate: 3 })
    assert.deepEqual([sensor.countOf(12).matched, sensor.countOf(12).over], [11n, 3n])
  })

  test('a bucket fills again at its rate, and a packet within it is judged by later rules', async () => {
    const limit = { id: 13, action: 'rate-limit', rate: { packetsPerSecond: 50, burst: 1 } } as const
    await sensor.rules(limit)
    const startedNs = bootTimeNs()
    for (let passed = 0; passed < 5; ) if (sensor.judge(frameFrom('10.5.5.5')) === 'pass') passed += 1
    // Four intervals of 20 ms lie between five packets.
    assert(bootTimeNs() - startedNs >= 80_000_000n)
    assert(sensor.countOf(13).over > 0n)
    await sensor.rules({ id: 14, action: 'rate-limit', rate: NEVER_AGAIN }, { id: 15, action: 'drop' })
    assert.equal(sensor.judge(frameFrom('10.5.5.6')), 'drop')
    assert.deepEqual([sensor.countOf(14).over, sensor.countOf(15).over], [0n, 1n])
  })

  test('a new set takes nothing from a source that an older, slower rate of the same id had stopped', async () => {
    await sensor.rules({ id: 16, action: 'rate-limit', rate: { packetsPerSecond: 0.001, burst: 1 } })
    assert.equal(sensor.judge(frameFrom('10.5.6.7')), 'pass')
    assert.equal(sensor.judge(frameFrom('10.5.6.7')), 'drop')
    await sensor.rules({ id: 16, action: 'rate-limit', rate: { packetsPerSecond: 1000, burst: 10 } })
    assert.equal(sensor.judge(frameFrom('10.5.6.7')), 'pass')
  })

  test('a later fragment is judged by the ports of the first, in either direction and IP version', async () => {
    await sensor.rules(dropTelnet, { ...dropTelnet, id: 2, direction: 'egress' })
    for (const judge of [sensor.judge.bind(sensor), sensor.judgeLeaving.bind(sensor)]) {
      const earlier = sensor.counters()
      for (const [id, payload, verdict] of [
        [1, telnet, 'drop'],
        [2, http, 'pass'],
      ] as const) {
        const rest = Buffer.alloc(64, Buffer.from([0, TELNET]))
        assert.equal(judge(v4(payload, { fragmentOffset: MORE, id })), verdict)
        assert.equal(judge(v4(rest, { fragmentOffset: MORE | 3, id })), verdict)
        assert.equal(judge(v4(rest, { fragmentOffset: 11, id })), verdict)
        assert.equal(judge(v6(payload, { extensions: [fragment(0, id)] })), verdict)
        // Only the first fragment's next header counts.
        const other = { extensions: [extension(PROTOCOL.hopByHop), fragment(3, id)], protocol: PROTOCOL.none }
        assert.equal(judge(v6(rest, other)), verdict)
      }
      assert.equal(sensor.counters(earlier).fragmentWithoutFirst, undefined)
    }
  })

  test('a fragment without its first meets every rule that drops and could be meant, and none that allows', async () => {
    const rest = Buffer.alloc(64)
    const fragments = [
      v4(rest, { fragmentOffset: 11, id: 77 }),
      v6(rest, { extensions: [fragment(11, 77)], protocol: PROTOCOL.udp }),
    ]
    await sensor.rules({ ...dropTelnet, sources: ['10.1.0.0/16', '2001:db8::/32'] })
    const earlier = sensor.counters()
    for (const frame of fragments) assert.equal(sensor.judge(frame), 'drop')
    const counted = sensor.counters(earlier)
    assert.deepEqual([counted.fragmentWithoutFirst, counted.unknownTransport], [2, 2])
    sensor.configure({ unknownTransport: 'passed' })
    for (const frame of fragments) assert.equal(sensor.judge(frame), 'pass')
    sensor.configure({})
    // Of UDP the IPv4 fragment says itself that it is none.
    assert.equal(sensor.judge(v4(rest, { fragmentOffset: 11, id: 77, protocol: PROTOCOL.udp })), 'pass')
    await sensor.rules({ ...dropTelnet, sources: ['10.2.0.0/16'] })
    for (const frame of fragments) assert.equal(sensor.judge(frame), 'pass')
    const allow = { id: 3, action: 'allow', protocol: 'tcp', ports: [[8080, 8080]] } as const
    await sensor.rules(allow, { id: 4, action: 'drop' })
    for (const frame of fragments) assert.equal(sensor.judge(frame), 'drop')
  })

  test('what is dropped as a whole is not let through in pieces: tiny, padded and nested first fragments', async () => {
    await sensor.rules(dropTelnet)
    const padding = (frame: Buffer) => Buffer.concat([frame, http])
    const tiny = [
      // 8 bytes of TCP, with padding that looks like the rest of a header to another port.
      padding(v4(telnet.subarray(0, 8), { fragmentOffset: MORE, id: 5 })),
      // Nothing but an extension header, and padding that looks like TCP.
      padding(v6(Buffer.alloc(0), { extensions: [fragment(0, 5), extension(PROTOCOL.destination)] })),
      padding(v6(Buffer.alloc(0), { extensions: [fragment(0, 5)], protocol: PROTOCOL.destination })),
    ]
    const earlier = sensor.counters()
    for (const frame of tiny) assert.equal(sensor.judge(frame), 'drop')
    // Would overwrite the flags of the first.
    assert.equal(sensor.judge(v4(Buffer.alloc(64), { fragmentOffset: 1, id: 5 })), 'drop')
    assert.equal(sensor.counters(earlier).tinyFragment, 4)
    // A fragment of a fragment: whichever ports it shows are not those of what is put together.
    assert.equal(sensor.judge(v6(http, { extensions: [fragment(0, 6), fragment(0, 7)] })), 'drop')
    assert.equal(sensor.judge(v6(Buffer.alloc(64), { extensions: [fragment(3, 6)] })), 'drop')
  })

  test('the rest of what was granted a management port is not dropped by a rule', async () => {
    await sensor.rules({ id: 1, action: 'drop', protocol: 'udp' })
    const protocol = PROTOCOL.udp
    const first = (destinationPort: number, id: number) =>
      sensor.judge(v4(udp({ destinationPort }), { fragmentOffset: MORE, protocol, id }))
    const rest = (id: number) => sensor.judge(v4(Buffer.alloc(8), { fragmentOffset: 1, protocol, id }))
    assert.deepEqual([first(4222, 20), rest(20), first(4223, 21), rest(21)], ['pass', 'pass', 'drop', 'drop'])
    await sensor.rules({ id: 1, action: 'drop', protocol: 'udp', direction: 'egress' })
    const answer = (id: number, sourcePort: number) =>
      [
        v4(udp({ sourcePort }), { fragmentOffset: MORE, protocol, id }),
        v4(Buffer.alloc(8), { fragmentOffset: 1, protocol, id }),
      ].map((frame) => sensor.judgeLeaving(frame))
    assert.deepEqual([answer(22, 4222), answer(23, 4223)].flat(), ['pass', 'pass', 'drop', 'drop'])
  })

  test('no tag, option, extension header or odd length hides a port from a rule', async () => {
    await sensor.rules(dropTelnet)
    const tags = [ETHERTYPE.qinq, ETHERTYPE.vlan, ETHERTYPE.qinqOld, ETHERTYPE.vlan]
    const hidden = [
      ...[1, 2, 3, 4].map((depth) =>
        frameFrom(V4, {
          destinationPort: TELNET,
          tags: tags.slice(0, depth).map((ethertype) => ({ ethertype, vlan: 5 })),
        }),
      ),
      ...[4, 20, 40].map((length) => v4(telnet, { options: Buffer.alloc(length, 1) })),
      ...[
        [extension(PROTOCOL.hopByHop)],
        [extension(PROTOCOL.destination, 31), authentication(6), extension(PROTOCOL.routing, 2)],
        [extension(PROTOCOL.mobility), fragment(0, 9)],
        // More than eight: nobody knows what follows.
        Array.from({ length: 9 }, () => extension(PROTOCOL.destination)),
      ].map((extensions) => v6(telnet, { extensions })),
      v4(telnet, { totalLength: 0 }),
      v4(telnet, { totalLength: 1500 }),
      // Less than its headers: what the kernel sees of it is no TCP, and what it shows is padding.
      v4(telnet, { totalLength: 24 }),
      v4(telnet.subarray(0, 12)),
      v6(telnet, { payloadLength: 8 }),
      v6(telnet, { payloadLength: 2000 }),
    ]
    for (const [index, frame] of hidden.entries()) assert.equal(sensor.judge(frame), 'drop', `frame ${index}`)
  })

  test('leaving packets are judged by rules of their own, with rates of each destination', async () => {
    await sensor.rules(
      { id: 1, action: 'rate-limit', direction: 'egress', protocol: 'udp', rate: NEVER_AGAIN },
      { ...dropTelnet, id: 2, direction: 'egress', destinations: ['203.0.113.0/24'] },
      { id: 3, action: 'allow', direction: 'egress', destinations: ['203.0.113.5'] },
    )
    const earlier = sensor.counters()
    const leaving = (destination: string, payload: Buffer, protocol: number = PROTOCOL.tcp) =>
      sensor.judgeLeaving(v4(payload, { destination, protocol }))
    assert.equal(leaving('203.0.113.9', telnet), 'drop')
    assert.equal(leaving('203.0.114.9', telnet), 'pass')
    assert.equal(leaving('203.0.113.5', http), 'pass')
    const datagrams = (destination: string) =>
      [1, 2, 3, 4].map(() => leaving(destination, udp({ destinationPort: 53 }), PROTOCOL.udp))
    assert.deepEqual(datagrams('192.0.2.1'), ['pass', 'pass', 'pass', 'drop'])
    assert.deepEqual(datagrams('192.0.2.2'), ['pass', 'pass', 'pass', 'drop'])
    assert.deepEqual(sensor.counters(earlier), {
      ...{ egressPassed: 7, egressAllowed: 1, egressDroppedRule: 1, egressDroppedRate: 2 },
    })
    assert.equal(sensor.judge(v4(telnet, { destination: '203.0.113.9' })), 'pass')
  })

  test('answers from a management port and what goes to one leave whatever rules say, calls from one do not', async () => {
    await sensor.rules({ id: 1, action: 'drop', direction: 'egress' })
    const leaving = (payload: Buffer, destination = '192.0.2.1') => sensor.judgeLeaving(v4(payload, { destination }))
    assert.equal(leaving(tcp({ sourcePort: 22, flags: TCP_FLAG.syn | TCP_FLAG.ack })), 'pass')
    assert.equal(leaving(tcp({ sourcePort: 22, flags: TCP_FLAG.ack })), 'pass')
    assert.equal(leaving(tcp({ destinationPort: 4222 })), 'pass')
    assert.equal(leaving(tcp({ sourcePort: 22, flags: TCP_FLAG.syn })), 'drop')
    assert.equal(leaving(http), 'drop')
    sensor.guard('192.0.2.77')
    assert.equal(leaving(http, '192.0.2.77'), 'pass')
    assert.equal(leaving(http, '127.0.0.1'), 'pass')
  })
})
