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
    cpSync(join(ROOT, file), join(path, file), { verbatimSymlinks: true })
  }
  linkModules(path)
  for (const shared of ['.tollward/tools', 'bpf/build']) {
    if (!existsSync(join(ROOT, shared))) continue
    mkdirSync(dirname(join(path, shared)), { recursive: true })
    symlinkSync(join(ROOT, shared), join(path, shared))
  }
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) }
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
