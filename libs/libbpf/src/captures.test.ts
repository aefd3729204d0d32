import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { promisify } from 'node:util'
import { eventually, networkNamespace, requires, temporaryDirectory } from '@tollward/testkit'
import { FlowDrain } from './flow-drain.ts'
import type { FlowRecord } from './flow-layout.ts'
import { testRun } from './object.ts'
import {
  address,
  authentication,
  ETHERTYPE,
  type Extension,
  ethernet,
  extension,
  fragment,
  ipv4,
  ipv6,
  PROTOCOL,
  type Tag,
  tcp,
  udp,
} from './test-packets.ts'
import { loadSensor, needsKernel, type TestSensor } from './test-sensor.ts'

const skip = needsKernel || (await requires({ tools: ['tshark'] }))
const needsNetwork = skip || (await requires({ tools: ['ip'] }))
const run = promisify(execFile)

const FRAMES = 3000
const LINKTYPE_ETHERNET = 1
const PCAP_HEADER_BYTES = 24
const RECORD_HEADER_BYTES = 16
const OUTPUT_BYTES_MAX = 64 * 1024 * 1024
/** XDP takes a page at most under BPF_PROG_TEST_RUN. */
const FRAME_BYTES_MAX = 3000
const FIELDS = [
  ...['ip.src', 'ip.dst', 'ip.proto', 'ip.len', 'ip.frag_offset'],
  ...['ipv6.src', 'ipv6.dst', 'ipv6.nxt', 'ipv6.plen', 'ipv6.fraghdr.offset'],
  ...['tcp.srcport', 'tcp.dstport', 'tcp.flags', 'udp.srcport', 'udp.dstport'],
  ...['icmp.type', 'icmp.code', 'icmpv6.type', 'icmpv6.code', 'vlan.id'],
] as const

/** What both parsers say of one 5-tuple. */
interface Count {
  packets: number
  bytes: number
  tcpFlags: number
  syns: number
}

test('packets, bytes and flags of each 5-tuple are those that tshark finds in the same frames, whatever the headers', {
  skip,
}, async () => {
  await using directory = await temporaryDirectory()
  const path = join(directory.path, 'made.pcap')
  const frames = makeFrames(mulberry32(20_260))
  writeCapture(path, frames)
  using sensor = await loadSensor()
  const theirs = await tuplesOf(path)
  assert(theirs.size > 150, `${theirs.size} flows`)
  for (const program of ['xdp_guard', 'guard_egress']) {
    for (const frame of frames) testRun(sensor.object.program(program), frame)
    compare(await drained(sensor), theirs)
  }
})

test('packets of each conversation are as many as tshark counts in its table', { skip }, async () => {
  await using directory = await temporaryDirectory()
  const path = join(directory.path, 'made.pcap')
  const random = mulberry32(4711)
  // Without fragments, whose tails tshark counts to no conversation of ports.
  const frames = makeFrames(random).filter((frame) => !isFragment(frame))
  writeCapture(path, frames)
  using sensor = await loadSensor()
  for (const frame of frames) sensor.judge(frame)
  const ours = new Map<string, number>()
  for (const [key, { packets }] of await drained(sensor)) {
    const [protocol, source, destination] = key.split(' ')
    if (protocol === '6' || protocol === '17') ours.set(`${protocol} ${source} ${destination}`, packets)
  }
  assert.deepEqual(sorted(ours), sorted(await conversations(path)))
})

