import { mkdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { ensureSystemPackages } from './system-packages.ts'
import { AcquireError, type AcquireOptions, type Acquisition, findOnPath, reported, run } from './tool.ts'

/** A program among Go's public modules. */
export interface GoProgram {
  /** The package with its `main`. */
  readonly package: string
  /** Versions of its module and of those that it needs, where the newest would want a newer Go than Debian 12 has (1.19). */
  readonly versions: Readonly<Record<string, string>>
}

/** Builds a program into `folder`/`name`. Go is installed if it is missing and this is root; AcquireError if it cannot be had. */
export async function buildGoProgram(
  options: AcquireOptions,
  { progress }: Acquisition,
  program: GoProgram,
  { folder, name }: { folder: string; name: string },
): Promise<void> {
  const go = await usableGo(options)
  const source = join(folder, 'source')
  await mkdir(source)
  const wanted = Object.entries(program.versions).map(([module, version]) => `require ${module} ${version}\n`)
  await writeFile(join(source, 'go.mod'), `module tollward.dev/${name}\n\ngo 1.19\n\n${wanted.join('')}`)
  const args = ['build', '-mod=mod', '-o', join(folder, name), program.package]
  await buildWithGo(progress, { go, args, name, folder, cwd: source, env: { GOTOOLCHAIN: 'local' } })
  await rm(source, { recursive: true })
}

/** Runs Go for a program that is to be in `folder`, in which nothing stays of the modules that it fetches. */
export async function buildWithGo(
  progress: Acquisition['progress'],
  build: { go: string; args: string[]; name: string; folder: string; cwd: string; env: Record<string, string> },
): Promise<void> {
  const { go, args, name, folder, cwd, env } = build
  const modules = join(folder, 'go')
  // A writable module cache, so that it can be removed again.
  const cache = { GOPATH: modules, GOCACHE: join(modules, 'cache'), GOFLAGS: '-modcacherw', CGO_ENABLED: '0' }
  await reported(progress, `building ${name} with Go`, () => run(go, args, cwd, { ...cache, ...env }))
  await rm(modules, { recursive: true })
}

/** The Go that builds programs here: that of the PATH, installed if it is missing and this is root; AcquireError if it cannot be had. */
export async function usableGo(options: AcquireOptions): Promise<string> {
  const found = await findOnPath('go')
  if (found !== undefined) return found
  const { advice } = await ensureSystemPackages(['golang-go'], options)
  const installed = advice === '' ? await findOnPath('go') : undefined
  if (installed === undefined) throw new AcquireError(`there is no Go. ${advice}`.trim())
  return installed
}
