import { closeSync, openSync, readFileSync } from 'node:fs'
import { readdir, readFile } from 'node:fs/promises'
import { setImmediate as othersFirst } from 'node:timers/promises'
import { addressOf, BpfError, check, checkErrno, libc, type Pointer, viewOf } from './native.ts'

const SYS_PERF_EVENT_OPEN = 298n
const PERF_ATTR_BYTES = 112
const PERF_TYPE_SOFTWARE = 1
const PERF_COUNT_SW_DUMMY = 9n
/** Bits of perf_event_attr: report mappings, with their inodes. */
const MMAP = 1n << 8n
const MMAP2 = 1n << 23n
const PERF_FLAG_FD_CLOEXEC = 8n
const PERF_RECORD_LOST = 2
const PERF_RECORD_MMAP2 = 10
const MISC_BUILD_ID = 1 << 14
const SC_PAGESIZE = 30
const PROT_READ_WRITE = 3
const PROT_READ_EXECUTE = 5
const MAP_SHARED = 1
const MAP_PRIVATE = 2
const MAP_FAILED = 0xffffffffffffffffn
/** Of each CPU, a power of two: some 2,000 mappings between two reads. */
const RING_PAGES = 64
const DATA_HEAD = 1024
const DATA_TAIL = 1032
const HEADER_BYTES = 8
/** Processes between two turns of the event loop. */
const SCAN_STEP = 16

/** Code of a file that a process has mapped. */
export interface CodeMapping {
  readonly pid: number
  /** Of the file, as the kernel knows it: the same in all processes and namespaces. */
  readonly identity: string
  /** Name of the mapping under /proc/<pid>/map_files. */
  readonly range: string
  /** As the process sees it, or as it once was. */
  readonly path: string
}

/** Tells of each file whose code any process maps from now on: by execve, by its loader, by dlopen. Root, or CAP_PERFMON. */
export class MappingWatch implements Disposable {
  readonly #rings: { readonly fd: number; readonly address: Pointer; readonly bytes: number; readonly view: Buffer }[] =
    []
  readonly #page: number

  constructor() {
    this.#page = check('sysconf', libc().sysconf(SC_PAGESIZE))
    try {
      for (const cpu of onlineCpus()) this.#open(cpu)
    } catch (error) {
      this.close()
      throw error
    }
  }

