import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'

/** Of what npm test makes: each more than 100,000 calls inside TLS, and probes put on and taken off a thousand times. */
const FILES = [
  ['call-logs.test.ts', 34],
  ['call-binding.test.ts', 27],
  ['call-go.test.ts', 27],
  ['call-targets.test.ts', 27],
] as const
const FOLDER = join(import.meta.dirname, '../../services/node-sensor/src/adapters')

/**
 * Calls of Node, Python, curl, nginx and Go, each compared with its line in the server's own log, and with the connection that really
 * carried it; then probes put on and taken off a thousand times under load. The tests of npm test, at length. Takes as long as it takes,
 * whatever the minutes.
 */
export async function soakCalls(): Promise<boolean> {
  for (const [file, times] of FILES) {
    const env = { ...process.env, TOLLWARD_SOAK_TIMES: String(times) }
    const child = spawn(process.execPath, ['--test', join(FOLDER, file)], { env, stdio: 'inherit' })
    const [code] = await once(child, 'close')
    if (code !== 0) return false
  }
  return true
}
