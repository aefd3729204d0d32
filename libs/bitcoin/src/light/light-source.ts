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
} from '../chain-source.ts'
import { NETWORKS, type Network } from '../network.ts'
import { txidOfBytes } from '../raw-transaction.ts'
import type { OnSourceState, SourceState } from '../several-sources.ts'
import { showHash, type WatchedOutput } from '../watched-outputs.ts'
import { ElectrumServer } from './electrum-server.ts'
import { EsploraServer } from './esplora-server.ts'
import { forged } from './header.ts'
import { HeaderChain, type ProvenHeader } from './header-chain.ts'
import { PROOF_OF_WORK } from './proof-of-work.ts'
import type { LightServer, ServerNotices } from './server.ts'

/** Servers to ask, and where to begin to check what they say. */
export interface LightSourceOptions {
  readonly network: Network
  /** `tcp://host:port` or `ssl://host:port` of the Electrum protocol, `http(s)://…` of Esplora's. */
  readonly servers: readonly string[]
  /** Certificates in PEM that vouch for `ssl://` servers instead of the system's. */
  readonly ca?: string
  /** A block that is known to be in the best chain, at a multiple of 2,016; by default block 0. */
  readonly checkpoint?: BlockPlace
  readonly onState: OnSourceState
  readonly timeoutMs?: number
}

/** Reorganisations up to this depth take one question. */
const OVERLAP_BLOCKS = 10
/** A server that was caught is not asked again for this time: long enough to be noticed, and a wrong suspicion passes. */
const ASIDE_MS = 10 * 60_000
/** A best block that is older says that all servers hold something back. A node takes the same. */
const BEST_AGE_MAX_MS = 24 * 60 * 60_000

interface Member {
  readonly server: LightServer
  state: SourceState
  tip: ProvenHeader | undefined
  asideUntilMs: number
}

/**
 * Servers of strangers as one source, trusted for nothing: they only bring what can be checked. Headers are checked as a node checks
 * them, and the branch with the most work wins; every payment is proven to be in its block. Who says what is not so, or holds back
 * what another one proves, is found out and put aside. What no server tells of stays unknown: take several that do not know
 * each other, and one at least that hands out whole blocks.
 */
export class LightSource implements ChainSource {
  readonly name: string
  readonly #options: LightSourceOptions
  readonly #members: readonly Member[]
  readonly #listeners = new Set<ServerNotices>()
  #chain: HeaderChain | undefined

