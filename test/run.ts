// npm test: every check and every test, after getting what they need. Arguments: parts of file names, to run only those.
import { globSync } from 'node:fs'
import { join, relative, resolve } from 'node:path'
import { run } from 'node:test'
import { spec } from 'node:test/reporters'
import { pathToFileURL } from 'node:url'
import {
  acquireBitcoind,
  acquireCaddy,
  acquireEnvoy,
  acquireGo,
  acquireHaproxy,
  acquireNatsServer,
  acquireNginx,
  acquireTraefik,
  ensureSystemPackages,
  findOnPath,
} from '@tollward/acquire'
import { ROOT } from './checks/copy.ts'
import { CHECKS } from './checks/list.ts'
import { runCheck } from './checks/run-check.ts'
import { addTally, emptyTally, type Tally, tallyLine } from './tally.ts'

/** Test files at once: as many as have a core each on a small machine. More of them only slow each other's servers down. */
const CONCURRENCY = 2

/** Tests that say how fast something comes back, or keep a whole stack busy: beside others they would measure those. */
const ALONE = ['test/e2e/faults.test.ts', 'test/conformance/oauth-replicas.test.ts']

/** When more files fail, something is broken: running them again would only take time. */
const SECOND_RUNS_MAX = 5

/** A test that hangs fails instead of holding everything up. */
const TEST_TIMEOUT_MS = 300_000

const SYSTEM_PACKAGES = [
  'clang',
  'clang-format',
  'libbpf-dev',
  'libbpf1',
  'make',
  'iproute2',
  'nftables',
  'android-libboringssl',
  'apparmor',
  'fakeroot',
  'libarchive-tools',
  'makepkg',
  'pacman-package-manager',
  'zstd',
  'systemd',
  'curl',
  'chromium',
  'python3-venv',
  'tshark',
  'wget',
]

const tally = emptyTally()
const wanted = process.argv.slice(2)

await getTools()
if (wanted.length === 0) await check(tally)
await test(tally)
process.stdout.write(`\n${tallyLine(tally)}\n`)
const unwantedSkips = process.env.TOLLWARD_REQUIRE === 'all' ? tally.skipped : 0
process.exitCode = tally.failed + unwantedSkips === 0 && tally.passed > 0 ? 0 : 1

/** What can't be had is no failure here: the tests that need it skip by name, or fail where everything is required. */
async function getTools(): Promise<void> {
  const progress = (line: string) => process.stdout.write(`${line}\n`)
  const { advice } = await ensureSystemPackages(SYSTEM_PACKAGES, { progress })
  if (advice !== '') progress(advice)
  const tools = [
    acquireNatsServer,
    acquireBitcoind,
    acquireEnvoy,
    acquireGo,
    acquireNginx,
    acquireCaddy,
    acquireHaproxy,
    acquireTraefik,
  ]
  for (const acquire of tools) {
    await acquire({ progress }).catch((error: Error) => progress(error.message))
  }
}

async function check(tally: Tally): Promise<void> {
  for (const each of CHECKS) {
    if (each.needs && (await findOnPath(each.needs)) === undefined) {
      const required = process.env.TOLLWARD_REQUIRE === 'all'
      tally[required ? 'failed' : 'skipped'] += 1
      process.stdout.write(`${required ? '✖' : '﹣'} ${each.name} # missing: ${each.needs}\n`)
      continue
    }
    const { passed, output } = runCheck(each, ROOT)
    tally[passed ? 'passed' : 'failed'] += 1
    process.stdout.write(`${passed ? '✔' : '✖'} ${each.name}\n${passed ? '' : output}`)
  }
}

/**
 * Files that fail get a second run with nothing beside them: tests of real servers share two cores with each other, and one that waits
 * for a deadline may have waited for its neighbours. What a broken guarantee makes fail, fails then too.
 */
async function test(tally: Tally): Promise<void> {
  const files = globSync('{libs,services,deploy,test,bpf}/**/*.test.ts', { cwd: ROOT, exclude: ['**/node_modules/**'] })
    .filter((file) => wanted.length === 0 || wanted.some((part) => file.includes(part)))
    .sort()
  const alone = files.filter((file) => ALONE.includes(file))
  if (wanted.length === 0 && alone.length < ALONE.length) throw new Error('a test to be run alone is not there')
  const beside = files.filter((file) => !alone.includes(file))
  const results = new Map([...(await testAtOnce(beside, CONCURRENCY)), ...(await testAtOnce(alone, 1))])
  const failed = [...results].flatMap(([file, { failed: count }]) => (count > 0 ? [file] : []))
  if (failed.length > 0 && failed.length <= SECOND_RUNS_MAX) {
    process.stdout.write(`\nonce more, with nothing beside them: ${failed.join(', ')}\n`)
    for (const [file, result] of await testAtOnce(failed, 1)) results.set(file, result)
  }
  for (const result of results.values()) addTally(tally, result)
}

/** Runs test files, and gives what came of each. */
async function testAtOnce(files: string[], concurrency: number): Promise<Map<string, Tally>> {
  const results = new Map(files.map((file) => [file, emptyTally()]))
  if (files.length === 0) return results
  const stream = run({
    files,
    cwd: ROOT,
    concurrency,
    timeout: TEST_TIMEOUT_MS,
    execArgv: ['--test-force-exit', '--import', pathToFileURL(join(import.meta.dirname, 'whole-output.ts')).href],
  })
  const told = new Set<string>()
  // What does not say of which file it is counts for the first one, so that nothing is lost.
  const resultOf = (file = '') => results.get(relative(ROOT, resolve(ROOT, file))) ?? results.values().next().value
  const count = (file: string | undefined, outcome: keyof Tally) => {
    const result = resultOf(file)
    if (result) result[outcome] += 1
  }
  stream.on('test:summary', ({ file }) => file !== undefined && told.add(relative(ROOT, file)))
  stream.on('test:pass', ({ file, details, skip }) => {
    if (details.type !== 'suite') count(file, skip === undefined || skip === false ? 'passed' : 'skipped')
  })
  stream.on('test:fail', ({ file, details }) => {
    if (details.type !== 'suite') count(file, 'failed')
  })
  await new Promise<void>((ended, failed) => {
    stream.compose(spec).on('error', failed).on('end', ended).pipe(process.stdout, { end: false })
  })
  for (const file of files.filter((each) => !told.has(each))) {
    count(file, 'failed')
    process.stdout.write(`✖ ${file} did not tell all of its results\n`)
  }
  return results
}
