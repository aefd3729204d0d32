import { once } from 'node:events'
import { mkdir, readFile } from 'node:fs/promises'
import { connect } from 'node:net'
import { join } from 'node:path'
import { acquireElectrumx } from '@tollward/acquire'
import type { Bitcoind } from './bitcoind.ts'
import { eventually } from './eventually.ts'
import { freePort } from './free-port.ts'
import { type RunningProcess, startProcess, whileRunning } from './process.ts'
import { temporaryDirectory } from './temporary-directory.ts'

/** An ElectrumX on the chain of one test's node. */
export interface Electrumx extends AsyncDisposable {
  /** `tcp://127.0.0.1:port`, or `ssl://…` with a certificate; stays the same when it is started again. */
  readonly url: string
  readonly lines: readonly string[]
  /** Ends it at once, as a crash would. */
  kill(): Promise<void>
  /** Starts it again, on the same port and index. */
  start(): Promise<void>
}

/** What a test may choose. */
export interface ElectrumxOptions {
  /** Files in PEM: it listens by TLS then. */
  readonly certificate?: { readonly certificateFile: string; readonly keyFile: string }
}

const START_TIMEOUT_MS = 60_000
/** How often it looks for new blocks and transactions. */
const POLL_INTERVAL_MS = 100

/** Starts a real ElectrumX on 127.0.0.1; the node needs the argument `-txindex`. */
export async function startElectrumx(node: Bitcoind, { certificate }: ElectrumxOptions = {}): Promise<Electrumx> {
  const tool = await acquireElectrumx()
  await using stack = new AsyncDisposableStack()
  const directory = stack.use(await temporaryDirectory('tollward-electrumx-'))
  const data = join(directory.path, 'data')
  await mkdir(data)
  const port = await freePort()
  const url = `${certificate === undefined ? 'tcp' : 'ssl'}://127.0.0.1:${port}`
  const rpc = `rpc://127.0.0.1:${await freePort()}`
  const lines: string[] = []
  let run: RunningProcess | undefined
  const start = async () => {
    const credentials = (await readFile(node.cookieFile, 'utf8')).trim()
    const env = {
      ...{ PATH: process.env.PATH, COIN: 'Bitcoin', NET: 'regtest', DB_DIRECTORY: data, ALLOW_ROOT: '1' },
      ...{ DAEMON_URL: node.rpcUrl.replace('//', `//${credentials}@`), SERVICES: `${url},${rpc}` },
      ...{ PEER_DISCOVERY: 'off', COST_SOFT_LIMIT: '0', COST_HARD_LIMIT: '0', CACHE_MB: '16' },
      ...{ DAEMON_POLL_INTERVAL_BLOCKS: `${POLL_INTERVAL_MS}`, DAEMON_POLL_INTERVAL_MEMPOOL: `${POLL_INTERVAL_MS}` },
      ...(certificate && { SSL_CERTFILE: certificate.certificateFile, SSL_KEYFILE: certificate.keyFile }),
    }
    run = await startProcess(tool.command, tool.args, { env, lines })
    // It listens when it has read the whole chain.
    await whileRunning(run, 'ElectrumX', (signal) =>
      eventually(() => accepts(port), { what: 'ElectrumX listens', timeoutMs: START_TIMEOUT_MS, signal }),
    )
  }
  const kill = async () => {
    await run?.kill()
    run = undefined
  }
  stack.defer(kill)
  await start()
  const owned = stack.move()
  return { url, lines, kill, start, [Symbol.asyncDispose]: () => owned.disposeAsync() }
}

async function accepts(port: number): Promise<true> {
  const socket = connect(port, '127.0.0.1')
  try {
    await once(socket, 'connect')
    return true
  } finally {
    socket.destroy()
  }
}
