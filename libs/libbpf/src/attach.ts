import { closeSync, existsSync, readdirSync, readFileSync, rmdirSync, unlinkSync } from 'node:fs'
import { constants } from 'node:os'
import { join } from 'node:path'
import { AppError } from '@tollward/errors'
import { uint32 } from './map.ts'
import { check, checkErrno, isErrno, libbpf, libc } from './native.ts'
import type { BpfProgram } from './object.ts'

/** Attach types of <linux/bpf.h>; tcx is newer than Debian 12's header. */
const BPF_XDP = 37
const BPF_TCX_EGRESS = 47
const XDP_FLAGS = { generic: 2, native: 4 } as const
const BPF_TC_EGRESS = 2
const BPF_TC_BOTH = 3
const BPF_TC_F_REPLACE = 1
/** Where our clsact filter sits, so that it can be found, replaced and removed without a record of it. */
const TC_HANDLE = 0x746c
const TC_PRIORITY = 0x746c
/** A clsact filter has no link to pin. Its program is pinned instead, with the interface in the name, and whether the qdisc is ours. */
const CLSACT_PIN = /_(clsact|qdisc)_(\d+)$/
const LINK_INFO_BYTES = 64
const XDP_QUERY_BYTES = 32

/** How a program hangs on its hook. `adopted`: an earlier process's pinned link, now running this program. */
export type AttachMode = 'native' | 'generic' | 'adopted' | 'tcx' | 'clsact' | 'tracing'

export interface LinkOptions {
  /** A path in a bpffs under which the attachment outlives this process. */
  readonly pinPath?: string
}

/** A program on its hook. Without a pin it leaves the hook when closed, or when the process ends (clsact: only when closed). */
export class Attachment implements Disposable {
  readonly mode: AttachMode
  readonly #close: () => void

  constructor(mode: AttachMode, close: () => void) {
    this.mode = mode
    this.#close = close
  }

  close(): void {
    this.#close()
  }

  [Symbol.dispose](): void {
    this.close()
  }
}

/**
 * Index of a network interface in this process's namespace; undefined if there is none of that name. Throws if it could not be
 * asked, as by a process that has no descriptor left: that is not the same.
 */
export function interfaceIndex(name: string): number | undefined {
  const index = libc().if_nametoindex(name)
  if (index !== 0) return index
  try {
    checkErrno(`looking for the interface ${name}`, -1)
  } catch (error) {
    if (!isErrno(error, 'ENODEV', 'ENXIO')) throw error
  }
  return undefined
}

/**
 * Attaches an XDP program. `auto` tries the driver's own hook first and falls back to the generic one. If a link of the same
 * interface is pinned already, it gets the program in one step, with no packet in between unguarded. EBUSY: another XDP
 * program is there, and only whoever attached it may take it away.
 */
export function attachXdp(
  program: BpfProgram,
  { ifindex, mode = 'auto', pinPath }: LinkOptions & { ifindex: number; mode?: 'auto' | 'native' | 'generic' },
): Attachment {
  const adopted = adopt(program, ifindex, pinPath)
  if (adopted) return adopted
  const create = (how: 'native' | 'generic') =>
    pinned(how, createLink(program, ifindex, BPF_XDP, XDP_FLAGS[how]), pinPath)
  if (mode !== 'auto') return create(mode)
  try {
    return create('native')
  } catch (error) {
    if (isErrno(error, 'EBUSY', 'EPERM', 'ENODEV')) throw error
    return create('generic')
  }
}

/** How the XDP program of an interface hangs, whoever attached it; undefined: none does. */
export function xdpMode(ifindex: number): 'native' | 'generic' | undefined {
  const opts = Buffer.alloc(XDP_QUERY_BYTES)
  opts.writeBigUInt64LE(BigInt(XDP_QUERY_BYTES), 0)
  check(`asking for XDP on interface ${ifindex}`, libbpf().bpf_xdp_query(ifindex, 0, opts))
  const [program, native, offloaded] = [8, 12, 16].map((at) => opts.readUInt32LE(at))
  if (program === 0) return undefined
  return native || offloaded ? 'native' : 'generic'
}

