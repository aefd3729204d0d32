import { join } from 'node:path'
import process from 'node:process'
import { startProcess } from '@tollward/testkit'

/** How long a benchmark in a network of its own may take in all. */
const TIMEOUT_MS = 600_000

/**
 * Runs one of this folder's programs, which moves itself into a network of its own, where the loopback device is nobody else's.
 * Gives what it says in its last line. Throws, with all that it said, if it fails.
 */
export async function inOwnNetwork<T>(program: string): Promise<T> {
  const running = await startProcess(process.execPath, [join(import.meta.dirname, program)])
  const timer = setTimeout(() => void running.kill(), TIMEOUT_MS)
  const ended = await running.exited
  clearTimeout(timer)
  const last = running.lines.at(-1)
  if (ended !== 0 || last === undefined) throw new Error(`${program} ended (${ended}):\n${running.lines.join('\n')}`)
  return JSON.parse(last) as T
}
