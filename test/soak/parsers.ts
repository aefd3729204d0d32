import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'

/** Made-up conversations for each property; npm test makes some thousand. */
const RUNS = 1_000_000
const ROOT = join(import.meta.dirname, '../..')
const FILES = [
  'libs/wire/src/http1.test.ts',
  'libs/wire/src/http2.test.ts',
  'services/node-sensor/src/domain/call-assembly.test.ts',
]

/**
 * What observes HTTP/1 and HTTP/2, given conversations with missing and damaged bytes: nothing is thrown or kept without bound, and no
 * answer is given to another's question. The tests of npm test, at length. Takes as long as it takes, whatever the minutes.
 */
export async function soakParsers(): Promise<boolean> {
  for (const file of FILES) {
    const env = { ...process.env, TOLLWARD_FUZZ_RUNS: String(RUNS) }
    const child = spawn(process.execPath, ['--test', join(ROOT, file)], { env, stdio: 'inherit' })
    const [code] = await once(child, 'close')
    if (code !== 0) return false
  }
  return true
}
