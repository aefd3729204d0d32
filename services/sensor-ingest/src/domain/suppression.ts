import { BoundedTable } from './bounded-table.ts'

/** What goes on is told again this often. */
const ALERT_REPEAT_MS = 5 * 60_000

/** What was quiet for this long and comes again is something new. Also the window of an alert's id. */
const ALERT_QUIET_MS = 60_000

/** Things under way at once. About 100 bytes each. */
const KEYS_MAX = 16_384

interface Ongoing {
  toldMs: number
  lastMs: number
}

/** Lets the first alert of something that goes on through, and holds back those that would say the same. */
export class Suppression {
  readonly #ongoing = new BoundedTable<Ongoing>(KEYS_MAX)

  get evictions(): number {
    return this.#ongoing.evictions
  }

  /** Whether to tell of `key`, which was detected at `atMs`. */
  lets(key: string, atMs: number): boolean {
    const ongoing = this.#ongoing.get(key)
    const isNews = !ongoing || atMs - ongoing.lastMs >= ALERT_QUIET_MS || atMs - ongoing.toldMs >= ALERT_REPEAT_MS
    this.#ongoing.set(key, { toldMs: isNews ? atMs : ongoing.toldMs, lastMs: Math.max(atMs, ongoing?.lastMs ?? atMs) })
    return isNews
  }
}

/** The start of the window that an alert without a block belongs to. */
export function alertWindowStartMs(atMs: number): number {
  return Math.floor(atMs / ALERT_QUIET_MS) * ALERT_QUIET_MS
}
