import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { ROOT } from '../checks/copy.ts'

const runFile = promisify(execFile)

/** Runs the tollward command as an operator does and reads its JSON; `input` is its standard input. Rejects with what it said. */
export async function tollward<T = unknown>(
  args: readonly string[],
  options: { operatorFile?: string; input?: string } = {},
): Promise<T> {
  const environment =
    options.operatorFile === undefined ? process.env : { ...process.env, TOLLWARD_OPERATOR_FILE: options.operatorFile }
  const running = runFile(process.execPath, [join(ROOT, 'services/cli/src/main.ts'), ...args, '-o', 'json'], {
    cwd: ROOT,
    env: environment,
  })
  running.child.stdin?.end(options.input ?? '')
  const { stdout } = await running
  return (stdout.trim() === '' ? undefined : JSON.parse(stdout)) as T
}
