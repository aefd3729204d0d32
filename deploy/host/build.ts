// Packages of tollward-archsec: build.ts stage DIRECTORY, for makepkg; build.ts deb DIRECTORY, which is given a Debian package.
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { dirname, join, relative, resolve } from 'node:path'

const ROOT = resolve(import.meta.dirname, '../..')
const HOST = import.meta.dirname
const ENTRY = 'services/node-sensor/src/archsec.ts'
const BASE = 'usr/lib/tollward-archsec'
const OWN = '@tollward/'
/** Files beside the program: where they go, and their mode. */
const FILES: readonly (readonly [from: string, to: string, mode: number])[] = [
  ['tollward-archsec', 'usr/bin/tollward-archsec', 0o755],
  ['prepare', `${BASE}/prepare`, 0o755],
  ['tollward-archsec.service', 'usr/lib/systemd/system/tollward-archsec.service', 0o644],
  ['sysusers.conf', 'usr/lib/sysusers.d/tollward-archsec.conf', 0o644],
  ['apparmor.profile', 'etc/apparmor.d/tollward-archsec', 0o644],
  ['rules.yaml', 'etc/tollward-archsec/rules.yaml', 0o644],
  ['environment', 'etc/tollward-archsec/environment', 0o644],
  ['tollward-archsec.8', 'usr/share/man/man8/tollward-archsec.8', 0o644],
  ['../../docs/archsec.md', 'usr/share/doc/tollward-archsec/archsec.md', 0o644],
  ['../../LICENSE', 'usr/share/doc/tollward-archsec/copyright', 0o644],
]
const CONFIGURATION = FILES.map(([, to]) => to).filter((to) => to.startsWith('etc/'))