/** Attaches a classifier to what leaves an interface: tcx where the kernel has it (6.6), else clsact. */
export function attachEgress(
  program: BpfProgram,
  { ifindex, hook = 'auto', pinPath }: LinkOptions & { ifindex: number; hook?: 'auto' | 'tcx' | 'clsact' },
): Attachment {
  if (hook === 'clsact') return attachClsact(program, ifindex, pinPath)
  const adopted = adopt(program, ifindex, pinPath)
  if (adopted) return adopted
  try {
    return pinned('tcx', createLink(program, ifindex, BPF_TCX_EGRESS, 0), pinPath)
  } catch (error) {
    if (hook === 'tcx' || !isErrno(error, 'EINVAL', 'EOPNOTSUPP')) throw error
    return attachClsact(program, ifindex, pinPath)
  }
}

/** Attaches a program of the kind tp_btf or raw_tp to the tracepoint that its section names. A pinned one is replaced. */
export function attachTracepoint(program: BpfProgram, { pinPath }: LinkOptions = {}): Attachment {
  const fd = check(`attaching ${program.name}`, libbpf().bpf_raw_tracepoint_open(null, program.fd))
  if (pinPath !== undefined) rmPin(pinPath)
  return pinned('tracing', fd, pinPath)
}

/** What `removePins` found. */
export interface RemovedPins {
  links: number
  programs: number
  maps: number
}

/**
 * Takes everything under a directory of a bpffs away: links leave their hooks even if another process still holds them, clsact
 * filters go, maps are freed once nobody holds them; then the directory. What fails keeps nothing else from going, and is thrown
 * at the end. A directory that is not there is empty already.
 */
export function removePins(directory: string): RemovedPins {
  const removed: RemovedPins = { links: 0, programs: 0, maps: 0 }
  const faults: unknown[] = []
  if (existsSync(directory)) removeInto(directory, removed, faults)
  if (faults.length === 1) throw faults[0]
  if (faults.length > 1)
    throw new AppError('internal', `${directory} could not be emptied: ${faults.join('; ')}`, {
      cause: new AggregateError(faults),
    })
  return removed
}

function removeInto(directory: string, removed: RemovedPins, faults: unknown[]): void {
  for (const entry of readdirSync(directory, { withFileTypes: true })) {
    const path = join(directory, entry.name)
    try {
      if (entry.isDirectory()) removeInto(path, removed, faults)
      else removed[removePin(path)] += 1
    } catch (error) {
      faults.push(error)
    }
  }
  // Else something could not be removed, and is among the faults.
  if (readdirSync(directory).length === 0) rmdirSync(directory)
}

function removePin(path: string): keyof RemovedPins {
  const fd = check(`opening ${path}`, libbpf().bpf_obj_get(path))
  try {
    const details = readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8')
    if (/^map_type:/m.test(details)) return 'maps'
    if (/^link_type:/m.test(details)) {
      detachLink(path, fd)
      return 'links'
    }
    detachPinnedClsact(path, Number(/^prog_id:\s*(\d+)/m.exec(details)?.[1]))
    return 'programs'
  } finally {
    rmPin(path)
    closeSync(fd)
  }
}

/** Tracing links cannot be detached by hand; they end with their last reference, the pin. `what` is for the error. */
export function detachLink(what: string, fd: number): void {
  const result = libbpf().bpf_link_detach(fd)
  try {
    check(`detaching ${what}`, result)
  } catch (error) {
    if (!isErrno(error, 'EOPNOTSUPP', 'EINVAL')) throw error
  }
}

function createLink(program: BpfProgram, ifindex: number, type: number, flags: number): number {
  const opts = Buffer.alloc(16)
  opts.writeBigUInt64LE(16n, 0)
  opts.writeUInt32LE(flags, 8)
  const what = `attaching ${program.name} to interface ${ifindex}`
  return check(what, libbpf().bpf_link_create(program.fd, ifindex, type, opts))
}

