/**
 * The one list of stages of a decision, in the order in which they run. `policy` runs again after `token` and `proof` where claims
 * decide which rule it is; `limits` comes before `payment` or after it, `payment` has a part before and one after limits.
 */
export const STAGES = [
  'canonical',
  'blocks',
  'source-limits',
  'policy',
  'token',
  'proof',
  'rights',
  'payment',
  'limits',
  'quote',
] as const

export type Stage = (typeof STAGES)[number]

/** What one stage took. */
export interface StageTime {
  readonly name: Stage
  readonly ms: number
  /** Somebody else was asked; otherwise memory sufficed. */
  readonly isAsked: boolean
}

/** Takes the time of one stage after the other. */
export class StageTimes {
  readonly ended: StageTime[] = []
  readonly #clock: () => number
  #beganMs: number

  constructor(clock: () => number) {
    this.#clock = clock
    this.#beganMs = clock()
  }

  /** The stage that was running ends, and the next one begins. */
  end(name: Stage, isAsked = false): void {
    const nowMs = this.#clock()
    this.ended.push({ name, ms: nowMs - this.#beganMs, isAsked })
    this.#beganMs = nowMs
  }
}
