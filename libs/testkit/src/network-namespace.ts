import { execFile } from 'node:child_process'
import { closeSync, openSync } from 'node:fs'
import { readdir } from 'node:fs/promises'
import { promisify } from 'node:util'
import koffi from 'koffi'
import { type ProcessOptions, type RunningProcess, startProcess } from './process.ts'

/** A network namespace, joined to this one by a pair of virtual Ethernet devices. Needs root. */
export interface NetworkNamespace extends AsyncDisposable {
  readonly name: string
  /** Addresses inside the namespace, and the name of its device. */
  readonly address: string
  readonly address6: string
  readonly device: string
  /** The same on this side. */
  readonly hostAddress: string
  readonly hostAddress6: string
  readonly hostDevice: string
  /** Runs a program inside to its end, and returns its standard output. Throws, with its output, if it fails. */
  exec(command: string, args?: readonly string[]): Promise<string>
  /** Starts a program inside; see startProcess. */
  start(command: string, args?: readonly string[], options?: ProcessOptions): Promise<RunningProcess>
  /**
   * Does something in this process that must happen inside, such as attaching a kernel program to a device. Only this thread
   * moves, and only meanwhile: nothing that `work` leaves to a callback happens inside.
   */
  within<T>(work: () => T): T
}

/** What a test may choose; addresses are by default ones that no other test has. */
export interface NetworkNamespaceOptions {
  address?: string
  hostAddress?: string
  /** Length of the IPv4 prefix that both addresses share. */
  prefixLength?: number
}

const PREFIX_LENGTH = 30
const PREFIX_LENGTH_6 = 126
/** Addresses of one namespace in a range, and how many namespaces RFC 2544's 198.18.0.0/15 has room for. */
const ADDRESSES_EACH = 4
const NAMESPACES_MAX = 0x20000 / ADDRESSES_EACH
const TRIES_MAX = 50
const CLONE_NEWNET = 0x4000_0000

const run = promisify(execFile)
const ip = async (...args: string[]) => (await run('ip', args)).stdout

let made = 0

/** Makes a network namespace for one test: `await using namespace = await networkNamespace()`. */
export async function networkNamespace(options: NetworkNamespaceOptions = {}): Promise<NetworkNamespace> {
  await removeOrphans()
  // Device names have room for 15 characters; a process id takes up to seven of them.
  const id = `${process.pid}-${++made}`
  const [name, device, hostDevice] = [`tw-${id}`, `twi${id}`, `two${id}`]
  await using stack = new AsyncDisposableStack()
  await ip('netns', 'add', name)
  stack.defer(async () => void (await ip('netns', 'delete', name)))
  await ip('link', 'add', hostDevice, 'type', 'veth', 'peer', 'name', device, 'netns', name)
  // The namespace lives on while something inside does; its devices must not.
  stack.defer(async () => void (await ip('link', 'delete', hostDevice)))

  const addresses = { ...(await freeAddresses()), ...options }
  const length = options.prefixLength ?? PREFIX_LENGTH
  await addAddresses([], hostDevice, `${addresses.hostAddress}/${length}`, addresses.hostAddress6)
  await addAddresses(['-n', name], device, `${addresses.address}/${length}`, addresses.address6)
  await ip('-n', name, 'link', 'set', 'lo', 'up')

  const owned = stack.move()
  const inside = (command: string, args: readonly string[]) => ['netns', 'exec', name, command, ...args]
  return {
    name,
    device,
    hostDevice,
    address: addresses.address,
    address6: addresses.address6,
    hostAddress: addresses.hostAddress,
    hostAddress6: addresses.hostAddress6,
    exec: (command, args = []) => ip(...inside(command, args)),
    start: (command, args = [], processOptions = {}) => startProcess('ip', inside(command, args), processOptions),
    within: (work) => inNamespace(`/run/netns/${name}`, work),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

function inNamespace<T>(path: string, work: () => T): T {
  const [own, other] = [openSync('/proc/thread-self/ns/net', 'r'), openSync(path, 'r')]
  try {
    enter(other)
    return work()
  } finally {
    enter(own)
    closeSync(own)
    closeSync(other)
  }
}

let setns: ((fd: number, type: number) => number) | undefined

function enter(namespace: number): void {
  setns ??= koffi.load('libc.so.6').func('int setns(int fd, int type)') as (fd: number, type: number) => number
  if (setns(namespace, CLONE_NEWNET) !== 0) throw new Error(`setns failed (errno ${koffi.errno()})`)
}

async function addAddresses(where: string[], device: string, address: string, address6: string): Promise<void> {
  await ip(...where, 'address', 'add', address, 'dev', device)
  // Without duplicate address detection the address can be used at once.
  await ip(...where, 'address', 'add', `${address6}/${PREFIX_LENGTH_6}`, 'dev', device, 'nodad')
  await ip(...where, 'link', 'set', device, 'up')
}

/** Addresses of the benchmarking range (RFC 2544) and of a local range (RFC 4193) that no device has yet. */
async function freeAddresses(): Promise<Record<'address' | 'address6' | 'hostAddress' | 'hostAddress6', string>> {
  for (let tries = 0; tries < TRIES_MAX; tries++) {
    const first = Math.floor(Math.random() * NAMESPACES_MAX) * ADDRESSES_EACH
    const high = (offset: number) => (first + offset) >> 16
    const low = (offset: number) => (first + offset) & 0xffff
    const v4 = (offset: number) => `198.${18 + high(offset)}.${low(offset) >> 8}.${low(offset) & 0xff}`
    // As the kernel shows it: no group that is zero beside the "::".
    const v6 = (offset: number) =>
      `fd70:11:ad::${high(offset) === 0 ? '' : `${high(offset).toString(16)}:`}${low(offset).toString(16)}`
    const taken = await ip('-oneline', 'address', 'show', 'to', `${v4(0)}/${PREFIX_LENGTH}`)
    if (taken === '') return { hostAddress: v4(1), address: v4(2), hostAddress6: v6(1), address6: v6(2) }
  }
  throw new Error(`no free addresses among ${TRIES_MAX} tried in 198.18.0.0/15`)
}

/** Removes what tests that were killed have left: their process id is in the name. */
async function removeOrphans(): Promise<void> {
  const alive = new Set(await readdir('/proc'))
  for (const line of (await ip('netns', 'list')).split('\n')) {
    const [, name, pid = ''] = /^(tw-(\d+)-\d+)/.exec(line) ?? []
    // Several tests may be at this at once.
    if (name !== undefined && !alive.has(pid)) await ip('netns', 'delete', name).catch(ignoreAbsence)
  }
}

function ignoreAbsence(error: Error): void {
  if (!error.message.includes('No such file or directory')) throw error
}
