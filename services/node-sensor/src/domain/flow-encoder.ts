import { CONNECTION, FLOW, FLOW_FLAG, FLOW_KEY } from '@tollward/libbpf'

/** What turns the kernel's words into everybody's. */
export interface FlowContext {
  readonly interfaceName: (ifindex: number) => string
  /** An encoded tollward.sensor.v1.Owner for the `struct connection` at this offset, which names a process. */
  readonly owner: (values: Buffer, at: number) => Uint8Array
}

const NANOSECONDS_PER_MILLISECOND = 1_000_000
const MILLISECONDS_PER_SECOND = 1000
const NANOSECONDS_PER_MILLISECOND_OF_TIMESTAMP = 1_000_000
const TWO_TO_32 = 4_294_967_296
const ADDRESS_BYTES = 16
const EGRESS = 1
/** Two addresses, two timestamps, and every other number at its largest; without interface and owner. */
const FLOW_BYTES_MAX = 192
const FIRST_BYTES = 128 * 1024

/** Tags of tollward.sensor.v1: field number × 8 + wire type (0 varint, 2 length-delimited), as they stand on the wire. */
const FLOWS_TAG = 0x2a
const TAG = {
  source: 0x0a,
  destination: 0x12,
  sourcePort: 0x18,
  destinationPort: 0x20,
  protocol: 0x28,
  direction: 0x30,
  interface: 0x3a,
  packets: 0x40,
  bytes: 0x48,
  droppedPackets: 0x50,
  tcpFlags: 0x58,
  syns: 0x60,
  established: 0x68,
  firstSeenAt: 0x72,
  lastSeenAt: 0x7a,
  rttMicros: 0x80,
  vlan: 0x88,
  fragments: 0x90,
  audited: 0x98,
  owner: 0xa2,
  closed: 0xa8,
} as const
const SECONDS_TAG = 0x08
const NANOS_TAG = 0x10

/**
 * Flows encoded as repeated fields `flows` of FlowObserved, straight from the bytes of the kernel's maps: at a hundred
 * thousand flows a second an object for each would be most of what the sensor costs. The library's encoder gives the same
 * message, which a test holds it to.
 */
export class FlowBatch {
  /** Milliseconds since 1970 when the clock of the kernel programs stood at 0. To be set before flows are added. */
  bootedAtMs = 0
  readonly #context: FlowContext
  readonly #interfaces = new Map<number, Uint8Array>()
  #out = new Uint8Array(FIRST_BYTES)
  #at = 0
  #flows = 0

  constructor(context: FlowContext) {
    this.#context = context
  }

  get flows(): number {
    return this.#flows
  }

  get bytes(): number {
    return this.#at
  }

  /** What was added, and begins anew. */
  take(): Uint8Array {
    const bytes = this.#out.slice(0, this.#at)
    this.#at = 0
    this.#flows = 0
    // Interfaces come and go.
    this.#interfaces.clear()
    return bytes
  }

  /** Adds the flow with this key and value. */
  add(keys: Buffer, keyAt: number, values: Buffer, valueAt: number): void {
    const name = this.#interface(values.readUInt32LE(valueAt + FLOW.ifindex))
    const connectionAt = valueAt + FLOW.connection
    const isOwned = values.readBigUInt64LE(connectionAt + CONNECTION.cgroupId) !== 0n
    const owner = isOwned ? this.#context.owner(values, connectionAt) : undefined
    this.#reserve(FLOW_BYTES_MAX + name.length + (owner?.length ?? 0))
    const start = this.#at
    // Most flows take two bytes to say their length; those that need one are moved.
    this.#at = start + 3
    this.#key(keys, keyAt)
    if (name.length > 0) this.#bytes(TAG.interface, name)
    this.#value(values, valueAt)
    if (owner) {
      this.#out[this.#at++] = TAG.owner
      this.#bytes(1, owner)
    }
    if (values.readUInt32LE(valueAt + FLOW.flags) & FLOW_FLAG.closed) this.#wideFlag(TAG.closed)
    this.#close(start)
    this.#flows += 1
  }

