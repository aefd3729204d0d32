import { closeSync, readFileSync } from 'node:fs'
import { arch, release } from 'node:os'
import { enumValues } from './btf.ts'
import { addressOf, checkErrno, libc } from './native.ts'
import type { BpfProgram } from './object.ts'

/** Attach types of <linux/bpf.h>; the second is newer than Debian 12's header. */
const BPF_PERF_EVENT = 41
export const BPF_TRACE_UPROBE_MULTI = 48
const SYS_BPF = 321
const SYS_PERF_EVENT_OPEN = 298
const BPF_LINK_CREATE = 28
const LINK_CREATE_BYTES = 64
const UPROBE_MULTI_RETURN = 1
const PERF_ATTR_BYTES = 112
const PERF_FLAG_FD_CLOEXEC = 8
const PERF_EVENT_IOC_ENABLE = 0x2400n
const UPROBE_DEVICE = '/sys/bus/event_source/devices/uprobe'
/** Somewhat later than they were mended. */
const SAFE_SINCE_PATCH: Readonly<Record<number, number>> = { 12: 20, 13: 8 }
const KERNEL_TYPES = '/sys/kernel/btf/vmlinux'

/** A place in a file where a program runs, in whichever process executes it. */
export interface Uprobe {
  /** Bytes from the beginning of the file. */
  readonly offset: number
  /** What the program is told there. */
  readonly cookie: bigint
}

export interface UprobesOptions {
  readonly path: string
  readonly uprobes: readonly Uprobe[]
  /** Run when the function returns: the offset must then be where the stack pointer is as it was at the call. */
  readonly atReturn: boolean
  /** multi: one link for all (Linux 6.6; the program must have been loaded for it); single: a perf event for each. */
  readonly how: 'multi' | 'single'
}

/** Whether one link can hold many probes. */
export function hasUprobeMulti(): boolean {
  return 'BPF_TRACE_UPROBE_MULTI' in enumValues(KERNEL_TYPES, 'bpf_attach_type')
}

/**
 * Whether a probe at a return is safe for every process. On x86-64, Linux 6.11 returns from it by a system call of its own, which
 * a seccomp filter that does not know it refuses: the process dies. Mended in 6.14, and late in 6.12 and 6.13.
 */
export function hasSafeReturnProbes(kernel: string = release(), architecture: string = arch()): boolean {
  if (architecture !== 'x64') return true
  const [major = 0, minor = 0, patch = 0] = (/^(\d+)\.(\d+)(?:\.(\d+))?/.exec(kernel) ?? []).slice(1).map(Number)
  if (major !== 6) return major > 6 || major === 5
  return minor < 11 || minor > 13 || patch >= (SAFE_SINCE_PATCH[minor] ?? Number.POSITIVE_INFINITY)
}

/** Probes in place. They end when they are detached, or with this process. */
export interface UprobeAttachment {
  /** In another thread, as the kernel waits (some 100 ms) until nobody can still be at a probe. */
  readonly detach: () => Promise<void>
}

/**
 * Makes a program run at places of a file, in every process that has it mapped now or later. Throws BpfError; EINVAL also for a
 * place that holds no instruction which the kernel can step over.
 */
export function attachUprobes(program: BpfProgram, options: UprobesOptions): UprobeAttachment {
  const fds = options.how === 'multi' ? [attachMulti(program, options)] : attachSingles(program, options)
  return {
    detach: async () => {
      for (const fd of fds.splice(0)) await closeElsewhere(fd)
    },
  }
}

function closeElsewhere(fd: number): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  libc().close.async(fd, (error) => (error ? reject(error) : resolve()))
  return promise
}

function attachMulti(program: BpfProgram, { path, uprobes, atReturn }: UprobesOptions): number {
  const name = Buffer.from(`${path}\0`)
  const offsets = bigints(uprobes.map(({ offset }) => BigInt(offset)))
  const cookies = bigints(uprobes.map(({ cookie }) => cookie))
  const attr = Buffer.alloc(LINK_CREATE_BYTES)
  attr.writeUInt32LE(program.fd, 0)
  attr.writeUInt32LE(BPF_TRACE_UPROBE_MULTI, 8)
  attr.writeBigUInt64LE(addressOf(name), 16)
  attr.writeBigUInt64LE(addressOf(offsets), 24)
  attr.writeBigUInt64LE(addressOf(cookies), 40)
  attr.writeUInt32LE(uprobes.length, 48)
  attr.writeUInt32LE(atReturn ? UPROBE_MULTI_RETURN : 0, 52)
  const pointedTo = [name, offsets, cookies]
  const fd = bpf(BPF_LINK_CREATE, attr, `attaching ${program.name} to ${path}`)
  // Until here the kernel may read them, which the collector of garbage cannot know.
  pointedTo.length = 0
  return fd
}

function attachSingles(program: BpfProgram, options: UprobesOptions): number[] {
  const fds: number[] = []
  try {
    for (const uprobe of options.uprobes) fds.push(...attachSingle(program, uprobe, options))
    return fds
  } catch (error) {
    for (const fd of fds) closeSync(fd)
    throw error
  }
}

/** The link, then the event that it holds. */
function attachSingle(program: BpfProgram, uprobe: Uprobe, { path, atReturn }: UprobesOptions): [number, number] {
  const what = `attaching ${program.name} to ${path}`
  const name = Buffer.from(`${path}\0`)
  const attr = Buffer.alloc(PERF_ATTR_BYTES)
  attr.writeUInt32LE(numberIn('type'), 0)
  attr.writeUInt32LE(PERF_ATTR_BYTES, 4)
  attr.writeBigUInt64LE(atReturn ? 1n << BigInt(numberIn('format/retprobe')) : 0n, 8)
  attr.writeBigUInt64LE(addressOf(name), 56)
  attr.writeBigUInt64LE(BigInt(uprobe.offset), 64)
  const pointedTo = [attr, name]
  const event = systemCall(what, SYS_PERF_EVENT_OPEN, addressOf(attr), -1n, 0n, -1n, BigInt(PERF_FLAG_FD_CLOEXEC))
  pointedTo.length = 0
  try {
    const link = Buffer.alloc(LINK_CREATE_BYTES)
    link.writeUInt32LE(program.fd, 0)
    link.writeUInt32LE(event, 4)
    link.writeUInt32LE(BPF_PERF_EVENT, 8)
    link.writeBigUInt64LE(uprobe.cookie, 16)
    const fd = bpf(BPF_LINK_CREATE, link, what)
    checkErrno(what, libc().ioctl(event, PERF_EVENT_IOC_ENABLE, 0n))
    return [fd, event]
  } catch (error) {
    closeSync(event)
    throw error
  }
}

function bpf(command: number, attr: Buffer, what: string): number {
  const pointedTo = [attr]
  const fd = systemCall(what, SYS_BPF, BigInt(command), addressOf(attr), BigInt(attr.length), 0n, 0n)
  pointedTo.length = 0
  return fd
}

function systemCall(
  what: string,
  number: number,
  ...[a, b, c, d, e]: [bigint, bigint, bigint, bigint, bigint]
): number {
  return checkErrno(what, Number(libc().syscall(BigInt(number), a, b, c, d, e)))
}

/** A number, or the bit of a `config:0`, that the kernel publishes of its uprobe events. */
function numberIn(file: string): number {
  return Number(readFileSync(`${UPROBE_DEVICE}/${file}`, 'utf8').trim().replace('config:', ''))
}

function bigints(values: readonly bigint[]): Buffer {
  return Buffer.from(new BigUint64Array(values).buffer)
}
