import { existsSync, readdirSync, readlinkSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import {
  attachUprobes,
  type CallSource,
  type CodeMapping,
  ElfFile,
  goProbes,
  isErrno,
  MappingWatch,
  scanMappings,
  type TlsProbes,
  tlsProbes,
  type UprobeAttachment,
  withMapping,
} from '@tollward/libbpf'
import { aborted } from '@tollward/runtime'
import type { Logger } from 'pino'
import type { CallKernel } from './call-kernel.ts'

/** A node runs a few TLS libraries; each costs two links. */
const TARGETS_MAX = 256
/** Programs that cannot be probed, and that are told with the reason. */
const UNSUPPORTED_MAX = 256
/** Files that were looked at; beyond it they are looked at again. */
const FILES_MAX = 65_536
/** Between two looks at what was mapped. A process that lives shorter may be missed, but only with a library never seen before. */
const POLL_INTERVAL_MS = 20
/** Between two scans of all processes, which find what a look missed, and which targets have no user any more. */
const SCAN_INTERVAL_MS = 30_000

const SYSTEM_DIRECTORIES = [
  '/usr/lib',
  '/usr/lib64',
  `/usr/lib/${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}-linux-gnu`,
]
const SYSTEM_LIBRARY = /^lib(ssl|gnutls)\.so\.\d+$/

/** A file with a TLS library in it, and its probes. */
export interface CallTarget {
  readonly path: string
  readonly source: CallSource
  /** Functions at which the probe costs much more than elsewhere. */
  readonly dear: readonly string[]
}

/** A program with TLS in it that cannot be probed. */
export interface UnsupportedTarget {
  readonly path: string
  readonly source: CallSource
  readonly why: string
}

interface Attached extends CallTarget {
  /** As processes know it: in each container another, of one file underneath. */
  readonly identities: Set<string>
  readonly attachments: readonly UprobeAttachment[]
  /** Not detached though nobody uses it. */
  readonly isKept: boolean
  /** A scan found nobody who uses it. */
  isUnused: boolean
}

interface CallTargetsOptions {
  readonly kernel: CallKernel
  /** Libraries that are probed even while nobody uses them, so that a short process is not missed. Missing ones are passed over. */
  readonly libraries: readonly string[]
  readonly log: Logger
  readonly scanIntervalMs?: number
}

/**
 * Probes every TLS library that a process of this node has mapped, each file once, in whichever container: those of now, and new
 * ones as they are mapped. One that nobody has mapped any more is let go.
 */
export class CallTargets implements AsyncDisposable {
  readonly #options: CallTargetsOptions
  readonly #watch = new MappingWatch()
  /** By what the file is underneath. */
  readonly #attached = new Map<string, Attached>()
  readonly #byIdentity = new Map<string, Attached>()
  /** By identity. */
  readonly #unsupported = new Map<string, UnsupportedTarget>()
  /** Identities of files that were looked at, with TLS or not. */
  readonly #seen = new Set<string>()
  readonly #stop = new AbortController()
  #refused = 0
  #scanWanted = false

  constructor(options: CallTargetsOptions) {
    this.#options = options
  }

  /** What is probed now. */
  get targets(): readonly CallTarget[] {
    return [...this.#attached.values()]
  }

  /** What has TLS in it that cannot be read, and is in use. */
  get unsupported(): readonly UnsupportedTarget[] {
    return [...this.#unsupported.values()]
  }

  /** Files with a TLS library that could not be probed. */
  get refused(): number {
    return this.#refused
  }

  /** Looks for new targets until the signal is aborted. */
  async run(signal: AbortSignal): Promise<void> {
    if (this.#options.kernel.how === 'none') return aborted(signal)
    const stop = AbortSignal.any([signal, this.#stop.signal])
    this.#attachLibraries()
    let scannedAtMs = Number.NEGATIVE_INFINITY
    while (!stop.aborted) {
      this.poll()
      if (this.#scanWanted || performance.now() - scannedAtMs > (this.#options.scanIntervalMs ?? SCAN_INTERVAL_MS)) {
        await this.scan()
        scannedAtMs = performance.now()
      }
      await delay(POLL_INTERVAL_MS, undefined, { signal: stop }).catch(() => undefined)
    }
  }

  /** Looks at what was mapped since the last call. */
  poll(): void {
    if (this.#watch.read((mapping) => this.#look(mapping))) this.#scanWanted = true
  }

  /** Looks at all processes; lets go what nobody used at this scan and the one before. */
  async scan(): Promise<void> {
    this.#scanWanted = false
    const used = new Set<string>()
    for await (const mapping of scanMappings()) {
      if (used.has(mapping.identity)) continue
      used.add(mapping.identity)
      this.#look(mapping)
    }
    for (const [origin, target] of this.#attached) {
      if (target.isKept || target.identities.intersection(used).size > 0) target.isUnused = false
      else if (target.isUnused) await this.#detach(origin, target)
      else target.isUnused = true
    }
    for (const identity of this.#unsupported.keys()) {
      if (used.has(identity)) continue
      this.#unsupported.delete(identity)
      this.#seen.delete(identity)
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort()
    this.#watch.close()
    await Promise.all([...this.#attached].map(([origin, target]) => this.#detach(origin, target)))
  }

  #attachLibraries(): void {
    for (const path of this.#options.libraries.filter((library) => existsSync(library)))
      withMapping(path, (mapping) => this.#look(mapping, true))
  }

  #look(mapping: CodeMapping, isKept = false): void {
    const { identity } = mapping
    const known = this.#byIdentity.get(identity)
    if (known) known.isUnused = false
    if (known || this.#seen.has(identity)) return
    if (this.#seen.size >= FILES_MAX) this.#seen.clear()
    this.#seen.add(identity)
    try {
      const path = openablePath(mapping)
      // Its process is gone; the next one that maps the file may live longer.
      if (path === undefined) return void this.#seen.delete(identity)
      using elf = new ElfFile(path)
      const same = this.#attached.get(elf.origin)
      if (same) return void this.#know(identity, same)
      const probes = goProbes(elf) ?? tlsProbes(elf)
      if (probes && 'unsupported' in probes) this.#leaveOut(path, mapping, probes.unsupported)
      else if (probes) this.#attach(path, mapping, { ...probes, origin: elf.origin, isKept })
    } catch (error) {
      if (error instanceof TypeError) return
      if (isGone(error)) this.#seen.delete(identity)
      else this.#refuse(mapping, error instanceof Error ? error.message : String(error))
    }
  }

  #know(identity: string, target: Attached): void {
    target.identities.add(identity)
    target.isUnused = false
    this.#byIdentity.set(identity, target)
  }

  #attach(path: string, mapping: CodeMapping, probes: TlsProbes & { origin: string; isKept: boolean }): void {
    if (this.#attached.size >= TARGETS_MAX) {
      this.#refuse(mapping, `${TARGETS_MAX} TLS libraries are probed already`)
      return
    }
    const { kernel, log } = this.#options
    const { how } = kernel
    if (how === 'none') return
    const told = pathFromHere(path) ?? mapping.path
    const attachments = attachAll(kernel, probes, { path, how })
    const { source, dear, origin, isKept } = probes
    const target = { path: told, source, dear, attachments, isKept, identities: new Set<string>(), isUnused: false }
    this.#attached.set(origin, target)
    this.#know(mapping.identity, target)
    log.info({ path: told, pid: mapping.pid, source, ...(dear.length > 0 && { dear }) }, 'TLS library probed')
  }

  #leaveOut(path: string, { identity, path: mapped, pid }: CodeMapping, why: string): void {
    const told = pathFromHere(path) ?? mapped
    if (this.#unsupported.size < UNSUPPORTED_MAX) this.#unsupported.set(identity, { path: told, source: 'go', why })
    this.#options.log.warn({ path: told, pid, why }, 'program not probed: its calls inside TLS are not seen')
  }

  #refuse({ path, pid }: CodeMapping, why: string): void {
    this.#refused += 1
    this.#options.log.warn({ path, pid, why }, 'TLS library not probed: its calls are not seen')
  }

  async #detach(origin: string, { path, attachments, identities }: Attached): Promise<void> {
    this.#attached.delete(origin)
    for (const identity of identities) {
      this.#byIdentity.delete(identity)
      this.#seen.delete(identity)
    }
    await Promise.all(attachments.map(({ detach }) => detach()))
    this.#options.log.info({ path }, 'TLS library let go')
  }
}

/** Entries last: a call whose entry is not probed yet leaves nothing behind at its return. */
function attachAll(
  { object }: CallKernel,
  { source, atEntry, atReturn }: TlsProbes,
  where: { readonly path: string; readonly how: 'multi' | 'single' },
): UprobeAttachment[] {
  const attachments: UprobeAttachment[] = []
  try {
    if (atReturn.length > 0)
      attachments.push(attachUprobes(object.program('tls_leave'), { ...where, uprobes: atReturn, atReturn: true }))
    const program = object.program(source === 'go' ? 'go_call' : 'tls_enter')
    attachments.push(attachUprobes(program, { ...where, uprobes: atEntry, atReturn: false }))
    return attachments
  } catch (error) {
    for (const { detach } of attachments) void detach()
    throw error
  }
}

/** Libraries of this machine that short processes may use before anybody else did. */
export function systemLibraries(): string[] {
  return SYSTEM_DIRECTORIES.filter((directory) => existsSync(directory)).flatMap((directory) =>
    readdirSync(directory)
      .filter((name) => SYSTEM_LIBRARY.test(name))
      .map((name) => join(directory, name)),
  )
}

/** The file itself, whatever its path means and whether it still has one. Undefined if there is no way to it any more. */
function openablePath({ pid, range, path, identity }: CodeMapping): string | undefined {
  const mapped = `/proc/${pid}/map_files/${range}`
  if (existsSync(mapped)) return mapped
  return [`/proc/${pid}/root${path}`, path].find((other) => existsSync(other) && hasIdentity(other, identity))
}

/** The kernel tells of a new mapping as its process sees the path, which may have another root. */
function pathFromHere(path: string): string | undefined {
  return path.includes('/map_files/') ? readlinkSync(path) : undefined
}

function hasIdentity(path: string, identity: string): boolean {
  return withMapping(path, (mapping) => mapping.identity === identity) ?? false
}

function isGone(error: unknown): boolean {
  if (isErrno(error, 'ENOENT', 'ESRCH')) return true
  return error instanceof Error && 'code' in error && (error.code === 'ENOENT' || error.code === 'ESRCH')
}
