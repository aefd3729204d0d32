import { AppError } from '@tollward/errors'
import { type Bitcoind, eventually } from '@tollward/testkit'
import {
  type BlockPlace,
  type ChainChange,
  ChainFollower,
  type ChainSource,
  NodeSource,
  type NodeSourceOptions,
  nodeClient,
  outputScript,
  type VanishedTransaction,
  type WatchedOutput,
} from './mod.ts'

/** So long that what a test sees in time came by a notice. */
const NO_POLL_MS = 600_000
/** Longer than it takes to give a node up that does not answer. */
const FOLLOWED_WITHIN_MS = 30_000

interface FollowOptions {
  zmq?: boolean
  known?: BlockPlace[]
  pollIntervalMs?: number
  /** Instead of the node alone. */
  source?: ChainSource
}

/** A node as a source, on regtest unless said otherwise. */
export function sourceOf(
  node: Bitcoind,
  options: Partial<NodeSourceOptions> & { timeoutMs?: number } = {},
): NodeSource {
  const { timeoutMs = 5_000, ...others } = options
  return new NodeSource({
    node: nodeClient({ url: node.rpcUrl, cookieFile: node.cookieFile, timeoutMs }),
    name: new URL(node.rpcUrl).host,
    network: 'regtest',
    ...others,
  })
}

/** A follower, and all that it told. */
export function follow(node: Bitcoind, options: FollowOptions = {}) {
  const changes: ChainChange[] = []
  const seen: WatchedOutput[] = []
  const vanished: VanishedTransaction[] = []
  const troubles: AppError[] = []
  const watched = new Set<string>()
  /** Handlers throw this many times first. */
  const faults = { changes: 0 }
  const confirmed = () => new Set(paid().map(({ txid }) => txid))
  const follower = new ChainFollower({
    source: options.source ?? sourceOf(node, options.zmq === false ? {} : { zmqUrl: node.zmqUrl }),
    known: options.known ?? [],
    pollIntervalMs: options.pollIntervalMs ?? NO_POLL_MS,
    handlers: {
      scripts: { has: (script) => watched.has(script), all: () => watched },
      unconfirmedTxids: () => {
        const gone = new Set(vanished.map(({ txid }) => txid))
        return new Set(seen.map(({ txid }) => txid)).difference(confirmed()).difference(gone)
      },
      onVanished: async (transactions) => void vanished.push(...transactions),
      onChange: async (change) => {
        if (faults.changes-- > 0) throw new AppError('unavailable', 'not now')
        changes.push(change)
      },
      onMempool: async (outputs) => void seen.push(...outputs),
      onTrouble: (error) => troubles.push(error),
    },
  })
  const watchAddress = (address: string) => watched.add(Buffer.from(outputScript(address, 'regtest')).toString('hex'))
  const watch = async () => {
    const address = await node.rpc<string>('getnewaddress', ['', 'bech32'])
    watchAddress(address)
    return address
  }
  const reaches = async (hash: string | undefined) =>
    await eventually(() => follower.caughtUp && follower.tip?.hash === hash, {
      what: 'the follower has the tip',
      timeoutMs: FOLLOWED_WITHIN_MS,
    })
  const blocks = () =>
    changes.flatMap((change) => [
      ...change.disconnected.map(({ height }) => -height),
      ...change.connected.map(({ height }) => height),
    ])
  const paid = () =>
    changes.flatMap((change) =>
      change.connected.flatMap(({ outputs, height }) =>
        outputs.map(({ txid, amountSats }) => ({ txid, amountSats, height })),
      ),
    )
  return {
    follower,
    changes,
    seen,
    vanished,
    troubles,
    faults,
    watch,
    watchAddress,
    reaches,
    blocks,
    paid,
    [Symbol.asyncDispose]: () => follower[Symbol.asyncDispose](),
  }
}

/** The hash of a node's best block. */
export function best(node: Bitcoind): Promise<string> {
  return node.rpc<string>('getbestblockhash')
}
