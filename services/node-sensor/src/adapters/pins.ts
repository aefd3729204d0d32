import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, mkdirSync, readdirSync, renameSync, rmdirSync, statSync } from 'node:fs'
import { createServer } from 'node:net'
import { dirname, join } from 'node:path'
import { AppError } from '@tollward/errors'
import {
  detachLinkById,
  heldLinks,
  isBpffs,
  isErrno,
  LAYOUT_VERSION,
  mountBpffs,
  pinLinkById,
  pinnedLinks,
  removePins,
  sensorLinks,
  unmountBpffs,
} from '@tollward/libbpf'

const BPFFS = '/sys/fs/bpf'
/** A directory, as a bpffs holds no files: the file system was not there before the sensor, and goes when it is detached. */
const MOUNTED_MARK = 'mounted_bpffs'
/** Files that the kernel itself puts into each bpffs. */
const KERNEL_FILES = new Set(['maps.debug', 'progs.debug'])
/** Pins of one interface: its index, as names may hold dots and a bpffs takes none. */
export const INTERFACE_DIRECTORY = /^interface_(\d+)$/

/** Where one sensor's maps and links are pinned. */
export interface Pins {
  /** Of this layout and this network namespace: what another layout wrote cannot be read, and another namespace's links are not ours. */
  readonly directory: string
  /** New maps until they are whole; nothing looks there. */
  readonly staging: string
  /** What else sensors of this namespace left: of other layouts or sizes. */
  readonly outdated: () => readonly string[]
}

/** Inode of this process's network namespace, as the kernel programs compare it. */
export function networkNamespaceInum(): number {
  return statSync('/proc/self/ns/net').ino
}

/** Makes the directory for the pins, and the bpffs if there is none. AppError `failed_precondition` if it lies elsewhere. */
export function openPins(pinDirectory: string): Pins {
  const mounted = !isOnBpffs(pinDirectory) && pinDirectory.startsWith(`${BPFFS}/`) && mountBpffs(BPFFS)
  if (!isOnBpffs(pinDirectory))
    throw new AppError(
      'failed_precondition',
      `TOLLWARD_PIN_DIRECTORY is ${pinDirectory}, which is in no bpffs; choose a directory below ${BPFFS}.`,
    )
  const suffix = `v${LAYOUT_VERSION}_net${networkNamespaceInum()}`
  const directory = join(pinDirectory, suffix)
  const staging = join(pinDirectory, `staged_${suffix}`)
  mkdirSync(directory, { recursive: true })
  if (mounted) mkdirSync(join(pinDirectory, MOUNTED_MARK))
  removePins(staging)
  const outdated = () =>
    readdirSync(pinDirectory)
      .filter((name) => name.endsWith(`_net${networkNamespaceInum()}`))
      .map((name) => join(pinDirectory, name))
      .filter((path) => path !== directory && path !== staging)
      .sort()
  return { directory, staging, outdated }
}

/**
 * Puts the whole new maps of `staging` where the next sensor looks, and what was there among the outdated. Whenever the process
 * ends in between, one of both is whole.
 */
export function bringIn({ directory, staging }: Pins): void {
  if (readdirSync(directory).length === 0) rmdirSync(directory)
  else renameSync(directory, freeName(dirname(directory), `_${directory.slice(dirname(directory).length + 1)}`))
  renameSync(staging, directory)
}

/**
 * Moves the links of outdated sensors to where this one will find them, so that it can put its programs on them while they
 * stay on their hooks. Each link has its pin in one place or the other, whenever the process ends.
 */
export function takeLinks({ directory, outdated }: Pins): void {
  for (const old of outdated()) {
    for (const name of readdirSync(old).filter((entry) => INTERFACE_DIRECTORY.test(entry))) {
      mkdirSync(join(directory, name), { recursive: true })
      for (const pin of readdirSync(join(old, name)))
        if (!existsSync(join(directory, name, pin))) renameSync(join(old, name, pin), join(directory, name, pin))
    }
  }
}

/**
 * Pins links of sensors of this network namespace that are still on their hooks though no pin and no process knows of them:
 * another bpffs was mounted over the one with their pins, or the file was removed. Returns how many there were.
 */
export function takeOrphans({ directory }: Pins): number {
  const found = orphans(dirname(directory))
  for (const { id, hook, ifindex } of found) {
    const path = join(directory, `interface_${ifindex}`, hook === 'xdp' ? 'xdp' : 'egress')
    mkdirSync(dirname(path), { recursive: true })
    if (existsSync(path)) detachLinkById(id)
    else pinLinkById(id, path)
  }
  return found.length
}

