import type { WatchedOutput } from './watched-outputs.ts'

/** A block's place in the chain. */
export interface BlockPlace {
  /** 64 hexadecimal digits, as nodes show it. */
  readonly hash: string
  readonly height: number
}

/** A block of the best chain, with BIP-113's median time past. */
export interface BlockHeader extends BlockPlace {
  readonly medianTimePastMs: number
}

/** A block as a source knows it. */
export interface ChainHeader extends BlockHeader {
  /** Undefined: block 0. */
  readonly previousHash: string | undefined
  /** Expected hashes of the whole chain up to this block: of two chains, the one with more is the better one. */
  readonly chainWork: bigint
}

/** The best block of a source. */
export interface BestBlock extends BlockPlace {
  readonly chainWork: bigint
  /** The source knows of blocks that it has not looked at yet, or still downloads the chain: nothing new is decided on what it says. */
  readonly syncing: boolean
}

/**
 * Where a source sees a block. `best`: in its best chain. `left`: it knows the block and holds another chain, or one without this
 * block, for the best one. `unknown`: it never had the block; that may mean that the source is behind.
 */
export type BlockStanding = 'best' | 'left' | 'unknown'

/** Output scripts that are looked for, in hexadecimal. */
export interface WatchedScripts {
  has(script: string): boolean
  /** Those that a source that has to ask for each by itself asks for; one that reads whole blocks never needs it. */
  all(): Iterable<string>
}

/** What is looked for in blocks and in the mempool. */
export interface Watched {
  readonly scripts: WatchedScripts
  /** Outputs, each as `txid:vout`, whose spending transaction is wanted. */
  readonly spendings: { has(outpoint: string): boolean; readonly size: number }
}

/** An output of those in Watched.spendings, and the transaction that spends it. */
export interface Spending {
  /** `txid:vout` */
  readonly outpoint: string
  readonly spentBy: string
}

/** What transactions do to what is watched. */
export interface Findings {
  readonly outputs: readonly WatchedOutput[]
  /** Empty if the source cannot know of it: light sources find what pays a script, not what spends another's coin. */
  readonly spendings: readonly Spending[]
}

/** Transactions in no block. */
export interface UnconfirmedIds {
  /** At least all that the source has of those that pay watched scripts. */
  readonly txids: readonly string[]
  /** False: others may be there, so that what is missing here may still exist. A node that starts reads its mempool first. */
  readonly complete: boolean
}

/** What a source tells by itself. None of it is trusted: it only wakes, and what it says is asked for. */
export interface NoticeHandlers {
  /** There may be a new best block. */
  onBlock(): void
  /** A transaction entered the mempool or a block. */
  onTransaction(raw: Uint8Array): void
  /** Notices were lost, the connection is new or gone, or something unconfirmed changed: whatever it is must be asked for. */
  onGap(): void
}

/**
 * Whoever tells of the best chain of one network: a node, several nodes, servers that are trusted for nothing. All methods throw
 * AppError `unavailable` if the source does not answer now, and `failed_precondition` if it can never serve: it follows another
 * network, or no longer has a block that is asked for.
 */
export interface ChainSource extends AsyncDisposable {
  /** For logs and metrics: host and port, never a credential. */
  readonly name: string
  /** Asked before anything else, whenever the follower looks; checks the network too. */
  best(): Promise<BestBlock>
  /** Headers of the best chain, in the order of the heights; those above the best block are left out. */
  headersAt(heights: readonly number[]): Promise<readonly ChainHeader[]>
  standingOf(block: BlockPlace): Promise<BlockStanding>
  /** What a block of the best chain holds of what is watched. */
  findingsIn(block: BlockPlace, watched: Watched): Promise<Findings>
  /**
   * Heights from `fromHeight` on of blocks of the best chain that may pay one of the scripts, at least of all that do; undefined: the
   * source knows no quicker way than to read each block.
   */
  candidateHeights(scripts: readonly string[], fromHeight: number): Promise<readonly number[] | undefined>
  unconfirmedIds(scripts: WatchedScripts): Promise<UnconfirmedIds>
  /** Raw transactions, in the order of the ids; undefined where the source has none, in particular no unconfirmed one. */
  transactions(txids: readonly string[]): Promise<readonly (Uint8Array | undefined)[]>
  /** Begins to pass notices on; a source that has none passes nothing on. It connects again for ever. */
  listen(handlers: NoticeHandlers): AsyncDisposable
}
