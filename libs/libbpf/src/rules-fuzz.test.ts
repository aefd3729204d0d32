import assert from 'node:assert/strict'
import { test } from 'node:test'
import { formatAddress, parseRange, rangeContains } from '@tollward/contracts'
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
  tcp,
} from './test-packets.ts'
import { loadSensor, needsKernel } from './test-sensor.ts'

const FRAMES = 60_000
const TELNET = 23
const SOURCES = ['10.0.0.0/8', '2001:db8::/32']
const VLAN_TYPES: readonly number[] = [ETHERTYPE.vlan, ETHERTYPE.qinq, ETHERTYPE.qinqOld]
const TAGS_MAX = 4
const HEADERS_MAX = 8
/** Below this the kernel refuses to run a classifier on what says it is IPv6. */
const LEAVING_BYTES_MIN = 54

/** What a host would make of a frame: its source, and the port if it is a whole TCP header. */
interface Delivered {
  readonly source?: Uint8Array
  readonly port?: number
}

test('no mutation hides a port from a rule, and none makes it drop what comes from elsewhere', {
  skip: needsKernel,
}, async () => {
  using sensor = await loadSensor()
  sensor.configure({ managementPorts: [] })
  const drop = { action: 'drop', protocol: 'tcp', ports: [[TELNET, TELNET]], sources: SOURCES } as const
  await sensor.rules({ id: 1, ...drop }, { id: 2, ...drop, direction: 'egress' })
  const ranges = SOURCES.map((cidr) => parseRange(cidr) ?? assert.fail())
  const seeds = seedFrames()
  const seed = Date.now() % 1_000_000_000
  const random = randomNumbers(seed)
  const seen = { reaching: 0, elsewhere: 0 }
  for (let count = 0; count < FRAMES; count++) {
    const frame = mutated(seeds[count % seeds.length] ?? assert.fail(), random)
    const { source, port } = deliver(frame)
    const isMeant = source !== undefined && ranges.some((range) => rangeContains(range, source))
    const must = isMeant && port === TELNET ? 'drop' : isMeant ? undefined : 'pass'
    if (must === undefined) continue
    seen[must === 'drop' ? 'reaching' : 'elsewhere'] += 1
    const what = `seed ${seed}: ${source && formatAddress(source)} to ${port}, ${frame.toString('hex')}`
    assert.equal(sensor.judge(frame), must, what)
    if (frame.length >= LEAVING_BYTES_MIN) assert.equal(sensor.judgeLeaving(frame), must, what)
  }
  assert(seen.reaching > FRAMES / 50 && seen.elsewhere > FRAMES / 50, JSON.stringify({ ...seen, seed }))
})

/** Reads a frame as a host does (RFC 791, 8200), by its lengths; by hand, and in another way than the kernel programs. */
function deliver(frame: Buffer): Delivered {
  let at = 12
  for (let tags = 0; tags < TAGS_MAX && VLAN_TYPES.includes(read16(frame, at)); tags++) at += 4
  const packet = frame.subarray(at + 2)
  if (read16(frame, at) === ETHERTYPE.ipv4) return deliver4(packet)
  return read16(frame, at) === ETHERTYPE.ipv6 ? deliver6(packet) : {}
}

function deliver4(packet: Buffer): Delivered {
  const headerBytes = ((packet[0] ?? 0) % 16) << 2
  if (packet.length < 20 || packet[0] === undefined || packet[0] >> 4 !== 4 || headerBytes < 20) return {}
  const source = Uint8Array.from([...Buffer.from('00000000000000000000ffff', 'hex'), ...packet.subarray(12, 16)])
  const whole = packet.subarray(0, read16(packet, 2))
  const isPiece = (read16(packet, 6) & 0x3fff) !== 0
  if (isPiece || packet[9] !== PROTOCOL.tcp || read16(packet, 2) > packet.length) return { source }
  return { source, ...portOf(whole.subarray(headerBytes)) }
}

