import assert from 'node:assert/strict'
import { parseAddress } from '@tollward/contracts'

/** Frames for tests, byte by byte. Checksums stay 0: no program reads them. */
export const PROTOCOL = {
  hopByHop: 0,
  icmp: 1,
  tcp: 6,
  udp: 17,
  routing: 43,
  fragment: 44,
  ah: 51,
  icmp6: 58,
  none: 59,
  destination: 60,
  mobility: 135,
} as const
export const ETHERTYPE = {
  ipv4: 0x0800,
  arp: 0x0806,
  vlan: 0x8100,
  ipv6: 0x86dd,
  qinq: 0x88a8,
  qinqOld: 0x9100,
} as const
export const TCP_FLAG = { fin: 1, syn: 2, rst: 4, push: 8, ack: 16 } as const

export interface Tag {
  ethertype: number
  vlan: number
}

/** Ethernet header, tags from the outermost, payload. */
export function ethernet(ethertype: number, payload: Buffer, tags: readonly Tag[] = []): Buffer {
  const parts: Buffer[] = [Buffer.from('020000000002020000000001', 'hex')]
  for (const { ethertype: tagType, vlan } of tags) parts.push(uint16(tagType), uint16(vlan))
  return Buffer.concat([...parts, uint16(ethertype), payload])
}

export interface Ipv4 {
  source: string
  destination?: string
  protocol?: number
  payload?: Buffer
  /** Multiple of 4 bytes. */
  options?: Buffer
  /** In units of 8 bytes, and 0x2000 for "more fragments". */
  fragmentOffset?: number
  /** Which datagram it is a fragment of. */
  id?: number
  totalLength?: number
}

export function ipv4({
  source,
  destination = '198.51.100.1',
  protocol = PROTOCOL.tcp,
  payload = tcp(),
  options = Buffer.alloc(0),
  fragmentOffset = 0,
  id = 0,
  totalLength,
}: Ipv4): Buffer {
  const header = Buffer.alloc(20)
  header.writeUInt8(0x40 | (5 + options.length / 4), 0)
  header.writeUInt16BE(totalLength ?? 20 + options.length + payload.length, 2)
  header.writeUInt16BE(id, 4)
  header.writeUInt16BE(fragmentOffset, 6)
  header.writeUInt8(64, 8)
  header.writeUInt8(protocol, 9)
  header.set(address(source).subarray(12), 12)
  header.set(address(destination).subarray(12), 16)
  return Buffer.concat([header, options, payload])
}

/** An extension header: its kind and its bytes, the first of which is overwritten with the kind of the next. */
export type Extension = readonly [kind: number, bytes: Buffer]

export interface Ipv6 {
  source: string
  destination?: string
  protocol?: number
  payload?: Buffer
  extensions?: readonly Extension[]
  payloadLength?: number
}

export function ipv6({
  source,
  destination = '2001:db8:ffff::1',
  protocol = PROTOCOL.tcp,
  payload = tcp(),
  extensions = [],
  payloadLength,
}: Ipv6): Buffer {
  const chain = extensions.map(([, bytes], index) => {
    const copy = Buffer.from(bytes)
    copy.writeUInt8(extensions[index + 1]?.[0] ?? protocol, 0)
    return copy
  })
  const body = Buffer.concat([...chain, payload])
  const header = Buffer.alloc(40)
  header.writeUInt8(0x60, 0)
  header.writeUInt16BE(payloadLength ?? body.length, 4)
  header.writeUInt8(extensions[0]?.[0] ?? protocol, 6)
  header.writeUInt8(64, 7)
  header.set(address(source), 8)
  header.set(address(destination), 24)
  return Buffer.concat([header, body])
}

export interface Ports {
  sourcePort?: number
  destinationPort?: number
}

export function tcp({
  sourcePort = 40000,
  destinationPort = 8080,
  flags = TCP_FLAG.syn,
  data = Buffer.alloc(0),
}: Ports & { flags?: number; data?: Buffer } = {}): Buffer {
  const header = Buffer.alloc(20)
  header.writeUInt16BE(sourcePort, 0)
  header.writeUInt16BE(destinationPort, 2)
  header.writeUInt8(0x50, 12)
  header.writeUInt8(flags, 13)
  return Buffer.concat([header, data])
}

export function udp({ sourcePort = 40000, destinationPort = 8080 }: Ports = {}): Buffer {
  return Buffer.concat([uint16(sourcePort), uint16(destinationPort), uint16(8), uint16(0)])
}

/** An extension header of this many 8-byte units beyond the first. */
export function extension(kind: number, units = 0): Extension {
  const bytes = Buffer.alloc((units + 1) * 8)
  bytes.writeUInt8(units, 1)
  return [kind, bytes]
}

/** Authentication Header: its length counts 4-byte words, less two. */
export function authentication(words = 6): Extension {
  const bytes = Buffer.alloc(words * 4)
  bytes.writeUInt8(words - 2, 1)
  return [PROTOCOL.ah, bytes]
}

/** Fragment header with more to follow; the offset counts 8-byte units. */
export function fragment(offset: number, id = 0): Extension {
  const bytes = Buffer.alloc(8)
  bytes.writeUInt32BE(id, 4)
  bytes.writeUInt16BE((offset << 3) | 1, 2)
  return [PROTOCOL.fragment, bytes]
}

/** One TCP SYN in its frame, IPv4 or IPv6 as the source is. */
export function frameFrom(source: string, options: Ports & { flags?: number; tags?: readonly Tag[] } = {}): Buffer {
  const payload = tcp(options)
  if (source.includes(':')) return ethernet(ETHERTYPE.ipv6, ipv6({ source, payload }), options.tags)
  return ethernet(ETHERTYPE.ipv4, ipv4({ source, payload }), options.tags)
}

/** The 16 bytes of an address; the test is wrong if it is none. */
export function address(text: string): Uint8Array {
  const parsed = parseAddress(text)
  assert(parsed, `${text} is an address`)
  return parsed
}

function uint16(value: number): Buffer {
  const bytes = Buffer.alloc(2)
  bytes.writeUInt16BE(value)
  return bytes
}
