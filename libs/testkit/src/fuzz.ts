import { Script } from 'node:vm'
import { Coverage } from './fuzz-coverage.ts'
import { type Conversation, type MutationOptions, mutated, type Piece, randomNumbers } from './fuzz-mutation.ts'

export { countBlocks } from './fuzz-coverage.ts'
export type { Conversation, Piece }

export interface FuzzOptions {
  /** Reads a conversation; throws where something does not hold. */
  readonly target: (conversation: Conversation) => void
  /** Real conversations, of which all others are made. */
  readonly seeds: readonly Conversation[]
  /** Words of the protocol. */
  readonly dictionary: readonly (string | Uint8Array)[]
  /** Who may speak: numbers below. */
  readonly lanes: number
  readonly budget: FuzzBudget
  /** False: only seeds are changed, whatever was reached. For comparison. */
  readonly isGuided?: boolean
  /** A conversation that takes longer does not end. */
  readonly endsMsMax?: number
}

/** As many conversations, or as many minutes; the same seed and conversations find the same. */
export interface FuzzBudget {
  readonly seed: number
  readonly conversations: number
  readonly minutes: number
}

export interface FuzzCounts {
  readonly conversations: number
  /** Conversations that reached something first. */
  readonly corpus: number
  /** Blocks that ran, of those of all instrumented modules. */
  readonly reached: number
  readonly blocks: number
  /** The same, each as often as it ran in as many steps. */
  readonly steps: number
}

/** Of one conversation. */
const BYTES_MAX = 8192
/** Watching the time costs, too. */
const SLICE_MS = 500
/** What takes longer does not end: busy machines have pauses. */
const ENDS_MS_MAX = 20_000
/** Tries to make a conversation shorter: one for the corpus, and one that is told. */
const TRIM_TRIES = 16
const SHORTEN_TRIES = 1000
/** What was found last leads on more often. */
const NEWEST = 16
const MS_PER_MINUTE = 60_000
const SHARED = 'tollwardFuzzSlice'

/** In npm test so many conversations of one seed; TOLLWARD_FUZZ_MINUTES has it run for long, each time with another. */
export function fuzzBudget(conversations: number): FuzzBudget {
  const { TOLLWARD_FUZZ_MINUTES: minutes, TOLLWARD_FUZZ_SEED: seed } = process.env
  if (minutes === undefined) return { seed: Number(seed ?? 1), conversations, minutes: Number.POSITIVE_INFINITY }
  return {
    seed: Number(seed ?? Date.now() % 1_000_000_000),
    conversations: Number.POSITIVE_INFINITY,
    minutes: Number(minutes),
  }
}

/**
 * Gives a target conversations made of its seeds, and goes on from those that reached code no other has. Throws with the shortest
 * conversation it has for what does not hold: thrown by the target, or endless. Only code whose blocks are counted guides (countBlocks).
 */
export function fuzz(options: FuzzOptions): FuzzCounts {
  return new Run(options).go()
}

class Run {
  readonly #options: FuzzOptions
  readonly #coverage = new Coverage()
  readonly #mutation: MutationOptions
  readonly #corpus: Conversation[] = []
  #conversations = 0
  #current: Conversation = []
  #unfinished: Conversation | undefined
  /** A pause of the machine interrupts one: it is had again once, so that the same seed finds the same on any machine. */
  #interrupted: Conversation | undefined