  constructor(options: LightSourceOptions) {
    const notices: ServerNotices = {
      onBlock: () => this.#listeners.forEach((listener) => void listener.onBlock()),
      onGap: () => this.#listeners.forEach((listener) => void listener.onGap()),
    }
    this.#options = options
    this.#members = options.servers.map((url) => ({
      server: serverAt(url, options, notices),
      state: 'unasked',
      tip: undefined,
      asideUntilMs: 0,
    }))
    this.name = this.#members.map(({ server }) => server.name).join(', ')
  }

  get states(): readonly { readonly name: string; readonly state: SourceState }[] {
    return this.#members.map(({ server: { name }, state }) => ({ name, state }))
  }

  async best(): Promise<BestBlock> {
    const trusted = this.#members.filter(({ asideUntilMs }) => asideUntilMs <= performance.now())
    await this.#ask(trusted, async (member) => {
      member.tip = await this.#follow(member.server)
    })
    const answering = this.#answering()
    const chain = this.#chain
    if (chain === undefined || answering.length === 0) throw this.#nobody()
    const [first] = answering.toSorted((one, other) => compareWork(other.tip, one.tip, chain))
    chain.choose(first?.tip ?? chain.tip)
    for (const member of answering) {
      this.#tell(member, chain.isBest(member.tip) && member.tip === chain.tip ? 'equal' : 'behind')
    }
    const { hash, height, chainWork, time } = chain.tip
    const isOld = this.#options.network !== 'regtest' && Date.now() - time * 1000 > BEST_AGE_MAX_MS
    return { hash, height, chainWork, syncing: isOld }
  }

  async headersAt(heights: readonly number[]): Promise<readonly ChainHeader[]> {
    return heights.flatMap((height) => this.#known().at(height) ?? [])
  }

  async standingOf(block: BlockPlace): Promise<BlockStanding> {
    const chain = this.#known()
    if (chain.at(block.height)?.hash === block.hash) return 'best'
    // The best chain has another block there: that is as good as having seen this one.
    return block.height <= chain.tip.height ? 'left' : 'unknown'
  }

  /**
   * What the servers that have the block prove of it, together. Needs one that hands out whole blocks, or more than half of all: who
   * holds a payment back should not be alone.
   */
  async findingsIn({ hash, height }: BlockPlace, watched: Watched): Promise<Findings> {
    const chain = this.#known()
    const block = chain.get(hash)
    if (block === undefined) throw new AppError('unavailable', 'The block is not known any more.')
    const having = this.#answering().filter(({ tip }) => tip.height >= height && chain.isBest(tip))
    const answers = await this.#ask(having, ({ server }) => server.findingsIn(block, watched))
    this.#assertEnough(answers)
    const outputs = new Map(
      answers.flatMap(({ answer }) => answer.outputs.map((output) => [outpointOf(output), output] as const)),
    )
    for (const { member, answer } of answers) {
      if (isShort(answer, outputs, watched)) this.#putAside(member, forged('The server holds a payment back.'))
    }
    const complete = answers.find(({ member }) => member.server.givesBlocks)
    return { outputs: [...outputs.values()], spendings: (complete ?? answers[0])?.answer.spendings ?? [] }
  }

  async candidateHeights(scripts: readonly string[], fromHeight: number): Promise<readonly number[]> {
    const answers = await this.#ask(this.#answering(), ({ server }) => server.heightsOf(scripts))
    // No matter who answers: scripts' histories are not proven to be whole.
    if (!this.#isMost(answers)) throw this.#nobody()
    const heights = new Set(answers.flatMap(({ answer }) => answer))
    return [...heights].filter((height) => height >= fromHeight).sort((one, other) => one - other)
  }

  async unconfirmedIds(scripts: WatchedScripts): Promise<UnconfirmedIds> {
    const answers = await this.#ask(this.#answering(), ({ server }) => server.unconfirmedIds(scripts))
    if (answers.length === 0) throw this.#nobody()
    return {
      txids: [...new Set(answers.flatMap(({ answer }) => answer.txids))],
      complete: this.#isMost(answers) && answers.every(({ answer }) => answer.complete),
    }
  }

  async transactions(txids: readonly string[]): Promise<readonly (Uint8Array | undefined)[]> {
    return await Promise.all(txids.map((txid) => this.#transaction(txid)))
  }

  listen(handlers: NoticeHandlers): AsyncDisposable {
    this.#listeners.add(handlers)
    return {
      [Symbol.asyncDispose]: async () => {
        this.#listeners.delete(handlers)
      },
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#members.map(({ server }) => server[Symbol.asyncDispose]()))
  }

  /**
   * Learns the server's best chain, and returns the last block of it. Begins a little below our best block, where a new branch of
   * the server's mostly still is ours, and goes back further and further until the two have a block in common.
   */
  async #follow(server: LightServer): Promise<ProvenHeader> {
    const chain = await this.#begun(server)
    const { height: lowest } = chain.checkpoint
    let last: ProvenHeader | undefined
    for (let from = chain.tip.height - OVERLAP_BLOCKS, back = OVERLAP_BLOCKS; ; ) {
      from = Math.max(lowest, from)
      const { headers, tipHeight } = await server.headersFrom(from)
      const first = headers[0] === undefined ? undefined : added(chain, headers[0])
      if (first?.height !== from) {
        // Another branch than a moment ago: the next round sees where it leads.
        if (last !== undefined) return last
        if (from === lowest) throw strange(headers.length)
        back *= 2
        from = Math.min(from, tipHeight) - back
        continue
      }
      for (const raw of headers) last = added(chain, raw) ?? last
      if (last === undefined || last.height >= tipHeight || last.height < from) return last ?? first
      from = last.height + 1
    }
  }

  async #begun(server: LightServer): Promise<HeaderChain> {
    const { network, checkpoint = { hash: NETWORKS[network].genesisHash, height: 0 } } = this.#options
    if (this.#chain !== undefined) return this.#chain
    const [raw] = (await server.headersFrom(checkpoint.height)).headers
    if (raw === undefined) throw strange(0)
    // Another server may have brought it meanwhile.
    this.#chain ??= new HeaderChain(PROOF_OF_WORK[network], checkpoint, raw)
    return this.#chain
  }

  /** Of the first server that has it. */
  async #transaction(txid: string): Promise<Uint8Array | undefined> {
    for (const member of this.#answering()) {
      const [found] = await this.#ask([member], async ({ server }) => {
        const raw = await server.transaction(txid)
        if (raw !== undefined && showHash(txidOfBytes(raw)) !== txid) throw forged('The transaction is another one.')
        return raw
      })
      if (found?.answer !== undefined) return found.answer
    }
    return undefined
  }

  /** Asks them all at once. Who fails is told of, and is asked for nothing more until it told of its best block again. */
  async #ask<M extends Member, T>(
    members: readonly M[],
    question: (member: M) => Promise<T>,
  ): Promise<{ readonly member: Member; readonly answer: T }[]> {
    const asked = members.map(async (member) => {
      try {
        return [{ member, answer: await question(member) }]
      } catch (thrown) {
        this.#fail(member, thrown)
        return []
      }
    })
    return (await Promise.all(asked)).flat()
  }

  #fail(member: Member, thrown: unknown): void {
    // Bytes that end too early are as wrong as any.
    const error = thrown instanceof RangeError ? forged('These bytes are no transaction.') : toAppError(thrown)
    if (error.code === 'invalid_argument') this.#putAside(member, error)
    else {
      member.tip = undefined
      this.#tell(member, error.code === 'failed_precondition' ? 'wrong-network' : 'silent', error)
    }
  }

  #putAside(member: Member, error: AppError): void {
    member.asideUntilMs = performance.now() + ASIDE_MS
    member.tip = undefined
    this.#tell(member, 'lying', error)
  }

  #tell(member: Member, state: SourceState, error?: AppError): void {
    if (member.state === state) return
    member.state = state
    this.#options.onState(member.server.name, state, error)
  }

  #answering(): (Member & { readonly tip: ProvenHeader })[] {
    return this.#members.filter((member): member is Member & { readonly tip: ProvenHeader } => member.tip !== undefined)
  }

  #assertEnough(answers: readonly { readonly member: Member }[]): void {
    if (answers.some(({ member }) => member.server.givesBlocks) || this.#isMost(answers)) return
    throw new AppError('unavailable', 'Too few servers answer to rely on what they say.')
  }

  /** Whether these are more than half of those that may be believed: who says nothing could know of more. */
  #isMost(answers: readonly unknown[]): boolean {
    const believed = this.#members.filter(({ state }) => state !== 'lying' && state !== 'wrong-network')
    return answers.length * 2 > believed.length
  }

  #known(): HeaderChain {
    if (this.#chain === undefined) throw this.#nobody()
    return this.#chain
  }

  #nobody(): AppError {
    if (this.#members.every(({ state }) => state === 'wrong-network')) {
      return new AppError('failed_precondition', `No server has the checkpoint of ${this.#options.network}.`)
    }
    return new AppError('unavailable', 'No server that may be believed answers.')
  }
}

