import { join } from 'node:path'
import { acquireGoBuilds } from '@tollward/acquire'

const SOURCE = join(import.meta.dirname, '../go/calls.go')
const STRIPPED = '-ldflags=-s -w'
/** As programs are found: with symbols, as released, that may be loaded anywhere, for a debugger, with C, and for another machine. */
const BUILDS = {
  plain: { args: [] },
  stripped: { args: [STRIPPED] },
  pie: { args: ['-buildmode=pie', STRIPPED] },
  debug: { args: ['-gcflags=all=-l'] },
  linkedByC: { args: ['-buildmode=pie', '-ldflags=-linkmode=external'], withC: true },
  arm: { args: [STRIPPED], machine: 'arm64' },
} as const

/** A way in which a Go program is built. */
export type GoBuild = keyof typeof BUILDS

/** Path of a Go program that serves and asks by HTTPS: see libs/testkit/go/calls.go. Needs the tools `go` and `clang`. */
export async function goCallsProgram(build: GoBuild): Promise<string> {
  return (await acquireGoBuilds(SOURCE, BUILDS))[build]
}
