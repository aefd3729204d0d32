import { AppError } from '@tollward/errors'
import { z } from 'zod'
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
import { NETWORKS, type Network, PUBLIC_SIGNET_CHALLENGE } from './network.ts'
import type { NodeClient } from './node-client.ts'
import { listenToNode } from './node-notices.ts'
import { findInBlock } from './watched-outputs.ts'

/** A node to ask. */
export interface NodeSourceOptions {
  readonly node: NodeClient
  /** For logs and metrics: host and port. */
  readonly name: string
  readonly network: Network
  /** Which signet, by the script that its blocks have to satisfy, in hexadecimal; by default the public one. */
  readonly signetChallenge?: string
  /** The node's ZMQ endpoint with hashblock and rawtx. Without it, or while it is silent, polling finds everything later. */
  readonly zmqUrl?: string
}

/** Headers or transactions that one request asks for. */
const CALLS_PER_REQUEST = 100
/** Where a node that lost its mind or its peers is left for another one; a node that validates a block may take seconds. */
const BEST_TIMEOUT_MS = 10_000
/** The node reads a filter of each block: seconds for a test network, many minutes for mainnet. */
const FILTER_SCAN_TIMEOUT_MS = 60 * 60_000

const ChainInfo = z.object({
  blocks: z.number(),
  headers: z.number(),
  bestblockhash: z.string(),
  chainwork: z.string(),
  initialblockdownload: z.boolean(),
  pruneheight: z.number().optional(),
  signet_challenge: z.string().optional(),
})
type ChainInfo = z.infer<typeof ChainInfo>
const Header = z
  .object({
    hash: z.string(),
    height: z.number(),
    confirmations: z.number(),
    mediantime: z.number(),
    chainwork: z.string(),
    previousblockhash: z.string().optional(),
  })
  .transform(({ hash, height, confirmations, mediantime, chainwork, previousblockhash }) => ({
    header: {
      hash,
      height,
      medianTimePastMs: mediantime * 1000,
      previousHash: previousblockhash,
      chainWork: workOf(chainwork),
    },
    isBest: confirmations >= 0,
  }))
const MempoolInfo = z.object({ loaded: z.boolean() })
const Indexes = z.object({
  'basic block filter index': z.object({ synced: z.boolean(), best_block_height: z.number() }).optional(),
})
const FilterScan = z.object({ relevant_blocks: z.array(z.string()) })

/**
 * A bitcoin node as a source. Its RPC is the truth; its ZMQ only wakes. It needs no transaction index, and may be pruned as long
 * as it still has the blocks that are asked for.
 */
export class NodeSource implements ChainSource {
  readonly name: string
  readonly #options: NodeSourceOptions

  constructor(options: NodeSourceOptions) {
    this.name = options.name
    this.#options = options
  }

  async best(): Promise<BestBlock> {
    const info = await this.#info()
    // Each time: at this address another node may answer since.
    await this.#checkNetwork(info)
    const { bestblockhash: hash, blocks: height, headers, chainwork, initialblockdownload } = info
    const downloading = initialblockdownload && this.#isPublic
    return { hash, height, chainWork: workOf(chainwork), syncing: downloading || headers > height }
  }

