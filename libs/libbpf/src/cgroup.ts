import { closeSync, constants, openSync, readFileSync, readlinkSync } from 'node:fs'
import { CGROUP_OF_MEMORY_HIERARCHY } from './flow-layout.ts'
import { libc } from './native.ts'

/** Kind of file handle that is the 64-bit number of a file in cgroupfs (Linux 5.5). */
const FILEID_KERNFS = 0xfe
const HANDLE_BYTES = 8
const HANDLE_AT = 8
/** Node names no O_PATH; the directory is only to be named, not read. */
const O_PATH = 0o10000000
const UNIFIED = / - cgroup2 /
const MEMORY = / - cgroup .*[ ,]memory(,|$)/m

interface Hierarchy {
  readonly mountPoint: string
  readonly fd: number
}

/**
 * Paths of cgroups by the number that a kernel program gives: asked of cgroupfs itself, so that no process need still live.
 * Needs CAP_DAC_READ_SEARCH.
 */
export class CgroupPaths implements Disposable {
  readonly #unified: Hierarchy | undefined
  readonly #memory: Hierarchy | undefined

  constructor() {
    const mounts = readFileSync('/proc/self/mountinfo', 'utf8').split('\n')
    this.#unified = open(mounts, UNIFIED)
    this.#memory = open(mounts, MEMORY)
  }

  /** The path within its hierarchy, such as `/system.slice/nginx.service`; undefined if the cgroup is gone or may not be seen. */
  path(cgroupId: bigint): string | undefined {
    const isOld = (cgroupId & CGROUP_OF_MEMORY_HIERARCHY) !== 0n
    const hierarchy = isOld ? this.#memory : this.#unified
    if (!hierarchy) return undefined
    const handle = Buffer.alloc(HANDLE_AT + HANDLE_BYTES)
    handle.writeUInt32LE(HANDLE_BYTES, 0)
    handle.writeInt32LE(FILEID_KERNFS, 4)
    handle.writeBigUInt64LE(cgroupId & ~CGROUP_OF_MEMORY_HIERARCHY, HANDLE_AT)
    const fd = libc().open_by_handle_at(hierarchy.fd, handle, O_PATH)
    if (fd < 0) return undefined
    try {
      const path = readlinkSync(`/proc/self/fd/${fd}`)
      return path.slice(hierarchy.mountPoint.length) || '/'
    } finally {
      closeSync(fd)
    }
  }

  [Symbol.dispose](): void {
    for (const hierarchy of [this.#unified, this.#memory]) if (hierarchy) closeSync(hierarchy.fd)
  }
}

function open(mounts: readonly string[], kind: RegExp): Hierarchy | undefined {
  const mountPoint = mounts.find((line) => kind.test(line))?.split(' ')[4]
  if (mountPoint === undefined) return undefined
  return { mountPoint, fd: openSync(mountPoint, constants.O_RDONLY | constants.O_DIRECTORY) }
}
