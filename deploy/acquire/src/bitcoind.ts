import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { unpackFromUnstable } from './debian-unstable.ts'
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

/**
 * How to run a bitcoin node with wallet and ZMQ: the configured path, the PATH, or Debian unstable's `bitcoin-knots`
 * unpacked privately with its libraries and run by its own loader, so that nothing of the machine's is mixed in.
 * Throws AcquireError with the reasons if none can be had.
 */
export async function acquireBitcoind(options: AcquireOptions = {}): Promise<Tool> {
  const wanted = acquisition(options)
  if (wanted.configured !== undefined) return await checked(wanted.configured, [], 'configured')
  const ways = [
    { name: 'on the PATH', take: onPath },
    {
      name: "Debian unstable's package",
      take: () => privateCopy(wanted, 'bitcoin-knots', (folder) => fromDebian(wanted, folder)),
    },
  ]
  return await firstOf(ways, wanted.progress, 'Install bitcoind (Bitcoin Core or Knots), or configure its path.')
}

async function onPath(): Promise<Tool | undefined> {
  const path = await findOnPath('bitcoind')
  return path === undefined ? undefined : await checked(path, [], 'PATH')
}

async function fromDebian(wanted: Acquisition, folder: string): Promise<Tool> {
  await unpackFromUnstable(wanted, 'bitcoin-knots', folder, { libraries: true })
  const { loader, libraries } = await findLoader(folder)
  const program = 'usr/bin/bitcoind'
  const argumentsIn = (root: string) => [
    '--inhibit-cache',
    '--library-path',
    join(root, libraries),
    join(root, program),
  ]
  // Running it once also shows that no library is missing; the loader names the first that is.
  const tool = await checked(join(folder, loader), argumentsIn(folder), "Debian unstable's package")
  return { ...tool, command: join('{folder}', loader), args: argumentsIn('{folder}') }
}

/** The dynamic loader of the unpacked libc, and the folder of the libraries beside it, relative to `folder`. */
async function findLoader(folder: string): Promise<{ loader: string; libraries: string }> {
  for (const architecture of await readdir(join(folder, 'usr/lib'))) {
    if (!architecture.includes('-linux-')) continue
    const libraries = join('usr/lib', architecture)
    const loader = (await readdir(join(folder, libraries))).find((name) => /^ld-linux.*\.so\.\d$/.test(name))
    if (loader !== undefined) return { loader: join(libraries, loader), libraries }
  }
  throw new AcquireError("Debian's libc6 holds no dynamic loader where it used to")
}

async function checked(command: string, args: readonly string[], from: string): Promise<Tool> {
  const version = bitcoindVersion(await run(command, [...args, '-version']))
  if (version === undefined) throw new AcquireError(`${command} does not say which bitcoin node it is`)
  return { command, args, version, from }
}

/** The version in the output of `bitcoind -version`, of Core and of Knots. */
export function bitcoindVersion(output: string): string | undefined {
  return /^Bitcoin .*version v?(\S+)/m.exec(output)?.[1]
}
