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

/** Sources watched at once. Only completed connections make an entry, so forged sources can't push others out. ~450 bytes each. */
const SOURCES_MAX = 65_536

/**
 * Slots that a source remembers. The flows of one drain come in several messages and in no order, and a drain after a pause
 * of the sensor holds seconds (BATCH_SPAN_MAX_MS): each connection has to count at its own time, however late it comes.
 */
const SLOTS_KEPT = 64

/** Slots this far ahead of its flows were filled before somebody set a clock back; waiting for it would be blindness. */
const CLOCK_STEP_SLOTS = 10 * SLOTS_PER_SECOND

/** The last seconds of one source. */
interface Recent {
  /** Connections of each slot up to `newest`, slot modulo SLOTS_KEPT. */
  readonly counts: Uint32Array
  newest: number
  /** Of the bucket, at the end of the last slot that is not kept any more. */
  leftLevel: number
  leftSinceMs: number
  leftCount: number
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
  readonly #sources: BoundedTable<Recent>

  constructor(sourcesMax = SOURCES_MAX) {
    this.#sources = new BoundedTable(sourcesMax)
  }

  get size(): number {
    return this.#sources.size
  }

  get evictions(): number {
    return this.#sources.evictions
  }

  /**
   * Counts one source's new connections; those of one call are in order of time, but may be older than what earlier calls
   * counted. A flood is told once; then the source begins anew.
   */
  observe(connections: readonly Attempt[], settings: FloodSettings): Flood | undefined {
    const [first] = connections
    const last = connections.at(-1)
    if (first === undefined || last === undefined) return undefined
    const known = this.#sources.get(first.sourceKey)
    const isUsable = known !== undefined && known.newest - slotOf(first.atMs) <= CLOCK_STEP_SLOTS
    const recent = isUsable ? known : nothingBefore(first.atMs)
    this.#sources.set(first.sourceKey, recent)
    for (const { atMs } of connections) count(recent, slotOf(atMs), settings)
    const overflow = overflowOf(recent, settings)
    if (!overflow) return undefined
    this.#sources.delete(first.sourceKey)
    return { source: first.source, sourceKey: first.sourceKey, ...overflow, untilMs: last.atMs }
  }
}

function nothingBefore(atMs: number): Recent {
  const newest = slotOf(atMs)
  return { counts: new Uint32Array(SLOTS_KEPT), newest, leftLevel: 0, leftSinceMs: atMs, leftCount: 0 }
}

function slotOf(atMs: number): number {
  return Math.floor(atMs / SLOT_MS)
}

/** Adds one connection at its slot; one from before all that are kept counts into the oldest. */
function count(recent: Recent, slot: number, settings: FloodSettings): void {
  if (slot > recent.newest) advance(recent, slot, settings)
  const kept = Math.max(slot, recent.newest - SLOTS_KEPT + 1) % SLOTS_KEPT
  recent.counts[kept] = (recent.counts[kept] ?? 0) + 1
}

/** Makes room up to a new slot. The slots that go leave what their bucket held. */
function advance(recent: Recent, newest: number, settings: FloodSettings): void {
  const { counts } = recent
  const bucket = { level: recent.leftLevel, sinceMs: recent.leftSinceMs, count: recent.leftCount }
  const oldest = recent.newest - SLOTS_KEPT + 1
  const goUntil = newest - SLOTS_KEPT
  for (let slot = oldest; slot <= Math.min(goUntil, recent.newest); slot++) {
    pour(bucket, slot, counts[slot % SLOTS_KEPT] ?? 0, settings)
    counts[slot % SLOTS_KEPT] = 0
  }
  const empty = Math.max(0, goUntil - recent.newest)
  recent.leftLevel = Math.max(0, bucket.level - empty * settings.connections)
  recent.leftSinceMs = bucket.sinceMs
  recent.leftCount = bucket.count
  recent.newest = newest
}

/** When the bucket began to fill, and with how many connections, if they brought it over its brim. */
function overflowOf(recent: Recent, settings: FloodSettings): { sinceMs: number; count: number } | undefined {
  const bucket = { level: recent.leftLevel, sinceMs: recent.leftSinceMs, count: recent.leftCount }
  const brim = settings.connections * settings.withinSeconds * SLOTS_PER_SECOND
  let overflow: { sinceMs: number; count: number } | undefined
  for (let slot = recent.newest - SLOTS_KEPT + 1; slot <= recent.newest; slot++) {
    const connections = recent.counts[slot % SLOTS_KEPT] ?? 0
    pour(bucket, slot, connections, settings)
    if (overflow) overflow.count += connections
    else if (bucket.level > brim) overflow = { sinceMs: bucket.sinceMs, count: bucket.count }
  }
  return overflow
}

/**
 * Lets a slot leak, then adds its connections. The level is in units of 1 / (slots a window): all numbers stay whole, and a
 * bucket on the line is not over it by rounding.
 */
function pour(
  bucket: { level: number; sinceMs: number; count: number },
  slot: number,
  connections: number,
  settings: FloodSettings,
): void {
  bucket.level = Math.max(0, bucket.level - settings.connections)
  if (bucket.level === 0) Object.assign(bucket, { sinceMs: slot * SLOT_MS, count: 0 })
  bucket.count += connections
  const counted = Math.min(connections, Math.floor(settings.connections * SLOT_SHARE_MAX))
  bucket.level += counted * settings.withinSeconds * SLOTS_PER_SECOND
}
