import { AppError, toAppError } from '@tollward/errors'
import { z } from 'zod'
import type { BlockHeader, BlockPlace, NoticeHandlers } from './chain-source.ts'
import type { Network } from './network.ts'
import { checkNetwork, type NodeClient } from './node-client.ts'
import { listenToNode } from './node-notices.ts'
import { type IsWatched, outputsOfBlock, outputsOfTransaction, type WatchedOutput } from './watched-outputs.ts'

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
  readonly isWatched: IsWatched
  onChange(change: ChainChange): Promise<void>
  /** Unconfirmed outputs to watched scripts; some of them again and again. */
  onMempool(outputs: readonly WatchedOutput[]): Promise<void>
  /** Everything up to the node's best block was handled; after each round that found something or nothing. */
  onCaughtUp?(): Promise<void>
  /** A round failed and will be repeated. */
  onTrouble(error: AppError): void
}

/** What to follow, and from where. */
export interface ChainFollowerOptions {
  readonly node: NodeClient
  readonly network: Network
  /** The node's ZMQ endpoint with hashblock and rawtx. Without it, or while it is silent, polling finds everything later. */
  readonly zmqUrl?: string
  /**
   * Blocks that the owner relies upon: those that left the best chain meanwhile are reported as disconnected, and blocks after the
   * highest of the others as connected. Without any, following begins at the node's best block.
   */
  readonly known: readonly BlockPlace[]
  readonly handlers: ChainHandlers
  readonly pollIntervalMs?: number
}

/** How late a block or payment is seen if the node's notices are lost. */
const POLL_INTERVAL_MS = 10_000
const RETRY_MIN_MS = 250
const RETRY_MAX_MS = 5_000
/** Blocks that one change brings at most while catching up: bounds what is repeated after a failure. */
const BLOCKS_PER_CHANGE = 50
/** Transactions of the mempool that one request asks for. */
const TRANSACTIONS_PER_CALL = 100
/** Headers kept; no reorganisation is deeper. */
const HEADERS_KEPT = 10_000
/** Notices of payments that wait for being handled; beyond, the mempool is read again instead. */
const NOTICES_WAITING_MAX = 10_000

const ChainInfo = z.object({
  blocks: z.number(),
  headers: z.number(),
  bestblockhash: z.string(),
  initialblockdownload: z.boolean(),
})
const Header = z
  .object({
    hash: z.string(),
    height: z.number(),
    confirmations: z.number(),
    mediantime: z.number(),
    previousblockhash: z.string().optional(),
  })
  .transform(({ mediantime, previousblockhash, ...header }) => ({
    ...header,
    medianTimePastMs: mediantime * 1000,
    previousHash: previousblockhash,
  }))

/**
 * Follows a node's best chain block by block. The node's RPC is the truth; its ZMQ only wakes. Whatever was missed while the
 * node, the connection or this process was away is caught up; a reorganisation is walked back to the common ancestor.
 */
