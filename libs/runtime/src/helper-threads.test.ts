import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempDisposableSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { getPriority, tmpdir } from 'node:os'
import { join } from 'node:path'
import process from 'node:process'
import { test } from 'node:test'
import { calmHelperThreads } from './helper-threads.ts'

test('threads that collect garbage yield to the one that answers, and no other thread does', () => {
  const before = getPriority(process.pid)
  const calmed = calmHelperThreads()
  const helpers = readdirSync('/proc/self/task').filter(
    (thread) => readFileSync(`/proc/self/task/${thread}/comm`, 'utf8').trim() === 'V8Worker',
  )
  assert.ok(calmed > 0)
  assert.equal(calmed, helpers.length)
  for (const thread of helpers) assert.equal(getPriority(Number(thread)), 10)
  assert.equal(getPriority(process.pid), before)
})

test('a thread that ends while it is looked at is passed over, and any other failure is not', () => {
  using tasks = mkdtempDisposableSync(join(tmpdir(), 'tollward-threads-'))
  const thread = (number: number) => {
    const folder = join(tasks.path, String(number))
    mkdirSync(folder)
    return join(folder, 'comm')
  }
  // Gone before its name was read, and before its priority was set: no thread has so large a number.
  thread(2 ** 30)
  writeFileSync(thread(2 ** 30 + 1), 'V8Worker\n')
  assert.equal(calmHelperThreads(tasks.path), 0)
  mkdirSync(thread(2 ** 30 + 2))
  assert.throws(() => calmHelperThreads(tasks.path), { code: 'EISDIR' })
})

test('a collection of young objects waits for no helper', () => {
  // V8 says what each thread did, and how many collections there were.
  const program = `
import { setFlagsFromString } from 'node:v8'
import { calmHelperThreads } from '${import.meta.resolve('./helper-threads.ts')}'
calmHelperThreads()
for (const flag of ['--trace-parallel-scavenge', '--trace-gc']) setFlagsFromString(flag)
const kept = []
for (let index = 0; index < 300_000; index++) kept.push({ text: 'message ' + index, list: [index] })
`
  const said = execFileSync(process.execPath, ['--input-type=module', '--eval', program], { encoding: 'utf8' })
  const times = (pattern: RegExp) => said.match(pattern)?.length ?? 0
  assert.ok(times(/ms: Scavenge /g) > 0)
  assert.equal(times(/scavenge\[0x/g), times(/ms: Scavenge /g), said)
})
