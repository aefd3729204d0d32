import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { type Paths, REPOSITORY } from './paths.ts'
import { writeSecret } from './secret-file.ts'
import { baseEnvironment } from './services.ts'

const EXAMPLES = join(REPOSITORY, 'deploy/local/documents/example.yaml')

/**
 * Applies the documents for the example API, once in the life of a state directory: what operators changed or deleted since
 * stays so. It takes the way that they take, the tollward command.
 */
export async function applyExamples(paths: Paths, progress: (line: string) => void): Promise<void> {
  const stamp = join(paths.state, 'examples-applied')
  if (existsSync(stamp)) return
  progress('Applying the documents of the example API.')
  await promisify(execFile)(process.execPath, [join(REPOSITORY, 'services/cli/src/main.ts'), 'apply', '-f', EXAMPLES], {
    env: { ...baseEnvironment(paths), TOLLWARD_OPERATOR_FILE: paths.operator },
  })
  await writeSecret(stamp, new Date().toISOString())
}