  /** Hands over the mappings since the last call; returns whether some were lost, and only a scan can tell which. */
  read(onMapping: (mapping: CodeMapping) => void): boolean {
    let lost = false
    for (const { view } of this.#rings) lost = this.#readRing(view, onMapping) || lost
    return lost
  }

  close(): void {
    for (const { fd, address, bytes } of this.#rings.splice(0)) {
      libc().munmap(address, bytes)
      closeSync(fd)
    }
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #open(cpu: number): void {
    const attr = Buffer.alloc(PERF_ATTR_BYTES)
    attr.writeUInt32LE(PERF_TYPE_SOFTWARE, 0)
    attr.writeUInt32LE(PERF_ATTR_BYTES, 4)
    attr.writeBigUInt64LE(PERF_COUNT_SW_DUMMY, 8)
    attr.writeBigUInt64LE(MMAP | MMAP2, 40)
    const pointedTo = [attr]
    const opened = libc().syscall(SYS_PERF_EVENT_OPEN, addressOf(attr), -1n, BigInt(cpu), -1n, PERF_FLAG_FD_CLOEXEC)
    const fd = checkErrno(`watching the mappings of CPU ${cpu}`, Number(opened))
    pointedTo.length = 0
    const bytes = (1 + RING_PAGES) * this.#page
    const address = libc().mmap(null, bytes, PROT_READ_WRITE, MAP_SHARED, fd, 0)
    if (BigInt.asUintN(64, address) === MAP_FAILED) {
      closeSync(fd)
      throw new BpfError('mapping a ring of perf', 1, '')
    }
    const memory = viewOf(address, bytes)
    this.#rings.push({ fd, address, bytes, view: Buffer.from(memory.buffer, memory.byteOffset, memory.byteLength) })
  }

  #readRing(view: Buffer, onMapping: (mapping: CodeMapping) => void): boolean {
    const positions = new BigUint64Array(view.buffer, view.byteOffset + DATA_HEAD, 2)
    const head = Number(Atomics.load(positions, 0))
    const mask = RING_PAGES * this.#page - 1
    const data = view.subarray(this.#page)
    let at = Number(Atomics.load(positions, (DATA_TAIL - DATA_HEAD) / 8))
    let lost = false
    while (at < head) {
      const length = data.readUInt16LE((at & mask) + 6)
      if (length < HEADER_BYTES) break
      const record = contiguous(data, at & mask, length)
      const type = record.readUInt32LE(0)
      if (type === PERF_RECORD_LOST) lost = true
      const mapping = type === PERF_RECORD_MMAP2 ? mappingOf(record) : undefined
      if (mapping) onMapping(mapping)
      at += length
    }
    Atomics.store(positions, (DATA_TAIL - DATA_HEAD) / 8, BigInt(at))
    return lost
  }
}

/**
 * The code of files that processes have mapped now, from /proc: all processes, or those given. Processes that end meanwhile are
 * left out. Gives way to other work now and then.
 */
export async function* scanMappings(pids?: readonly number[]): AsyncGenerator<CodeMapping> {
  const all = pids ?? (await readdir('/proc')).map(Number).filter((pid) => pid > 0)
  for (const [index, pid] of all.entries()) {
    if (index % SCAN_STEP === SCAN_STEP - 1) await othersFirst()
    const text = await readFile(`/proc/${pid}/maps`, 'latin1').catch(() => '')
    yield* codeMappings(pid, text)
  }
}

/**
 * Calls back while the code of a file is mapped into this process, with that mapping: so a file gets the identity that it has in
 * other processes. Throws what the file system throws.
 */
export function withMapping<T>(path: string, use: (mapping: CodeMapping) => T): T | undefined {
  const fd = openSync(path, 'r')
  const bytes = check('sysconf', libc().sysconf(SC_PAGESIZE))
  const address = BigInt.asUintN(64, libc().mmap(null, bytes, PROT_READ_EXECUTE, MAP_PRIVATE, fd, 0))
  closeSync(fd)
  if (address === MAP_FAILED) throw new BpfError(`mapping ${path}`, 1, '')
  try {
    const start = `${address.toString(16)}-`
    const own = codeMappings(process.pid, readFileSync('/proc/self/maps', 'latin1'))
    const mapping = own.find(({ range }) => range.startsWith(start))
    return mapping && use(mapping)
  } finally {
    libc().munmap(address, bytes)
  }
}

const MAPS_LINE = /^([0-9a-f]+)-([0-9a-f]+) ..x. [0-9a-f]+ ([0-9a-f]+):([0-9a-f]+) (\d+) +(\/.*)$/gm

/** The lines of /proc/<pid>/maps that hold code of a file. */
export function codeMappings(pid: number, maps: string): CodeMapping[] {
  return [...maps.matchAll(MAPS_LINE)].map(([, from = '', to = '', major = '', minor = '', inode, path = '']) => ({
    pid,
    identity: `${Number.parseInt(major, 16)}:${Number.parseInt(minor, 16)}:${inode}`,
    range: `${BigInt(`0x${from}`).toString(16)}-${BigInt(`0x${to}`).toString(16)}`,
    path: path.replaceAll('\\012', '\n'),
  }))
}

/** Files only: what is not one has no inode. */
function mappingOf(record: Buffer): CodeMapping | undefined {
  const inode = record.readBigUInt64LE(48)
  if (inode === 0n || record.readUInt16LE(4) & MISC_BUILD_ID) return undefined
  const from = record.readBigUInt64LE(16)
  const to = from + record.readBigUInt64LE(24)
  const end = record.indexOf(0, 72)
  return {
    pid: record.readUInt32LE(8),
    identity: `${record.readUInt32LE(40)}:${record.readUInt32LE(44)}:${inode}`,
    range: `${from.toString(16)}-${to.toString(16)}`,
    path: record.toString('utf8', 72, end < 0 ? record.length : end),
  }
}

/** A record may be cut by the end of the ring. */
function contiguous(data: Buffer, at: number, length: number): Buffer {
  if (at + length <= data.length) return data.subarray(at, at + length)
  return Buffer.concat([data.subarray(at), data.subarray(0, at + length - data.length)])
}

/** `0-3,5` as numbers. */
function onlineCpus(): number[] {
  const text = readFileSync('/sys/devices/system/cpu/online', 'utf8').trim()
  return text.split(',').flatMap((part) => {
    const [from = 0, to = from] = part.split('-').map(Number)
    return Array.from({ length: to - from + 1 }, (_, index) => from + index)
  })
}
