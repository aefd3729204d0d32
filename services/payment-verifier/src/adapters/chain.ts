import { setTimeout as sleep } from 'node:timers/promises'
import { type AccountKey, ChainFollower, type NodeClient } from '@tollward/bitcoin'
import { AppError } from '@tollward/errors'
import type { Logger } from 'pino'
import { z } from 'zod'
import { contested, uncoveredUses } from '../domain/credit.ts'
import { nextChainFact, nextSeenFact } from '../domain/facts.ts'
import { heightsOf, type Invoice, type View } from '../domain/invoice.ts'
import type { Metrics } from '../metrics.ts'
import type { LedgerBook } from './ledger.ts'
import type { Passes } from './passes.ts'

/** Addresses after the last used one that are looked at before the rest is taken as unused. */
const ADDRESSES_PER_SCAN = 1_000
/** The node reads every unspent output there is: seconds on a test network, minutes on mainnet. */
const SCAN_TIMEOUT_MS = 30 * 60_000
const SCAN_RETRY_MS = 2_000

const Scan = z.object({ unspents: z.array(z.object({ scriptPubKey: z.string() })) })

export interface ChainOptions {
  readonly node: NodeClient
  readonly account: AccountKey
  readonly zmqUrl?: string
  readonly book: LedgerBook
  readonly passes: Passes
  readonly metrics: Metrics
  readonly log: Logger
  readonly signal: AbortSignal
}

/** The best chain: what it does to payments goes into the ledger, and what that does to passes into their bucket. */
export class Chain implements AsyncDisposable {
  readonly follower: ChainFollower
  readonly #options: ChainOptions
  #addressFloor: number | undefined

  constructor(options: ChainOptions) {
    this.#options = options
    const { book, metrics, log, node, account, zmqUrl } = options
    const known = book.ledger.knownBlocks()
    this.follower = new ChainFollower({
      node,
      network: account.network,
      known,
      ...(zmqUrl === undefined ? {} : { zmqUrl }),
      handlers: {
        isWatched: (script) => book.ledger.invoiceOfScript(script) !== undefined,
        onChange: async (change) => {
          await book.write((ledger, nowMs) => nextChainFact(change, ledger, () => undefined, nowMs))
          metrics.blocks.inc({ change: 'connected' }, change.connected.length)
          metrics.blocks.inc({ change: 'disconnected' }, change.disconnected.length)
          if (change.disconnected.length > 0) log.warn({ depth: change.disconnected.length }, 'chain reorganised')
        },
        onMempool: (outputs) => book.write((ledger, nowMs) => nextSeenFact(outputs, ledger, () => undefined, nowMs)),
        onCaughtUp: () => this.#settlePasses(),
        onTrouble: (error) => {
          metrics.nodeTroubles.inc({ code: error.code })
          log.warn({ err: error }, 'chain not followed for now')
        },
      },
    })
    // Whoever wrote of the last block may have ended in the middle of it.
    const highest = Math.max(-1, ...known.map(({ height }) => height))
    if (highest >= 0) this.follower.rescan(highest, highest)
    void this.#findAddressFloor()
  }

  /** Lowest address index that may be given out; undefined: not known yet. */
  get addressFloor(): number | undefined {
    return this.#addressFloor
  }

  /** Why nothing new may be decided on this view of the chain; undefined: it is good. */
  trouble(silentMaxMs: number): string | undefined {
    if (this.follower.silentForMs > silentMaxMs) return 'the bitcoin node does not answer'
    if (!this.follower.caughtUp) return 'the chain is not caught up'
    return this.#addressFloor === undefined ? 'the node still looks for used addresses' : undefined
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
  }

  /** Suspends passes whose payment was taken back, and restores those whose payment is as deep again as it has to be. */
  async #settlePasses(): Promise<void> {
    const { book, passes } = this.#options
    const invoices = contested(book.ledger)
    if (invoices.length === 0) return
    const view = await this.view(invoices)
    for (const invoice of invoices) await passes.settle(invoice, view)
  }

  /**
   * A ledger that has lines knows which addresses were given out. An empty one may be the heir of a lost one, so the node is asked
   * what is on the chain: it can tell cheaply of unspent outputs only.
   */
  async #findAddressFloor(): Promise<void> {
    const { book, log, signal } = this.#options
    while (book.ledger.invoiceCount === 0 && !signal.aborted) {
      try {
        this.#addressFloor = await this.#firstUnusedIndex()
        if (this.#addressFloor > 0) log.warn({ index: this.#addressFloor }, 'addresses of the account are used already')
        return
      } catch (error) {
        log.warn({ err: error }, 'used addresses not found yet')
        // Ends early, and then the loop does too, when the process stops.
        await sleep(SCAN_RETRY_MS, undefined, { signal }).catch(() => undefined)
      }
    }
    this.#addressFloor = 0
  }

  async #firstUnusedIndex(): Promise<number> {
    const { node, account } = this.#options
    let floor = 0
    for (;;) {
      const indexes = new Map<string, number>()
      for (let index = floor; index < floor + ADDRESSES_PER_SCAN; index += 1) {
        indexes.set(Buffer.from(account.address(index).script).toString('hex'), index)
      }
      const descriptors = [...indexes.keys()].map((script) => `raw(${script})`)
      const { unspents } = await node.call(Scan, 'scantxoutset', ['start', descriptors], { timeoutMs: SCAN_TIMEOUT_MS })
      const used = unspents.flatMap(({ scriptPubKey }) => indexes.get(scriptPubKey) ?? [])
      if (used.length === 0) return floor
      floor = Math.max(...used) + 1
    }
  }
}

/** AppError `unavailable` if new decisions have to wait for the chain. */
export function assertFollowed(chain: Chain, silentMaxMs: number): void {
  const trouble = chain.trouble(silentMaxMs)
  if (trouble !== undefined)
    throw new AppError('unavailable', `Payments have to wait: ${trouble}. Try again in a moment.`)
}
