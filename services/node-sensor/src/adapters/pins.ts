import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, mkdirSync, readdirSync, statSync } from 'node:fs'
import { createServer } from 'node:net'
import { dirname, join } from 'node:path'
import { AppError } from '@tollward/errors'
import { isBpffs, LAYOUT_VERSION, mountBpffs, removePins, unmountBpffs } from '@tollward/libbpf'

const BPFFS = '/sys/fs/bpf'
/** A directory, as a bpffs holds no files: the file system was not there before the sensor, and goes when it is detached. */
const MOUNTED_MARK = 'mounted_bpffs'
/** Files that the kernel itself puts into each bpffs. */
const KERNEL_FILES = new Set(['maps.debug', 'progs.debug'])

/** Where one sensor's maps and links are pinned. */
export interface Pins {
  /** Of this layout and this network namespace: what another layout wrote cannot be read, and another namespace's links are not ours. */
  readonly directory: string
  /** Directories of this namespace's sensors of other layouts, whose links must go before others can come. */
  readonly outdated: readonly string[]
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
  const suffix = `net${networkNamespaceInum()}`
  const directory = join(pinDirectory, `v${LAYOUT_VERSION}_${suffix}`)
  mkdirSync(directory, { recursive: true })
  if (mounted) mkdirSync(join(pinDirectory, MOUNTED_MARK))
  const outdated = readdirSync(pinDirectory)
    .filter((name) => name.endsWith(`_${suffix}`))
    .map((name) => join(pinDirectory, name))
    .filter((path) => path !== directory)
  return { directory, outdated }
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
 * Removes what sensors left under the pin directory, but for those of other network namespaces in which somebody lives; says
 * what that was. AppError `failed_precondition` while a sensor of this namespace runs.
 */
export async function removeEverything(pinDirectory: string): Promise<string> {
  await using _held = await holdPins(pinDirectory)
  if (!existsSync(pinDirectory)) return `nothing is pinned at ${pinDirectory}`
  const others = usedByOthers(pinDirectory)
  if (others.length > 0) return removeOwn(pinDirectory, others)
  const mounted = existsSync(join(pinDirectory, MOUNTED_MARK))
  const { links, programs, maps } = removePins(pinDirectory)
  const removed = `removed ${links} links, ${programs} programs and ${maps} maps at ${pinDirectory}`
  if (!mounted || readdirSync(BPFFS).some((name) => !KERNEL_FILES.has(name))) return removed
  unmountBpffs(BPFFS)
  return `${removed}, and the bpffs that was mounted for them`
}

function removeOwn(pinDirectory: string, others: readonly string[]): string {
  const own = readdirSync(pinDirectory).filter((name) => name !== MOUNTED_MARK && !others.includes(name))
  const removed = own.map((name) => removePins(join(pinDirectory, name)))
  const sum = (kind: keyof (typeof removed)[number]) => removed.reduce((total, counts) => total + counts[kind], 0)
  const what = `removed ${sum('links')} links, ${sum('programs')} programs and ${sum('maps')} maps at ${pinDirectory}`
  return `${what}; ${others.join(', ')} stay: they are of network namespaces in which processes live`
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

function isOnBpffs(path: string): boolean {
  let existing = path
  while (!existsSync(existing)) existing = dirname(existing)
  return isBpffs(existing)
}
