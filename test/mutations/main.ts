// npm run mutations: breaks each guarantee on purpose, in a copy of the tree, and wants its test to go red.
// Arguments: parts of patch names, to run only those.
import { spawnSync } from 'node:child_process'
import { globSync, readFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { copyTree, ROOT } from '../checks/copy.ts'
import { emptyTally, tallyLine } from '../tally.ts'

const RUN_TIMEOUT_MS = 240_000

interface Mutation {
  readonly name: string
  readonly patch: string
  /** The test file that must notice, and a part of the name of its test. */
  readonly test: string
  readonly testName: string
}

const wanted = process.argv.slice(2)
const tally = emptyTally()
for (const mutation of readMutations()) {
  if (wanted.length > 0 && !wanted.some((part) => mutation.name.includes(part))) continue
  const failure = run(mutation)
  tally[failure === undefined ? 'passed' : 'failed'] += 1
  process.stdout.write(
    `${failure === undefined ? '✔' : '✖'} ${mutation.name}${failure === undefined ? ' went red' : `: ${failure}`}\n`,
  )
}
process.stdout.write(`\n${tallyLine(tally)}\n`)
process.exitCode = tally.failed === 0 && tally.passed > 0 ? 0 : 1

function readMutations(): Mutation[] {
  return globSync('test/mutations/*.patch', { cwd: ROOT })
    .sort()
    .map((file) => {
      const patch = readFileSync(join(ROOT, file), 'utf8')
      const header = (key: string) => new RegExp(`^# ${key}: (.+)$`, 'm').exec(patch)?.[1]?.trim()
      const test = header('test')
      const testName = header('name')
      if (!test || !testName) throw new Error(`${file} needs the header lines "# test:" and "# name:"`)
      return { name: basename(file, '.patch'), patch, test, testName }
    })
}

/** Why the mutation was not noticed as it should be; undefined: it was. */
function run({ patch, test, testName }: Mutation): string | undefined {
  using copy = copyTree()
  const applied = spawnSync('git', ['apply', '--whitespace=nowarn', '-'], {
    cwd: copy.path,
    input: patch,
    encoding: 'utf8',
  })
  if (applied.status !== 0) return `the patch does not apply: ${applied.stderr.trim()}`
  const { status, stdout, stderr, error } = spawnSync(
    process.execPath,
    ['--test', '--test-reporter=tap', `--test-name-pattern=${escapeRegExp(testName)}`, test],
    { cwd: copy.path, encoding: 'utf8', timeout: RUN_TIMEOUT_MS, env: { ...process.env, TOLLWARD_REQUIRE: 'all' } },
  )
  if (error) return `the test did not end: ${error.message}`
  // Red for another reason, such as a patch that breaks an import, proves nothing.
  const red = stdout
    .split('\n')
    .some((line) => line.trim().startsWith('not ok') && line.includes(testName.replaceAll('#', '\\#')))
  if (status === 0) return /^# pass [1-9]/m.test(stdout) ? 'the test stayed green' : 'no test has this name'
  return red ? undefined : `another test failed:\n${stdout}${stderr}`
}

function escapeRegExp(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\/]/g, '\\$&')
}
