import { create, toBinary } from '@bufbuild/protobuf'
import { type Owner, OwnerSchema } from '@tollward/contracts/sensor'
import { CgroupPaths, CONNECTION, type ConnectionOwner, decodeOwner } from '@tollward/libbpf'
import { containerOf } from '../domain/owner.ts'

/** Processes that use connections, with their names: on a busy node some thousands. About 500 bytes each. */
const OWNERS_MAX = 16_384
/** A cgroup that could not be named once is not asked for again. */
const CGROUPS_MAX = 4096
/** Longer paths are cut: a batch has to stay below what the bus takes. */
const PATH_BYTES_MAX = 512

interface Known {
  /** The kernel's bytes that it was made from, but for the round-trip time. */
  readonly key: Buffer
  readonly encoded: Uint8Array
}

/**
 * Whose a connection is, in everybody's words. What a cgroup is called is asked of cgroupfs by the kernel's own number for it,
 * once; both memories are bounded and forget the oldest.
 */
export class Owners implements Disposable {
  readonly #paths = new CgroupPaths()
  /** By process id. */
  readonly #known = new Map<number, Known>()
  readonly #cgroups = new Map<bigint, string>()

  /** An encoded Owner for the `struct connection` at this offset. */
  encoded(values: Buffer, at: number): Uint8Array {
    const processId = values.readUInt32LE(at + CONNECTION.processId)
    const known = this.#known.get(processId)
    if (known && isSame(known.key, values, at)) return known.encoded
    const owner = decodeOwner(values, at)
    const encoded = owner ? toBinary(OwnerSchema, this.describe(owner)) : new Uint8Array()
    this.#known.delete(processId)
    forgetOldest(this.#known, OWNERS_MAX)
    this.#known.set(processId, { key: Buffer.from(values.subarray(at, at + CONNECTION.bytes)), encoded })
    return encoded
  }

  /** With container and pod, as far as the cgroup's path says them. */
  describe({ processId, processName, cgroupId }: ConnectionOwner): Owner {
    const cgroup = this.#cgroup(cgroupId)
    return create(OwnerSchema, { processId, processName, cgroup, ...containerOf(cgroup) })
  }

  [Symbol.dispose](): void {
    this.#paths[Symbol.dispose]()
  }

  #cgroup(id: bigint): string {
    const known = this.#cgroups.get(id)
    if (known !== undefined) return known
    forgetOldest(this.#cgroups, CGROUPS_MAX)
    const path = (this.#paths.path(id) ?? '').slice(0, PATH_BYTES_MAX)
    this.#cgroups.set(id, path)
    return path
  }
}

/** All of a `struct connection` but the round-trip time. */
function isSame(key: Buffer, values: Buffer, at: number): boolean {
  const { cgroupId, rttUs, processName, bytes } = CONNECTION
  return (
    key.compare(values, at + cgroupId, at + rttUs, cgroupId, rttUs) === 0 &&
    key.compare(values, at + processName, at + bytes, processName, bytes) === 0
  )
}

function forgetOldest<Key>(map: Map<Key, unknown>, max: number): void {
  if (map.size < max) return
  const oldest = map.keys().next()
  if (!oldest.done) map.delete(oldest.value)
}
