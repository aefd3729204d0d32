import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import type { Check } from './list.ts'

/** Runs a check in a tree, with the programs that its dependencies installed. */
export function runCheck(check: Check, root: string): { passed: boolean; output: string } {
  const [command, ...args] = check.command
  const { status, stdout, stderr, error } = spawnSync(command, args, {
    cwd: root,
    encoding: 'utf8',
    env: {
      ...process.env,
      PATH: `${join(root, 'node_modules/.bin')}:${process.env.PATH}`,
      TURBO_TELEMETRY_DISABLED: '1',
      NO_COLOR: '1',
    },
  })
  return { passed: status === 0, output: error ? String(error) : stdout + stderr }
}
