import { enumValues } from './btf.ts'

const KERNEL_TYPES = '/sys/kernel/btf/vmlinux'
const REASON_PREFIX = /^SKB_(DROP_REASON_)?/

/**
 * Names of the running kernel's reasons to drop a packet, by number, such as 3: NO_SOCKET: every kernel numbers them anew.
 * Throws BpfError where the kernel publishes no types or has no reasons (before Linux 5.17).
 */
export function dropReasons(): ReadonlyMap<number, string> {
  const values = enumValues(KERNEL_TYPES, 'skb_drop_reason')
  return new Map(Object.entries(values).map(([name, value]) => [value, name.replace(REASON_PREFIX, '')]))
}
