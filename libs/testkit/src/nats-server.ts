import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { acquireNatsServer } from '@tollward/acquire'
import { dockerAnswers, startInContainer } from './container.ts'
import { eventually } from './eventually.ts'
import { type ProgramRun, startProcess, whileRunning } from './process.ts'
import { temporaryDirectory } from './temporary-directory.ts'

/** A nats-server with JetStream, for one test. */
export interface NatsServer extends AsyncDisposable {
  /** For clients; stays the same when the server is started again. */
  readonly url: string
  readonly port: number
  readonly storeDir: string
  readonly version: string
  readonly runsAs: 'process' | 'container'
  /** The server's log so far, of all its runs. */
  readonly lines: readonly string[]
  /** Ends it in an orderly way. */
  stop(): Promise<void>
  /** Ends it at once, as a crash would. */
  kill(): Promise<void>
  /** Starts it again, on the same port and store. */
  start(): Promise<void>
}

/** What a test may choose. */
export interface NatsServerOptions {
  /** Text of a nats-server configuration file: accounts, users, permissions. Port and store are set beside it. */
  config?: string
  /** By default an own one, removed at the end. */
  storeDir?: string
  /** By default one that the server chooses. */
  port?: number
}

/** By default the server offers a share of the free disk, which need not hold what the topology reserves and no test fills. */
const LIMITS = 'jetstream { max_memory_store: 2GB, max_file_store: 64GB }'

const GIVEN_CONFIG = 'given.conf'

const START_TIMEOUT_MS = 20_000
/** nats-server's word for "choose a free one". */
const ANY_PORT = -1

/**
 * Starts a real nats-server on 127.0.0.1 with JetStream, ready for clients: `await using nats = await startNatsServer()`.
 */
export async function startNatsServer(options: NatsServerOptions = {}): Promise<NatsServer> {
  const tool = await acquireNatsServer()
  const runsAs = (await dockerAnswers()) ? 'container' : 'process'
  await using stack = new AsyncDisposableStack()
  const directory = stack.use(await temporaryDirectory('tollward-nats-'))
  const portsDir = join(directory.path, 'ports')
  const configFile = join(directory.path, 'nats-server.conf')
  const storeDir = options.storeDir ?? join(directory.path, 'store')
  await mkdir(storeDir, { recursive: true })
  await writeFile(join(directory.path, GIVEN_CONFIG), options.config ?? '', { mode: 0o600 })
  await writeFile(configFile, `${LIMITS}\ninclude ./${GIVEN_CONFIG}\n`, { mode: 0o600 })

  const lines: string[] = []
  const launch = (port: number): Promise<ProgramRun> => {
    const args = [
      ...['--config', configFile, '--addr', '127.0.0.1', '--port', String(port)],
      ...['--jetstream', '--store_dir', storeDir, '--ports_file_dir', portsDir],
    ]
    if (runsAs === 'process') return startProcess(tool.command, [...tool.args, ...args], { lines })
    const directories = [directory.path, storeDir]
    return startInContainer({ name: 'nats-server', program: tool.command, args, directories, lines })
  }
  let run: ProgramRun | undefined
  const end = async (how: 'stop' | 'kill') => {
    await run?.[how]()
    run = undefined
  }
  stack.defer(() => end('stop'))
  const startOn = async (port: number) => {
    if (run !== undefined) throw new Error('this nats-server runs already')
    await emptied(portsDir)
    run = await launch(port)
    return await chosenPort(portsDir, run)
  }
  const port = await startOn(options.port ?? ANY_PORT)
  const owned = stack.move()
  return {
    url: `nats://127.0.0.1:${port}`,
    port,
    storeDir,
    version: tool.version,
    runsAs,
    lines,
    stop: () => end('stop'),
    kill: () => end('kill'),
    start: async () => void (await startOn(port)),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

/** The server writes its addresses into a file of its own once clients can connect. */
async function chosenPort(portsDir: string, run: ProgramRun): Promise<number> {
  const read = async () => {
    const [file] = await readdir(portsDir)
    if (file === undefined) return undefined
    const ports: { nats?: string[] } = JSON.parse(await readFile(join(portsDir, file), 'utf8'))
    return ports.nats?.[0]
  }
  const url = await whileRunning(run, 'nats-server', (signal) =>
    eventually(read, { what: 'nats-server is ready', timeoutMs: START_TIMEOUT_MS, signal }),
  )
  return Number(new URL(url).port)
}

async function emptied(directory: string): Promise<void> {
  await rm(directory, { recursive: true, force: true })
  await mkdir(directory)
}