  async headersAt(heights: readonly number[]): Promise<readonly ChainHeader[]> {
    const hashes = await this.#each(z.string(), 'getblockhash', heights)
    return (await this.#headers(hashes.filter((hash) => hash !== undefined))).map(({ header }) => header)
  }

  async standingOf({ hash }: BlockPlace): Promise<BlockStanding> {
    const [header] = await this.#headers([hash])
    if (header === undefined) return 'unknown'
    return header.isBest ? 'best' : 'left'
  }

  async findingsIn(block: BlockPlace, watched: Watched): Promise<Findings> {
    try {
      const raw = await this.#options.node.call(z.string(), 'getblock', [block.hash, 0])
      return findInBlock(Buffer.from(raw, 'hex'), watched)
    } catch (error) {
      const { pruneheight } = await this.#info()
      if (pruneheight === undefined || block.height >= pruneheight) throw error
      const message = `The bitcoin node ${this.name} has deleted block ${block.height}, which is needed, as all below ${pruneheight}: ask another node too, or let this one keep more and download the chain again.`
      throw new AppError('failed_precondition', message, { cause: error })
    }
  }

  async candidateHeights(scripts: readonly string[], fromHeight: number): Promise<readonly number[] | undefined> {
    const { node } = this.#options
    const { blocks: bestHeight } = await this.#info()
    const filters = (await node.call(Indexes, 'getindexinfo'))['basic block filter index']
    if (filters?.synced !== true) return undefined
    // The node passes over blocks in silence whose filters it has not made yet.
    const unfiltered = range(Math.max(fromHeight, filters.best_block_height + 1), bestHeight)
    if (fromHeight > filters.best_block_height) return unfiltered
    const descriptors = scripts.map((script) => `raw(${script})`)
    const parameters = ['start', descriptors, fromHeight, filters.best_block_height]
    const scan = await node.call(FilterScan, 'scanblocks', parameters, { timeoutMs: FILTER_SCAN_TIMEOUT_MS })
    return [...(await this.#headers(scan.relevant_blocks)).map(({ header }) => header.height), ...unfiltered]
  }

  async unconfirmedIds(_scripts: WatchedScripts): Promise<UnconfirmedIds> {
    const { node } = this.#options
    const { loaded } = await node.call(MempoolInfo, 'getmempoolinfo')
    return { txids: await node.call(z.array(z.string()), 'getrawmempool'), complete: loaded }
  }

  async transactions(txids: readonly string[]): Promise<readonly (Uint8Array | undefined)[]> {
    const raw = await this.#each(z.string(), 'getrawtransaction', txids)
    return raw.map((hex) => (hex === undefined ? undefined : Buffer.from(hex, 'hex')))
  }

  listen(handlers: NoticeHandlers): AsyncDisposable {
    const { zmqUrl } = this.#options
    return zmqUrl === undefined ? new AsyncDisposableStack() : listenToNode(zmqUrl, handlers)
  }

  /** Nothing is held open between calls. */
  async [Symbol.asyncDispose](): Promise<void> {}

  /** On a chain of one's own blocks come when one wants, and a node says that it downloads until its best one is fresh. */
  get #isPublic(): boolean {
    const { network, signetChallenge = PUBLIC_SIGNET_CHALLENGE } = this.#options
    return network === 'mainnet' || (network === 'signet' && signetChallenge === PUBLIC_SIGNET_CHALLENGE)
  }

  async #info(): Promise<ChainInfo> {
    return await this.#options.node.call(ChainInfo, 'getblockchaininfo', [], { timeoutMs: BEST_TIMEOUT_MS })
  }

  async #checkNetwork(info: ChainInfo): Promise<void> {
    const { node, network, signetChallenge = PUBLIC_SIGNET_CHALLENGE } = this.#options
    const genesisHash = await node.call(z.string(), 'getblockhash', [0])
    if (genesisHash !== NETWORKS[network].genesisHash) {
      const actual = Object.entries(NETWORKS).find(([, facts]) => facts.genesisHash === genesisHash)?.[0]
      throw wrongNetwork(`The bitcoin node follows ${actual ?? 'another network'}, but ${network} is configured.`)
    }
    if (network !== 'signet' || info.signet_challenge === signetChallenge) return
    throw wrongNetwork(
      info.signet_challenge === undefined
        ? 'The bitcoin node is too old to say which signet it follows: run version 29 or newer.'
        : 'The bitcoin node follows another signet than the configured one: compare the challenges.',
    )
  }

  /** Of blocks in the best chain or not; those that the node never had are left out. */
  async #headers(hashes: readonly string[]) {
    return (await this.#each(Header, 'getblockheader', hashes)).filter((header) => header !== undefined)
  }

  async #each<T>(result: z.ZodType<T>, method: string, parameters: readonly unknown[]): Promise<(T | undefined)[]> {
    const results: (T | undefined)[] = []
    for (let start = 0; start < parameters.length; start += CALLS_PER_REQUEST) {
      const calls = parameters.slice(start, start + CALLS_PER_REQUEST).map((each) => ({ method, params: [each] }))
      results.push(...(await this.#options.node.callEach(result, calls)))
    }
    return results
  }
}

function range(from: number, until: number): number[] {
  return Array.from({ length: Math.max(0, until - from + 1) }, (_, offset) => from + offset)
}

function workOf(hexadecimal: string): bigint {
  return BigInt(`0x${hexadecimal}`)
}

function wrongNetwork(message: string): AppError {
  return new AppError('failed_precondition', message)
}