function serverAt(url: string, { ca, timeoutMs }: LightSourceOptions, notices: ServerNotices): LightServer {
  const options = { url, ...(timeoutMs !== undefined && { timeoutMs }) }
  if (/^https?:/.test(url)) return new EsploraServer(options)
  return new ElectrumServer({ ...options, ...(ca !== undefined && { ca }) }, notices)
}

function strange(headers: number): AppError {
  if (headers === 0) return new AppError('unavailable', 'The server is not at the checkpoint yet.')
  return new AppError('failed_precondition', 'The server does not have the block of the checkpoint.')
}

/** The header in the chain; undefined if it does not attach to what is known. */
function added(chain: HeaderChain, raw: Uint8Array): ProvenHeader | undefined {
  try {
    return chain.add(raw, Date.now())
  } catch (error) {
    if (error instanceof AppError && error.code === 'not_found') return undefined
    throw error
  }
}

/** Whether an answer lacks proven outputs that the server was asked for; one that reads whole blocks finds more than that. */
function isShort(answer: Findings, proven: ReadonlyMap<string, WatchedOutput>, { scripts }: Watched): boolean {
  if (answer.outputs.length === proven.size) return false
  const told = new Set(answer.outputs.map(outpointOf))
  const askedFor = new Set(scripts.all())
  return [...proven].some(([outpoint, { script }]) => !told.has(outpoint) && askedFor.has(script))
}

function outpointOf({ txid, vout }: WatchedOutput): string {
  return `${txid}:${vout}`
}

/** More work is greater; of equals, that in the best chain. */
function compareWork(one: ProvenHeader, other: ProvenHeader, chain: HeaderChain): number {
  if (one.chainWork !== other.chainWork) return one.chainWork > other.chainWork ? 1 : -1
  return Number(chain.isBest(one)) - Number(chain.isBest(other))
}
