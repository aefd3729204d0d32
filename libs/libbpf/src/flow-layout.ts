import { copyAddress } from './layout.ts'

/** The bytes that bpf/include/flow-layout.h lays out, for user space; as in layout.ts. */
export const FLOW_KEY = {
  bytes: 40,
  source: 0,
  destination: 16,
  sourcePort: 32,
  destinationPort: 34,
  protocol: 36,
  direction: 37,
} as const
export const FLOW = {
  bytes: 56,
  packets: 0,
  bytesTotal: 8,
  droppedPackets: 16,
  firstSeenNs: 24,
  lastSeenNs: 32,
  pureSyns: 40,
  flags: 44,
  ifindex: 48,
  vlan: 52,
} as const
export const SPILLED_FLOW = { bytes: 96, key: 0, flow: 40 } as const
const FLOW_FLAG = { tcpFlags: 0xff, established: 1 << 16, fragment: 1 << 17, audited: 1 << 18 } as const

/** What one 5-tuple did in one direction since the last drain. */
export interface FlowRecord {
  readonly source: Uint8Array
  readonly destination: Uint8Array
  readonly sourcePort: number
  /** ICMP: type × 256 + code. */
  readonly destinationPort: number
  readonly protocol: number
  readonly direction: 'ingress' | 'egress'
  readonly packets: bigint
  /** Sum of IP lengths, of dropped packets too. */
  readonly bytes: bigint
  readonly droppedPackets: bigint
  readonly pureSyns: number
  readonly tcpFlags: number
  /** This kernel completed the handshake of the connection. */
  readonly established: boolean
  readonly fragments: boolean
  /** Some packet would have been dropped, were it not for audit mode. */
  readonly audited: boolean
  /** Where the first packet was seen. */
  readonly ifindex: number
  /** Outermost VLAN id; 0: none. */
  readonly vlan: number
  readonly firstSeenNs: bigint
  readonly lastSeenNs: bigint
}

/** One flow, from its key and value at these offsets; addresses are copied. */
export function decodeFlow(keys: Buffer, keyAt: number, values: Buffer, valueAt: number): FlowRecord {
  const flags = values.readUInt32LE(valueAt + FLOW.flags)
  return {
    source: copyAddress(keys, keyAt + FLOW_KEY.source),
    destination: copyAddress(keys, keyAt + FLOW_KEY.destination),
    sourcePort: keys.readUInt16LE(keyAt + FLOW_KEY.sourcePort),
    destinationPort: keys.readUInt16LE(keyAt + FLOW_KEY.destinationPort),
    protocol: keys.readUInt8(keyAt + FLOW_KEY.protocol),
    direction: keys.readUInt8(keyAt + FLOW_KEY.direction) === 0 ? 'ingress' : 'egress',
    packets: values.readBigUInt64LE(valueAt + FLOW.packets),
    bytes: values.readBigUInt64LE(valueAt + FLOW.bytesTotal),
    droppedPackets: values.readBigUInt64LE(valueAt + FLOW.droppedPackets),
    pureSyns: values.readUInt32LE(valueAt + FLOW.pureSyns),
    tcpFlags: flags & FLOW_FLAG.tcpFlags,
    established: (flags & FLOW_FLAG.established) !== 0,
    fragments: (flags & FLOW_FLAG.fragment) !== 0,
    audited: (flags & FLOW_FLAG.audited) !== 0,
    ifindex: values.readUInt32LE(valueAt + FLOW.ifindex),
    vlan: values.readUInt32LE(valueAt + FLOW.vlan),
    firstSeenNs: values.readBigUInt64LE(valueAt + FLOW.firstSeenNs),
    lastSeenNs: values.readBigUInt64LE(valueAt + FLOW.lastSeenNs),
  }
}

/** A record of the ring `spilled_flows`. */
export function decodeSpilledFlow(data: Buffer, at: number): FlowRecord {
  return decodeFlow(data, at + SPILLED_FLOW.key, data, at + SPILLED_FLOW.flow)
}
