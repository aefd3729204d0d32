import { execFileSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readlinkSync, rmSync, symlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'

/** The repository this file is in. */
export const ROOT = resolve(import.meta.dirname, '../..')

const OWN_SCOPE = '@tollward'

/** A copy of the working tree in which something may be broken; gone when disposed. */
export interface TreeCopy extends Disposable {
  readonly path: string
}

/**
 * Copies what git tracks and what it would track. Dependencies are links to the installed ones, but our own packages resolve
 * to the copy, so that a change in a library reaches whatever imports it.
 */
export function copyTree(): TreeCopy {
  const path = mkdtempSync(join(tmpdir(), 'tollward-copy-'))
  const listed = execFileSync('git', ['ls-files', '-z', '--cached', '--others', '--exclude-standard'], {
    cwd: ROOT,
    encoding: 'utf8',
  })
  for (const file of listed.split('\0')) {
    if (file === '' || !existsSync(join(ROOT, file))) continue
    mkdirSync(dirname(join(path, file)), { recursive: true })
    copyFile(file, path)
  }
  linkModules(path)
  const tools = '.tollward/tools'
  if (existsSync(join(ROOT, tools))) {
    mkdirSync(dirname(join(path, tools)), { recursive: true })
    symlinkSync(join(ROOT, tools), join(path, tools))
  }
  // Not a link: whoever breaks a kernel program must neither load another copy's object nor leave theirs to us.
  if (existsSync(join(ROOT, 'bpf/build'))) copyFile('bpf/build', path)
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) }
}

/** With its time, so that only what is changed in the copy is built again. */
function copyFile(file: string, copy: string): void {
  cpSync(join(ROOT, file), join(copy, file), { verbatimSymlinks: true, recursive: true, preserveTimestamps: true })
}

function linkModules(copy: string): void {
  const from = join(ROOT, 'node_modules')
  const to = join(copy, 'node_modules')
  mkdirSync(join(to, OWN_SCOPE), { recursive: true })
  for (const name of readdirSync(from)) if (name !== OWN_SCOPE) symlinkSync(join(from, name), join(to, name))
  for (const name of readdirSync(join(from, OWN_SCOPE))) {
    // npm's links are relative, so the same text leads into the copy.
    symlinkSync(readlinkSync(join(from, OWN_SCOPE, name)), join(to, OWN_SCOPE, name))
  }
  for (const workspace of ['libs', 'services', 'deploy', 'test']) {
    for (const name of readdirSync(join(ROOT, workspace))) {
      const nested = join(workspace, name, 'node_modules')
      if (existsSync(join(ROOT, nested))) symlinkSync(join(ROOT, nested), join(copy, nested))
    }
  }
}
