import { statSync } from 'node:fs'

/** Inode of the first PID namespace, which the kernel fixes (include/linux/proc_ns.h). */
const FIRST_PID_NAMESPACE = 0xeffffffc

/**
 * Inode of this process's PID namespace, in whose numbers kernel programs are to tell processes; 0 for the first one, whose numbers are
 * the kernel's own. A process that lives outside of it has the number 0.
 */
export function pidNamespaceInum(): number {
  const inum = statSync('/proc/self/ns/pid').ino
  return inum === FIRST_PID_NAMESPACE ? 0 : inum
}