export class ChainFollower implements AsyncDisposable {
  /** Rejects when going on makes no sense: the node follows another network. Otherwise never settles. */
  readonly failed: Promise<never>
  readonly #options: ChainFollowerOptions
  readonly #fail: (error: AppError) => void
  readonly #running: Promise<void>
  readonly #notices: AsyncDisposable | undefined
  /** Ascending, and without holes after what was known at the start. */
  #chain: readonly BlockPlace[]
  #caughtUp = false
  #networkChecked = false
  #silentSinceMs: number | undefined
  readonly #rescans: { readonly from: number; readonly until: number }[] = []
  /** Transactions of the mempool that were looked at. */
  #mempool = new Set<string>()
  #mempoolDue = true
  /** Transactions of notices that seem to pay us; the node is asked before anything is made of them. */
  #noticed = new Set<string>()
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
    this.#chain = options.known.toSorted((one, other) => one.height - other.height)
    this.#notices = options.zmqUrl === undefined ? undefined : listenToNode(options.zmqUrl, this.#noticeHandlers())
    this.#running = this.#run()
  }

  /** The last block whose change was handled; undefined before the first. */
  get tip(): BlockPlace | undefined {
    return this.#chain.at(-1)
  }

  /** Whether everything up to the node's best block was handled, as of the last time that the node answered. */
  get caughtUp(): boolean {
    return this.#caughtUp
  }

  /** How long the node has not answered; 0 as long as it does when asked. */
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

  /** Median time past of blocks of the best chain, in milliseconds; heights above the tip are left out. */
  async medianTimePasts(heights: Iterable<number>): Promise<ReadonlyMap<number, number>> {
    const tipHeight = this.tip?.height ?? -1
    const wanted = [...new Set(heights)].filter((height) => height >= 0 && height <= tipHeight)
    const missing = wanted.filter((height) => !this.#medianTimePasts.has(height))
    for (const header of await this.#headersAt(missing))
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
    await this.#notices?.[Symbol.asyncDispose]()
    await this.#running
  }

  get #pollIntervalMs(): number {
    return this.#options.pollIntervalMs ?? POLL_INTERVAL_MS
  }

  #wake(): void {
    this.#woken.resolve()
  }

  async #run(): Promise<void> {
    let retryMs = RETRY_MIN_MS
    while (!this.#stopped) {
      try {
        await this.#round()
        retryMs = RETRY_MIN_MS
        await this.#pause(this.#pollIntervalMs)
      } catch (thrown) {
        const error = toAppError(thrown)
        this.#networkChecked = false
        if (this.#stopped) return
        this.#options.handlers.onTrouble(error)
        await this.#pause(retryMs)
        retryMs = Math.min(retryMs * 2, RETRY_MAX_MS)
      }
    }
  }

  async #pause(timeoutMs: number): Promise<void> {
    const timer = setTimeout(() => {
      this.#mempoolDue = true
      this.#wake()
    }, timeoutMs)
    await this.#woken.promise
    clearTimeout(timer)
    this.#woken = Promise.withResolvers()
  }

  async #round(): Promise<void> {
    let info = await this.#info()
    await this.#checkNetwork()
    if (this.#chain.length === 0) this.#chain = [await this.#header(info.bestblockhash)]
    while (this.tip?.hash !== info.bestblockhash && !this.#stopped) {
      await this.#advance(info.blocks)
      info = await this.#info()
    }
    await this.#rescanBlocks()
    await this.#readNoticed()
    await this.#readMempool()
    // A regtest node says that it downloads until its best block is fresh, which may be never.
    const downloading = info.initialblockdownload && this.#options.network !== 'regtest'
    const caughtUp = !downloading && info.blocks >= info.headers && !this.#stopped
    if (caughtUp) await this.#options.handlers.onCaughtUp?.()
    this.#caughtUp = caughtUp
  }

  async #checkNetwork(): Promise<void> {
    if (this.#networkChecked) return
    try {
      await checkNetwork(this.#options.node, this.#options.network)
    } catch (error) {
      if (error instanceof AppError && error.code === 'failed_precondition') {
        this.#caughtUp = false
        this.#fail(error)
      }
      throw error
    }
    this.#networkChecked = true
  }

  /** One change: back to the last block that is still in the best chain, and from there some blocks on. */
  async #advance(bestHeight: number): Promise<void> {
    const chain = [...this.#chain]
    const disconnected: BlockPlace[] = []
    for (let top = chain.at(-1); top !== undefined && !(await this.#isInBestChain(top)); top = chain.at(-1)) {
      disconnected.push(top)
      chain.pop()
    }
    if (chain.length === 0) {
      // The reorganisation is deeper than what we know: go on from below it.
      const lowest = disconnected.at(-1)?.height ?? bestHeight
      chain.push(...(await this.#headersAt([Math.max(0, Math.min(lowest - 1, bestHeight))])))
    }
    const from = (chain.at(-1)?.height ?? 0) + 1
    // A change goes at least as far as the one that it takes back, so that its net effect is known at once.
    const until = Math.max(from + BLOCKS_PER_CHANGE, this.tip?.height ?? 0)
    const connected = await this.#connect(chain.at(-1), from, Math.min(until, bestHeight))
    if (disconnected.length === 0 && connected.length === 0) return
    this.#caughtUp &&= disconnected.length === 0 && until >= bestHeight
    await this.#options.handlers.onChange({ disconnected, connected })
    for (const height of this.#medianTimePasts.keys()) if (height >= from) this.#medianTimePasts.delete(height)
    for (const block of connected) this.#medianTimePasts.set(block.height, block.medianTimePastMs)
    this.#chain = [...chain, ...connected.map(({ hash, height }) => ({ hash, height }))].slice(-HEADERS_KEPT)
  }

  async #connect(top: BlockPlace | undefined, from: number, until: number): Promise<ConnectedBlock[]> {
    const heights = Array.from({ length: Math.max(0, until - from + 1) }, (_, offset) => from + offset)
    const connected: ConnectedBlock[] = []
    let previousHash = top?.hash
    for (const header of await this.#headersAt(heights)) {
      // The best chain changed while we asked: the next change continues from here.
      if ((previousHash !== undefined && header.previousHash !== previousHash) || this.#stopped) break
      connected.push({ ...header, outputs: await this.#outputs(header.hash) })
      previousHash = header.hash
    }
    return connected
  }

  async #rescanBlocks(): Promise<void> {
    for (let next = this.#rescans[0]; next !== undefined; next = this.#rescans[0]) {
      const until = Math.min(next.until, this.tip?.height ?? -1)
      for (let height = next.from; height <= until && !this.#stopped; height += 1) {
        const connected = await this.#connect(undefined, height, height)
        if (connected.some(({ outputs }) => outputs.length > 0)) {
          await this.#options.handlers.onChange({ disconnected: [], connected })
        }
      }
      this.#rescans.shift()
      this.#mempool.clear()
      this.#mempoolDue = true
    }
  }

  async #readNoticed(): Promise<void> {
    const txids = [...this.#noticed]
    await this.#readTransactions(txids)
    for (const txid of txids) this.#noticed.delete(txid)
  }

  /** Finds what no notice told of. */
  async #readMempool(): Promise<void> {
    if (!this.#mempoolDue) return
    const txids = await this.#options.node.call(z.array(z.string()), 'getrawmempool')
    await this.#readTransactions(txids.filter((txid) => !this.#mempool.has(txid)))
    this.#mempool = new Set(txids).intersection(this.#mempool)
    this.#mempoolDue = false
  }

  async #readTransactions(txids: readonly string[]): Promise<void> {
    const { node, handlers } = this.#options
    for (let start = 0; start < txids.length && !this.#stopped; start += TRANSACTIONS_PER_CALL) {
      const some = txids.slice(start, start + TRANSACTIONS_PER_CALL)
      const calls = some.map((txid) => ({ method: 'getrawtransaction', params: [txid] }))
      const outputs = (await node.callEach(z.string(), calls)).flatMap((raw) =>
        raw === undefined ? [] : outputsOfTransaction(Buffer.from(raw, 'hex'), handlers.isWatched),
      )
      if (outputs.length > 0) await handlers.onMempool(outputs)
      for (const txid of some) this.#mempool.add(txid)
    }
  }

  #noticeHandlers(): NoticeHandlers {
    return {
      onBlock: () => this.#wake(),
      onGap: () => {
        this.#mempoolDue = true
        this.#wake()
      },
      onTransaction: (raw) => {
        const txid = this.#watchedTxid(raw)
        if (txid === undefined) return
        if (this.#noticed.size < NOTICES_WAITING_MAX) this.#noticed.add(txid)
        else this.#mempoolDue = true
        this.#wake()
      },
    }
  }

  /** The id of a noticed transaction that pays us. Anybody may send notices, so what is no transaction is passed over. */
  #watchedTxid(raw: Uint8Array): string | undefined {
    try {
      return outputsOfTransaction(raw, this.#options.handlers.isWatched)[0]?.txid
    } catch (error) {
      this.#options.handlers.onTrouble(
        new AppError('invalid_argument', 'A notice of the node is no transaction.', { cause: error }),
      )
      return undefined
    }
  }

  async #info(): Promise<z.infer<typeof ChainInfo>> {
    try {
      const info = await this.#options.node.call(ChainInfo, 'getblockchaininfo')
      this.#silentSinceMs = undefined
      return info
    } catch (error) {
      this.#silentSinceMs ??= performance.now()
      throw error
    }
  }

  async #header(hash: string): Promise<z.infer<typeof Header>> {
    return await this.#options.node.call(Header, 'getblockheader', [hash])
  }

  async #isInBestChain({ hash }: BlockPlace): Promise<boolean> {
    const [header] = await this.#options.node.callEach(Header, [{ method: 'getblockheader', params: [hash] }])
    return header !== undefined && header.confirmations >= 0
  }

  /** Headers of the best chain at these heights, as far as all of them exist. */
  async #headersAt(heights: readonly number[]): Promise<z.infer<typeof Header>[]> {
    const { node } = this.#options
    const hashes = await node.callEach(
      z.string(),
      heights.map((height) => ({ method: 'getblockhash', params: [height] })),
    )
    const calls = hashes.map((hash) => ({ method: 'getblockheader', params: [hash] }))
    return (await node.callEach(Header, calls)).filter((header) => header !== undefined)
  }

  async #outputs(hash: string): Promise<readonly WatchedOutput[]> {
    const raw = await this.#options.node.call(z.string(), 'getblock', [hash, 0])
    return outputsOfBlock(Buffer.from(raw, 'hex'), this.#options.handlers.isWatched)
  }
}