test('traffic that was recorded on a cable is counted as tshark counts it when it is replayed', {
  skip: needsNetwork,
}, async () => {
  await using other = await networkNamespace()
  await using directory = await temporaryDirectory()
  const path = join(directory.path, 'recorded.pcap')
  const recording = await other.start('tshark', ['-q', '-n', '-F', 'pcap', '-i', other.device, '-w', path])
  await recording.line(/Capturing on/)
  await using _server = await other.start(process.execPath, ['-e', WEB, other.address])
  const port = Number(await _server.line(/^\d+$/))
  for (let request = 0; request < 20; request++)
    await (await fetch(`http://${other.address}:${port}/${request}`, { headers: { connection: 'close' } })).text()
  await eventually(() => frameCount(path) >= 100, { what: 'the requests are in the file' })
  await recording.stop()
  const frames = readCapture(path)
  assert(frames.every((frame) => frame.length <= FRAME_BYTES_MAX))
  using sensor = await loadSensor()
  for (const frame of frames) sensor.judge(frame)
  const theirs = await tuplesOf(path)
  assert(theirs.size >= 40, `${theirs.size} flows`)
  compare(await drained(sensor), theirs)
})

const WEB = `const server = require('http').createServer((request, response) => response.end('x'.repeat(500)))
server.listen(0, process.argv[1], () => console.log(server.address().port))`

function compare(ours: ReadonlyMap<string, Count>, theirs: ReadonlyMap<string, Count>): void {
  for (const [key, count] of theirs) assert.deepEqual(ours.get(key), count, key)
  assert.deepEqual(
    [...ours.keys()].filter((key) => !theirs.has(key)),
    [],
    'flows that only we see',
  )
}

/** By 5-tuple; non-first fragments have no ports, and are told apart by it. */
async function drained({ object }: TestSensor): Promise<Map<string, Count>> {
  const drain = new FlowDrain(object.map('active_flows'), object.map('flows_a'), object.map('flows_b'))
  const counts = new Map<string, Count>()
  // The first turn may read the generation that is not written.
  for (let turn = 0; turn < 2; turn++)
    for await (const batch of drain.drain())
      for (const flow of batch)
        add(counts, keyOf(flow), Number(flow.packets), Number(flow.bytes), flow.tcpFlags, flow.pureSyns)
  return counts
}

function keyOf({ protocol, source, destination, sourcePort, destinationPort }: FlowRecord): string {
  return [protocol, `${hex(source)}:${sourcePort}`, `${hex(destination)}:${destinationPort}`].join(' ')
}

async function tuplesOf(path: string): Promise<Map<string, Count>> {
  const counts = new Map<string, Count>()
  const fields = FIELDS.flatMap((name) => ['-e', name])
  for (const line of await tshark(path, '-T', 'fields', '-E', 'occurrence=f', '-E', 'separator=|', ...fields)) {
    const values = line.split('|')
    const field = (name: (typeof FIELDS)[number]) => values[FIELDS.indexOf(name)] ?? ''
    const number = (...names: (typeof FIELDS)[number][]) => Number(names.map(field).find((text) => text !== '') ?? 0)
    const isV4 = field('ip.src') !== ''
    if (!isV4 && field('ipv6.src') === '') continue
    const [source, destination] = isV4 ? [field('ip.src'), field('ip.dst')] : [field('ipv6.src'), field('ipv6.dst')]
    const bytes = isV4 ? number('ip.len') : 40 + number('ipv6.plen')
    const flags = number('tcp.flags') & 0xff
    const type = number('icmp.type', 'icmpv6.type') * 256 + number('icmp.code', 'icmpv6.code')
    const sourcePort = number('tcp.srcport', 'udp.srcport')
    const destinationPort = number('tcp.dstport', 'udp.dstport') || type
    const key = [
      protocolOf(field, isV4),
      `${hex(address(source))}:${sourcePort}`,
      `${hex(address(destination))}:${destinationPort}`,
    ].join(' ')
    add(counts, key, 1, bytes, flags, (flags & 0x12) === 0x02 ? 1 : 0)
  }
  return counts
}

