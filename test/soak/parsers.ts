import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'

/** Made-up conversations for each property; npm test makes some thousand. */
const RUNS = 1_000_000
const ROOT = join(import.meta.dirname, '../..')
const PROPERTIES = [
  'libs/wire/src/http1.test.ts',
  'libs/wire/src/http2.test.ts',
  'services/node-sensor/src/domain/call-assembly.test.ts',
]
/** Each with the number of its targets. */
const FUZZED = [
  ['libs/wire/src/fuzz.test.ts', 5],
  ['services/node-sensor/src/domain/call-fuzz.test.ts', 1],
  ['services/authorizer/src/fuzz.test.ts', 2],
] as const
const TARGETS = FUZZED.reduce((sum, [, targets]) => sum + targets, 0)

/**
 * What reads HTTP/1, HTTP/2, HPACK, gRPC and Check: fuzzed by what the inputs reach, for so many minutes in all; then conversations with
 * missing and damaged bytes, however long that takes. Nothing is thrown or kept without bound, nothing hangs, and no answer is given to
 * another's question. The tests of npm test, at length.
 */
export async function soakParsers(minutes: number): Promise<boolean> {
  for (const [file] of FUZZED)
    if (!(await isGreen(file, { TOLLWARD_FUZZ_MINUTES: String(minutes / TARGETS) }))) return false
  for (const file of PROPERTIES) if (!(await isGreen(file, { TOLLWARD_FUZZ_RUNS: String(RUNS) }))) return false
  return true
}

async function isGreen(file: string, environment: Readonly<Record<string, string>>): Promise<boolean> {
  const env = { ...process.env, ...environment }
  const child = spawn(process.execPath, ['--test', join(ROOT, file)], { env, stdio: 'inherit' })
  const [code] = await once(child, 'close')
  return code === 0
}
