import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { getPriority } from 'node:os'
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
