// npm run mutations: breaks each guarantee on purpose, in a copy of the tree, and wants its test to go red.
// Arguments: parts of patch names, to run only those.
import { execFile, spawnSync } from 'node:child_process'
import { globSync, readFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { copyTree, ROOT } from '../checks/copy.ts'
import { emptyTally, tallyLine } from '../tally.ts'

/** A test that a mutation makes hang is ended, with all that it started; it did not go red. */
const RUN_MAX_SECONDS = 180

/** Mutations at once: two cores, and tests that mostly wait. */
const AT_ONCE = 3

const OUTPUT_BYTES_MAX = 64 * 1024 * 1024

/** Exit code of timeout(1) when it had to end what it ran. */
const TIMED_OUT = 124

interface Mutation {
  readonly name: string
  readonly patch: string
  /** The test file that must notice, and a part of the name of its test. */
  readonly test: string
  readonly testName: string
}

const wanted = process.argv.slice(2)
const tally = emptyTally()
const queue = readMutations().filter(({ name }) => wanted.length === 0 || wanted.some((part) => name.includes(part)))
const unnoticed: Mutation[] = []
const worker = async () => {
  for (let mutation = queue.shift(); mutation; mutation = queue.shift()) {
    const failure = await run(mutation)
    if (failure === undefined) tell(mutation)
    else {
      unnoticed.push(mutation)
      process.stdout.write(`… ${mutation.name}: ${failure.split('\n')[0]}; once more, alone, at the end\n`)
    }
  }
}
await Promise.all(Array.from({ length: AT_ONCE }, worker))
// Some tests race on purpose, and see nothing where the machine is too busy for it: each gets a second run with nothing beside it.
for (const mutation of unnoticed) tell(mutation, await run(mutation))
process.stdout.write(`\n${tallyLine(tally)}\n`)
process.exitCode = tally.failed === 0 && tally.passed > 0 ? 0 : 1

function tell({ name }: Mutation, failure?: string): void {
  tally[failure === undefined ? 'passed' : 'failed'] += 1
  process.stdout.write(failure === undefined ? `✔ ${name} went red\n` : `✖ ${name}: ${failure}\n`)
}

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
async function run({ patch, test, testName }: Mutation): Promise<string | undefined> {
  using copy = copyTree()
  const applied = spawnSync('git', ['apply', '--whitespace=nowarn', '-'], {
    cwd: copy.path,
    input: patch,
    encoding: 'utf8',
  })
  if (applied.status !== 0) return `the patch does not apply: ${applied.stderr.trim()}`
  const { code, output } = await runTest(copy.path, test, testName)
  if (code === TIMED_OUT) return `the test did not end within ${RUN_MAX_SECONDS} s`
  if (code === 0) return /^# pass [1-9]/m.test(output) ? 'the test stayed green' : 'no test has this name'
  // Red for another reason, such as a patch that breaks an import, proves nothing.
  const name = testName.replaceAll('#', '\\#')
  const red = output.split('\n').some((line) => line.trim().startsWith('not ok') && line.includes(name))
  return red ? undefined : `another test failed:\n${output}`
}

function runTest(cwd: string, test: string, testName: string): Promise<{ code: number; output: string }> {
  const nodeTest = [
    process.execPath,
    '--test',
    '--test-reporter=tap',
    `--test-name-pattern=${escapeRegExp(testName)}`,
    test,
  ]
  const options = { cwd, maxBuffer: OUTPUT_BYTES_MAX, env: { ...process.env, TOLLWARD_REQUIRE: 'all' } }
  return new Promise((resolve) => {
    // timeout(1) ends the whole group; killing the test runner alone would leave its servers.
    execFile('timeout', ['--kill-after=10', String(RUN_MAX_SECONDS), ...nodeTest], options, (error, stdout, stderr) => {
      resolve({ code: error === null ? 0 : Number(error.code ?? 1), output: stdout + stderr })
    })
  })
}

function escapeRegExp(text: string): string {
  return text.replace(/[.*+?^${}()|[\]\\/]/g, '\\$&')
}