/** tshark says the last header of IPv6 only by dissecting it. */
function protocolOf(field: (name: (typeof FIELDS)[number]) => string, isV4: boolean): number {
  if (isV4) return Number(field('ip.proto'))
  if (field('tcp.srcport') !== '') return PROTOCOL.tcp
  if (field('udp.srcport') !== '') return PROTOCOL.udp
  if (field('icmpv6.type') !== '') return PROTOCOL.icmp6
  // Behind the header of a later fragment, which names what it carries: here always TCP.
  return PROTOCOL.tcp
}

async function conversations(path: string): Promise<Map<string, number>> {
  const found = new Map<string, number>()
  for (const [protocol, table] of [
    ['6', 'tcp'],
    ['17', 'udp'],
  ] as const) {
    for (const line of await tshark(path, '-q', '-z', `conv,${table}`)) {
      const match = /^(\S+):(\d+)\s+<->\s+(\S+):(\d+)\s+(\d+)\s+\S+\s+\S+\s+(\d+)\s/.exec(line)
      if (!match) continue
      const [, one, onePort, other, otherPort, toOne, toOther] = match
      const ends = [`${hex(address(one ?? ''))}:${onePort}`, `${hex(address(other ?? ''))}:${otherPort}`]
      const put = (from = '', to = '', packets = '') => {
        const key = `${protocol} ${from} ${to}`
        // A SYN from the same ports begins another conversation of the table.
        if (packets !== '0') found.set(key, (found.get(key) ?? 0) + Number(packets))
      }
      put(ends[1], ends[0], toOne)
      put(ends[0], ends[1], toOther)
    }
  }
  return found
}

async function tshark(path: string, ...options: string[]): Promise<string[]> {
  const asSent = ['-o', 'ip.defragment:FALSE', '-o', 'ipv6.defragment:FALSE', '-o', 'tcp.desegment_tcp_streams:FALSE']
  const { stdout } = await run('tshark', ['-n', '-r', path, ...asSent, ...options], { maxBuffer: OUTPUT_BYTES_MAX })
  return stdout.split('\n').filter((line) => line !== '')
}

/** Every shape that the guard reads: tags, options, extension headers, fragments, padding, all flags. */
function makeFrames(random: () => number): Buffer[] {
  const pick = <T>(from: readonly T[]): T => from[Math.floor(random() * from.length)] as T
  const upTo = (max: number) => Math.floor(random() * max)
  const body = () => Buffer.alloc(upTo(300))
  const ports = () => ({ sourcePort: 40_000 + upTo(6), destinationPort: pick([80, 443, 8080, 53]) })
  const transport = (): [number, Buffer] =>
    pick([
      () => [PROTOCOL.tcp, tcp({ ...ports(), flags: upTo(256), data: body() })] as [number, Buffer],
      () => [PROTOCOL.udp, datagram(udp(ports()), body())] as [number, Buffer],
    ])()
  const v4 = (): [number, Buffer] => {
    const ends = { source: `10.30.0.${1 + upTo(4)}`, destination: '198.51.100.1' }
    const kind = random()
    if (kind < 0.1) return [ETHERTYPE.ipv4, ipv4({ ...ends, protocol: PROTOCOL.icmp, payload: echo(8) })]
    if (kind < 0.2) return [ETHERTYPE.ipv4, ipv4({ ...ends, payload: Buffer.alloc(64), fragmentOffset: 1 + upTo(500) })]
    const [protocol, payload] = transport()
    const options = Buffer.alloc(4 * upTo(3), 1)
    return [ETHERTYPE.ipv4, ipv4({ ...ends, protocol, payload, options })]
  }
  const v6 = (): [number, Buffer] => {
    const ends = { source: `2001:db8:30::${1 + upTo(4)}`, destination: '2001:db8:ffff::1' }
    const kind = random()
    if (kind < 0.1) return [ETHERTYPE.ipv6, ipv6({ ...ends, protocol: PROTOCOL.icmp6, payload: echo(128) })]
    if (kind < 0.2)
      return [ETHERTYPE.ipv6, ipv6({ ...ends, extensions: [fragment(1 + upTo(500))], payload: Buffer.alloc(64) })]
    const [protocol, payload] = transport()
    const all: Extension[] = [extension(PROTOCOL.hopByHop), extension(PROTOCOL.destination, 1), authentication()]
    return [ETHERTYPE.ipv6, ipv6({ ...ends, protocol, payload, extensions: all.slice(0, upTo(4)) })]
  }
  const tags = (): Tag[] =>
    pick([
      [],
      [],
      [{ ethertype: ETHERTYPE.vlan, vlan: 7 }],
      [
        { ethertype: ETHERTYPE.qinq, vlan: 100 },
        { ethertype: ETHERTYPE.vlan, vlan: 7 },
      ],
    ])
  return Array.from({ length: FRAMES }, () => {
    const [ethertype, packet] = random() < 0.5 ? v4() : v6()
    return Buffer.concat([ethernet(ethertype, packet, tags()), Buffer.alloc(pick([0, 0, 6, 18]))])
  })
}

