import { BoundedTable } from './bounded-table.ts'
import type { Attempt } from './connections.ts'
import type { ScanSettings } from './settings.ts'

/**
 * Sources watched at once; two bitmaps each, so at most 5 MB. Forged sources fill this table, which is why evictions are
 * counted and why a scan never blocks.
 */
const SOURCES_MAX = 16_384

/** Bits of a bitmap. Linear counting (Whang et al., 1990) errs by about 2 % at 100 ports and 8 % at 5,000. */
const BITS = 1024

/** Above this the bitmap is full and tells no numbers apart: settings beyond it are held to it. */
const PORTS_COUNTABLE_MAX = 5000

interface Sight {
  window: number
  current: Uint8Array
  previous: Uint8Array
  firstMs: number
}

/** A source that tries many ports. */
export interface Scan {
  readonly source: Uint8Array
  readonly sourceKey: string
  readonly sinceMs: number
  readonly untilMs: number
  /** About how many different ports. */
  readonly ports: number
}

/**
 * Port scan: how many different destination ports a source tried without completing a connection, in the current and the
 * last window of `withinSeconds`. So every source with more than `ports` in any `withinSeconds` is found, and none that
 * stays below them over twice that time. O(1) memory a source.
 */
export class PortScanDetector {
  readonly #sights: BoundedTable<Sight>
  readonly #seed: number
  /** Let go by the table, to be used again: forged sources must not make garbage faster than it is collected. */
  #spare: Sight | undefined

  /** The seed keeps a scanner from choosing ports that fall on the same bits. */
  constructor(seed: number, sourcesMax = SOURCES_MAX) {
    this.#seed = seed
    this.#sights = new BoundedTable(sourcesMax)
  }

  get size(): number {
    return this.#sights.size
  }

  get evictions(): number {
    return this.#sights.evictions
  }

  /** Counts one source's unanswered attempts, in order of time. Told for each batch while it is above the setting. */
  observe(attempts: readonly Attempt[], settings: ScanSettings): Scan | undefined {
    const [first] = attempts
    const last = attempts.at(-1)
    if (first === undefined || last === undefined) return undefined
    const windowMs = settings.withinSeconds * 1000
    const known = this.#sights.get(first.sourceKey)
    // A sight of a later window was made before somebody set a clock back.
    const isUsable = known !== undefined && known.window <= Math.floor(first.atMs / windowMs) + 1
    const sight = isUsable ? known : this.#newSight(first.atMs, windowMs)
    this.#spare = this.#sights.set(first.sourceKey, sight) ?? this.#spare
    for (const { destinationPort, atMs } of attempts) {
      advance(sight, atMs, windowMs)
      const bit = mix(destinationPort ^ this.#seed) % BITS
      sight.current[bit >> 3] = (sight.current[bit >> 3] ?? 0) | (1 << (bit & 7))
    }
    const ports = distinct(sight)
    if (ports <= Math.min(settings.ports, PORTS_COUNTABLE_MAX)) return undefined
    const { source, sourceKey } = first
    return { source, sourceKey, sinceMs: sight.firstMs, untilMs: last.atMs, ports }
  }

  #newSight(atMs: number, windowMs: number): Sight {
    const bitmap = (used: Uint8Array | undefined) => used?.fill(0) ?? new Uint8Array(BITS / 8)
    const [current, previous] = [bitmap(this.#spare?.current), bitmap(this.#spare?.previous)]
    this.#spare = undefined
    return { window: Math.floor(atMs / windowMs), current, previous, firstMs: atMs }
  }
}

function advance(sight: Sight, atMs: number, windowMs: number): void {
  const window = Math.floor(atMs / windowMs)
  if (window <= sight.window) return
  const recycled = sight.previous.fill(0)
  if (window === sight.window + 1) {
    sight.previous = sight.current
    sight.current = recycled
  } else {
    sight.current.fill(0)
    sight.firstMs = atMs
  }
  sight.window = window
}

function distinct({ current, previous }: Sight): number {
  let zeros = 0
  for (const [index, byte] of current.entries()) zeros += 8 - onesOf(byte | (previous[index] ?? 0))
  return Math.round(BITS * Math.log(BITS / Math.max(zeros, 1)))
}

function onesOf(byte: number): number {
  let ones = 0
  for (let rest = byte; rest !== 0; rest &= rest - 1) ones += 1
  return ones
}

/** The finalizer of MurmurHash3: every bit of the input moves every bit of the output. */
function mix(value: number): number {
  let hash = value | 0
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b)
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35)
  return (hash ^ (hash >>> 16)) >>> 0
}
