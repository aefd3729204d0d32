import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { usableGo } from './go-module.ts'
import { type AcquireOptions, acquisition, privateCopy, reported, run, type Tool } from './tool.ts'

/** How a program is built. */
export interface GoBuildOptions {
  readonly args: readonly string[]
  /** Linked by the linker of C, as programs with C in them are. */
  readonly withC?: boolean
  /** As Go calls it; else this one. */
  readonly machine?: string
}

/** The Go that builds programs here. */
export async function acquireGo(options: AcquireOptions = {}): Promise<Tool> {
  const command = await usableGo(options)
  const version = /go(\d\S*)/.exec(await run(command, ['env', 'GOVERSION']))?.[1] ?? 'unknown'
  return { command, args: [], version, from: 'PATH' }
}

/**
 * One program of one file, which needs nothing but Go's own library, built in several ways: their paths, by the names of the ways. Built
 * once, and again when the file, the ways or Go change. AcquireError if there is no Go.
 */
export async function acquireGoBuilds<Name extends string>(
  source: string,
  builds: Readonly<Record<Name, GoBuildOptions>>,
  options: AcquireOptions = {},
): Promise<Record<Name, string>> {
  const wanted = acquisition(options)
  const go = await acquireGo(options)
  const hash = createHash('sha256')
    .update(await readFile(source))
    .update(JSON.stringify([builds, go.version]))
  const names = Object.keys(builds) as Name[]
  const copy = await privateCopy(wanted, `go-${hash.digest('hex').slice(0, 16)}`, async (folder) => {
    for (const name of names) {
      const { args, withC = false, machine } = builds[name]
      const env = {
        GOTOOLCHAIN: 'local',
        GOFLAGS: '',
        CGO_ENABLED: withC ? '1' : '0',
        CC: 'clang',
        ...(machine && { GOARCH: machine }),
      }
      const command = ['build', '-o', join(folder, name), ...args, source]
      await reported(wanted.progress, `building ${name} with Go`, () => run(go.command, command, folder, env))
    }
    return { command: '{folder}', args: [], version: go.version, from: 'built by the Go toolchain' }
  })
  return Object.fromEntries(names.map((name) => [name, join(copy.command, name)])) as Record<Name, string>
}
