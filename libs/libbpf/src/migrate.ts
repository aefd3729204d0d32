import { kernelMembers } from './btf.ts'
import { bootTimeNs } from './clock.ts'
import { BLOCK, HITS_TOLD } from './layout.ts'
import { type BpfMap, MAP_TYPE } from './map.ts'
import { BpfError } from './native.ts'

/** BPF_MAP_TYPE_HASH and BPF_MAP_TYPE_LPM_TRIE. A trie's keys can be those of a hash: a length, and a prefix whose other bits are 0. */
const { hash: HASH, lpmTrie: TRIE } = MAP_TYPE

type Shape = Pick<BpfMap, 'name' | 'type' | 'keyBytes' | 'valueBytes' | 'types'>
type Source = Shape & Pick<BpfMap, 'entries'>
type Target = Shape & Pick<BpfMap, 'update' | 'updateBatch'>

/** A run of bytes that both layouts have. */
interface Piece {
  readonly from: number
  readonly to: number
  bytes: number
}

/** Whether an entry stays: its value in the new layout, and as it was. */
type Keep = (value: Buffer, before: Buffer) => boolean

/** What became of the entries of a map. */
export interface Migration {
  readonly copied: number
  /** Were not wanted any more. */
  readonly over: number
  /** Found no room. */
  readonly left: number
}

/**
 * Copies what one map holds into another, whose values may be laid out otherwise: member by member, by the names that the kernel
 * keeps of both. A member that the new layout lacks is left out, one that the old lacked is 0. `keep` decides on each value, and
 * may change what it is now. TypeError for maps whose keys differ, or whose values have no structure in common: these cannot be copied.
 */
export function migrateEntries(from: Source, to: Target, keep: Keep = () => true): Migration {
  if (from.keyBytes !== to.keyBytes || !(from.type === to.type || (from.type === TRIE && to.type === HASH)))
    throw new TypeError(`${to.name} has another kind of keys than before`)
  const pieces = piecesOf(from, to)
  let [copied, over, left] = [0, 0, 0]
  for (const { count, keys, values } of from.entries()) {
    const newKeys = Buffer.alloc(count * to.keyBytes)
    const newValues = Buffer.alloc(count * to.valueBytes)
    let kept = 0
    for (let index = 0; index < count; index++) {
      const value = newValues.subarray(kept * to.valueBytes, (kept + 1) * to.valueBytes)
      for (const piece of pieces) {
        const at = index * from.valueBytes + piece.from
        values.copy(value, piece.to, at, at + piece.bytes)
      }
      if (keep(value, values.subarray(index * from.valueBytes, (index + 1) * from.valueBytes)))
        keys.copy(newKeys, kept++ * to.keyBytes, index * to.keyBytes, (index + 1) * to.keyBytes)
      else value.fill(0)
    }
    over += count - kept
    const taken = updateAll(to, newKeys.subarray(0, kept * to.keyBytes), newValues.subarray(0, kept * to.valueBytes))
    copied += taken
    left += kept - taken
  }
  return { copied, over, left }
}

/** Copies blocks, but for those that are over. */
export function migrateBlocks(from: Source, to: Target): Migration {
  const nowNs = bootTimeNs()
  // Once a time of its own, and not a bit of the hits.
  const firstHit = membersOf(from)?.first_hit_ns
  return migrateEntries(from, to, (value, before) => {
    const expiresNs = value.readBigUInt64LE(BLOCK.expiresNs)
    if (firstHit && before.readBigUInt64LE(firstHit.at) !== 0n)
      value.writeBigUInt64LE(value.readBigUInt64LE(BLOCK.hits) | HITS_TOLD, BLOCK.hits)
    return expiresNs === 0n || expiresNs > nowNs
  })
}

/** Whether keys and values are of the same sizes, and values of the same members at the same places. */
export function hasSameLayout(from: Shape, to: Shape): boolean {
  if (from.type !== to.type || from.keyBytes !== to.keyBytes || from.valueBytes !== to.valueBytes) return false
  return JSON.stringify(membersOf(from)) === JSON.stringify(membersOf(to))
}

/** One by one where a batch fails: a full map still takes what replaces an entry. */
function updateAll(map: Target, keys: Buffer, values: Buffer): number {
  try {
    map.updateBatch(keys, values)
    return keys.length / map.keyBytes
  } catch (error) {
    if (!isFull(error)) throw error
  }
  let taken = 0
  for (let index = 0; index < keys.length / map.keyBytes; index++) {
    try {
      map.update(
        keys.subarray(index * map.keyBytes, (index + 1) * map.keyBytes),
        values.subarray(index * map.valueBytes, (index + 1) * map.valueBytes),
      )
      taken += 1
    } catch (error) {
      if (!isFull(error)) throw error
    }
  }
  return taken
}

function isFull(error: unknown): boolean {
  return error instanceof BpfError && error.code === 'resource_exhausted'
}

function piecesOf(from: Shape, to: Shape): Piece[] {
  const [before, now] = [membersOf(from), membersOf(to)]
  if (!before || !now) {
    if (from.valueBytes !== to.valueBytes) throw new TypeError(`${to.name} has values of another size than before`)
    return [{ from: 0, to: 0, bytes: to.valueBytes }]
  }
  const pieces: Piece[] = []
  for (const [name, { at, bytes }] of Object.entries(now)) {
    const old = before[name]
    if (!old) continue
    const last = pieces.at(-1)
    // A number that became wider keeps its value: the machine is little-endian.
    const common = Math.min(bytes, old.bytes)
    if (last && last.from + last.bytes === old.at && last.to + last.bytes === at) last.bytes += common
    else pieces.push({ from: old.at, to: at, bytes: common })
  }
  if (pieces.length === 0) throw new TypeError(`${to.name} has nothing in common with what it was`)
  return pieces
}

function membersOf({ types }: Shape) {
  return types.btf === 0 || types.value === 0 ? undefined : kernelMembers(types.btf, types.value)
}
