import { AppError, toAppError } from '@tollward/errors'
import type {
  BestBlock,
  BlockHeader,
  BlockPlace,
  ChainHeader,
  ChainSource,
  NoticeHandlers,
  Watched,
  WatchedScripts,
} from './chain-source.ts'
import { MempoolWatch, type VanishedTransaction } from './mempool-watch.ts'
import type { WatchedOutput } from './watched-outputs.ts'

/** A block that joined the best chain, and what of it pays watched scripts. */
export interface ConnectedBlock extends BlockHeader {
  readonly outputs: readonly WatchedOutput[]
}

/** One step from an old best chain to a newer one: first blocks leave, newest first, then blocks join, oldest first. */
export interface ChainChange {
  readonly disconnected: readonly BlockPlace[]
  readonly connected: readonly ConnectedBlock[]
}

/** What the owner of a follower does with what it finds. A throw brings the same again: handlers are idempotent. */
export interface ChainHandlers {
  readonly scripts: WatchedScripts
  onChange(change: ChainChange): Promise<void>
  /** Unconfirmed outputs to watched scripts; some of them again and again. */
  onMempool(outputs: readonly WatchedOutput[]): Promise<void>
  /** Transactions to watched scripts that the owner believes to wait for a block: those whose vanishing it is told. */
  unconfirmedTxids(): Iterable<string>
  /** Transactions that are in no block and in no mempool any more. They may come back, by onMempool or onChange. */
  onVanished(transactions: readonly VanishedTransaction[]): Promise<void>
  /** Everything up to the source's best block was handled; after each round that found something or nothing. */
  onCaughtUp?(): Promise<void>
  /** A round failed and will be repeated. */
  onTrouble(error: AppError): void
}

/** What to follow, and from where. */
export interface ChainFollowerOptions {
  readonly source: ChainSource
  /**
   * Blocks that the owner relies upon: those that left the best chain meanwhile are reported as disconnected, and blocks after the
   * highest of the others as connected. Without any, following begins at the source's best block.
   */
  readonly known: readonly BlockPlace[]
  readonly handlers: ChainHandlers
  readonly pollIntervalMs?: number
}

/** How late a block or payment is seen if the source's notices are lost. */
const POLL_INTERVAL_MS = 10_000
const RETRY_MIN_MS = 250
const RETRY_MAX_MS = 5_000
/** Blocks that one change brings at most while catching up: bounds what is repeated after a failure. */
const BLOCKS_PER_CHANGE = 50
/** Blocks that are asked for at once: a node has a few threads for calls. */
const BLOCKS_AT_ONCE = 4
/** Headers kept; no reorganisation is deeper. */
const HEADERS_KEPT = 10_000

/** A block that was handled; of blocks known from before the start it is not known how much work they hold. */
interface Followed extends BlockPlace {
  readonly chainWork?: bigint
}

/**
 * Follows the best chain block by block, as a source tells it. Whatever was missed while the source, the connection or this process
 * was away is caught up; a reorganisation is walked back to the common ancestor. Never goes from a chain to one with less work: a
 * source that has only that is behind, and is waited for.
 */
export class ChainFollower implements AsyncDisposable {
  /** Rejects when going on makes no sense: the source follows another network. Otherwise never settles. */
  readonly failed: Promise<never>
  readonly #options: ChainFollowerOptions
  readonly #fail: (error: AppError) => void
  readonly #running: Promise<void>
  readonly #notices: AsyncDisposable
  readonly #mempool: MempoolWatch
  readonly #watched: Watched
  /** Ascending, and without holes after what was known at the start. */
  #chain: readonly Followed[]
  #caughtUp = false
  #trouble: AppError | undefined
  #silentSinceMs: number | undefined
  #goingOnFrom: readonly BlockPlace[] | undefined
  readonly #rescans: { readonly from: number; readonly until: number }[] = []
  #medianTimePasts = new Map<number, number>()
  #woken = Promise.withResolvers<void>()
  #stopped = false

  constructor(options: ChainFollowerOptions) {
    const failure = Promise.withResolvers<never>()
    // Whoever does not wait for it learns of it by onTrouble.
    failure.promise.catch(() => undefined)
    this.failed = failure.promise
    this.#fail = failure.reject
    this.#options = options
    this.#chain = ascending(options.known)
    this.#mempool = new MempoolWatch(options.source, options.handlers)
    this.#watched = { scripts: options.handlers.scripts, spendings: this.#mempool.spendings }
    this.#notices = options.source.listen(this.#noticeHandlers())
    this.#running = this.#run()
  }

  /** The last block whose change was handled; undefined before the first. */
  get tip(): BlockPlace | undefined {
    return this.#chain.at(-1)
  }

