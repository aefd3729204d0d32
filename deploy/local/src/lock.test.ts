import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { withLock } from './lock.mjs'

const folder = await mkdtemp(join(tmpdir(), 'tollward-lock-'))
after(() => rm(folder, { recursive: true }))

/** A process that takes the lock and then does what `work` says. */
function locker(path: string, work: string) {
  const script = `
    import { appendFileSync, readFileSync } from 'node:fs'
    import { withLock } from ${JSON.stringify(join(import.meta.dirname, 'lock.mjs'))}
    await withLock(${JSON.stringify(path)}, async () => { ${work} })`
  return spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: ['ignore', 'pipe', 'inherit'] })
}

test('of several processes only one is inside at a time', async () => {
  const journal = JSON.stringify(join(folder, 'journal'))
  const visit = `
    appendFileSync(${journal}, 'in ')
    await new Promise((resolve) => setImmediate(resolve))
    appendFileSync(${journal}, 'out ')`
  const lockers = Array.from({ length: 6 }, () => locker(join(folder, 'one-at-a-time'), visit))
  const codes = await Promise.all(lockers.map(async (child) => (await once(child, 'exit'))[0]))
  assert.deepEqual(codes, [0, 0, 0, 0, 0, 0])
  assert.equal(await readFile(join(folder, 'journal'), 'utf8'), 'in out '.repeat(6))
})

test('the lock of a killed process is taken over', async () => {
  const path = join(folder, 'killed')
  const holder = locker(path, "console.log('inside'); setInterval(() => {}, 1000); await new Promise(() => {})")
  await once(holder.stdout, 'data')
  holder.kill('SIGKILL')
  await once(holder, 'exit')
  assert.equal(await withLock(path, async () => 'taken'), 'taken')
})

test('who waits is told for whom, and a signal ends the waiting', async () => {
  const path = join(folder, 'waiting')
  const told: number[] = []
  const stop = new AbortController()
  await withLock(path, async () => {
    const onWait = (holder: number) => {
      told.push(holder)
      stop.abort()
    }
    await assert.rejects(
      withLock(path, async () => 'never', { onWait, signal: stop.signal }),
      { name: 'AbortError' },
    )
  })
  assert.deepEqual(told, [process.pid])
})

test('the lock is free again after work that threw', async () => {
  const path = join(folder, 'threw')
  await assert.rejects(
    withLock(path, () => Promise.reject(new Error('no'))),
    /no/,
  )
  assert.equal(await withLock(path, async () => 'free'), 'free')
})
