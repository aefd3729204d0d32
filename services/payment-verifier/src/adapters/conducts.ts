import { createHash } from 'node:crypto'
import { create } from '@bufbuild/protobuf'
import type { Bucket, Bus, Following } from '@tollward/bus'
import { bucketContract } from '@tollward/contracts'
import { type Conduct, ConductSchema, type Override, OverrideSchema } from '@tollward/contracts/payment'
import { AppError } from '@tollward/errors'
import { Callers } from '../domain/callers.ts'
import { afterDeeds, customerOf, type Deeds, timeOf, together } from '../domain/conduct.ts'
import type { Ledger } from '../domain/ledger.ts'
import type { Customer } from '../domain/price.ts'
import type { Metrics } from '../metrics.ts'

/** What a client does within this time is written once. */
const WRITE_EVERY_MS = 500
/** Clients whose deeds wait to be written; those of others are lost and counted. */
const WAITING_MAX = 10_000
const WRITES_AT_ONCE = 16
/** Rounds of compare-and-set against other replicas; each lost one is somebody else's success. */
const ATTEMPTS_MAX = 20
/** Of a client that did nothing for so long nothing is left but its age, and that the ledger knows. */
const KEPT_MS = 180 * 24 * 60 * 60_000
/** Anybody can have many clients that never buy: beyond so many known ones, no more of them become known. About 1 KiB each. */
const STRANGERS_MAX = 50_000

const conducts = bucketContract(ConductSchema)

interface Waiting {
  deeds: Deeds
  readonly written: PromiseWithResolvers<void>
}

/** The bucket `conduct`, which only this service writes: from every replica, by compare-and-set. */
export class Conducts implements AsyncDisposable {
  readonly callers = new Callers()
  readonly #bucket: Bucket<Conduct>
  readonly #ledger: Ledger
  readonly #metrics: Metrics
  readonly #known = new Map<string, { readonly conduct: Conduct; readonly revision: number }>()
  #waiting = new Map<string, Waiting>()
  #timer: NodeJS.Timeout | undefined
  #writing: Promise<unknown> = Promise.resolve()
  #following: Following | undefined

  private constructor(bus: Bus, ledger: Ledger, metrics: Metrics) {
    this.#bucket = bus.bucket(conducts)
    this.#ledger = ledger
    this.#metrics = metrics
  }