  /** Whether everything up to the source's best block was handled, as of the last time that the source answered. */
  get caughtUp(): boolean {
    return this.#caughtUp
  }

  /** Why the last round failed; undefined: it did not. */
  get trouble(): AppError | undefined {
    return this.#trouble
  }

  /** How long the source has not answered; 0 as long as it does when asked. */
  get silentForMs(): number {
    return this.#silentSinceMs === undefined ? 0 : performance.now() - this.#silentSinceMs
  }

  /**
   * Looks again at the blocks of these heights, by default up to the best one, and at the mempool: for scripts that began to be
   * watched late, or for a block that was handled in part.
   */
  rescan(from: number, until = Number.POSITIVE_INFINITY): void {
    this.#rescans.push({ from, until })
    this.#wake()
  }

  /** Goes on from blocks that the owner relies upon only now, as if it had been told of them at the start. */
  goOnFrom(known: readonly BlockPlace[]): void {
    this.#goingOnFrom = known
    this.#caughtUp = false
    this.#wake()
  }

  /** Median time past of blocks of the best chain, in milliseconds; heights above the tip are left out. */
  async medianTimePasts(heights: Iterable<number>): Promise<ReadonlyMap<number, number>> {
    const tipHeight = this.tip?.height ?? -1
    const wanted = [...new Set(heights)].filter((height) => height >= 0 && height <= tipHeight)
    const missing = wanted.filter((height) => !this.#medianTimePasts.has(height))
    for (const header of missing.length === 0 ? [] : await this.#options.source.headersAt(missing))
      this.#medianTimePasts.set(header.height, header.medianTimePastMs)
    return new Map(
      wanted.flatMap((height) => {
        const timeMs = this.#medianTimePasts.get(height)
        return timeMs === undefined ? [] : [[height, timeMs]]
      }),
    )
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopped = true
    this.#wake()
    await this.#notices[Symbol.asyncDispose]()
    await this.#running
  }

  #wake(): void {
    this.#woken.resolve()
  }

  async #run(): Promise<void> {
    let retryMs = RETRY_MIN_MS
    while (!this.#stopped) {
      try {
        await this.#round()
        this.#trouble = undefined
        retryMs = RETRY_MIN_MS
        await this.#pause(this.#options.pollIntervalMs ?? POLL_INTERVAL_MS)
      } catch (thrown) {
        const error = toAppError(thrown)
        if (this.#stopped) return
        this.#trouble = error
        this.#options.handlers.onTrouble(error)
        await this.#pause(retryMs)
        retryMs = Math.min(retryMs * 2, RETRY_MAX_MS)
      }
    }
  }

  async #pause(timeoutMs: number): Promise<void> {
    const timer = setTimeout(() => {
      this.#mempool.isDue = true
      this.#wake()
    }, timeoutMs)
    await this.#woken.promise
    clearTimeout(timer)
    this.#woken = Promise.withResolvers()
  }

  async #round(): Promise<void> {
    let best = await this.#best()
    if (this.#goingOnFrom !== undefined) this.#chain = ascending(this.#goingOnFrom)
    this.#goingOnFrom = undefined
    if (this.#chain.length === 0) this.#chain = await this.#options.source.headersAt([best.height])
    while (this.tip?.hash !== best.hash && !this.#stopped) {
      await this.#advance(best)
      best = await this.#best()
    }
    await this.#rescanBlocks()
    await this.#mempool.read(async () => (await this.#best()).hash === this.tip?.hash)
    const caughtUp = !best.syncing && !this.#stopped && this.#goingOnFrom === undefined
    if (caughtUp) await this.#options.handlers.onCaughtUp?.()
    this.#caughtUp = caughtUp
  }

  async #best(): Promise<BestBlock> {
    try {
      const best = await this.#options.source.best()
      this.#silentSinceMs = undefined
      return best
    } catch (thrown) {
      const error = toAppError(thrown)
      if (error.code === 'failed_precondition') {
        this.#caughtUp = false
        this.#fail(error)
      }
      this.#silentSinceMs ??= performance.now()
      throw error
    }
  }

