import assert from 'node:assert/strict'
import { once } from 'node:events'
import { test } from 'node:test'
import { Worker } from 'node:worker_threads'
import { FlowDrain } from './flow-drain.ts'
import { decodeSpilledFlow, type FlowRecord } from './flow-layout.ts'
import { testRun } from './object.ts'
import { RingReader } from './ring.ts'
import {
  address,
  ETHERTYPE,
  ethernet,
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

const TC_ACT_UNSPEC = 0xffffffff

test('a flow counts IP bytes, not padding, with its SYNs, TCP flags, VLAN and dropped packets', {
  skip: needsKernel,
}, async () => {
  using sensor = await loadSensor()
  const source = '10.20.0.1'
  const data = Buffer.alloc(100)
  const padded = (frame: Buffer) => Buffer.concat([frame, Buffer.alloc(20)])
  const tags = [{ ethertype: ETHERTYPE.vlan, vlan: 0x2000 | 42 }]
  const send = (flags: number, body: Buffer) =>
    sensor.judge(padded(ethernet(ETHERTYPE.ipv4, ipv4({ source, payload: tcp({ flags, data: body }) }), tags)))
  send(TCP_FLAG.syn, Buffer.alloc(0))
  send(TCP_FLAG.ack, Buffer.alloc(0))
  send(TCP_FLAG.ack | TCP_FLAG.push, data)
  sensor.block(source)
  send(TCP_FLAG.syn, Buffer.alloc(0))
  const [flow, ...others] = await drainAll(sensor)
  assert(flow)
  assert.deepEqual(others, [])
  const { firstSeenNs, lastSeenNs, ifindex, ...rest } = flow
  assert(firstSeenNs > 0n && lastSeenNs > firstSeenNs && ifindex > 0)
  assert.deepEqual(rest, {
    source: address(source),
    destination: address('198.51.100.1'),
    sourcePort: 40000,
    destinationPort: 8080,
    protocol: PROTOCOL.tcp,
    direction: 'ingress',
    packets: 4n,
    bytes: 4n * 40n + 100n,
    droppedPackets: 1n,
    pureSyns: 2,
    tcpFlags: TCP_FLAG.syn | TCP_FLAG.ack | TCP_FLAG.push,
    established: false,
    fragments: false,
    audited: false,
    closed: false,
    rttMicros: 0,
    owner: undefined,
    vlan: 42,
  })
})

test('a sender cannot claim more bytes than its frame has', { skip: needsKernel }, async () => {
  using sensor = await loadSensor()
  sensor.judge(ethernet(ETHERTYPE.ipv4, ipv4({ source: '10.21.0.1', totalLength: 65_535 })))
  sensor.judge(ethernet(ETHERTYPE.ipv6, ipv6({ source: '2001:db8:21::1', payloadLength: 65_535 })))
  const flows = await drainAll(sensor)
  assert.deepEqual(flows.map(({ bytes }) => bytes).sort(), [40n, 60n])
  assert.equal(sensor.counters().lengthBeyondFrame, 2)
})

test('UDP, ICMP and fragments are flows of their own; only whole packets have ports', {
  skip: needsKernel,
}, async () => {
  using sensor = await loadSensor()
  const source = '10.22.0.1'
  sensor.judge(
    ethernet(ETHERTYPE.ipv4, ipv4({ source, protocol: PROTOCOL.udp, payload: udp({ destinationPort: 53 }) })),
  )
  sensor.judge(
    ethernet(
      ETHERTYPE.ipv4,
      ipv4({ source, protocol: PROTOCOL.icmp, payload: Buffer.from('0804000000000000', 'hex') }),
    ),
  )
  sensor.judge(ethernet(ETHERTYPE.ipv4, ipv4({ source, fragmentOffset: 100 })))
  sensor.judge(ethernet(ETHERTYPE.ipv6, ipv6({ source: '2001:db8:22::1', extensions: [fragment(100)] })))
  const found = (await drainAll(sensor)).map(({ protocol, sourcePort, destinationPort, fragments }) => ({
    protocol,
    sourcePort,
    destinationPort,
    fragments,
  }))
  const byProtocol = found.sort((one, other) => one.protocol - other.protocol)
  assert.deepEqual(byProtocol, [
    { protocol: PROTOCOL.icmp, sourcePort: 0, destinationPort: 0x0804, fragments: false },
    { protocol: PROTOCOL.tcp, sourcePort: 0, destinationPort: 0, fragments: true },
    { protocol: PROTOCOL.tcp, sourcePort: 0, destinationPort: 0, fragments: true },
    { protocol: PROTOCOL.udp, sourcePort: 40000, destinationPort: 53, fragments: false },
  ])
})

test('what leaves is counted as leaving, and goes on to the next program', { skip: needsKernel }, async () => {
  using sensor = await loadSensor()
  sensor.block('10.23.0.1')
  const { result } = testRun(sensor.object.program('guard_egress'), frameFrom('10.23.0.1'))
  assert.equal(result, TC_ACT_UNSPEC)
  const flows = await drainAll(sensor)
  assert.deepEqual(
    flows.map(({ direction, packets, droppedPackets }) => ({ direction, packets, droppedPackets })),
    [{ direction: 'egress', packets: 1n, droppedPackets: 0n }],
  )
})

test('packets that find no room in the flow map are spilled, and none is lost', { skip: needsKernel }, async () => {
  using sensor = await loadSensor()
  using ring = new RingReader(sensor.object.map('spilled_flows'))
  const sources = 700
  for (let index = 0; index < sources; index++) sensor.judge(frameFrom(`10.24.${index >> 8}.${index & 255}`))
  const spilled: FlowRecord[] = []
  ring.read((data, at) => spilled.push(decodeSpilledFlow(data, at)))
  const flows = await drainAll(sensor)
  assert.equal(flows.length, 512)
  assert.equal(spilled.length, sources - 512)
  assert.equal(sensor.counters().flowMapFull, spilled.length)
  const distinct = new Set([...flows, ...spilled].map(({ source }) => Buffer.from(source).toString('hex')))
  assert.equal(distinct.size, sources)
})

test('a ring that nobody reads loses records and counts them; reading goes on in order', {
  skip: needsKernel,
}, async () => {
  using sensor = await loadSensor()
  using ring = new RingReader(sensor.object.map('spilled_flows'))
  const room = Math.floor(sensor.object.map('spilled_flows').maxEntries / 136)
  for (let index = 0; index < 512; index++) sensor.judge(frameFrom(`10.25.${index >> 8}.${index & 255}`))
  const flood = frameFrom('10.26.0.1')
  testRun(sensor.object.program('xdp_guard'), flood, room + 50)
  const lost = sensor.counters().flowSpillLost ?? 0
  assert(lost > 0, 'records were lost')
  assert.equal(
    ring.read(() => undefined, 100),
    100,
  )
  assert.equal(
    ring.read(() => undefined),
    room + 50 - lost - 100,
  )
  for (let round = 0; round < 3; round++) {
    testRun(sensor.object.program('xdp_guard'), flood, room - 1)
    const times: bigint[] = []
    assert.equal(
      ring.read((data, at) => times.push(decodeSpilledFlow(data, at).lastSeenNs)),
      room - 1,
    )
    assert(
      times.every((time, index) => index === 0 || time >= (times[index - 1] ?? 0n)),
      'oldest first',
    )
  }
})

test('a flood that is dropped is in the flows only as far as its allowance, and the rest is counted', {
  skip: needsKernel,
}, async () => {
  using sensor = await loadSensor()
  const drain = drainOf(sensor)
  sensor.block('10.28.0.1')
  const sent = 400_000
  testRun(sensor.object.program('xdp_guard'), frameFrom('10.28.0.1'), sent)
  const [flow] = await collect(drain)
  assert(flow && flow.packets >= 1024n && flow.packets < BigInt(sent) / 2n, `${flow?.packets} packets in the flow`)
  assert.equal(flow.droppedPackets, flow.packets)
  const { droppedExact, droppedBeyondFlows } = sensor.counters()
  assert.equal(droppedExact, sent)
  assert.equal(droppedBeyondFlows, sent - Number(flow.packets))
  // What passes is counted whatever else is dropped.
  sensor.judge(frameFrom('10.28.0.2'))
  assert.deepEqual(
    (await collect(drain)).map(({ packets }) => packets),
    [1n],
  )
})

test('draining while another CPU counts packets loses and doubles none', { skip: needsKernel }, async () => {
  using sensor = await loadSensor()
  const drain = drainOf(sensor)
  const { fd } = sensor.object.program('xdp_guard')
  const frames = [1000, 1001].map((sourcePort) => frameFrom('10.27.0.1', { sourcePort }))
  const stop = new Int32Array(new SharedArrayBuffer(4))
  const sender = new Worker(new URL('./test-sender.ts', import.meta.url), { workerData: { fd, frames, stop } })
  let counted = 0n
  const turn = async () => {
    for (const { packets } of await collect(drain)) counted += packets
  }
  // Turns in which nothing was counted show nothing.
  for (let busyTurns = 0; busyTurns < 30; ) {
    const before = counted
    await turn()
    if (counted > before) busyTurns += 1
  }
  Atomics.store(stop, 0, 1)
  const [sent] = await once(sender, 'message')
  for (let round = 0; round < 2; round++) await turn()
  assert.equal(counted, BigInt(sent))
})

function drainOf({ object }: TestSensor): FlowDrain {
  return new FlowDrain(object.map('active_flows'), object.map('flows_a'), object.map('flows_b'))
}

async function collect(drain: FlowDrain): Promise<FlowRecord[]> {
  const flows: FlowRecord[] = []
  for await (const batch of drain.drain()) flows.push(...batch)
  return flows
}

function drainAll(sensor: TestSensor): Promise<FlowRecord[]> {
  return collect(drainOf(sensor))
}
