import type { BpfMap } from './map.ts'
import { BpfError, check, libc, type Pointer, viewOf } from './native.ts'

const SC_PAGESIZE = 30
const PROT_READ = 1
const PROT_READ_WRITE = 3
const MAP_SHARED = 1
const MAP_FAILED = 0xffffffffffffffffn
const BPF_MAP_TYPE_RINGBUF = 27
const HEADER_BYTES = 8
const BUSY = 1 << 31
const DISCARDED = 1 << 30
const LENGTH_MASK = 0x3fffffff
/** After so many records the kernel learns that their room is free. */
const RELEASE_RECORDS = 64

/**
 * A record in place: `length` bytes of `data` from `offset`. The memory is the kernel's, mapped read-only: writing to it ends
 * the process, and after the callback it is overwritten. Copy what must stay.
 */
export type OnRecord = (data: Buffer, offset: number, length: number) => void

/** Reads a BPF ring buffer through shared memory, without a system call or a callback from C. One reader a ring. */
export class RingReader implements Disposable {
  readonly #ringBytes: number
  readonly #mappings: { address: Pointer; length: number }[] = []
  #consumer: BigInt64Array
  #producer: BigInt64Array
  #headers: Int32Array
  #data: Buffer

  /** Throws TypeError for a map that is no ring. */
  constructor(map: BpfMap) {
    if (map.type !== BPF_MAP_TYPE_RINGBUF) throw new TypeError(`${map.name} is not a ring buffer`)
    const page = check('sysconf', libc().sysconf(SC_PAGESIZE))
    this.#ringBytes = map.maxEntries
    const consumer = this.#map(map.fd, page, PROT_READ_WRITE, 0)
    // The kernel maps the data twice in a row, so that no record is ever cut.
    const rest = this.#map(map.fd, page + 2 * this.#ringBytes, PROT_READ, page)
    this.#consumer = new BigInt64Array(consumer.buffer, 0, 1)
    this.#producer = new BigInt64Array(rest.buffer, 0, 1)
    this.#data = Buffer.from(rest.buffer, page, 2 * this.#ringBytes)
    this.#headers = new Int32Array(rest.buffer, page, (2 * this.#ringBytes) / 4)
  }

  /** Hands over what is there, at most `limit` records, oldest first; returns how many. If the callback throws, the record counts as read. */
  read(onRecord: OnRecord, limit = Number.POSITIVE_INFINITY): number {
    const mask = this.#ringBytes - 1
    const producer = Number(Atomics.load(this.#producer, 0))
    let position = Number(Atomics.load(this.#consumer, 0))
    let records = 0
    try {
      while (position < producer && records < limit) {
        const at = position & mask
        const header = Atomics.load(this.#headers, at >> 2)
        if (header & BUSY) break
        const length = header & LENGTH_MASK
        position += (length + HEADER_BYTES + 7) & ~7
        if (header & DISCARDED) continue
        records += 1
        onRecord(this.#data, at + HEADER_BYTES, length)
        if (records % RELEASE_RECORDS === 0) Atomics.store(this.#consumer, 0, BigInt(position))
      }
    } finally {
      Atomics.store(this.#consumer, 0, BigInt(position))
    }
    return records
  }

  /** Unmaps the ring; afterwards `read` finds nothing. */
  close(): void {
    this.#consumer = new BigInt64Array(1)
    this.#producer = new BigInt64Array(1)
    this.#headers = new Int32Array(0)
    this.#data = Buffer.alloc(0)
    for (const { address, length } of this.#mappings.splice(0)) libc().munmap(address, length)
  }

  [Symbol.dispose](): void {
    this.close()
  }

  #map(fd: number, length: number, protection: number, offset: number): Uint8Array {
    const address = libc().mmap(null, length, protection, MAP_SHARED, fd, offset)
    if (BigInt.asUintN(64, address) === MAP_FAILED) throw new BpfError('mapping a ring', 1, '')
    this.#mappings.push({ address, length })
    return viewOf(address, length)
  }
}