  constructor(options: FuzzOptions) {
    this.#options = options
    this.#mutation = {
      random: randomNumbers(options.budget.seed),
      corpus: options.isGuided === false ? options.seeds : this.#corpus,
      dictionary: options.dictionary.map((word) =>
        typeof word === 'string' ? Buffer.from(word, 'latin1') : Buffer.from(word),
      ),
      ...{ lanes: options.lanes, bytesMax: BYTES_MAX },
    }
  }

  go(): FuzzCounts {
    const { budget, seeds } = this.#options
    const deadlineMs = performance.now() + budget.minutes * MS_PER_MINUTE
    for (const seed of seeds) this.#execute(seed)
    this.#corpus.push(...seeds)
    while (this.#conversations < budget.conversations && performance.now() < deadlineMs) this.#slice()
    const { reached, blocks, steps } = this.#coverage
    return { conversations: this.#conversations, corpus: this.#corpus.length, reached, blocks, steps }
  }

  #slice(): void {
    const { budget, target, endsMsMax = ENDS_MS_MAX } = this.#options
    const sliceMs = performance.now() + SLICE_MS
    try {
      within(SLICE_MS + endsMsMax, () => {
        while (this.#conversations < budget.conversations && performance.now() < sliceMs) this.#next()
      })
    } catch (error) {
      if (!isTimeout(error)) throw error
      // It may be the last of many slow ones.
      if (!ends(target, this.#current, endsMsMax)) throw this.#failure('it does not end', this.#current, error)
      if (this.#interrupted === this.#unfinished) this.#unfinished = undefined
      this.#interrupted = this.#unfinished
    }
  }

  #next(): void {
    this.#unfinished ??= this.#another()
    const conversation = this.#unfinished
    this.#execute(conversation)
    const found = this.#coverage.found()
    if (found.length > 0) {
      if (this.#options.isGuided !== false) this.#corpus.push(this.#trimmed(conversation))
      this.#coverage.keep(found)
    }
    this.#unfinished = undefined
    this.#conversations += 1
  }

  #another(): Conversation {
    const { random, corpus } = this.#mutation
    const from = random(2) === 0 ? corpus.length - 1 - random(NEWEST) : random(corpus.length)
    return mutated(corpus[from] ?? corpus[random(corpus.length)] ?? [], this.#mutation)
  }

  /** With as little as runs all of the same: the way to a place leads on to others. */
  #trimmed(conversation: Conversation): Conversation {
    const all = this.#coverage.all()
    return shortened(conversation, TRIM_TRIES, (shorter) => {
      this.#execute(shorter)
      return this.#coverage.has(all)
    })
  }

  #execute(conversation: Conversation): void {
    const { target } = this.#options
    this.#current = conversation
    this.#coverage.begin()
    try {
      target(conversation)
    } catch (cause) {
      const shortest = shortened(conversation, SHORTEN_TRIES, (one) => fails(target, one))
      throw this.#failure(cause instanceof Error ? cause.message : String(cause), shortest, cause)
    }
  }

  #failure(what: string, conversation: Conversation, cause: unknown): Error {
    const about = `seed ${this.#options.budget.seed}, after ${this.#conversations} conversations`
    return new Error(`${what} (${about}): ${described(conversation)}`, { cause })
  }
}

function fails(target: FuzzOptions['target'], conversation: Conversation): boolean {
  try {
    target(conversation)
    return false
  } catch {
    // Whatever is thrown: it is about finding a short one.
    return true
  }
}

function ends(target: FuzzOptions['target'], conversation: Conversation, msMax: number): boolean {
  try {
    within(msMax, () => target(conversation))
    return true
  } catch (error) {
    return !isTimeout(error)
  }
}

/** The shortest conversation that still does it, as far as it is found with so many tries. */
function shortened(from: Conversation, tries: number, does: (shorter: Conversation) => boolean): Conversation {
  let left = tries
  let best = from
  const attempt = (shorter: Conversation) => {
    if (left <= 0) return false
    left -= 1
    if (!does(shorter)) return false
    best = shorter
    return true
  }
  for (let at = best.length - 1; at >= 0; at--) attempt(best.toSpliced(at, 1))
  for (let step = BYTES_MAX / 2; step >= 1; step = step >> 1) {
    for (let at = 0; at < best.length; at++) {
      for (let from = 0; left > 0 && from < (best[at]?.bytes.length ?? 0); ) {
        const piece = best[at]
        if (!piece || piece.bytes.length < step || !attempt(best.with(at, without(piece, from, step)))) from += step
      }
    }
  }
  return best
}

function without(piece: Piece, from: number, bytes: number): Piece {
  return { ...piece, bytes: Buffer.concat([piece.bytes.subarray(0, from), piece.bytes.subarray(from + bytes)]) }
}

function described(conversation: Conversation): string {
  const pieces = conversation.map(({ bytes, ...rest }) => ({ ...rest, bytes: bytes.toString('latin1') }))
  return JSON.stringify(pieces)
}

/** Ends by an exception what does not end by itself. */
function within(timeoutMs: number, work: () => void): void {
  Object.assign(globalThis, { [SHARED]: work })
  ENDING.runInThisContext({ timeout: timeoutMs })
}

const ENDING = new Script(`${SHARED}()`)

function isTimeout(error: unknown): boolean {
  return error instanceof Error && 'code' in error && error.code === 'ERR_SCRIPT_EXECUTION_TIMEOUT'
}
