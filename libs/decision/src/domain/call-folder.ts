import { RECORD_SOURCES_MAX, RECORDS_PER_SOURCE } from '../edges.ts'

/** Several calls as one: the first of them, and how many they are. */
export interface Folded<C> {
  readonly first: C
  readonly count: number
}

interface Window<C> {
  recorded: number
  first: C | undefined
  count: number
}

/** Sources beyond RECORD_SOURCES_MAX in one window are taken for one. */
const OTHER_SOURCES = ''

/** Lets a few calls of each source through in each window and folds the rest, so that a flood leaves one record, not a million. */
export class CallFolder<C> {
  #windows = new Map<string, Window<C>>()

  /** True: record this call by itself. False: it was folded into one that `close` returns. */
  add(source: string, call: C): boolean {
    const key = this.#windows.has(source) || this.#windows.size < RECORD_SOURCES_MAX ? source : OTHER_SOURCES
    const window = this.#windows.get(key) ?? { recorded: 0, first: undefined, count: 0 }
    this.#windows.set(key, window)
    if (window.recorded < RECORDS_PER_SOURCE) {
      window.recorded += 1
      return true
    }
    window.first ??= call
    window.count += 1
    return false
  }

  /** Ends the window of every source and returns what was folded in it. */
  close(): Folded<C>[] {
    const folded: Folded<C>[] = []
    for (const { first, count } of this.#windows.values()) if (first !== undefined) folded.push({ first, count })
    this.#windows = new Map()
    return folded
  }
}
