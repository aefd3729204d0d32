import assert from 'node:assert/strict'
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
