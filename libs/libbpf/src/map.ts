import { closeSync } from 'node:fs'
import { constants } from 'node:os'
import { check, libbpf } from './native.ts'

const INFO_BYTES = 88
/** Types of <linux/bpf.h> whose values are one for each possible CPU. */
const PER_CPU_TYPES = new Set([5, 6, 10, 21])
/** Types of <linux/bpf.h>. */
export const MAP_TYPE = { hash: 1, lpmTrie: 11 } as const
const UPDATE_FLAGS = { any: 0, create: 1, replace: 2 } as const
/** One call to the kernel: 4,096 flows are 400 KiB and take about 1.5 ms. */
const BATCH_ENTRIES = 4096
/** Not in errno.h: what the kernel says of an operation that a type of map lacks, as tries did batches before 5.15. */
const ENOTSUPP = 524

/** Entries that a batch call moved: keys and values one after another, valid until the next batch. */
export interface Batch {
  readonly count: number
  readonly keys: Buffer
  readonly values: Buffer
}

type BatchCall = [
  fd: number,
  from: Buffer | null,
  position: Buffer,
  keys: Buffer,
  values: Buffer,
  count: Uint32Array,
  options: null,
]

/** A map in the kernel, by an open descriptor. Keys and values are bytes as the kernel programs lay them out. */
export class BpfMap implements Disposable {
  readonly name: string
  readonly fd: number
  readonly type: number
  readonly keyBytes: number
  /** As user space sees it: for a per-CPU map, of all possible CPUs together. */
  readonly valueBytes: number
  readonly maxEntries: number
  /** Where the kernel keeps the types of key and value, as the source named them; 0: nowhere. */
  readonly types: { readonly btf: number; readonly key: number; readonly value: number }
  readonly #owned: boolean

  /** Use `BpfObject.map` or `openPinnedMap`. An owned descriptor is closed by `close`. */
  constructor(fd: number, owned: boolean) {
    const info = Buffer.alloc(INFO_BYTES)
    check('bpf_obj_get_info_by_fd', libbpf().bpf_obj_get_info_by_fd(fd, info, uint32(INFO_BYTES)))
    this.fd = fd
    this.#owned = owned
    this.type = info.readUInt32LE(0)
    this.keyBytes = info.readUInt32LE(8)
    const valueBytes = info.readUInt32LE(12)
    this.maxEntries = info.readUInt32LE(16)
    this.types = { btf: info.readUInt32LE(64), key: info.readUInt32LE(68), value: info.readUInt32LE(72) }
    this.name = cString(info.subarray(24, 40))
    this.valueBytes = PER_CPU_TYPES.has(this.type) ? roundUp8(valueBytes) * possibleCpus() : valueBytes
  }

  /** The value of a key, or undefined. */
  lookup(key: Uint8Array): Buffer | undefined {
    this.#checkKey(key)
    const value = Buffer.alloc(this.valueBytes)
    const result = libbpf().bpf_map_lookup_elem(this.fd, key, value)
    return this.#found('lookup', result) ? value : undefined
  }

  /** Sets a value. `create` throws `already_exists`, `replace` throws `not_found`; a full map `resource_exhausted` (E2BIG). */
  update(key: Uint8Array, value: Uint8Array, how: keyof typeof UPDATE_FLAGS = 'any'): void {
    this.#checkKey(key)
    this.#checkValue(value)
    const result = libbpf().bpf_map_update_elem(this.fd, key, value, UPDATE_FLAGS[how])
    check(`update of the map ${this.name}`, result)
  }

  /**
   * As `update`, in a thread of its own. For elements of maps of maps, where the kernel waits (some 15 ms) until no program
   * can still use the map that was there.
   */
  async updateAsync(key: Uint8Array, value: Uint8Array): Promise<void> {
    this.#checkKey(key)
    this.#checkValue(value)
    const { promise, resolve, reject } = Promise.withResolvers<number>()
    libbpf().bpf_map_update_elem.async(this.fd, key, value, 0, (error, result) => {
      if (error) reject(error)
      else resolve(result)
    })
    check(`update of the map ${this.name}`, await promise)
  }

