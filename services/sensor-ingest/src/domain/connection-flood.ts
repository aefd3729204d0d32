import { BoundedTable } from './bounded-table.ts'
import type { Attempt } from './connections.ts'
import type { FloodSettings } from './settings.ts'

/** The grain of time. Finer than anybody reconnects on purpose, coarser than the sensor's clock error. */
const SLOT_MS = 100
const SLOTS_PER_SECOND = 1000 / SLOT_MS

/**
 * No slot fills more than this share of the bucket. A hundred clients behind one address that reconnect at once fit into two
 * slots, and so never overflow it; a flood goes on, and does in the third.
 */
const SLOT_SHARE_MAX = 1 / 2

/** Sources watched at once. Only completed connections make an entry, so forged sources can't push others out. ~150 bytes each. */
const SOURCES_MAX = 65_536

/** A bucket this far ahead of its flows was filled before somebody set a clock back; waiting for it would be blindness. */
const CLOCK_STEP_SLOTS = 10 * SLOTS_PER_SECOND

interface Bucket {
  /** In units of 1 / (slots a window): all numbers stay whole, and a bucket on the line is not over it by rounding. */
  level: number
  slot: number
  /** Connections of the current slot. */
  slotCount: number
  sinceMs: number
  count: number
}

/** A source that opens connections faster than the setting allows. */
export interface Flood {
  readonly source: Uint8Array
  readonly sourceKey: string
  /** When the bucket began to fill, and the last connection counted. */
  readonly sinceMs: number
  readonly untilMs: number
  readonly count: number
}

/**
 * Connection flood: a leaky bucket for each source address. It holds `connections` and leaks as many in `withinSeconds`.
 * A source that never opens more than `connections` in any `withinSeconds` never overflows it, nor does one spike of any
 * size within 100 ms; a source that keeps opening r a second, r above the leak, does after connections / (r - leak)
 * seconds, and not before 200 ms. O(1) memory a source.
 */
export class ConnectionFloodDetector {
  readonly #buckets: BoundedTable<Bucket>

  constructor(sourcesMax = SOURCES_MAX) {
    this.#buckets = new BoundedTable(sourcesMax)
  }

  get size(): number {
    return this.#buckets.size
  }

  get evictions(): number {
    return this.#buckets.evictions
  }

  /** Counts one source's new connections, in order of time. A flood is told once; then the source begins anew. */
  observe(connections: readonly Attempt[], settings: FloodSettings): Flood | undefined {
    const [first] = connections
    const last = connections.at(-1)
    if (first === undefined || last === undefined) return undefined
    const known = this.#buckets.get(first.sourceKey)
    const isUsable = known !== undefined && known.slot - slotOf(first.atMs) <= CLOCK_STEP_SLOTS
    const bucket = isUsable ? known : emptyBucket(first.atMs)
    this.#buckets.set(first.sourceKey, bucket)
    let overflowed = false
    for (const { atMs } of connections) overflowed = pour(bucket, atMs, settings) || overflowed
    if (!overflowed) return undefined
    this.#buckets.delete(first.sourceKey)
    const { sinceMs, count } = bucket
    return { source: first.source, sourceKey: first.sourceKey, sinceMs, untilMs: last.atMs, count }
  }
}

function emptyBucket(atMs: number): Bucket {
  return { level: 0, slot: slotOf(atMs), slotCount: 0, sinceMs: atMs, count: 0 }
}

function slotOf(atMs: number): number {
  return Math.floor(atMs / SLOT_MS)
}

/** Adds one connection, and says whether the bucket is over its brim. */
function pour(bucket: Bucket, atMs: number, { connections, withinSeconds }: FloodSettings): boolean {
  const slotsPerWindow = withinSeconds * SLOTS_PER_SECOND
  // Nodes' clocks differ a little: what comes from before the current slot counts into it.
  const slot = Math.max(bucket.slot, slotOf(atMs))
  if (slot > bucket.slot) {
    bucket.level = Math.max(0, bucket.level - (slot - bucket.slot) * connections)
    if (bucket.level === 0) Object.assign(bucket, { sinceMs: atMs, count: 0 })
    Object.assign(bucket, { slot, slotCount: 0 })
  }
  bucket.count += 1
  bucket.slotCount += 1
  if (bucket.slotCount <= connections * SLOT_SHARE_MAX) bucket.level += slotsPerWindow
  return bucket.level > connections * slotsPerWindow
}
