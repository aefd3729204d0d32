/** How many tests came out which way. */
export interface Tally {
  passed: number
  failed: number
  skipped: number
}

export function emptyTally(): Tally {
  return { passed: 0, failed: 0, skipped: 0 }
}

/** Adds what came out elsewhere. */
export function addTally(tally: Tally, { passed, failed, skipped }: Tally): void {
  tally.passed += passed
  tally.failed += failed
  tally.skipped += skipped
}

/** The one line with which every run of tests ends. */
export function tallyLine({ passed, failed, skipped }: Tally): string {
  return `${passed} passed, ${failed} failed, ${skipped} skipped`
}
