import type { Bus, Following } from '@tollward/bus'
import { contract } from '@tollward/contracts'
import { type EntryAppended, EntryAppendedSchema } from '@tollward/contracts/ledger'
import { AppError } from '@tollward/errors'
import { entryOf, type Fact } from '../domain/facts.ts'
import { type Applied, Ledger } from '../domain/ledger.ts'
import type { Metrics } from '../metrics.ts'

/** Writers that lose against others read on and decide again, for at most this long. */
const APPEND_TIMEOUT_MS = 5_000

const entries = contract(EntryAppendedSchema)

/** The ledger as this replica knows it, and the only way to write it. */
export class LedgerBook implements AsyncDisposable {
  readonly ledger = new Ledger()
  readonly #bus: Bus
  readonly #metrics: Metrics
  readonly #waiting = new Set<{ readonly sequence: number; resolve(): void }>()
  #following: Following | undefined
  /** Appends of this process go one after the other: they would only lose against each other. */
  #writing: Promise<unknown> = Promise.resolve()

  private constructor(bus: Bus, metrics: Metrics) {
    this.#bus = bus
    this.#metrics = metrics
  }

  /** Reads the whole ledger and keeps up with it. `onApplied` is told of what comes later. */
  static async open(bus: Bus, metrics: Metrics, onApplied: (applied: Applied) => void): Promise<LedgerBook> {
    const book = new LedgerBook(bus, metrics)
    let isPast = true
    const take = (applied: Applied) => {
      for (const waiting of book.#waiting) if (waiting.sequence <= book.ledger.sequence) waiting.resolve()
      if (!isPast) onApplied(applied)
    }
    book.#following = await bus.follow(
      entries,
      'beginning',
      (entry, { sequence }) => take(book.ledger.apply(entry, sequence)),
      { onUndecodable: ({ sequence }) => take(book.ledger.skip(sequence)) },
    )
    isPast = false
    return book
  }

  /**
   * Writes the facts that `next` asks for, one after the other, until it asks for none. It is asked again whenever the ledger has
   * moved on, so what it decides is always decided on the last entry. AppError `unavailable` if that does not succeed in time.
   */
  async write(next: (ledger: Ledger, nowMs: number) => Fact | undefined): Promise<void> {
    const writing = this.#writing.then(() => this.#write(next))
    this.#writing = writing.catch(() => undefined)
    await writing
  }

  /**
   * Writes entries of a back-up as they are, after whatever the ledger holds now. AppError `conflict` if somebody else wrote
   * meanwhile.
   */
  async restore(restored: readonly EntryAppended[]): Promise<void> {
    const writing = this.#writing.then(async () => {
      const { sequence } = this.ledger
      await Promise.all(restored.map((entry, index) => this.#bus.append(entries, entry, sequence + index)))
      await this.reaches(sequence + restored.length)
    })
    this.#writing = writing.catch(() => undefined)
    await writing
  }

  /** The bytes of entries, as they are. */
  async stored(fromSequence: number, count: number): Promise<Uint8Array[]> {
    return await this.#bus.stored(entries, fromSequence, count)
  }

  /** Resolves when the entry of this sequence is part of the ledger here. */
  async reaches(sequence: number): Promise<void> {
    if (this.ledger.sequence >= sequence) return
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const waiting = { sequence, resolve }
    this.#waiting.add(waiting)
    const timer = setTimeout(
      () => reject(new AppError('unavailable', 'The ledger is behind; try again in a moment.')),
      APPEND_TIMEOUT_MS,
    )
    try {
      await promise
    } finally {
      clearTimeout(timer)
      this.#waiting.delete(waiting)
    }
  }

  /** Resolves when every entry that was written before is part of the ledger here. */
  async reachesEnd(): Promise<void> {
    for (;;) {
      const { sequence } = this.ledger
      const next = await this.#bus.stored(entries, sequence + 1, 1)
      if (next.length === 0) return
      await this.reaches(sequence + 1)
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#following?.[Symbol.asyncDispose]()
  }

  async #write(next: (ledger: Ledger, nowMs: number) => Fact | undefined): Promise<void> {
    let deadlineMs = performance.now() + APPEND_TIMEOUT_MS
    for (;;) {
      if (this.ledger.isRestoring)
        throw new AppError('unavailable', 'The ledger is being restored; try again when that is done.')
      const fact = next(this.ledger, Date.now())
      if (fact === undefined) return
      const { sequence } = this.ledger
      if (await this.#append(fact, sequence)) deadlineMs = performance.now() + APPEND_TIMEOUT_MS
      if (performance.now() > deadlineMs)
        throw new AppError('unavailable', 'The ledger is busy; try again in a moment.')
      await this.reaches(sequence + 1)
    }
  }

  /** Whether the fact is the ledger's next entry now; false: somebody else's is. */
  async #append(fact: Fact, expectedLastSequence: number): Promise<boolean> {
    try {
      await this.#bus.append(entries, entryOf(fact, Date.now()), expectedLastSequence)
      this.#metrics.appended.inc({ entry: fact.case ?? 'none', result: 'appended' })
      return true
    } catch (error) {
      const isLost = error instanceof AppError && error.code === 'conflict'
      this.#metrics.appended.inc({ entry: fact.case ?? 'none', result: isLost ? 'lost' : 'failed' })
      if (!isLost) throw error
      return false
    }
  }
}
