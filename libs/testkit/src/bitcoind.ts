import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { acquireBitcoind } from '@tollward/acquire'
import { eventually } from './eventually.ts'
import { freePort } from './free-port.ts'
import { type RunningProcess, startProcess, whileRunning } from './process.ts'
import { temporaryDirectory } from './temporary-directory.ts'

/** A bitcoin node on a chain of its own, with a loaded wallet that can pay. */
export interface Bitcoind extends AsyncDisposable {
  /** JSON-RPC, without credentials; these stay the same when the node is started again. */
  readonly rpcUrl: string
  /** File with `user:password`, which the node writes anew at each start. */
  readonly cookieFile: string
  /** One endpoint for `hashblock`, `rawblock`, `rawtx` and `sequence`. */
  readonly zmqUrl: string
  /** `address:port` for another node's `connect`; undefined unless `listen` was asked for. */
  readonly peerAddress: string | undefined
  readonly version: string
  readonly lines: readonly string[]
  /**
   * One JSON-RPC call, of the wallet too; parameters by position or by name. Amounts are in BTC, as the node's.
   * Throws BitcoinRpcError with the node's code if it refuses.
   */
  rpc<T = unknown>(method: string, params?: readonly unknown[] | Record<string, unknown>): Promise<T>
  /** Mines blocks to the wallet, with what the mempool holds; returns their hashes. */
  mine(blocks: number): Promise<string[]>
  /** Pays from the wallet into the mempool; returns the txid. */
  pay(address: string, amountSats: bigint): Promise<string>
  /** Ends it in an orderly way. */
  stop(): Promise<void>
  /** Ends it at once, as a crash would. */
  kill(): Promise<void>
  /** Starts it again, on the same ports and chain. */
  start(): Promise<void>
}

/** What a test may choose. */
export interface BitcoindOptions {
  /** Blocks mined at the start, by default 101: the first coinbase can be spent then. */
  blocks?: number
  /** Accepts peers. */
  listen?: boolean
  /** `peerAddress` of another node to follow. */
  connect?: string
  /**
   * A private signet instead of regtest: the script, in hexadecimal, that its blocks have to satisfy. `51` (OP_TRUE) lets this node
   * mine; a block takes some five million hashes. Goes well with `blocks: 0`.
   */
  signetChallenge?: string
  /** Further arguments of bitcoind, such as `-txindex`. */
  args?: readonly string[]
}

/** The node refused a call; `code` is bitcoind's, such as -5 for an address or transaction it does not know. */
export class BitcoinRpcError extends Error {
  override name = 'BitcoinRpcError'
  readonly code: number
  constructor(method: string, code: number, message: string) {
    super(`${method}: ${message} (${code})`)
    this.code = code
  }
}

const START_TIMEOUT_MS = 30_000
const WALLET = 'test'
/** A coinbase can be spent after 100 further blocks. */
const BLOCKS_AT_START = 101
const SATS_PER_BTC = 100_000_000n
/** Of a block: on regtest every second hash is one, on a signet one of some five million. */
const HASHES_MAX = 1_000_000_000
/** Regtest has no fees to estimate from. */
const FALLBACK_FEE_BTC = '0.00002'

/**
 * Starts a real bitcoin node on 127.0.0.1, with a wallet and spendable coins: `await using node = await startBitcoind()`.
 */