  /** Removes a key; false if it was not there. */
  delete(key: Uint8Array): boolean {
    this.#checkKey(key)
    return this.#found('delete', libbpf().bpf_map_delete_elem(this.fd, key))
  }

  /**
   * All keys, one call each. A key that is removed while this runs may make the kernel start over: it is for maps that only
   * the caller changes, and deleting the key just given is safe.
   */
  *keys(): Generator<Buffer> {
    let key: Buffer | undefined
    let next = this.#nextKey(null)
    while (next !== undefined) {
      key = next
      next = this.#nextKey(key)
      yield key
    }
  }

  /**
   * Sets many values, in batches: about a million a second in a hash map. The first that the kernel does not take throws, such
   * as `resource_exhausted` when the map is full; those before it are set.
   */
  updateBatch(keys: Uint8Array, values: Uint8Array): void {
    const { keyBytes, valueBytes } = this
    inBatches(keys.length / keyBytes, (from, to) => {
      const [keysOf, valuesOf] = [
        keys.subarray(from * keyBytes, to * keyBytes),
        values.subarray(from * valueBytes, to * valueBytes),
      ]
      const result = libbpf().bpf_map_update_batch(this.fd, keysOf, valuesOf, uint32(to - from), null)
      if (result !== -ENOTSUPP) return check(`batch update of the map ${this.name}`, result)
      for (let index = 0; index < to - from; index++)
        this.update(
          keysOf.subarray(index * keyBytes, (index + 1) * keyBytes),
          valuesOf.subarray(index * valueBytes, (index + 1) * valueBytes),
        )
    })
  }

  /** Removes many keys, in batches; one that is not there is no fault. Returns how many were removed. */
  deleteBatch(keys: Uint8Array): number {
    const { keyBytes } = this
    const total = keys.length / keyBytes
    let removed = 0
    for (let from = 0; from < total; ) {
      const to = Math.min(from + BATCH_ENTRIES, total)
      const count = uint32(to - from)
      const result = libbpf().bpf_map_delete_batch(this.fd, keys.subarray(from * keyBytes, to * keyBytes), count, null)
      const isWhole = result === 0
      if (!isWhole && result !== -ENOTSUPP && result !== -constants.errno.ENOENT)
        check(`batch delete in the map ${this.name}`, result)
      // The kernel stops at a key that is not there, and says how many it removed before.
      const done = result === -ENOTSUPP ? 0 : (count[0] ?? 0)
      removed += done
      from += done
      if (isWhole) continue
      if (this.delete(keys.subarray(from * keyBytes, (from + 1) * keyBytes))) removed += 1
      from += 1
    }
    return removed
  }

  /**
   * Everything that a hash map or trie holds, batch by batch, leaving it there: 3 million entries a second. The buffers are
   * reused, so read a batch before asking for the next. What is written meanwhile may be seen or not.
   */
  *entries(): Generator<Batch> {
    yield* this.#batches((...call) => libbpf().bpf_map_lookup_batch(...call))
  }

  /**
   * Takes everything out of a hash map, batch by batch: 3 million entries a second. The buffers are reused, so read a batch
   * before asking for the next. Nobody may be writing to the map, or counts added meanwhile are lost.
   */
  *drain(): Generator<Batch> {
    yield* this.#batches((...call) => libbpf().bpf_map_lookup_and_delete_batch(...call))
  }

  /** Sum over all CPUs of a 64-bit counter in a per-CPU map. */
  sumOfCpus(key: Uint8Array): bigint {
    const value = this.lookup(key)
    let sum = 0n
    for (let offset = 0; value && offset < value.length; offset += 8) sum += value.readBigUInt64LE(offset)
    return sum
  }