/** The length is that of what follows. */
function datagram(header: Buffer, data: Buffer): Buffer {
  header.writeUInt16BE(header.length + data.length, 4)
  return Buffer.concat([header, data])
}

function echo(type: number): Buffer {
  return Buffer.from([type, 0, 0, 0, 0, 1, 0, 1])
}

function isFragment(frame: Buffer): boolean {
  // Tags are the only thing between the addresses and the type.
  let at = 12
  const isTag = (type: number) => type === ETHERTYPE.vlan || type === ETHERTYPE.qinq
  while (isTag(frame.readUInt16BE(at))) at += 4
  const isV4 = frame.readUInt16BE(at) === ETHERTYPE.ipv4
  return isV4 ? (frame.readUInt16BE(at + 8) & 0x1fff) !== 0 : frame[at + 8] === PROTOCOL.fragment
}

function writeCapture(path: string, frames: readonly Buffer[]): void {
  const header = Buffer.alloc(PCAP_HEADER_BYTES)
  header.writeUInt32LE(0xa1b2c3d4, 0)
  header.writeUInt16LE(2, 4)
  header.writeUInt16LE(4, 6)
  header.writeUInt32LE(65_535, 16)
  header.writeUInt32LE(LINKTYPE_ETHERNET, 20)
  const records = frames.map((frame, index) => {
    const record = Buffer.alloc(RECORD_HEADER_BYTES)
    record.writeUInt32LE(1_700_000_000 + index, 0)
    record.writeUInt32LE(frame.length, 8)
    record.writeUInt32LE(frame.length, 12)
    return Buffer.concat([record, frame])
  })
  writeFileSync(path, Buffer.concat([header, ...records]))
}

function readCapture(path: string): Buffer[] {
  const file = readFileSync(path)
  const frames: Buffer[] = []
  for (let at = PCAP_HEADER_BYTES; at + RECORD_HEADER_BYTES <= file.length; ) {
    const length = file.readUInt32LE(at + 8)
    frames.push(Buffer.from(file.subarray(at + RECORD_HEADER_BYTES, at + RECORD_HEADER_BYTES + length)))
    at += RECORD_HEADER_BYTES + length
  }
  return frames
}

function frameCount(path: string): number {
  return readCapture(path).length
}

function add(counts: Map<string, Count>, key: string, packets: number, bytes: number, tcpFlags: number, syns: number) {
  const count = counts.get(key) ?? { packets: 0, bytes: 0, tcpFlags: 0, syns: 0 }
  count.packets += packets
  count.bytes += bytes
  count.tcpFlags |= tcpFlags
  count.syns += syns
  counts.set(key, count)
}

function sorted<T>(map: ReadonlyMap<string, T>): [string, T][] {
  return [...map].sort(([one], [other]) => (one < other ? -1 : 1))
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex')
}

/** Random numbers that are the same each time. */
function mulberry32(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}
