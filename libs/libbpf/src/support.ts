import { execFile } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, statfsSync } from 'node:fs'
import { release } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { AppError } from '@tollward/errors'
import { checkErrno, libbpf, libc } from './native.ts'

const BPF_FS_MAGIC = 0xcafe4a11
const LINUX_OLDEST = [5, 15] as const
const CLANG_OLDEST = 14
const COMPILE_TIMEOUT_MS = 120_000
/** Bits of <linux/capability.h>: to load programs, to put them on interfaces, and to read what they trace. */
const CAPABILITIES = { CAP_BPF: 39n, CAP_NET_ADMIN: 12n, CAP_PERFMON: 38n } as const
/** Holds them all, where it is not split. */
const CAP_SYS_ADMIN = 21n
const run = promisify(execFile)

/** What stands in the way, each as a sentence that says what to do; empty lists mean it works. */
export interface Support {
  /** For loading and attaching compiled programs. */
  readonly missingToLoad: readonly string[]
  /** For compiling them as well. */
  readonly missingToCompile: readonly string[]
  /** Whether the kernel publishes its types: without them there is no `tp_btf` program. */
  readonly hasKernelTypes: boolean
}

/** Says whether this machine can load and compile kernel programs, without changing anything. */
export async function probeSupport(): Promise<Support> {
  const whyNotHere = whyNotLinux()
  const missingToLoad = whyNotHere ? [whyNotHere] : [whyNotRoot(), whyNoLibbpf(), whyNoBpffs()]
  const missingToCompile = [await whyNoClang(), await whyNoMake(), whyNoHeaders()]
  return {
    missingToLoad: missingToLoad.filter((reason) => reason !== undefined),
    missingToCompile: missingToCompile.filter((reason) => reason !== undefined),
    hasKernelTypes: hasKernelTypes(),
  }
}

/** Whether the kernel publishes its types (BTF): without them there is no `tp_btf` program and no iterator. */
export function hasKernelTypes(): boolean {
  return existsSync('/sys/kernel/btf/vmlinux')
}

/** Mounts a bpffs if there is none, as systemd does at boot. Root only. Returns whether it was mounted now. */
export function mountBpffs(path = '/sys/fs/bpf'): boolean {
  if (isBpffs(path)) return false
  mkdirSync(path, { recursive: true })
  checkErrno(`mounting a bpffs at ${path}`, libc().mount('bpf', path, 'bpf', 0, null))
  return true
}

/** Unmounts a bpffs that nobody uses. Root only. */
export function unmountBpffs(path = '/sys/fs/bpf'): void {
  checkErrno(`unmounting ${path}`, libc().umount2(path, 0))
}

/** Whether pins can be made under the path. */
export function isBpffs(path: string): boolean {
  return existsSync(path) && statfsSync(path).type === BPF_FS_MAGIC
}

/**
 * Compiles what is missing or stale by the directory's Makefile, and returns the path of the object. Throws
 * `failed_precondition` with the compiler's own words.
 */
export async function compile(directory: string, object: string): Promise<string> {
  try {
    await run('make', ['-s', '-C', directory, object], { timeout: COMPILE_TIMEOUT_MS })
  } catch (cause) {
    const said = cause instanceof Error && 'stderr' in cause ? String(cause.stderr).trim() : String(cause)
    throw new AppError('failed_precondition', `compiling ${object} failed: ${said}`, { cause })
  }
  return join(directory, object)
}

function whyNotLinux(): string | undefined {
  if (process.platform !== 'linux') return `Linux ${LINUX_OLDEST.join('.')} or newer; this is ${process.platform}`
  const [major = 0, minor = 0] = release().split('.').map(Number)
  const [oldestMajor, oldestMinor] = LINUX_OLDEST
  if (major > oldestMajor || (major === oldestMajor && minor >= oldestMinor)) return undefined
  return `Linux ${LINUX_OLDEST.join('.')} or newer; this is ${release()}`
}

function whyNotRoot(): string | undefined {
  const effective = BigInt(
    `0x${/^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0'}`,
  )
  const has = (capability: bigint) => ((effective >> capability) & 1n) === 1n
  const names = Object.keys(CAPABILITIES).join(', ')
  if (has(CAP_SYS_ADMIN) || Object.values(CAPABILITIES).every(has)) return undefined
  return `root: only root may load programs into the kernel, or whoever has ${names}`
}

function whyNoLibbpf(): string | undefined {
  try {
    libbpf()
    return undefined
  } catch {
    // The loader's own words name paths; what helps is the package.
    return 'libbpf.so.1 (Debian, Ubuntu: libbpf1; Arch: libbpf)'
  }
}

function whyNoBpffs(): string | undefined {
  if (isBpffs('/sys/fs/bpf')) return undefined
  const known = existsSync('/proc/filesystems') && /\bbpf$/m.test(readFileSync('/proc/filesystems', 'utf8'))
  return known ? undefined : 'the file system bpf: this kernel was built without BPF system calls'
}

async function whyNoClang(): Promise<string | undefined> {
  const wanted = `clang ${CLANG_OLDEST} or newer (package clang)`
  const version = await output('clang', ['-dumpversion'])
  if (version === undefined) return wanted
  return Number.parseInt(version, 10) >= CLANG_OLDEST ? undefined : `${wanted}; this is ${version.trim()}`
}

async function whyNoMake(): Promise<string | undefined> {
  return (await output('make', ['--version'])) === undefined ? 'make (package make)' : undefined
}

function whyNoHeaders(): string | undefined {
  const missing = ['/usr/include/bpf/bpf_helpers.h', '/usr/include/linux/bpf.h'].filter((file) => !existsSync(file))
  if (missing.length === 0) return undefined
  return `${missing.join(', ')} (Debian, Ubuntu: libbpf-dev, linux-libc-dev; Arch: libbpf, linux-api-headers)`
}

async function output(command: string, options: string[]): Promise<string | undefined> {
  try {
    return (await run(command, options)).stdout
  } catch {
    // Not installed, or not working: the same to whoever needs it.
    return undefined
  }
}