function deliver6(packet: Buffer): Delivered {
  if (packet.length < 40 || packet[0] === undefined || packet[0] >> 4 !== 6) return {}
  const source = Uint8Array.from(packet.subarray(8, 24))
  const payloadBytes = read16(packet, 4)
  if (payloadBytes > packet.length - 40) return { source }
  let rest = packet.subarray(40, 40 + payloadBytes)
  let kind = packet[6]
  for (let headers = 0; headers <= HEADERS_MAX && kind !== PROTOCOL.tcp; headers++) {
    const units = rest[1] ?? 0
    const length = new Map<number | undefined, number>([
      [PROTOCOL.hopByHop, 8 + 8 * units],
      [PROTOCOL.routing, 8 + 8 * units],
      [PROTOCOL.destination, 8 + 8 * units],
      [PROTOCOL.mobility, 8 + 8 * units],
      [PROTOCOL.ah, 8 + 4 * units],
      [PROTOCOL.fragment, 8],
    ]).get(kind)
    // Of a fragment nobody knows the rest.
    const isPiece = kind === PROTOCOL.fragment && (read16(rest, 2) & 0xfff9) !== 0
    if (length === undefined || rest.length < 8 || isPiece) return { source }
    kind = rest[0]
    rest = rest.subarray(length)
  }
  return kind === PROTOCOL.tcp ? { source, ...portOf(rest) } : { source }
}

function portOf(header: Buffer): { port?: number } {
  return header.length < 20 ? {} : { port: read16(header, 2) }
}

function read16(bytes: Buffer, at: number): number {
  return at + 2 <= bytes.length ? bytes.readUInt16BE(at) : -1
}

function seedFrames(): Buffer[] {
  const payload = tcp({ destinationPort: TELNET, data: Buffer.alloc(16) })
  const tags = [ETHERTYPE.qinq, ETHERTYPE.vlan].map((ethertype) => ({ ethertype, vlan: 3 }))
  const chains = [
    [],
    [fragment(0)],
    [extension(PROTOCOL.hopByHop), extension(PROTOCOL.destination, 1)],
    [extension(PROTOCOL.routing, 2), authentication()],
    // More than a byte can count.
    [extension(PROTOCOL.destination, 40)],
    [extension(PROTOCOL.mobility), extension(PROTOCOL.destination), extension(PROTOCOL.destination, 3)],
  ]
  const v4 = ['10.1.1.1', '11.1.1.1'].flatMap((source) => [
    ethernet(ETHERTYPE.ipv4, ipv4({ source, payload })),
    ethernet(ETHERTYPE.ipv4, ipv4({ source, payload }), tags),
    ethernet(ETHERTYPE.ipv4, ipv4({ source, payload, options: Buffer.alloc(12, 1) })),
    frameFrom(source, { destinationPort: TELNET }),
  ])
  const v6 = ['2001:db8::1', '2001:db9::1'].flatMap((source) =>
    chains.map((extensions) => ethernet(ETHERTYPE.ipv6, ipv6({ source, payload, extensions }))),
  )
  return [...v4, ...v6]
}

/** A few bytes behind the addresses of Ethernet changed; at times cut, or with padding. */
function mutated(frame: Buffer, random: (below: number) => number): Buffer {
  const copy = Buffer.concat([frame, Buffer.alloc(random(3) === 0 ? random(40) : 0, TELNET)])
  for (let changes = random(4); changes > 0; changes--) {
    const at = 12 + random(copy.length - 12)
    // Small changes of lengths and kinds go further than any.
    copy[at] = random(2) === 0 ? random(256) : (copy[at] ?? 0) ^ (1 << random(8))
  }
  return copy.subarray(0, random(5) === 0 ? 14 + random(copy.length - 13) : copy.length)
}

/** Numbers below a bound, the same for a seed (mulberry32). */
function randomNumbers(seed: number): (below: number) => number {
  let state = seed
  return (below) => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below
  }
}