  /** Makes the map live on under this path of a bpffs, whoever ends. */
  pin(path: string): void {
    check(`pinning ${this.name} at ${path}`, libbpf().bpf_obj_pin(this.fd, path))
  }

  close(): void {
    if (this.#owned) closeSync(this.fd)
  }

  [Symbol.dispose](): void {
    this.close()
  }

  *#batches(next: (...call: BatchCall) => number): Generator<Batch> {
    let batchEntries = Math.min(BATCH_ENTRIES, this.maxEntries)
    let keys = Buffer.alloc(batchEntries * this.keyBytes)
    let values = Buffer.alloc(batchEntries * this.valueBytes)
    let position = Buffer.alloc(Math.max(this.keyBytes, 8))
    let further = Buffer.alloc(position.length)
    let isFirst = true
    while (true) {
      const count = uint32(batchEntries)
      const result = next(this.fd, isFirst ? null : position, further, keys, values, count, null)
      if (result === -constants.errno.ENOSPC && batchEntries < this.maxEntries) {
        // One bucket of the hash holds more than a batch does.
        batchEntries = Math.min(batchEntries * 2, this.maxEntries)
        keys = Buffer.alloc(batchEntries * this.keyBytes)
        values = Buffer.alloc(batchEntries * this.valueBytes)
        continue
      }
      const found = this.#found('batch', result)
      if (count[0]) yield { count: count[0], keys, values }
      if (!found) return
      ;[position, further] = [further, position]
      isFirst = false
    }
  }

  #nextKey(key: Buffer | null): Buffer | undefined {
    const next = Buffer.alloc(this.keyBytes)
    return this.#found('next key', libbpf().bpf_map_get_next_key(this.fd, key, next)) ? next : undefined
  }

  #found(operation: string, result: number): boolean {
    if (result === -constants.errno.ENOENT) return false
    check(`${operation} in the map ${this.name}`, result)
    return true
  }

  #checkKey(key: Uint8Array): void {
    if (key.length !== this.keyBytes)
      throw new TypeError(`key of ${this.name}: ${key.length} bytes, not ${this.keyBytes}`)
  }

  #checkValue(value: Uint8Array): void {
    const { valueBytes } = this
    if (value.length !== valueBytes)
      throw new TypeError(`value of ${this.name}: ${value.length} bytes, not ${valueBytes}`)
  }
}

/** Whether the kernel moves many entries of such a map at once: hash maps since 5.6, tries since 5.13. */
export function hasBatches({ fd, keyBytes, valueBytes }: BpfMap): boolean {
  // Of no entry: nothing is changed.
  const result = libbpf().bpf_map_update_batch(fd, Buffer.alloc(keyBytes), Buffer.alloc(valueBytes), uint32(0), null)
  return result !== -ENOTSUPP
}

/** Opens a pinned map; throws `not_found` if nothing is there. */
export function openPinnedMap(path: string): BpfMap {
  return new BpfMap(check(`opening ${path}`, libbpf().bpf_obj_get(path)), true)
}

/** The map with this number, wherever it is used or pinned. */
export function openMap(id: number): BpfMap {
  return new BpfMap(check(`opening map ${id}`, libbpf().bpf_map_get_fd_by_id(id)), true)
}

let cpus: number | undefined

function possibleCpus(): number {
  cpus ??= check('libbpf_num_possible_cpus', libbpf().libbpf_num_possible_cpus())
  return cpus
}

/** A C `uint32_t *` that libbpf reads and writes. */
export function uint32(value: number): Uint32Array {
  return new Uint32Array([value])
}

function inBatches(total: number, act: (from: number, to: number) => void): void {
  for (let from = 0; from < total; from += BATCH_ENTRIES) act(from, Math.min(from + BATCH_ENTRIES, total))
}

function roundUp8(bytes: number): number {
  return (bytes + 7) & ~7
}

function cString(bytes: Buffer): string {
  return bytes.toString('latin1', 0, bytes.indexOf(0))
}
