import { AppError, toAppError } from '@tollward/errors'
import type {
  BestBlock,
  BlockPlace,
  BlockStanding,
  ChainHeader,
  ChainSource,
  Findings,
  NoticeHandlers,
  UnconfirmedIds,
  Watched,
  WatchedScripts,
} from './chain-source.ts'

export const SOURCE_STATES = ['unasked', 'followed', 'equal', 'behind', 'silent', 'wrong-network', 'lying'] as const

/**
 * What became of a source: `followed` is the one that is asked, `equal` has the same best block, `behind` knows less work (or as
 * much in another block), `silent` does not answer, `wrong-network` answers of another one, `lying` said what is not so.
 */
export type SourceState = (typeof SOURCE_STATES)[number]

/** Told of each change of state; the error with `silent`, `wrong-network` and `lying`. */
export type OnSourceState = (name: string, state: SourceState, error?: AppError) => void

interface Member {
  readonly source: ChainSource
  state: SourceState
  best: BestBlock | undefined
  error: AppError | undefined
  /** A question for its best block that is under way: nothing waits for a source that hangs, and it is not asked twice. */
  asking: Promise<void> | undefined
}

/**
 * Several sources of one network as one: that with the most work is followed. One that dies, hangs, lags or is of another network is
 * left, told of, and asked again. Nothing here trusts a source less than the others: nodes are the operator's own.
 */
export class SeveralSources implements ChainSource {
  readonly name: string
  readonly #members: readonly Member[]
  readonly #onState: OnSourceState
  #followed: Member | undefined

  constructor(sources: readonly ChainSource[], onState: OnSourceState) {
    this.name = sources.map(({ name }) => name).join(', ')
    this.#members = sources.map((source) => ({
      source,
      state: 'unasked',
      best: undefined,
      error: undefined,
      asking: undefined,
    }))
    this.#onState = onState
  }

  get states(): readonly { readonly name: string; readonly state: SourceState }[] {
    return this.#members.map(({ source: { name }, state }) => ({ name, state }))
  }

  async best(): Promise<BestBlock> {
    const asked = this.#members.map((member) => ({ member, answer: this.#ask(member), wasSilent: isSilent(member) }))
    await Promise.all(asked.flatMap(({ answer, wasSilent }) => (wasSilent ? [] : [answer])))
    // Those that were silent are waited for only if there is nobody else.
    if (this.#members.every(({ best }) => best === undefined)) {
      const answers = asked.map(async ({ member, answer }) => {
        await answer
        if (member.best === undefined) throw member.error
      })
      await Promise.any(answers).catch(() => undefined)
    }
    return this.#choose()
  }

  async headersAt(heights: readonly number[]): Promise<readonly ChainHeader[]> {
    return await this.#first(this.#followers(), (source) => source.headersAt(heights))
  }

  async standingOf(block: BlockPlace): Promise<BlockStanding> {
    return await this.#first(this.#followers(), (source) => source.standingOf(block))
  }

  /** A block is the same wherever it comes from, so whoever has it may serve it. */
  async findingsIn(block: BlockPlace, watched: Watched): Promise<Findings> {
    return await this.#first(this.#answering(), (source) => source.findingsIn(block, watched))
  }

  async candidateHeights(scripts: readonly string[], fromHeight: number): Promise<readonly number[] | undefined> {
    return await this.#first(this.#followers(), (source) => source.candidateHeights(scripts, fromHeight))
  }

  async unconfirmedIds(scripts: WatchedScripts): Promise<UnconfirmedIds> {
    return await this.#first(this.#followers(), (source) => source.unconfirmedIds(scripts))
  }

  /** What the followed one does not have, others may: mempools differ. */
  async transactions(txids: readonly string[]): Promise<readonly (Uint8Array | undefined)[]> {
    const found = new Map<string, Uint8Array>()
    let failure: AppError | undefined = this.#nobody()
    for (const { source } of this.#answering()) {
      const missing = txids.filter((txid) => !found.has(txid))
      if (missing.length === 0) break
      try {
        for (const [index, raw] of (await source.transactions(missing)).entries()) {
          if (raw !== undefined) found.set(missing[index] ?? '', raw)
        }
        failure = undefined
      } catch (thrown) {
        failure &&= toAppError(thrown)
      }
    }
    if (failure !== undefined) throw failure
    return txids.map((txid) => found.get(txid))
  }

  listen(handlers: NoticeHandlers): AsyncDisposable {
    const listening = new AsyncDisposableStack()
    for (const { source } of this.#members) listening.use(source.listen(handlers))
    return listening
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#members.map(({ source }) => source[Symbol.asyncDispose]()))
  }

  async #ask(member: Member): Promise<void> {
    member.asking ??= this.#refresh(member).finally(() => {
      member.asking = undefined
    })
    await member.asking
  }

  async #refresh(member: Member): Promise<void> {
    try {
      member.best = await member.source.best()
      member.error = undefined
    } catch (thrown) {
      this.#leave(member, toAppError(thrown))
    }
  }

  #leave(member: Member, error: AppError): void {
    member.best = undefined
    member.error = error
    this.#tell(member, error.code === 'failed_precondition' ? 'wrong-network' : 'silent')
  }

  #tell(member: Member, state: SourceState): void {
    if (member.state === state) return
    member.state = state
    this.#onState(member.source.name, state, member.error)
  }

  #choose(): BestBlock {
    const [chosen] = this.#answering().toSorted((one, other) => this.#compare(one, other))
    if (chosen?.best === undefined) throw this.#nobody()
    this.#followed = chosen
    for (const member of this.#answering()) {
      const isEqual = member.best?.hash === chosen.best.hash
      this.#tell(member, member === chosen ? 'followed' : isEqual ? 'equal' : 'behind')
    }
    return chosen.best
  }

  /** Most work first. Of equals, one that is not syncing, then the one that is followed: two blocks of one height are no reason to move. */
  #compare(one: Member, other: Member): number {
    if (one.best === undefined || other.best === undefined) return 0
    if (one.best.chainWork !== other.best.chainWork) return one.best.chainWork > other.best.chainWork ? -1 : 1
    const [oneRank, otherRank] = [one, other].map(
      (member) => Number(member.best?.syncing) * 2 + Number(member !== this.#followed),
    )
    return (oneRank ?? 0) - (otherRank ?? 0)
  }

  #answering(): Member[] {
    const good = this.#members.filter(({ best }) => best !== undefined)
    return good.toSorted((one, other) => Number(other === this.#followed) - Number(one === this.#followed))
  }

  /** The followed one, and those with the same best block: what they say of the best chain is the same. */
  #followers(): Member[] {
    const hash = this.#followed?.best?.hash
    return this.#answering().filter(({ best }) => best?.hash === hash)
  }

  #nobody(): AppError {
    const wrong = this.#members.find(({ state }) => state === 'wrong-network')
    if (wrong?.error !== undefined && this.#members.every(({ state }) => state === 'wrong-network')) return wrong.error
    const silent = this.#members.find(({ state }) => state === 'silent')
    return silent?.error ?? new AppError('unavailable', 'No source of the chain was asked yet.')
  }

  /** Asks one after the other until one answers. */
  async #first<T>(members: readonly Member[], ask: (source: ChainSource) => Promise<T>): Promise<T> {
    let first: AppError | undefined
    for (const { source } of members) {
      try {
        return await ask(source)
      } catch (thrown) {
        first ??= toAppError(thrown)
      }
    }
    throw first ?? this.#nobody()
  }
}

function isSilent({ state }: Member): boolean {
  return state === 'silent'
}