/**
 * Makes sure that no other sensor works with these pins, until disposed or the process ends. AppError `failed_precondition` if
 * one does: two would take each other's flows.
 */
export async function holdPins(pinDirectory: string): Promise<AsyncDisposable> {
  const name = `tollward-node-sensor-${createHash('sha256').update(pinDirectory).digest('hex').slice(0, 32)}`
  // An abstract socket: the kernel frees its name whichever way the process ends.
  const server = createServer().listen(`\0${name}`)
  try {
    await once(server, 'listening')
  } catch (cause) {
    throw new AppError(
      'failed_precondition',
      `A node-sensor with the pin directory ${pinDirectory} is running; stop it first.`,
      { cause },
    )
  }
  return server
}

/**
 * Removes what sensors left under the pin directory, but for those of other network namespaces in which somebody lives, and
 * the programs of this namespace that no pin leads to any more; says what that was. AppError `failed_precondition` while a
 * sensor of this namespace runs.
 */
export async function removeEverything(pinDirectory: string): Promise<string> {
  await using _held = await holdPins(pinDirectory)
  // First, as they must go also when something pinned cannot be removed.
  const found = orphans(pinDirectory)
  for (const { id } of found) detachLinkById(id)
  const said = existsSync(pinDirectory) ? removePinned(pinDirectory) : `nothing is pinned at ${pinDirectory}`
  if (found.length === 0) return said
  return `${said}; took off ${found.length} programs whose pins could not be found, as when another bpffs is mounted over them`
}

function removePinned(pinDirectory: string): string {
  const others = usedByOthers(pinDirectory)
  if (others.length > 0) return removeOwn(pinDirectory, others)
  const mounted = existsSync(join(pinDirectory, MOUNTED_MARK))
  const { links, programs, maps } = removePins(pinDirectory)
  const removed = `removed ${links} links, ${programs} programs and ${maps} maps at ${pinDirectory}`
  if (!mounted || readdirSync(BPFFS).some((name) => !KERNEL_FILES.has(name))) return removed
  try {
    unmountBpffs(BPFFS)
  } catch (error) {
    if (!isErrno(error, 'EBUSY')) throw error
    return `${removed}; the bpffs that was mounted for them is in use and stays`
  }
  return `${removed}, and the bpffs that was mounted for them`
}

function removeOwn(pinDirectory: string, others: readonly string[]): string {
  const own = readdirSync(pinDirectory).filter((name) => name !== MOUNTED_MARK && !others.includes(name))
  const removed = own.map((name) => removePins(join(pinDirectory, name)))
  const sum = (kind: keyof (typeof removed)[number]) => removed.reduce((total, counts) => total + counts[kind], 0)
  const what = `removed ${sum('links')} links, ${sum('programs')} programs and ${sum('maps')} maps at ${pinDirectory}`
  return `${what}; ${others.join(', ')} stay: they are of network namespaces in which processes live`
}

/** Links of this namespace's sensors that can be reached neither by a pin nor by a process. */
function orphans(pinDirectory: string) {
  const own = networkNamespaceInum()
  const ours = sensorLinks().filter(({ ifindex, namespace }) => ifindex !== 0 && namespace === own)
  if (ours.length === 0) return []
  // The pins may be in a bpffs of their own.
  const known = new Set([...pinnedLinks(BPFFS), ...pinnedLinks(pinDirectory)])
  const rest = ours.filter(({ id }) => !known.has(id))
  if (rest.length === 0) return []
  const held = heldLinks()
  return rest.filter(({ id }) => !held.has(id))
}

/** Directories of other network namespaces that have a process: it may be a sensor. */
function usedByOthers(pinDirectory: string): string[] {
  const own = networkNamespaceInum()
  const inhabited = new Set(
    readdirSync('/proc')
      .filter((name) => /^\d+$/.test(name))
      .map((pid) => inumOf(`/proc/${pid}/ns/net`)),
  )
  return readdirSync(pinDirectory).filter((name) => {
    const inum = Number(/_net(\d+)$/.exec(name)?.[1])
    return inum !== own && inhabited.has(inum)
  })
}

/** Undefined if its process has ended meanwhile. */
function inumOf(path: string): number | undefined {
  try {
    return statSync(path).ino
  } catch {
    return undefined
  }
}

function freeName(parent: string, name: string): string {
  for (let turn = 1; ; turn++) {
    const path = join(parent, `old${turn}${name}`)
    if (!existsSync(path)) return path
  }
}

function isOnBpffs(path: string): boolean {
  let existing = path
  while (!existsSync(existing)) existing = dirname(existing)
  return isBpffs(existing)
}
