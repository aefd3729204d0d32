import { join } from 'node:path'
import { libraryFolders, unpackFromRelease } from './debian-release.ts'
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

/** A reverse proxy that Debian has, and how it says which version it is. */
interface Proxy {
  readonly name: string
  /** The Debian package that holds the program itself. */
  readonly package: string
  /** Where that package has it. */
  readonly program: string
  readonly versionArgument: string
  readonly version: RegExp
}

const NGINX: Proxy = {
  name: 'nginx',
  package: 'nginx',
  program: 'usr/sbin/nginx',
  versionArgument: '-v',
  version: /nginx\/(\d+\.\d+\.\d+)/,
}
const CADDY: Proxy = {
  name: 'caddy',
  package: 'caddy',
  program: 'usr/bin/caddy',
  versionArgument: 'version',
  version: /v?(\d+\.\d+\.\d+)/,
}
const HAPROXY: Proxy = {
  name: 'haproxy',
  package: 'haproxy',
  program: 'usr/sbin/haproxy',
  versionArgument: '-v',
  version: /HAProxy version (\d+\.\d+\.\d+)/,
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

async function acquireProxy(proxy: Proxy, options: AcquireOptions): Promise<Tool> {
  const wanted = acquisition(options)
  if (wanted.configured !== undefined) return await checked(proxy, wanted.configured, [], 'configured')
  const ways = [
    { name: 'on the PATH', take: () => onPath(proxy) },
    {
      name: "Debian's package",
      take: () => privateCopy(wanted, proxy.name, (folder) => fromDebian(proxy, wanted, folder)),
    },
  ]
  return await firstOf(ways, wanted.progress, `Install ${proxy.name}, or configure its path.`)
}

async function onPath(proxy: Proxy): Promise<Tool | undefined> {
  const path = await findOnPath(proxy.name)
  return path === undefined ? undefined : await checked(proxy, path, [], 'PATH')
}

async function fromDebian(proxy: Proxy, wanted: Acquisition, folder: string): Promise<Tool> {
  await unpackFromRelease(wanted, proxy.package, folder)
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