function pinned(mode: AttachMode, fd: number, pinPath: string | undefined): Attachment {
  try {
    if (pinPath !== undefined) check(`pinning ${pinPath}`, libbpf().bpf_obj_pin(fd, pinPath))
  } catch (error) {
    closeSync(fd)
    throw error
  }
  return new Attachment(mode, () => closeSync(fd))
}

/** A link of an interface that is gone has the index 0, and another one may have come under the same name. */
function adopt(program: BpfProgram, ifindex: number, pinPath: string | undefined): Attachment | undefined {
  if (pinPath === undefined || !existsSync(pinPath)) return undefined
  const fd = check(`opening ${pinPath}`, libbpf().bpf_obj_get(pinPath))
  try {
    const info = Buffer.alloc(LINK_INFO_BYTES)
    check('bpf_obj_get_info_by_fd', libbpf().bpf_obj_get_info_by_fd(fd, info, uint32(LINK_INFO_BYTES)))
    if (info.readUInt32LE(16) === ifindex) {
      check(`updating ${pinPath}`, libbpf().bpf_link_update(fd, program.fd, null))
      return new Attachment('adopted', () => closeSync(fd))
    }
  } catch (error) {
    closeSync(fd)
    throw error
  }
  rmPin(pinPath)
  closeSync(fd)
  return undefined
}

function attachClsact(program: BpfProgram, ifindex: number, pinPath: string | undefined): Attachment {
  const created = libbpf().bpf_tc_hook_create(tcHook(ifindex, BPF_TC_BOTH))
  const ownsQdisc = created >= 0
  if (created !== -constants.errno.EEXIST) check(`making the clsact qdisc of interface ${ifindex}`, created)
  const opts = tcOpts({ programFd: program.fd, flags: BPF_TC_F_REPLACE })
  check(
    `attaching ${program.name} to interface ${ifindex}`,
    libbpf().bpf_tc_attach(tcHook(ifindex, BPF_TC_EGRESS), opts),
  )
  if (pinPath === undefined) return new Attachment('clsact', () => detachClsact(ifindex, ownsQdisc))
  const path = `${pinPath}_clsact_${ifindex}`
  const ownPath = `${pinPath}_qdisc_${ifindex}`
  const current = ownsQdisc || existsSync(ownPath) ? ownPath : path
  rmPin(current)
  check(`pinning ${current}`, libbpf().bpf_obj_pin(program.fd, current))
  return new Attachment('clsact', () => undefined)
}

function detachClsact(ifindex: number, ownsQdisc: boolean): void {
  const what = `detaching from interface ${ifindex}`
  check(what, libbpf().bpf_tc_detach(tcHook(ifindex, BPF_TC_EGRESS), tcOpts({})))
  if (ownsQdisc) check(what, libbpf().bpf_tc_hook_destroy(tcHook(ifindex, BPF_TC_BOTH)))
}

/** The interface may be gone, or another program may have taken the place: then there is nothing of ours to detach. */
function detachPinnedClsact(path: string, programId: number): void {
  const [, kind, index] = CLSACT_PIN.exec(path) ?? []
  if (index === undefined) return
  const ifindex = Number(index)
  const opts = tcOpts({})
  const found = libbpf().bpf_tc_query(tcHook(ifindex, BPF_TC_EGRESS), opts) === 0
  if (found && opts.readUInt32LE(16) === programId) detachClsact(ifindex, kind === 'qdisc')
}

function tcHook(ifindex: number, attachPoint: number): Buffer {
  const hook = Buffer.alloc(24)
  hook.writeBigUInt64LE(24n, 0)
  hook.writeInt32LE(ifindex, 8)
  hook.writeInt32LE(attachPoint, 12)
  return hook
}

function tcOpts({ programFd = 0, flags = 0 }: { programFd?: number; flags?: number }): Buffer {
  const opts = Buffer.alloc(32)
  opts.writeBigUInt64LE(32n, 0)
  opts.writeInt32LE(programFd, 8)
  opts.writeUInt32LE(flags, 12)
  opts.writeUInt32LE(TC_HANDLE, 20)
  opts.writeUInt32LE(TC_PRIORITY, 24)
  return opts
}

function rmPin(path: string): void {
  if (existsSync(path)) unlinkSync(path)
}
