import { mkdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Tool } from '@tollward/acquire'
import type { Paths } from './paths.ts'
import { HOST, localUrl, PORTS } from './ports.ts'
import type { Program } from './supervise.ts'

/** Coins of a coinbase can be spent after this many blocks. */
const BLOCKS_MIN = 101
const WALLET = 'operator'
const RPC_TIMEOUT_MS = 30_000

const WALLET_LOADED_ALREADY = -35
const WALLET_NOT_FOUND = -18

/** The regtest node: its own chain, its own wallet, no peers. */
export function bitcoinNode(tool: Tool, paths: Paths, env: Record<string, string>): Program {
  return {
    name: 'bitcoind',
    command: tool.command,
    args: [
      ...tool.args,
      '-regtest',
      `-datadir=${paths.bitcoin}`,
      '-server=1',
      '-listen=0',
      '-dnsseed=0',
      '-fallbackfee=0.0001',
      `-rpcbind=${HOST}`,
      `-rpcallowip=${HOST}`,
      `-rpcport=${PORTS.bitcoinRpc}`,
      `-zmqpubhashblock=tcp://${HOST}:${PORTS.bitcoinZmq}`,
      `-zmqpubrawtx=tcp://${HOST}:${PORTS.bitcoinZmq}`,
      `-zmqpubsequence=tcp://${HOST}:${PORTS.bitcoinZmq}`,
    ],
    env,
    logFile: paths.log('bitcoind'),
    isReady: async () => {
      await call(paths, 'getblockchaininfo', [])
      return true
    },
  }
}

/** Where the node keeps the password that it makes anew at each start. */
export function cookieFile(paths: Paths): string {
  return join(paths.bitcoin, 'regtest', '.cookie')
}

/** Makes the directory that the node wants to find. */
export async function prepareNode(paths: Paths): Promise<void> {
  await mkdir(paths.bitcoin, { recursive: true, mode: 0o700 })
}

/** Opens the wallet that pays in the demo, with coins that can be spent. */
export async function ensureWallet(paths: Paths): Promise<void> {
  const wallets = await call<string[]>(paths, 'listwallets', [])
  if (!wallets.includes(WALLET)) {
    await call(paths, 'loadwallet', [WALLET, true]).catch(async (error: RpcError) => {
      if (error.code === WALLET_LOADED_ALREADY) return
      if (error.code !== WALLET_NOT_FOUND) throw error
      await call(paths, 'createwallet', { wallet_name: WALLET, load_on_startup: true })
    })
  }
  const height = await call<number>(paths, 'getblockcount', [])
  if (height >= BLOCKS_MIN) return
  const address = await call<string>(paths, 'getnewaddress', [])
  await call(paths, 'generatetoaddress', [BLOCKS_MIN - height, address])
}

class RpcError extends Error {
  override readonly name = 'RpcError'
  readonly code: number

  constructor(code: number, message: string) {
    super(message)
    this.code = code
  }
}

async function call<T = unknown>(paths: Paths, method: string, params: unknown): Promise<T> {
  const cookie = (await readFile(cookieFile(paths), 'utf8')).trim()
  const response = await fetch(localUrl(PORTS.bitcoinRpc), {
    method: 'POST',
    headers: { authorization: `Basic ${Buffer.from(cookie).toString('base64')}`, 'content-type': 'application/json' },
    body: JSON.stringify({ jsonrpc: '1.0', id: method, method, params }),
    signal: AbortSignal.timeout(RPC_TIMEOUT_MS),
  })
  const { result, error } = (await response.json()) as { result: T; error: { code: number; message: string } | null }
  if (error) throw new RpcError(error.code, `${method}: ${error.message}`)
  return result
}
