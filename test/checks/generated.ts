// Whether the committed generated code is what the schemas generate.
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

const output = mkdtempSync(join(tmpdir(), 'tollward-generated-'))
try {
  const run = (command: string, ...args: string[]) => spawnSync(command, args, { stdio: 'inherit' }).status === 0
  const same =
    run('buf', 'generate', '--output', output) &&
    run('diff', '--recursive', '--brief', join(output, 'libs/contracts/src/gen'), 'libs/contracts/src/gen')
  if (!same) process.stderr.write('The generated code is not current; run: npm run generate\n')
  process.exitCode = same ? 0 : 1
} finally {
  rmSync(output, { recursive: true, force: true })
}