  /** One change: back to the last block that is still in the best chain, and from there some blocks on. */
  async #advance(best: BestBlock): Promise<void> {
    const chain = [...this.#chain]
    const disconnected: BlockPlace[] = []
    for (let top = chain.at(-1); top !== undefined && (await this.#hasLeft(top, best)); top = chain.at(-1)) {
      disconnected.push({ hash: top.hash, height: top.height })
      chain.pop()
    }
    if (chain.length === 0) {
      // The reorganisation is deeper than what we know: go on from below it.
      const lowest = disconnected.at(-1)?.height ?? best.height
      chain.push(...(await this.#options.source.headersAt([Math.max(0, Math.min(lowest - 1, best.height))])))
    }
    const from = (chain.at(-1)?.height ?? 0) + 1
    // A change goes at least as far as the one that it takes back, so that its net effect is known at once.
    const until = Math.min(best.height, Math.max(from + BLOCKS_PER_CHANGE, this.tip?.height ?? 0))
    const joining = await this.#connect(chain.at(-1), from, until)
    if (disconnected.length === 0 && joining.length === 0) return
    if (disconnected.length > 0 && joining.length <= until - from) {
      throw new AppError('unavailable', 'The best chain changed again while its last change was looked at.')
    }
    this.#caughtUp &&= disconnected.length === 0 && until === best.height
    await this.#options.handlers.onChange({ disconnected, connected: joining.map(({ block }) => block) })
    for (const height of this.#medianTimePasts.keys()) if (height >= from) this.#medianTimePasts.delete(height)
    for (const { block } of joining) this.#medianTimePasts.set(block.height, block.medianTimePastMs)
    if (disconnected.length > 0) this.#mempool.forget()
    this.#chain = [...chain, ...joining.map(({ header }) => header)].slice(-HEADERS_KEPT)
  }

  /**
   * Whether a block is no longer in the best chain. AppError `unavailable` if the source is merely behind: as long as it does not know
   * the block, or has not looked at it yet, only a chain with at least as much work speaks against the block.
   */
  async #hasLeft(block: Followed, best: BestBlock): Promise<boolean> {
    const standing = await this.#options.source.standingOf(block)
    if (standing === 'best') return false
    const isBehind = block.chainWork === undefined ? best.height < block.height : best.chainWork < block.chainWork
    if (!isBehind || (standing === 'left' && !best.syncing)) return true
    this.#caughtUp = false
    throw new AppError(
      'unavailable',
      `${this.#options.source.name} is behind: it has only ${best.height} blocks, and ${block.height} were followed already.`,
    )
  }

  async #connect(
    top: BlockPlace | undefined,
    from: number,
    until: number,
  ): Promise<{ header: ChainHeader; block: ConnectedBlock }[]> {
    const { source } = this.#options
    const heights = Array.from({ length: Math.max(0, until - from + 1) }, (_, offset) => from + offset)
    const headers = heights.length === 0 ? [] : await source.headersAt(heights)
    // If the best chain changed while we asked, the next change continues from the last block that fits.
    const misfit = headers.findIndex(({ previousHash }, index) => {
      const before = index === 0 ? top?.hash : headers[index - 1]?.hash
      return before !== undefined && previousHash !== before
    })
    const fitting = misfit === -1 ? headers : headers.slice(0, misfit)
    const joining: { header: ChainHeader; block: ConnectedBlock }[] = []
    for (let start = 0; start < fitting.length && !this.#stopped; start += BLOCKS_AT_ONCE) {
      const some = fitting.slice(start, start + BLOCKS_AT_ONCE)
      const read = some.map(async (header) => ({ header, ...(await source.findingsIn(header, this.#watched)) }))
      for (const { header, outputs, spendings } of await Promise.all(read)) {
        const { hash, height, medianTimePastMs } = header
        this.#mempool.noteSpendings(spendings)
        joining.push({ header, block: { hash, height, medianTimePastMs, outputs } })
      }
    }
    return joining
  }

  async #rescanBlocks(): Promise<void> {
    for (let next = this.#rescans[0]; next !== undefined; next = this.#rescans[0]) {
      const until = Math.min(next.until, this.tip?.height ?? -1)
      for (let height = next.from; height <= until && !this.#stopped; height += 1) {
        const connected = (await this.#connect(undefined, height, height)).map(({ block }) => block)
        if (connected.some(({ outputs }) => outputs.length > 0)) {
          await this.#options.handlers.onChange({ disconnected: [], connected })
        }
      }
      this.#rescans.shift()
      this.#mempool.forget()
    }
  }

  #noticeHandlers(): NoticeHandlers {
    return {
      onBlock: () => this.#wake(),
      onGap: () => {
        this.#mempool.isDue = true
        this.#wake()
      },
      onTransaction: (raw) => {
        try {
          if (this.#mempool.notice(raw)) this.#wake()
        } catch (error) {
          // Anybody may send notices, so what is no transaction is passed over.
          this.#options.handlers.onTrouble(
            new AppError('invalid_argument', 'A notice of the node is no transaction.', { cause: error }),
          )
        }
      },
    }
  }
}

function ascending(blocks: readonly BlockPlace[]): BlockPlace[] {
  return blocks.toSorted((one, other) => one.height - other.height)
}
