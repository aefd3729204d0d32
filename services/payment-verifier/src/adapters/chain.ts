import { setTimeout as sleep } from 'node:timers/promises'
import { type AccountKey, ChainFollower, type ChainSource, type WatchedOutput } from '@tollward/bitcoin'
import { AppError, toAppError } from '@tollward/errors'
import type { Logger } from 'pino'
import { contested, uncoveredUses } from '../domain/credit.ts'
import { nextChainFact, nextReplacedFact, nextSeenFact } from '../domain/facts.ts'
import { heightsOf, type Invoice, type Place, type View } from '../domain/invoice.ts'
import type { Metrics } from '../metrics.ts'
import { Addresses, LOOKAHEAD_ADDRESSES } from './addresses.ts'
import type { LedgerBook } from './ledger.ts'
import type { Passes } from './passes.ts'

/** Blocks of which headers are asked for at once while used addresses are looked for. */
const BLOCKS_PER_STEP = 100
const SEARCH_RETRY_MIN_MS = 1_000
const SEARCH_RETRY_MAX_MS = 30_000

export interface ChainOptions {
  readonly source: ChainSource
  readonly account: AccountKey
  /** Height of the first block that can pay the account. */
  readonly accountBirthday: number
  readonly book: LedgerBook
  readonly passes: Passes
  readonly metrics: Metrics
  readonly log: Logger
  readonly signal: AbortSignal
}

/** The best chain: what it does to payments goes into the ledger, and what that does to passes into their bucket. */
export class Chain implements AsyncDisposable {
  readonly follower: ChainFollower
  readonly source: ChainSource
  /** Addresses of the account that no invoice has. */
  readonly addresses: Addresses
  readonly #options: ChainOptions
  readonly #searching: Promise<void>
  #addressFloor: number | undefined
  /** One more than the highest address index that was paid since the search, before the first invoice. */
  #usedSince = 0
  #searchTrouble: AppError | undefined
  #startingOver = false

