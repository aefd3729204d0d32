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
export const CONNECTION = { bytes: 32, cgroupId: 0, processId: 8, rttUs: 12, processName: 16 } as const
/** Value of the map `connections`, which is keyed as the flow that arrives. */
export const CONNECTION_STATE = { bytes: 56, connection: 0, establishedNs: 32, closedNs: 40, isForeign: 48 } as const
export const FLOW = {
  bytes: 88,
  packets: 0,
  bytesTotal: 8,
  droppedPackets: 16,
  firstSeenNs: 24,
  lastSeenNs: 32,
  pureSyns: 40,
  flags: 44,
  ifindex: 48,
  vlan: 52,
  connection: 56,
} as const
export const SPILLED_FLOW = { bytes: 128, key: 0, flow: 40 } as const
/** Key of the maps `kernel_drops_a` and `_b`; the value is a 64-bit number of packets. */
export const KERNEL_DROP = {
  bytes: 44,
  source: 0,
  destination: 16,
  sourcePort: 32,
  destinationPort: 34,
  protocol: 36,
  reason: 40,
} as const
export const FLOW_FLAG = {
  tcpFlags: 0xff,
  established: 1 << 16,
  fragment: 1 << 17,
  audited: 1 << 18,
  closed: 1 << 19,
} as const
const PROCESS_NAME_BYTES = 16
/** Set in a cgroup's id that is one of the old hierarchy with the memory controller. */
export const CGROUP_OF_MEMORY_HIERARCHY = 1n << 63n

/** Whose a connection is, as the kernel knew when the process used it. */
export interface ConnectionOwner {
  /** As seen from the first PID namespace. */
  readonly processId: number
  /** At most 15 bytes. */
  readonly processName: string
  /** Inode of the cgroup's directory; with CGROUP_OF_MEMORY_HIERARCHY that of the old hierarchy. */
  readonly cgroupId: bigint
}

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
  /** This kernel's socket was closed, reset or given up. */
  readonly closed: boolean
  /** Smoothed round-trip time; 0: not known. */
  readonly rttMicros: number
  /** Undefined: no process of this kernel is known to use it. */
  readonly owner: ConnectionOwner | undefined
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
    closed: (flags & FLOW_FLAG.closed) !== 0,
    rttMicros: values.readUInt32LE(valueAt + FLOW.connection + CONNECTION.rttUs),
    owner: decodeOwner(values, valueAt + FLOW.connection),
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

/** Packets that the kernel threw away for one reason, of one 5-tuple. */
export interface KernelDropRecord {
  readonly source: Uint8Array
  readonly destination: Uint8Array
  readonly sourcePort: number
  readonly destinationPort: number
  readonly protocol: number
  /** Number in the running kernel's `enum skb_drop_reason`; see `dropReasons`. */
  readonly reason: number
  readonly packets: bigint
}

/** An entry of `kernel_drops_a` or `_b`. */
export function decodeKernelDrop(keys: Buffer, keyAt: number, packets: bigint): KernelDropRecord {
  return {
    source: copyAddress(keys, keyAt + KERNEL_DROP.source),
    destination: copyAddress(keys, keyAt + KERNEL_DROP.destination),
    sourcePort: keys.readUInt16LE(keyAt + KERNEL_DROP.sourcePort),
    destinationPort: keys.readUInt16LE(keyAt + KERNEL_DROP.destinationPort),
    protocol: keys.readUInt32LE(keyAt + KERNEL_DROP.protocol),
    reason: keys.readUInt32LE(keyAt + KERNEL_DROP.reason),
    packets,
  }
}

/** The `struct connection` at this offset; undefined if no process is known. */
export function decodeOwner(data: Buffer, at: number): ConnectionOwner | undefined {
  const cgroupId = data.readBigUInt64LE(at + CONNECTION.cgroupId)
  // Every process is in some cgroup; one that cannot be seen from here has no number.
  if (cgroupId === 0n) return undefined
  const nameAt = at + CONNECTION.processName
  const end = data.indexOf(0, nameAt)
  const nameEnd = end === -1 || end > nameAt + PROCESS_NAME_BYTES ? nameAt + PROCESS_NAME_BYTES : end
  return {
    processId: data.readUInt32LE(at + CONNECTION.processId),
    processName: data.toString('utf8', nameAt, nameEnd),
    cgroupId,
  }
}
