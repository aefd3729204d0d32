import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { acquireEnvoy } from '@tollward/acquire'
import { eventually } from './eventually.ts'
import { startProcess, whileRunning } from './process.ts'
import { temporaryDirectory } from './temporary-directory.ts'

/** An Envoy for one test. */
export interface Envoy extends AsyncDisposable {
  /** Base of Envoy's administration interface: `/stats`, `/clusters`, `/config_dump`. */
  readonly adminUrl: string
  readonly version: string
  readonly pid: number
  readonly lines: readonly string[]
  /** The port of a listener of the configuration, which may ask for port 0. */
  port(listener: string): Promise<number>
}

const START_TIMEOUT_MS = 20_000
const ADMIN = 'admin: { address: { socket_address: { address: 127.0.0.1, port_value: 0 } } }'

/**
 * Starts a real Envoy with the given configuration, to which an administration interface on a free port is added, and waits
 * until it serves: `await using envoy = await startEnvoy(configYaml)`.
 */
export async function startEnvoy(configYaml: string): Promise<Envoy> {
  const tool = await acquireEnvoy()
  await using stack = new AsyncDisposableStack()
  const directory = stack.use(await temporaryDirectory('tollward-envoy-'))
  const configFile = join(directory.path, 'envoy.yaml')
  await writeFile(configFile, configYaml)
  const addressFile = join(directory.path, 'admin-address')
  const args = [
    ...['--config-path', configFile, '--config-yaml', ADMIN, '--admin-address-path', addressFile],
    // One worker is enough for tests; hot restart would hold shared memory by a number that other tests use too.
    ...['--concurrency', '1', '--disable-hot-restart', '--drain-time-s', '1', '--drain-strategy', 'immediate'],
  ]
  const run = stack.use(await startProcess(tool.command, [...tool.args, ...args]))
  const adminUrl = await whileRunning(run, 'envoy', (signal) => serving(addressFile, signal))
  const owned = stack.move()
  return {
    adminUrl,
    version: tool.version,
    pid: run.pid,
    lines: run.lines,
    port: (listener) => portOf(adminUrl, listener),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

async function serving(addressFile: string, signal: AbortSignal): Promise<string> {
  const url = async () => {
    const adminUrl = `http://${(await readFile(addressFile, 'utf8')).trim()}`
    const response = await fetch(`${adminUrl}/ready`)
    const state = await response.text()
    return response.ok ? adminUrl : Promise.reject(new Error(state))
  }
  return await eventually(url, { what: 'envoy is ready', timeoutMs: START_TIMEOUT_MS, signal })
}

/** The part of Envoy's list of listeners that is read here. */
interface Listeners {
  listener_statuses: { name: string; local_address: { socket_address?: { port_value: number } } }[]
}

async function portOf(adminUrl: string, listener: string): Promise<number> {
  const response = await fetch(`${adminUrl}/listeners?format=json`)
  const { listener_statuses: statuses }: Listeners = JSON.parse(await response.text())
  const port = statuses.find(({ name }) => name === listener)?.local_address.socket_address?.port_value
  if (port === undefined) {
    throw new Error(`envoy has no listener ${listener}, only ${statuses.map(({ name }) => name).join(', ')}`)
  }
  return port
}
