import { create } from '@bufbuild/protobuf'
import { type KernelDrop, KernelDropSchema } from '@tollward/contracts/sensor'
import type { KernelDropRecord } from '@tollward/libbpf'

/** A drop of the kernel as it is published; reasons without a name, as of other subsystems, by their number. */
export function toKernelDrop(record: KernelDropRecord, reasons: ReadonlyMap<number, string>): KernelDrop {
  const { source, destination, sourcePort, destinationPort, protocol, packets } = record
  const reason = reasons.get(record.reason) ?? `REASON_${record.reason}`
  return create(KernelDropSchema, { reason, source, destination, sourcePort, destinationPort, protocol, packets })
}

/** The node's name as the last token of a subject, which dots would end. */
export function subjectToken(node: string): string {
  return node.replace(/[^-_A-Za-z0-9]/g, '_')
}
