/**
 * What the guard must make of a frame, read plainly and apart from the program: of one with neither rules nor allowed addresses,
 * whose policy lets pass whatever is malformed.
 */
import { parseAddress, parseRange } from '@tollward/contracts'

/** Who is blocked, and who can't be. */
export interface Lists {
  readonly blocked: readonly string[]
  readonly guarded: readonly string[]
  readonly managementPorts: readonly number[]
}

export interface Expected {
  /** It has addresses: it is counted as a flow. */
  readonly readable: boolean
  readonly drop: boolean
  /** Of IP; what lies behind it in the frame is padding. */
  readonly ipBytes: number
}

const ETHERNET_BYTES = 14
const TAG_TYPES = new Set([0x8100, 0x88a8, 0x9100])
const TAGS_MAX = 4
const [IPV4, IPV6] = [0x0800, 0x86dd]
const EXTENSIONS = new Set([0, 43, 44, 51, 60, 135])
const EXTENSIONS_MAX = 8
const [HOP_BY_HOP, TCP, UDP, FRAGMENT, AUTHENTICATION] = [0, 6, 17, 44, 51]
/** Of its whole header. */
const TRANSPORT_BYTES: Readonly<Record<number, number>> = { [TCP]: 20, [UDP]: 8 }
const UNREADABLE: Expected = { readable: false, drop: false, ipBytes: 0 }
const MAPPED = Buffer.from('00000000000000000000ffff', 'hex')

/** A function that says what must become of a frame of that many bytes. */
export function oracle({ blocked, guarded, managementPorts }: Lists): (frame: Buffer, length: number) => Expected {
  const ranges = blocked.map((cidr) => {
    const range = parseRange(cidr)
    if (!range) throw new Error(`${cidr} is no range`)
    return { ...range, isV4: !cidr.includes(':') }
  })
  const free = new Set(['127.0.0.1', '::1', ...guarded].map((text) => hex(parseAddress(text) ?? [])))
  const ports = new Set(managementPorts)
  const isBlocked = (source: Buffer, isV4: boolean) =>
    ranges.some((range) => range.isV4 === isV4 && startsWith(source, range.address, range.prefixLength)) &&
    !free.has(hex(source))
  return (frame, length) => {
    const packet = readFrame(frame, length)
    if (!packet) return UNREADABLE
    const { source, isV4, ipBytes, port } = packet
    const drop = isBlocked(source, isV4) && !(port !== undefined && ports.has(port))
    return { readable: true, drop, ipBytes }
  }
}

interface Packet {
  readonly source: Buffer
  readonly isV4: boolean
  readonly ipBytes: number
  /** Of the node, where a whole transport header says it in an unfragmented packet or first fragment, before its IP length ends. */
  readonly port: number | undefined
}

function readFrame(frame: Buffer, length: number): Packet | undefined {
  let at = ETHERNET_BYTES
  let type = frame.readUInt16BE(12)
  for (let tags = 0; TAG_TYPES.has(type); tags++) {
    if (tags === TAGS_MAX || at + 4 > length) return undefined
    type = frame.readUInt16BE(at + 2)
    at += 4
  }
  if (type === IPV4) return readIpv4(frame.subarray(at, length))
  return type === IPV6 ? readIpv6(frame.subarray(at, length)) : undefined
}

function readIpv4(ip: Buffer): Packet | undefined {
  const first = ip[0] ?? 0
  const headerBytes = (first & 0xf) * 4
  if (ip.length < 20 || first >> 4 !== 4 || headerBytes < 20) return undefined
  const claimed = ip.readUInt16BE(2)
  const ipBytes = claimed === 0 || claimed > ip.length ? ip.length : claimed
  const isLater = (ip.readUInt16BE(6) & 0x1fff) !== 0
  return {
    source: Buffer.concat([MAPPED, ip.subarray(12, 16)]),
    isV4: true,
    ipBytes,
    port: isLater ? undefined : portOf(ip[9] ?? 0, ip.subarray(headerBytes, ipBytes)),
  }
}

function readIpv6(ip: Buffer): Packet | undefined {
  if (ip.length < 40 || (ip[0] ?? 0) >> 4 !== 6) return undefined
  const payload = ip.readUInt16BE(4)
  const first = ip[6] ?? 0
  // A payload of 0 is none, or a jumbogram's, whose length a hop-by-hop option says (RFC 2675).
  const claimed = payload === 0 && first === HOP_BY_HOP ? ip.length : 40 + payload
  const ipBytes = Math.min(claimed, ip.length)
  return {
    source: Buffer.from(ip.subarray(8, 24)),
    isV4: false,
    ipBytes,
    port: portBehindExtensions(first, ip.subarray(40, ipBytes)),
  }
}

function portBehindExtensions(first: number, payload: Buffer): number | undefined {
  let kind = first
  let rest = payload
  let isFragment = false
  for (let headers = 0; EXTENSIONS.has(kind); headers++) {
    if (headers === EXTENSIONS_MAX || rest.length < 8) return undefined
    // What lies in a fragment of a fragment is nobody's: its parts can't be told to belong together.
    if (kind === FRAGMENT && (isFragment || (rest.readUInt16BE(2) & 0xfff8) !== 0)) return undefined
    isFragment ||= kind === FRAGMENT && (rest.readUInt16BE(2) & 1) === 1
    const length = rest[1] ?? 0
    const bytes = kind === FRAGMENT ? 8 : kind === AUTHENTICATION ? (length + 2) * 4 : (length + 1) * 8
    kind = rest[0] ?? 0
    rest = rest.subarray(bytes)
  }
  return portOf(kind, rest)
}

function portOf(protocol: number, transport: Buffer): number | undefined {
  const headerBytes = TRANSPORT_BYTES[protocol]
  return headerBytes === undefined || transport.length < headerBytes ? undefined : transport.readUInt16BE(2)
}

function startsWith(address: Buffer, prefix: Uint8Array, bits: number): boolean {
  const whole = bits >> 3
  for (let index = 0; index < whole; index++) if (address[index] !== prefix[index]) return false
  const rest = bits & 7
  return rest === 0 || ((address[whole] ?? 0) ^ (prefix[whole] ?? 0)) >> (8 - rest) === 0
}

function hex(bytes: Iterable<number>): string {
  return Buffer.from([...bytes]).toString('hex')
}