  /** Begins to watch the bucket; resolves when all of it is known. */
  static async open(bus: Bus, ledger: Ledger, metrics: Metrics): Promise<Conducts> {
    const opened = new Conducts(bus, ledger, metrics)
    opened.#following = await opened.#bucket.follow({
      snapshot: (entries) => {
        for (const [key, { conduct }] of opened.#known) opened.#forget(key, conduct.clientId)
        for (const [key, { value, revision }] of entries) opened.#learn(key, value, revision)
      },
      change: (key, entry) => {
        if (entry === undefined) opened.#forget(key, opened.#known.get(key)?.conduct.clientId ?? '')
        else opened.#learn(key, entry.value, entry.revision)
      },
    })
    return opened
  }

  /** Clients that anything is known of. */
  get size(): number {
    return this.#known.size
  }

  /** What is known of a client, its counts as they were when they were last written. */
  of(clientId: string): Conduct | undefined {
    return this.#known.get(keyOf(clientId))?.conduct
  }

  *all(): Iterable<Conduct> {
    for (const { conduct } of this.#known.values()) yield conduct
  }

  /** What decides about the price for a client. */
  customer(clientId: string, tipHeight: number, nowMs: number): Customer {
    return customerOf(this.of(clientId), this.#ledger.invoicesOf(clientId), tipHeight, nowMs)
  }

  /**
   * Counts what a client did. Resolves when it is written; what cannot be written is counted as lost, and whoever can repeat it
   * hears of it by AppError `unavailable`.
   */
  async count(clientId: string, deeds: Deeds): Promise<void> {
    const waiting = this.#waiting.get(clientId)
    if (waiting !== undefined) {
      waiting.deeds = together(waiting.deeds, deeds)
      return await waiting.written.promise
    }
    if (this.#waiting.size >= WAITING_MAX || this.#isStranger(clientId)) {
      this.#metrics.conductChanges.inc({ result: 'left-out' })
      return
    }
    const first = { deeds, written: Promise.withResolvers<void>() }
    this.#waiting.set(clientId, first)
    this.#timer ??= setTimeout(() => this.#writeWaiting(), WRITE_EVERY_MS)
    await first.written.promise
  }

  /** The same for what nobody can repeat. */
  note(clientId: string, deeds: Deeds): void {
    // It is counted as lost where it was.
    this.count(clientId, deeds).catch(() => undefined)
  }

  /** Sets an operator's word, or lifts it. Returns the conduct with it. */
  async override(clientId: string, word: Omit<Override, '$typeName'> | undefined): Promise<Conduct> {
    return await this.#change(clientId, (before) => {
      const { override: _lifted, ...after } = afterDeeds(before, clientId, {}, Date.now())
      return word === undefined ? after : { ...after, override: create(OverrideSchema, word) }
    })
  }

  /** Writes what waits. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#writeWaiting()
    await this.#writing
    await this.#following?.[Symbol.asyncDispose]()
  }

  #isStranger(clientId: string): boolean {
    if (this.#known.size < STRANGERS_MAX || this.#known.has(keyOf(clientId))) return false
    return this.#ledger.invoicesOf(clientId).length === 0
  }

  #writeWaiting(): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
    const batch = [...this.#waiting]
    this.#waiting = new Map()
    const write = async () => {
      for (let next = batch.pop(); next !== undefined; next = batch.pop()) await this.#writeOne(...next)
    }
    const writers = Array.from({ length: Math.min(WRITES_AT_ONCE, batch.length) }, write)
    this.#writing = Promise.all([this.#writing, ...writers])
  }

  async #writeOne(clientId: string, { deeds, written }: Waiting): Promise<void> {
    try {
      await this.#change(clientId, (before) => afterDeeds(before, clientId, deeds, Date.now()))
      this.#metrics.conductChanges.inc({ result: 'written' })
      written.resolve()
    } catch (error) {
      this.#metrics.conductChanges.inc({ result: 'failed' })
      written.reject(error)
    }
  }

  async #change(clientId: string, change: (before: Conduct | undefined) => Conduct): Promise<Conduct> {
    const key = keyOf(clientId)
    let before = this.#known.get(key)
    for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt += 1) {
      const conduct = change(before?.conduct)
      try {
        const expiry = expiryOf(conduct)
        const revision =
          before === undefined
            ? await this.#bucket.create(key, conduct, expiry)
            : await this.#bucket.update(key, conduct, before.revision, expiry)
        this.#learn(key, conduct, revision)
        return conduct
      } catch (error) {
        if (!(error instanceof AppError && (error.code === 'conflict' || error.code === 'already_exists'))) throw error
        this.#metrics.conductChanges.inc({ result: 'conflict' })
        const entry = await this.#bucket.get(key)
        before = entry === undefined ? undefined : { conduct: entry.value, revision: entry.revision }
      }
    }
    throw new AppError('unavailable', 'The conduct of this client is changed by too many at once; try again.')
  }

  #learn(key: string, conduct: Conduct, revision: number): void {
    if (revision < (this.#known.get(key)?.revision ?? 0)) return
    this.#known.set(key, { conduct, revision })
    this.callers.set(conduct)
  }

  #forget(key: string, clientId: string): void {
    this.#known.delete(key)
    this.callers.delete(clientId)
  }
}

/** Names of clients are others' text, and a key is short and of few characters. */
function keyOf(clientId: string): string {
  return createHash('sha256').update(clientId).digest('base64url')
}

/** An operator's word outlasts what it was said about. */
function expiryOf({ countedAt, override }: Conduct): { expiresAtMs?: number } {
  const keptUntilMs = timeOf(countedAt) + KEPT_MS
  if (override === undefined) return { expiresAtMs: keptUntilMs }
  return override.until === undefined ? {} : { expiresAtMs: Math.max(keptUntilMs, timeOf(override.until)) }
}
