import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { unpackFromUnstable } from './debian-unstable.ts'
import { buildWithGo } from './go-module.ts'
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

/** The first nats-server with a TTL a message, which KV buckets of blocks and passes rely on. */
export const NATS_SERVER_MIN = '2.11.0'

const GO_MODULE = 'github.com/nats-io/nats-server/v2@latest'

/**
 * How to run a nats-server of 2.11 or newer: the configured path, the PATH, Debian unstable's package unpacked privately (it
 * needs the machine's glibc to be 2.34 or newer), or one that a Go toolchain builds. Throws AcquireError with the reasons if
 * none can be had.
 */
export async function acquireNatsServer(options: AcquireOptions = {}): Promise<Tool> {
  const wanted = acquisition(options)
  const { configured, progress } = wanted
  if (configured !== undefined) return await checked(configured, 'configured')
  const ways = [
    { name: 'on the PATH', take: onPath },
    { name: 'private copy', take: () => privateCopy(wanted, 'nats-server', (folder) => build(wanted, folder)) },
  ]
  return await firstOf(ways, progress, `Install nats-server ${NATS_SERVER_MIN} or newer, or configure its path.`)
}

async function onPath(): Promise<Tool | undefined> {
  const path = await findOnPath('nats-server')
  return path === undefined ? undefined : await checked(path, 'PATH')
}

function build(wanted: Acquisition, folder: string): Promise<Tool> {
  const ways = [
    { name: "Debian unstable's package", take: () => fromDebian(wanted, folder) },
    { name: 'Go toolchain', take: () => fromGo(wanted, folder) },
  ]
  return firstOf(ways, wanted.progress, 'Where apt-get or Go is installed, Tollward gets nats-server by itself.')
}

async function fromDebian(wanted: Acquisition, folder: string): Promise<Tool> {
  await unpackFromUnstable(wanted, 'nats-server', folder, { libraries: false })
  return await privately(folder, 'usr/sbin/nats-server', "Debian unstable's package")
}

async function fromGo({ progress }: Acquisition, folder: string): Promise<Tool | undefined> {
  const go = await findOnPath('go')
  if (go === undefined) return undefined
  const bin = join(folder, 'bin')
  await mkdir(bin)
  const args = ['install', GO_MODULE]
  await buildWithGo(progress, { go, args, name: 'nats-server', folder, cwd: folder, env: { GOBIN: bin } })
  return await privately(folder, 'bin/nats-server', 'built by the Go toolchain')
}

async function privately(folder: string, path: string, from: string): Promise<Tool> {
  const tool = await checked(join(folder, path), from)
  return { ...tool, command: `{folder}/${path}` }
}

async function checked(path: string, from: string): Promise<Tool> {
  const version = natsServerVersion(await run(path, ['--version']))
  if (version === undefined) throw new AcquireError(`${path} does not say which nats-server it is`)
  if (isOlder(version, NATS_SERVER_MIN)) {
    throw new AcquireError(`${path} is nats-server ${version}; Tollward needs ${NATS_SERVER_MIN} or newer`)
  }
  return { command: path, args: [], version, from }
}

/** The version in the output of `nats-server --version`. */
export function natsServerVersion(output: string): string | undefined {
  return /nats-server: v?(\d+\.\d+\.\d+)/.exec(output)?.[1]
}

/** Whether a version of three numbers comes before another. */
export function isOlder(version: string, than: string): boolean {
  return version.localeCompare(than, 'en', { numeric: true }) < 0
}