  private constructor(options: ChainOptions, addresses: Addresses) {
    const { book, source } = options
    this.#options = options
    this.source = source
    this.addresses = addresses
    const known = book.ledger.knownBlocks()
    this.follower = new ChainFollower({ source, known, handlers: this.#handlers() })
    this.#lookAgain(known)
    this.#searching = this.#findAddressFloor()
  }

  /** Begins to follow. Addresses that are watched although no invoice has them are made first. */
  static async open(options: ChainOptions): Promise<Chain> {
    const { ledger } = options.book
    const addresses = new Addresses(options.account)
    const taken = new Set([...ledger.invoices()].map(({ addressIndex }) => addressIndex))
    await addresses.extend(ledger.nextAddressIndex, (index) => taken.has(index))
    return new Chain(options, addresses)
  }

  /** Lowest address index that may be given out; undefined: not known yet. */
  get addressFloor(): number | undefined {
    return this.#addressFloor === undefined ? undefined : Math.max(this.#addressFloor, this.#usedSince)
  }

  /** Why nothing new may be decided on this view of the chain; undefined: it is good. */
  trouble(silentMaxMs: number): string | undefined {
    if (this.#options.book.ledger.isRestoring || this.#startingOver) return 'the ledger is being restored'
    if (this.follower.silentForMs > silentMaxMs) return 'the bitcoin node does not answer'
    if (!this.follower.caughtUp) return 'the chain is not caught up'
    return this.#addressFloor === undefined ? 'used addresses are still looked for' : undefined
  }

  /** What the operator may know of the reason; it names nodes. */
  get reason(): string | undefined {
    return (this.follower.trouble ?? this.#searchTrouble)?.message
  }

  /** To be called when the ledger's next address moved on, whoever moved it. */
  async extendAddresses(): Promise<void> {
    await this.addresses.extend(Math.max(this.#options.book.ledger.nextAddressIndex, this.addressFloor ?? 0))
  }

  /** To be called when a back-up was restored: goes on from the blocks that it knew of. */
  async startOver(): Promise<void> {
    this.#startingOver = true
    await this.extendAddresses()
    const known = this.#options.book.ledger.knownBlocks()
    this.follower.goOnFrom(known)
    this.#lookAgain(known)
    this.#startingOver = false
  }

  /** What standingOf needs for these invoices. AppError `unavailable` if the node has to be asked and does not answer. */
  async view(invoices: Iterable<Invoice>): Promise<View> {
    const { ledger } = this.#options.book
    const tipHeight = this.follower.tip?.height ?? 0
    const asked = [...invoices]
    const lacking = new Set(asked.map(({ clientId }) => clientId)).intersection(ledger.creditTaken)
    const all = [...asked, ...[...lacking].flatMap((clientId) => ledger.invoicesOf(clientId))]
    const heights = all.flatMap((invoice) => heightsOf(invoice, tipHeight))
    const medianTimePastsMs = await this.follower.medianTimePasts(heights)
    const view = { nowMs: Date.now(), tipHeight, medianTimePastsMs, uncovered: new Set<string>() }
    return { ...view, uncovered: new Set([...lacking].flatMap((clientId) => uncoveredUses(clientId, ledger, view))) }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.follower[Symbol.asyncDispose]()
    await this.#searching
  }

  /** Whoever wrote of the last block may have ended in the middle of it. */
  #lookAgain(known: readonly Place[]): void {
    const highest = known.reduce((most, { height }) => Math.max(most, height), -1)
    if (highest >= 0) this.follower.rescan(highest, highest)
  }

  #handlers(): ConstructorParameters<typeof ChainFollower>[0]['handlers'] {
    const { book, metrics, log } = this.#options
    const { addresses } = this
    // As long as there is no invoice, no address was given out by this ledger, and nothing is written: a back-up can still be restored.
    const indexOf = (script: string) => (book.ledger.invoiceCount === 0 ? undefined : addresses.indexOf(script))
    return {
      scripts: {
        has: (script) => book.ledger.invoiceOfScript(script) !== undefined || addresses.indexOf(script) !== undefined,
        *all() {
          yield* book.ledger.scripts()
          yield* addresses.scripts.all()
        },
      },
      onChange: async (change) => {
        this.#noteUsed(change.connected.flatMap(({ outputs }) => outputs))
        await book.write((ledger, nowMs) => nextChainFact(change, ledger, indexOf, nowMs))
        metrics.blocks.inc({ change: 'connected' }, change.connected.length)
        metrics.blocks.inc({ change: 'disconnected' }, change.disconnected.length)
        if (change.disconnected.length > 0) log.warn({ depth: change.disconnected.length }, 'chain reorganised')
      },
      onMempool: async (outputs) => {
        this.#noteUsed(outputs)
        await book.write((ledger, nowMs) => nextSeenFact(outputs, ledger, indexOf, nowMs))
      },
      unconfirmedTxids: () => book.ledger.unconfirmedTxids(),
      onVanished: (transactions) => book.write((ledger) => nextReplacedFact(transactions, ledger)),
      onCaughtUp: () => this.#settlePasses(),
      onTrouble: (error) => {
        metrics.nodeTroubles.inc({ code: error.code })
        log.warn({ err: error }, 'chain not followed for now')
      },
    }
  }

  /** A ledger without invoices is not written, so it is here that addresses are remembered which others gave out. */
  #noteUsed(outputs: readonly WatchedOutput[]): void {
    if (this.#options.book.ledger.invoiceCount > 0) return
    for (const { script } of outputs) {
      this.#usedSince = Math.max(this.#usedSince, (this.addresses.indexOf(script) ?? -1) + 1)
    }
    void this.extendAddresses()
  }

  /** Makes passes that were lost, suspends those whose payment was taken back, and restores those whose payment is as deep again as it has to be. */
  async #settlePasses(): Promise<void> {
    const { book, passes } = this.#options
    const invoices = contested(book.ledger)
    await passes.rebuild(book.ledger.invoices(), invoices)
    if (invoices.length === 0) return
    const view = await this.view(invoices)
    for (const invoice of invoices) await passes.settle(invoice, view)
  }

  /**
   * A ledger with invoices knows which addresses were given out. One without may be the heir of a lost one, so the chain is looked
   * through for addresses that were ever paid.
   */
  async #findAddressFloor(): Promise<void> {
    const { book, log, signal } = this.#options
    let retryMs = SEARCH_RETRY_MIN_MS
    while (book.ledger.invoiceCount === 0 && !signal.aborted) {
      try {
        const used = await this.#usedAddresses()
        // Invoices of the lost ledger that nobody has paid yet may still be.
        const floor = used === 0 ? 0 : used + LOOKAHEAD_ADDRESSES
        await this.addresses.extend(floor)
        this.#searchTrouble = undefined
        this.#addressFloor = floor
        if (floor > 0) log.warn({ used, floor }, 'addresses of the account are used already')
        return
      } catch (thrown) {
        if (signal.aborted) return
        this.#searchTrouble = toAppError(thrown)
        log.warn({ err: this.#searchTrouble }, 'used addresses not found yet')
        // Ends early, and then the loop does too, when the process stops.
        await sleep(retryMs, undefined, { signal }).catch(() => undefined)
        retryMs = Math.min(retryMs * 2, SEARCH_RETRY_MAX_MS)
      }
    }
    this.#addressFloor ??= 0
  }

  /** One more than the highest address index that the chain ever paid. */
  async #usedAddresses(): Promise<number> {
    const { source, accountBirthday, signal } = this.#options
    const { height: bestHeight } = await source.best()
    let used = 0
    for (;;) {
      await this.addresses.extend(used)
      const before = used
      const candidates = await source.candidateHeights([...this.addresses.scripts.all()], accountBirthday)
      const heights = candidates ?? range(accountBirthday, bestHeight)
      for (let start = 0; start < heights.length; start += BLOCKS_PER_STEP) {
        signal.throwIfAborted()
        used = Math.max(used, await this.#usedIn(heights.slice(start, start + BLOCKS_PER_STEP)))
        await this.addresses.extend(used)
      }
      // Blocks before the one that showed how far the addresses go were looked through with fewer of them.
      if (used === before) return used
    }
  }

  async #usedIn(heights: readonly number[]): Promise<number> {
    const { source } = this.#options
    const watched = { scripts: this.addresses.scripts, spendings: new Set<string>() }
    let used = 0
    for (const header of await source.headersAt(heights)) {
      for (const { script } of (await source.findingsIn(header, watched)).outputs) {
        used = Math.max(used, (this.addresses.indexOf(script) ?? -1) + 1)
      }
    }
    return used
  }
}

function range(from: number, until: number): number[] {
  return Array.from({ length: Math.max(0, until - from + 1) }, (_, offset) => from + offset)
}

/** AppError `unavailable` if new decisions have to wait for the chain. */
export function assertFollowed(chain: Chain, silentMaxMs: number): void {
  const trouble = chain.trouble(silentMaxMs)
  if (trouble !== undefined)
    throw new AppError('unavailable', `Payments have to wait: ${trouble}. Try again in a moment.`)
}
