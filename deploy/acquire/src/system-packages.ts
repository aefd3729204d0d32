import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { withLock } from './lock.mjs'
import { AcquireError, type AcquireOptions, acquisition, findOnPath, reported, run } from './tool.ts'

/** What is still missing after `ensureSystemPackages`, by its Debian names, and how a person installs it. */
export interface MissingPackages {
  missing: readonly string[]
  /** A sentence with the command to type; empty if nothing is missing. */
  advice: string
}

/** Another installation may be going on; apt waits for it this long. */
const LOCK_TIMEOUT_S = 120

/** Where there is no dpkg to ask: what shows that a package is there, and what Arch calls it. */
const ELSEWHERE: Record<string, { arch: string; program?: string; files?: readonly string[] }> = {
  apparmor: { arch: 'apparmor', program: 'apparmor_parser' },
  chromium: { arch: 'chromium', program: 'chromium' },
  clang: { arch: 'clang', program: 'clang' },
  'clang-format': { arch: 'clang', program: 'clang-format' },
  fakeroot: { arch: 'fakeroot', program: 'fakeroot' },
  iproute2: { arch: 'iproute2', program: 'ip' },
  'libbpf-dev': { arch: 'libbpf', files: ['/usr/include/bpf/bpf_helpers.h'] },
  'libarchive-tools': { arch: 'libarchive', program: 'bsdtar' },
  libbpf1: { arch: 'libbpf', files: ['/usr/lib/libbpf.so.1', '/usr/lib64/libbpf.so.1'] },
  make: { arch: 'make', program: 'make' },
  makepkg: { arch: 'pacman', program: 'makepkg' },
  nftables: { arch: 'nftables', program: 'nft' },
  'pacman-package-manager': { arch: 'pacman', program: 'pacman' },
  'python3-pip': { arch: 'python-pip', program: 'pip' },
  systemd: { arch: 'systemd', program: 'systemd-analyze' },
  tshark: { arch: 'wireshark-cli', program: 'tshark' },
  wget: { arch: 'wget', program: 'wget' },
  zstd: { arch: 'zstd', program: 'zstd' },
}

/**
 * Installs Debian packages that are missing: as root on Debian and its kin by apt-get; otherwise only says what is missing.
 * Names are Debian's; on other systems only those of the table above can be recognised, others count as missing.
 * Throws AcquireError if apt-get fails.
 */
export async function ensureSystemPackages(
  names: readonly string[],
  options: AcquireOptions = {},
): Promise<MissingPackages> {
  const { folder, progress } = acquisition(options)
  if ((await findOnPath('apt-get')) === undefined) return await missingElsewhere(names)
  const missing = await notInstalled(names)
  if (missing.length === 0) return { missing, advice: '' }
  if (process.getuid?.() !== 0) {
    return { missing, advice: `Install what is missing: sudo apt-get install ${missing.join(' ')}` }
  }
  await withLock(join(folder, 'system-packages.lock'), async () => {
    const wanted = await notInstalled(names)
    if (wanted.length > 0) await install(wanted, progress)
  })
  return { missing: [], advice: '' }
}

async function notInstalled(names: readonly string[]): Promise<string[]> {
  const missing: string[] = []
  for (const name of names) if (!(await isInstalled(name))) missing.push(name)
  return missing
}

async function isInstalled(name: string): Promise<boolean> {
  try {
    // biome-ignore lint/suspicious/noTemplateCurlyInString: dpkg-query's own template.
    const states = await run('dpkg-query', ['--show', '--showformat', '${db:Status-Status}\n', name])
    return states.split('\n').includes('installed')
  } catch (error) {
    // It fails for a package that it has never heard of.
    if (error instanceof AcquireError) return false
    throw error
  }
}

async function install(names: readonly string[], progress: (line: string) => void): Promise<void> {
  const lock = `DPkg::Lock::Timeout=${LOCK_TIMEOUT_S}`
  const apt = ['-q', '-y', '-o', lock, '--no-install-recommends', 'install', ...names]
  const attempt = () => reported(progress, `installing ${names.join(', ')}`, () => run('apt-get', apt))
  try {
    await attempt()
  } catch (error) {
    if (!(error instanceof AcquireError)) throw error
    // A fresh machine has no package lists, and old lists name files that are gone.
    await reported(progress, "fetching the system's package lists", () => run('apt-get', ['-q', 'update']))
    await attempt()
  }
}

async function missingElsewhere(names: readonly string[]): Promise<MissingPackages> {
  const missing: string[] = []
  for (const name of names) {
    const { program, files = [] } = ELSEWHERE[name] ?? {}
    const there = files.some((file) => existsSync(file)) || (program && (await findOnPath(program)) !== undefined)
    if (!there) missing.push(name)
  }
  if (missing.length === 0) return { missing, advice: '' }
  const arch = [...new Set(missing.map((name) => ELSEWHERE[name]?.arch ?? name))].join(' ')
  return { missing, advice: `Install what is missing: on Arch, sudo pacman -S --needed ${arch}` }
}