/** Own files that the program imports, from the root of the repository, and the packages that they do. */
function imported(): { files: Set<string>; packages: Set<string> } {
  const files = new Set<string>()
  const packages = new Set<string>()
  const queue = [ENTRY]
  for (let file = queue.pop(); file !== undefined; file = queue.pop()) {
    if (files.has(file)) continue
    files.add(file)
    if (!file.endsWith('.ts')) continue
    const { resolve: find } = createRequire(join(ROOT, file))
    const text = readFileSync(join(ROOT, file), 'utf8')
    // Types alone are erased; a list that holds some is imported all the same.
    for (const [, name = ''] of text.matchAll(/^(?:import|export)\s(?!type\s)(?:[^'";]*?\sfrom\s)?'([^']+)'/gm)) {
      if (name.startsWith('node:')) continue
      if (name.startsWith('.') || name.startsWith(OWN)) queue.push(relative(ROOT, find(name)))
      else packages.add(packageOf(name))
    }
  }
  return { files, packages }
}

function packageOf(name: string): string {
  return name
    .split('/')
    .slice(0, name.startsWith('@') ? 2 : 1)
    .join('/')
}

/** Directories under node_modules of these packages and of all that they need, as they are installed. */
function closure(packages: Iterable<string>): Set<string> {
  const found = new Set<string>()
  const queue = [...packages].map((name) => ({ name, from: ROOT, isOptional: false }))
  for (let next = queue.pop(); next; next = queue.pop()) {
    const directory = installed(next.name, next.from)
    if (directory === undefined && !next.isOptional) throw new Error(`${next.name} is not installed: npm install`)
    if (directory === undefined || found.has(directory)) continue
    found.add(directory)
    const { dependencies = {}, optionalDependencies = {} } = JSON.parse(
      readFileSync(join(directory, 'package.json'), 'utf8'),
    ) as Record<string, Record<string, string> | undefined>
    for (const name of Object.keys({ ...dependencies, ...optionalDependencies }))
      queue.push({ name, from: directory, isOptional: name in optionalDependencies })
  }
  return found
}

/** Undefined for an optional one of another system. */
function installed(name: string, from: string): string | undefined {
  for (let directory = from; ; directory = dirname(directory)) {
    const candidate = join(directory, 'node_modules', name)
    // Not existsSync, which asks what the user may, and not what a capability to read everything allows.
    if (statSync(join(candidate, 'package.json'), { throwIfNoEntry: false })) return candidate
    if (directory === ROOT) return undefined
  }
}

/** Nothing loads types, sources and tests of packages of others: Node takes no TypeScript from them. */
function isUnread(path: string): boolean {
  return path.includes('/node_modules/') && /\.(?:[cm]?ts|map)$/.test(path)
}

/** Puts everything below a directory, as it is to be below the root of a system. */
function stage(root: string): void {
  const base = join(root, BASE)
  const put = (from: string, to: string, mode?: number) => {
    mkdirSync(dirname(to), { recursive: true, mode: 0o755 })
    cpSync(from, to, { recursive: true, dereference: true, filter: (path) => !isUnread(path) })
    if (mode !== undefined) execFileSync('chmod', [mode.toString(8), to])
  }
  const { files, packages } = imported()
  for (const file of files) put(join(ROOT, file), join(base, file), 0o644)
  for (const workspace of new Set([...files].map((file) => file.split('/').slice(0, 2).join('/')))) {
    const manifest = join(ROOT, workspace, 'package.json')
    put(manifest, join(base, workspace, 'package.json'), 0o644)
    const { name } = JSON.parse(readFileSync(manifest, 'utf8')) as { name: string }
    if (!workspace.startsWith('libs/')) continue
    mkdirSync(join(base, 'node_modules', OWN), { recursive: true })
    symlinkSync(join('../..', workspace), join(base, 'node_modules', name))
  }
  for (const directory of closure(packages)) put(directory, join(base, relative(ROOT, directory)))
  put(join(ROOT, 'node_modules/node/bin/node'), join(base, 'bin/node'), 0o755)
  const built = mkdtempSync(join(tmpdir(), 'tollward-bpf-'))
  try {
    cpSync(join(ROOT, 'bpf'), built, { recursive: true, filter: (path) => !path.endsWith('/build') })
    execFileSync('make', ['-s', '-C', built, 'build/sensor.bpf.o'])
    put(join(built, 'build/sensor.bpf.o'), join(base, 'bpf/sensor.bpf.o'), 0o644)
  } finally {
    rmSync(built, { recursive: true })
  }
  for (const [from, to, mode] of FILES) put(join(HOST, from), join(root, to), mode)
  execFileSync('chmod', ['-R', 'u+rwX,go=rX', root])
}

const SCRIPTS: Readonly<Record<string, string>> = {
  postinst: `#!/bin/sh
set -e
if [ "$1" = configure ]; then
  if command -v systemd-sysusers >/dev/null; then
    systemd-sysusers /usr/lib/sysusers.d/tollward-archsec.conf
  elif ! getent passwd tollward-archsec >/dev/null; then
    useradd --system --user-group --home-dir /var/lib/tollward-archsec --shell /usr/sbin/nologin tollward-archsec
  fi
  if command -v aa-enabled >/dev/null && aa-enabled --quiet; then
    apparmor_parser --replace --write-cache /etc/apparmor.d/tollward-archsec || true
  fi
  if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    if [ -n "$2" ]; then systemctl try-restart tollward-archsec; fi
  fi
  if [ -z "$2" ]; then
    echo 'Write /etc/tollward-archsec/rules.yaml, then: systemctl enable --now tollward-archsec'
  fi
fi
`,
  prerm: `#!/bin/sh
set -e
if [ "$1" = remove ]; then
  if [ -d /run/systemd/system ]; then systemctl disable --now tollward-archsec || true; fi
  # Otherwise what it put into the kernel would stay.
  tollward-archsec detach || true
  if mountpoint -q /run/tollward-archsec-bpf; then umount /run/tollward-archsec-bpf || true; fi
fi
`,
  postrm: `#!/bin/sh
set -e
if [ "$1" = purge ]; then rm -rf /var/lib/tollward-archsec; fi
`,
}

/** Makes a Debian package in a directory, and says where. */
function deb(directory: string): string {
  const root = mkdtempSync(join(tmpdir(), 'tollward-deb-'))
  try {
    stage(root)
    const { version } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as { version: string }
    const paths = readdirSync(root, { recursive: true, encoding: 'utf8', withFileTypes: true })
      .filter((entry) => entry.isFile())
      .map((entry) => relative(root, join(entry.parentPath, entry.name)))
      .sort()
    const bytes = paths.reduce((sum, path) => sum + statSync(join(root, path)).size, 0)
    const sums = paths
      .filter((path) => !CONFIGURATION.includes(path))
      .map(
        (path) =>
          `${createHash('md5')
            .update(readFileSync(join(root, path)))
            .digest('hex')}  ${path}\n`,
      )
    const control = `Package: tollward-archsec
Version: ${version}
Architecture: amd64
Maintainer: Tollward maintainers <maintainers@tollward.dev>
Installed-Size: ${Math.ceil(bytes / 1024)}
Depends: libc6 (>= 2.28), libstdc++6, libbpf1 (>= 1:1.1)
Recommends: nftables
Suggests: apparmor
Section: net
Priority: optional
Description: guards one host by kernel programs
 Drops, limits or reports what a file of rules names before any program sees
 it: XDP for packets that arrive, TC for those that leave, nftables where the
 kernel does not take the programs.
`
    const meta = { control, md5sums: sums.join(''), conffiles: CONFIGURATION.map((path) => `/${path}\n`).join('') }
    mkdirSync(join(root, 'DEBIAN'))
    for (const [name, text] of Object.entries({ ...meta, ...SCRIPTS }))
      writeFileSync(join(root, 'DEBIAN', name), text, { mode: name in SCRIPTS ? 0o755 : 0o644 })
    execFileSync('chmod', [
      '755',
      root,
      join(root, 'DEBIAN'),
      ...Object.keys(SCRIPTS).map((name) => join(root, 'DEBIAN', name)),
    ])
    const file = join(directory, `tollward-archsec_${version}_amd64.deb`)
    // Of the sizes that zstd makes, the quick ones are hardly larger: nearly all of it is one program.
    execFileSync('dpkg-deb', ['--root-owner-group', '-Zzstd', '-z3', '--build', root, file], {
      stdio: ['ignore', 'ignore', 'inherit'],
    })
    return file
  } finally {
    rmSync(root, { recursive: true })
  }
}

const [, , what, directory] = process.argv
if ((what === 'stage' || what === 'deb') && directory !== undefined) {
  if (what === 'stage') stage(resolve(directory))
  else process.stdout.write(`${deb(resolve(directory))}\n`)
} else {
  process.stderr.write('build.ts stage DIRECTORY, or build.ts deb DIRECTORY\n')
  process.exitCode = 2
}
