import { create, type MessageInitShape } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { Direction, type Flow, FlowSchema } from '@tollward/contracts/sensor'
import type { FlowRecord } from '@tollward/libbpf'

const NANOSECONDS_PER_MILLISECOND = 1_000_000n

/** What turns the kernel's words into everybody's. */
export interface FlowContext {
  /** Milliseconds since 1970 when the clock of the kernel programs stood at 0. */
  readonly bootedAtMs: number
  readonly interfaceName: (ifindex: number) => string
}

/** A flow as it is published. */
export function toFlow(record: FlowRecord, { bootedAtMs, interfaceName }: FlowContext): Flow {
  const at = (ns: bigint) => timestampFromMs(bootedAtMs + Number(ns / NANOSECONDS_PER_MILLISECOND))
  const { source, destination, sourcePort, destinationPort, protocol, packets, bytes, droppedPackets } = record
  return create(FlowSchema, {
    ...{ source, destination, sourcePort, destinationPort, protocol, packets, bytes, droppedPackets },
    direction: record.direction === 'ingress' ? Direction.INGRESS : Direction.EGRESS,
    interface: interfaceName(record.ifindex),
    tcpFlags: record.tcpFlags,
    syns: record.pureSyns,
    established: record.established,
    firstSeenAt: at(record.firstSeenNs),
    lastSeenAt: at(record.lastSeenNs),
  } satisfies MessageInitShape<typeof FlowSchema>)
}

/** The node's name as the last token of a subject, which dots would end. */
export function subjectToken(node: string): string {
  return node.replace(/[^-_A-Za-z0-9]/g, '_')
}