  #key(keys: Buffer, at: number): void {
    this.#address(TAG.source, keys, at + FLOW_KEY.source)
    this.#address(TAG.destination, keys, at + FLOW_KEY.destination)
    this.#number(TAG.sourcePort, keys.readUInt16LE(at + FLOW_KEY.sourcePort))
    this.#number(TAG.destinationPort, keys.readUInt16LE(at + FLOW_KEY.destinationPort))
    this.#number(TAG.protocol, keys.readUInt8(at + FLOW_KEY.protocol))
    this.#number(TAG.direction, keys.readUInt8(at + FLOW_KEY.direction) === EGRESS ? 2 : 1)
  }

  #value(values: Buffer, at: number): void {
    const flags = values.readUInt32LE(at + FLOW.flags)
    this.#number(TAG.packets, uint64(values, at + FLOW.packets))
    this.#number(TAG.bytes, uint64(values, at + FLOW.bytesTotal))
    this.#number(TAG.droppedPackets, uint64(values, at + FLOW.droppedPackets))
    this.#number(TAG.tcpFlags, flags & FLOW_FLAG.tcpFlags)
    this.#number(TAG.syns, values.readUInt32LE(at + FLOW.pureSyns))
    if (flags & FLOW_FLAG.established) this.#number(TAG.established, 1)
    this.#time(TAG.firstSeenAt, uint64(values, at + FLOW.firstSeenNs))
    this.#time(TAG.lastSeenAt, uint64(values, at + FLOW.lastSeenNs))
    this.#wideNumber(TAG.rttMicros, values.readUInt32LE(at + FLOW.connection + CONNECTION.rttUs))
    this.#wideNumber(TAG.vlan, values.readUInt32LE(at + FLOW.vlan))
    if (flags & FLOW_FLAG.fragment) this.#wideFlag(TAG.fragments)
    if (flags & FLOW_FLAG.audited) this.#wideFlag(TAG.audited)
  }

  /** Puts tag and length before what was written since. */
  #close(start: number): void {
    const out = this.#out
    const length = this.#at - start - 3
    out[start] = FLOWS_TAG
    if (length < 0x80) {
      out[start + 1] = length
      out.copyWithin(start + 2, start + 3, this.#at)
      this.#at -= 1
      return
    }
    // A flow of 16 KiB there is none: its owner's names are bounded.
    out[start + 1] = (length & 0x7f) | 0x80
    out[start + 2] = length >> 7
  }

  #address(tag: number, from: Buffer, at: number): void {
    const out = this.#out
    let to = this.#at
    out[to++] = tag
    out[to++] = ADDRESS_BYTES
    for (let index = 0; index < ADDRESS_BYTES; index++) out[to++] = from[at + index] ?? 0
    this.#at = to
  }

  #bytes(tag: number, bytes: Uint8Array): void {
    const out = this.#out
    out[this.#at++] = tag
    this.#varint(bytes.length)
    out.set(bytes, this.#at)
    this.#at += bytes.length
  }

  /** Zero is what a reader assumes of a field that is not there. */
  #number(tag: number, value: number): void {
    if (value === 0) return
    this.#out[this.#at++] = tag
    this.#varint(value)
  }

  /** As #number, of a field from 16 on, whose tag takes a second byte. */
  #wideNumber(tag: number, value: number): void {
    if (value === 0) return
    this.#out[this.#at++] = tag
    this.#out[this.#at++] = 1
    this.#varint(value)
  }

  #wideFlag(tag: number): void {
    this.#wideNumber(tag, 1)
  }

  /** A google.protobuf.Timestamp of a moment on the kernel's clock, to the millisecond. */
  #time(tag: number, bootNs: number): void {
    const ms = this.bootedAtMs + Math.floor(bootNs / NANOSECONDS_PER_MILLISECOND)
    const seconds = Math.floor(ms / MILLISECONDS_PER_SECOND)
    const nanos = (ms - seconds * MILLISECONDS_PER_SECOND) * NANOSECONDS_PER_MILLISECOND_OF_TIMESTAMP
    const out = this.#out
    out[this.#at++] = tag
    const lengthAt = this.#at++
    this.#number(SECONDS_TAG, seconds)
    this.#number(NANOS_TAG, nanos)
    out[lengthAt] = this.#at - lengthAt - 1
  }

  #varint(value: number): void {
    const out = this.#out
    let rest = value
    // Beyond 32 bits by division: there are no larger integers to shift.
    while (rest >= TWO_TO_32) {
      const high = Math.floor(rest / 128)
      out[this.#at++] = (rest - high * 128) | 0x80
      rest = high
    }
    rest >>>= 0
    while (rest > 0x7f) {
      out[this.#at++] = (rest & 0x7f) | 0x80
      rest >>>= 7
    }
    out[this.#at++] = rest
  }

  #interface(ifindex: number): Uint8Array {
    let name = this.#interfaces.get(ifindex)
    if (!name) {
      name = Buffer.from(this.#context.interfaceName(ifindex))
      this.#interfaces.set(ifindex, name)
    }
    return name
  }

  #reserve(bytes: number): void {
    if (this.#at + bytes <= this.#out.length) return
    const larger = new Uint8Array(Math.max(2 * this.#out.length, this.#at + bytes))
    larger.set(this.#out.subarray(0, this.#at))
    this.#out = larger
  }
}

/** Exact up to 2^53: a sum of bytes that takes years to get there, and 104 days of nanoseconds, then to within 4 ns. */
function uint64(from: Buffer, at: number): number {
  return from.readUInt32LE(at + 4) * TWO_TO_32 + from.readUInt32LE(at)
}