export async function startBitcoind(options: BitcoindOptions = {}): Promise<Bitcoind> {
  const tool = await acquireBitcoind()
  await using stack = new AsyncDisposableStack()
  const directory = stack.use(await temporaryDirectory('tollward-bitcoind-'))
  const cookieFile = join(directory.path, '.cookie')
  const ports = { rpc: await freePort(), zmq: await freePort(), peer: options.listen ? await freePort() : undefined }
  const args = [...tool.args, ...argumentsFor(directory.path, cookieFile, ports, options)]
  const rpcUrl = `http://127.0.0.1:${ports.rpc}`
  const rpc = <T>(method: string, params: readonly unknown[] | Record<string, unknown> = []) =>
    call<T>(`${rpcUrl}/wallet/${WALLET}`, cookieFile, method, params)

  const lines: string[] = []
  let run: RunningProcess | undefined
  const end = async (how: 'stop' | 'kill') => {
    await run?.[how]()
    run = undefined
  }
  stack.defer(() => end('stop'))
  const start = async () => {
    if (run !== undefined) throw new Error('this bitcoin node runs already')
    run = await startProcess(tool.command, args, { lines })
    await whileRunning(run, 'bitcoind', (signal) =>
      // It answers calls with "loading" until chain and wallet are there.
      eventually(() => rpc('getblockchaininfo'), { what: 'bitcoind is ready', timeoutMs: START_TIMEOUT_MS, signal }),
    )
  }
  const mine = async (blocks: number) =>
    rpc<string[]>('generatetoaddress', [blocks, await rpc('getnewaddress'), HASHES_MAX])

  await start()
  await rpc('createwallet', { wallet_name: WALLET, load_on_startup: true })
  await mine(options.blocks ?? BLOCKS_AT_START)
  const owned = stack.move()
  return {
    rpcUrl,
    cookieFile,
    zmqUrl: `tcp://127.0.0.1:${ports.zmq}`,
    peerAddress: ports.peer === undefined ? undefined : `127.0.0.1:${ports.peer}`,
    version: tool.version,
    lines,
    rpc,
    mine,
    pay: (address, amountSats) => rpc('sendtoaddress', [address, inBtc(amountSats)]),
    stop: () => end('stop'),
    kill: () => end('kill'),
    start,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

function argumentsFor(
  dataDirectory: string,
  cookieFile: string,
  ports: { rpc: number; zmq: number; peer: number | undefined },
  { connect, signetChallenge, args = [] }: BitcoindOptions,
): string[] {
  const zmq = ['hashblock', 'rawblock', 'rawtx', 'sequence'].map((t) => `-zmqpub${t}=tcp://127.0.0.1:${ports.zmq}`)
  const peers = ports.peer === undefined ? ['-listen=0'] : ['-listen=1', `-bind=127.0.0.1:${ports.peer}`]
  const chain = signetChallenge === undefined ? ['-regtest'] : ['-signet', `-signetchallenge=${signetChallenge}`]
  return [
    ...chain,
    ...['-server', `-datadir=${dataDirectory}`, `-rpccookiefile=${cookieFile}`, '-printtoconsole', '-nodebuglogfile'],
    ...['-rpcbind=127.0.0.1', '-rpcallowip=127.0.0.1', `-rpcport=${ports.rpc}`],
    ...['-dnsseed=0', '-discover=0', '-listenonion=0', '-i2pacceptincoming=0', '-natpmp=0'],
    ...[`-fallbackfee=${FALLBACK_FEE_BTC}`, '-dbcache=16', '-par=1'],
    ...zmq,
    ...peers,
    ...(connect === undefined ? [] : [`-connect=${connect}`]),
    ...args,
  ]
}

/** One call with the credentials of the running node, which change at each start. */
async function call<T>(url: string, cookieFile: string, method: string, params: unknown): Promise<T> {
  const cookie = await readFile(cookieFile)
  const response = await fetch(url, {
    method: 'POST',
    headers: { authorization: `Basic ${cookie.toString('base64')}` },
    body: JSON.stringify({ jsonrpc: '2.0', id: 1, method, params }),
  })
  if (!response.ok) throw new Error(`${method}: the node answered HTTP ${response.status}`)
  const { result, error }: { result: T; error?: { code: number; message: string } } = JSON.parse(await response.text())
  if (error) throw new BitcoinRpcError(method, error.code, error.message)
  return result
}

/** The decimal text that the node's calls take for an amount. */
function inBtc(amountSats: bigint): string {
  return `${amountSats / SATS_PER_BTC}.${String(amountSats % SATS_PER_BTC).padStart(8, '0')}`
}
