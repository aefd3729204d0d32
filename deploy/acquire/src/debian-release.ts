import { mkdir, readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { withLock } from './lock.mjs'
import { AcquireError, type Acquisition, findOnPath, reported, run } from './tool.ts'

/** Downloads are read by this process only. */
const APT = ['-q', '-o', 'APT::Sandbox::User=root', '-o', 'APT::Install-Recommends=false']

/**
 * Downloads a package of the machine's own Debian release, with whatever shared libraries of it are not installed, and unpacks them
 * into `folder`: nothing is installed, so nothing is started as a service. Package lists that are missing are fetched, as root only.
 * Throws AcquireError where apt or dpkg is missing, or the package.
 */
export async function unpackFromRelease(acquisition: Acquisition, name: string, folder: string): Promise<void> {
  for (const program of ['apt-get', 'dpkg']) {
    if ((await findOnPath(program)) === undefined) {
      throw new AcquireError(`Debian's package cannot be unpacked here: there is no ${program}`)
    }
  }
  const { progress } = acquisition
  const archives = join(folder, 'archives')
  const fetch = async () => {
    await rm(archives, { recursive: true, force: true })
    await mkdir(archives)
    await run('apt-get', [...APT, 'download', ...(await withMissingLibraries(name))], archives)
  }
  const what = `downloading Debian's package ${name}`
  await withLock(join(acquisition.folder, 'system-packages.lock'), async () => {
    try {
      await reported(progress, what, fetch)
    } catch (error) {
      if (!(error instanceof AcquireError) || process.getuid?.() !== 0) throw error
      // A fresh machine has no package lists, and old lists name files that are gone.
      await reported(progress, "fetching the system's package lists", () => run('apt-get', ['-q', 'update']))
      await reported(progress, what, fetch)
    }
  })
  for (const file of await readdir(archives)) await run('dpkg', ['-x', join(archives, file), folder])
  await rm(archives, { recursive: true })
}

/** The folders with shared libraries in what was unpacked into `folder`, relative to it. */
export async function libraryFolders(folder: string): Promise<string[]> {
  const found: string[] = []
  for (const parent of ['lib', 'usr/lib']) {
    const names = await readdir(join(folder, parent)).catch(() => [])
    found.push(...names.filter((name) => name.includes('-linux-')).map((name) => join(parent, name)))
  }
  return found
}

/** The package, and the libraries that apt would have to install for it. */
async function withMissingLibraries(name: string): Promise<string[]> {
  const plan = await run('apt-get', [...APT, '--simulate', 'install', name])
  const needed = [...plan.matchAll(/^Inst (\S+)/gm)].map(([, found = '']) => found)
  return [...new Set([name, ...needed.filter((found) => /^(lib|zlib)/.test(found) && !found.endsWith('-dev'))])]
}
