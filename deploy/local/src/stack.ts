import { execFile } from 'node:child_process'
import { mkdir } from 'node:fs/promises'
import { promisify } from 'node:util'
import { connect, nkeyAuthenticator } from '@nats-io/transport-node'
import { acquireBitcoind, acquireNatsServer, ensureSystemPackages, type Tool } from '@tollward/acquire'
import { isProvisioned, provision } from '@tollward/bus'
import { readSecretFile } from '@tollward/runtime'
import { bitcoinNode, ensureWallet, prepareNode } from './chain.ts'
import type { Display } from './display.ts'
import { applyExamples } from './examples.ts'
import { endLeftovers } from './leftovers.ts'
import { natsConfig } from './nats-config.ts'
import { type Paths, REPOSITORY } from './paths.ts'
import { HEALTH_PORTS, HOST, localUrl, PORTS } from './ports.ts'
import { writeSecret } from './secret-file.ts'
import { ensureKeys, type Keys } from './secrets.ts'
import { baseEnvironment, exampleApi, type Off, serviceMain, serviceNames, serviceProgram } from './services.ts'
import { type Program, Supervised } from './supervise.ts'

/** A program that is not ready by then has a fault that its log tells. */
const READY_MAX_MS = 90_000

/** What the sensor is built from and loaded by. */
const SENSOR_PACKAGES = ['clang', 'libbpf1', 'libbpf-dev', 'make']

/** `node-sensor check` exits with this when something is missing, and says what. */
const CHECK_LACKS = 3

const runFile = promisify(execFile)

export interface StackOptions {
  readonly paths: Paths
  /** The API behind the gateway, instead of the example API. */
  readonly upstreamUrl?: string
  readonly display: Display
  readonly signal: AbortSignal
}

/** A running stack. */
export interface Stack extends AsyncDisposable {
  readonly off: Off
}

/**
 * Starts everything in order: what an earlier, killed supervisor left is ended; tools are got, keys made; then nats-server and
 * the bitcoin node, then all services at once, then the example documents. Disposing ends it all in reverse and takes the
 * sensor's programs off the interface. If any step fails, what was started is ended.
 */
export async function startStack({ paths, upstreamUrl, display, signal }: StackOptions): Promise<Stack> {
  await mkdir(paths.state, { recursive: true, mode: 0o700 })
  const left = await endLeftovers(paths.state)
  if (left > 0) display.line(`Ended ${left} programs that an earlier start had left running.`)
  const progress = (line: string) => display.line(line)
  const nats = await acquireNatsServer({ progress })
  const bitcoind = await acquireBitcoind({ progress })
  const off = await whatIsOff(paths, progress)
  const keys = await ensureKeys(paths, {
    natsUrl: `nats://${HOST}:${PORTS.nats}`,
    issuerUrl: localUrl(PORTS.issuer),
    adminApi: `${HOST}:${PORTS.adminApi}`,
  })
  await using started = new AsyncDisposableStack()
  const run = async (program: Program) => {
    signal.throwIfAborted()
    const supervised = new Supervised(program, (status) => display.status(status))
    started.defer(() => supervised.stop())
    await supervised.start(READY_MAX_MS)
  }
  await Promise.all([
    run(await natsProgram(nats, paths, keys)),
    prepareNode(paths).then(() => run(bitcoinNode(bitcoind, paths, baseEnvironment(paths)))),
  ])
  await ensureWallet(paths)
  for (const [name, reason] of Object.entries(off)) display.off(name, reason)
  const facts = { paths, keys, off, upstreamUrl: upstreamUrl ?? localUrl(PORTS.exampleApi) }
  if (off['node-sensor'] === undefined) started.defer(() => detachSensor(paths, progress))
  await Promise.all([run(exampleApi(paths)), ...serviceNames(off).map((name) => run(serviceProgram(name, facts)))])
  await applyExamples(paths, progress)
  const owned = started.move()
  return { off, [Symbol.asyncDispose]: () => owned.disposeAsync() }
}

/** What this machine cannot run, and why. The sensor says so itself, after its packages were installed where that is possible. */
async function whatIsOff(paths: Paths, progress: (line: string) => void): Promise<Off> {
  if (process.platform !== 'linux') return { 'node-sensor': 'it needs Linux' }
  if (process.getuid?.() === 0) await ensureSystemPackages(SENSOR_PACKAGES, { progress })
  try {
    await runFile(process.execPath, [serviceMain('node-sensor'), 'check'], {
      cwd: REPOSITORY,
      env: sensorEnvironment(paths),
    })
    return {}
  } catch (error) {
    const { code, stderr = '' } = error as { code?: number; stderr?: string }
    if (code !== CHECK_LACKS) throw error
    return { 'node-sensor': stderr.trim().split('\n').join('; ') }
  }
}

/** Takes the kernel programs off; without this they would go on enforcing, as they do when the sensor crashes. */
async function detachSensor(paths: Paths, progress: (line: string) => void): Promise<void> {
  try {
    await runFile(process.execPath, [serviceMain('node-sensor'), 'detach'], {
      cwd: REPOSITORY,
      env: sensorEnvironment(paths),
    })
  } catch (error) {
    progress(
      `The kernel programs could not be taken off: ${String((error as { stderr?: string }).stderr ?? error).trim()}`,
    )
  }
}

function sensorEnvironment(paths: Paths): Record<string, string> {
  return {
    ...baseEnvironment(paths),
    TOLLWARD_INTERFACES: 'lo',
    TOLLWARD_NODE: 'local',
    TOLLWARD_HEALTH_PORT: String(HEALTH_PORTS['node-sensor']),
  }
}

async function natsProgram(tool: Tool, paths: Paths, keys: Keys): Promise<Program> {
  const config = natsConfig({ host: HOST, port: PORTS.nats, storeDirectory: paths.natsStore, users: keys.users })
  await writeSecret(paths.natsConfig, config)
  return {
    name: 'nats-server',
    command: tool.command,
    args: [...tool.args, '--config', paths.natsConfig],
    env: baseEnvironment(paths),
    logFile: paths.log('nats-server'),
    isReady: () => provisionedBus(paths),
  }
}

/**
 * Whether the bus answers and has everything on it. What is missing is made: a server that was started again has forgotten its
 * memory streams and their consumers.
 */
async function provisionedBus(paths: Paths): Promise<boolean> {
  const connection = await connectAsProvisioner(paths)
  try {
    if (!(await isProvisioned(connection))) await provision(connection)
    return true
  } finally {
    await connection.close()
  }
}

function connectAsProvisioner(paths: Paths) {
  return connect({
    servers: `${HOST}:${PORTS.nats}`,
    authenticator: nkeyAuthenticator(new TextEncoder().encode(readSecretFile(paths.natsSeed('provisioner')))),
    reconnect: false,
  })
}
