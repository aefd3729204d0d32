import type { Findings, UnconfirmedIds, Watched, WatchedScripts } from '../chain-source.ts'
import type { ProvenHeader } from './header-chain.ts'

/** What a server tells by itself. It only wakes, and what it says is asked for. */
export interface ServerNotices {
  onBlock(): void
  /** Something unconfirmed changed, or the connection is new or gone. */
  onGap(): void
}

/** Raw headers of a server's best chain, as many as it gives at once; none if the first would be above its best block. */
export interface ToldHeaders {
  readonly headers: readonly Uint8Array[]
  /** Of its best block, as it says. */
  readonly tipHeight: number
}

/**
 * A server of one protocol. All methods throw AppError: `unavailable` (it does not answer now, or speaks of another branch than it
 * did a moment ago) or `invalid_argument` (it said something that is not so, and was caught).
 */
export interface LightServer extends AsyncDisposable {
  /** Host and port. */
  readonly name: string
  /** Whether it hands out whole blocks: then nothing can be left out. */
  readonly givesBlocks: boolean
  headersFrom(height: number): Promise<ToldHeaders>
  /** What a block holds of what is watched, proven against its header. */
  findingsIn(block: ProvenHeader, watched: Watched): Promise<Findings>
  /** Heights of the blocks that hold transactions of one of the scripts. */
  heightsOf(scripts: readonly string[]): Promise<readonly number[]>
  unconfirmedIds(scripts: WatchedScripts): Promise<UnconfirmedIds>
  /** A transaction, which may be another one than was asked for; undefined: it knows none. */
  transaction(txid: string): Promise<Uint8Array | undefined>
}
