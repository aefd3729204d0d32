import { mkdir, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { withLock } from './lock.mjs'
import { AcquireError, type Acquisition, findOnPath, isErrorWithCode, reported, run } from './tool.ts'

/** Unstable drops a package's file soon after its successor appears, so older lists point at nothing. */
const LISTS_AGE_MAX_MS = 6 * 60 * 60 * 1_000

const KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg'

/**
 * Downloads packages of Debian unstable and unpacks them into `folder`, without touching the machine's own packages: apt
 * runs on lists, cache and status of its own, as any user. Signatures are checked against the machine's Debian keyring.
 * `libraries` adds the shared libraries that `name` depends on, libc included.
 * Returns the version of `name`. Throws AcquireError where apt, dpkg or a Debian source is missing.
 */
export async function unpackFromUnstable(
  acquisition: Acquisition,
  name: string,
  folder: string,
  { libraries }: { libraries: boolean },
): Promise<string> {
  for (const program of ['apt-get', 'dpkg']) {
    if ((await findOnPath(program)) === undefined) {
      throw new AcquireError(`Debian's package cannot be unpacked here: there is no ${program}`)
    }
  }
  const apt = join(acquisition.folder, 'apt')
  const { progress } = acquisition
  const onWait = (holder: number) => progress(`${name}: process ${holder} is using the private package lists, waiting`)
  // One update of the lists serves all downloads; apt itself must not run twice on them.
  return await withLock(join(acquisition.folder, 'apt.lock'), () => download(apt, name, folder, libraries, progress), {
    onWait,
  })
}

async function download(
  apt: string,
  name: string,
  folder: string,
  libraries: boolean,
  progress: (line: string) => void,
): Promise<string> {
  const config = await configure(apt)
  if (!(await haveFreshLists(apt))) await update(apt, config, progress)
  const packages = async () => (libraries ? await withLibraries(config, name) : [name])
  const archives = join(apt, 'downloads')
  await rm(archives, { recursive: true, force: true })
  await mkdir(archives)
  const fetch = async () => await run('apt-get', ['-c', config, '-qq', 'download', ...(await packages())], archives)
  const what = `downloading ${name} from Debian unstable`
  try {
    await reported(progress, what, fetch)
  } catch (error) {
    if (!(error instanceof AcquireError)) throw error
    // The usual reason is that the archive has moved on since the lists were fetched.
    await update(apt, config, progress)
    await reported(progress, what, fetch)
  }
  const files = await readdir(archives)
  for (const file of files) await run('dpkg', ['-x', join(archives, file), folder])
  const own = files.find((file) => file.startsWith(`${name}_`))
  if (own === undefined) throw new AcquireError(`apt-get downloaded no package ${name}`)
  const version = await run('dpkg-deb', ['-f', join(archives, own), 'Version'])
  await rm(archives, { recursive: true })
  return version.trim()
}

/** Writes apt's private configuration, and returns its path. The machine's own, such as a proxy, stays in force below it. */
async function configure(apt: string): Promise<string> {
  const at = (...parts: string[]) => join(apt, ...parts)
  for (const folder of [at('lists/partial'), at('cache/archives/partial'), at('state')]) {
    await mkdir(folder, { recursive: true })
  }
  // With nothing installed, apt resolves the whole of what a package needs.
  await writeFile(at('status'), '')
  await writeFile(at('unstable.sources'), await unstableSource())
  const config = at('apt.conf')
  await writeFile(
    config,
    `#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
#clear Acquire::IndexTargets::deb::DEP-11;
#clear Acquire::IndexTargets::deb::DEP-11-icons;
#clear Acquire::IndexTargets::deb::DEP-11-icons-small;
#clear Acquire::IndexTargets::deb::DEP-11-icons-hidpi;
#clear Acquire::IndexTargets::deb::DEP-11-icons-large;
#clear Acquire::IndexTargets::deb::DEP-11-icons-large-hidpi;
Dir::Etc::sourcelist "${at('unstable.sources')}";
Dir::Etc::sourceparts "-";
Dir::State "${at('state')}";
Dir::State::lists "${at('lists')}";
Dir::State::status "${at('status')}";
Dir::Cache "${at('cache')}";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::AllowInsecureRepositories "false";
APT::Get::AllowUnauthenticated "false";
APT::Install-Recommends "false";
APT::Sandbox::User "";
Debug::NoLocking "true";
`,
  )
  return config
}

async function haveFreshLists(apt: string): Promise<boolean> {
  try {
    return Date.now() - (await stat(join(apt, 'updated'))).mtimeMs < LISTS_AGE_MAX_MS
  } catch (error) {
    if (isErrorWithCode(error, 'ENOENT')) return false
    throw error
  }
}

async function update(apt: string, config: string, progress: (line: string) => void): Promise<void> {
  await reported(progress, "fetching Debian unstable's package lists", () =>
    run('apt-get', ['-c', config, '-q', '--error-on=any', 'update']),
  )
  await writeFile(join(apt, 'updated'), '')
}

/** The package and the library packages below it, as apt would install them on a machine that has nothing. */
async function withLibraries(config: string, name: string): Promise<string[]> {
  const plan = await run('apt-get', ['-c', config, '--simulate', 'install', name])
  const needed = [...plan.matchAll(/^Inst (\S+)/gm)].map(([, found = '']) => found)
  return [name, ...needed.filter((found) => /^(lib|zlib)/.test(found))]
}

/** Unstable's source line, on the mirror that this machine uses for Debian already. */
async function unstableSource(): Promise<string> {
  const mirror = (await machineSources()).flatMap(debianMirrors)[0]
  if (mirror === undefined) {
    throw new AcquireError("Debian's package cannot be had: this machine has no Debian package source")
  }
  return `Types: deb\nURIs: ${mirror}\nSuites: unstable\nComponents: main\nSigned-By: ${KEYRING}\n`
}

async function machineSources(): Promise<string[]> {
  const folder = '/etc/apt/sources.list.d'
  const names = await readdir(folder).catch(absentAs<string[]>([]))
  const paths = names.filter((name) => /\.(sources|list)$/.test(name)).map((name) => join(folder, name))
  return await Promise.all(
    [...paths, '/etc/apt/sources.list'].map((path) => readFile(path, 'utf8').catch(absentAs(''))),
  )
}

function absentAs<T>(value: T): (error: unknown) => T {
  return (error) => {
    if (isErrorWithCode(error, 'ENOENT')) return value
    throw error
  }
}

/**
 * The Debian mirrors that a sources file names, in deb822 or one-line form. Security archives and other vendors'
 * repositories hold no unstable; a mirror of Debian is served under a path that ends in `/debian`.
 */
export function debianMirrors(sources: string): string[] {
  const lines = sources.split('\n').filter((line) => !line.trimStart().startsWith('#'))
  const addresses = lines.flatMap((line) => (/^(URIs:|deb\s)/.test(line) ? (line.match(/[a-z+]+:\/\/\S+/g) ?? []) : []))
  return addresses.filter((address) => /\/debian\/?$/.test(address))
}
