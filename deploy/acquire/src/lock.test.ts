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

/** Longer than taking over a lock takes. */
const WAIT_MS = 5_000

/** A process that does what `work` says with the lock. */
function locker(work: string) {
  const script = `
    import { appendFileSync } from 'node:fs'
    import { withLock } from ${JSON.stringify(join(import.meta.dirname, 'lock.mjs'))}
    ${work}`
  return spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: ['ignore', 'pipe', 'inherit'] })
}

test('of several visitors in several processes only one is inside at a time', async () => {
  const lock = JSON.stringify(join(folder, 'one-at-a-time'))
  const journal = JSON.stringify(join(folder, 'journal'))
  const visits = `
    const visit = () => withLock(${lock}, async () => {
      appendFileSync(${journal}, 'in ')
      await new Promise((resolve) => setImmediate(resolve))
      appendFileSync(${journal}, 'out ')
    })
    await Promise.all([visit(), visit(), visit()])`
  const visitors = [locker(visits), locker(visits)]
  const codes = await Promise.all(visitors.map(async (child) => (await once(child, 'exit'))[0]))
  assert.deepEqual(codes, [0, 0])
  assert.equal(await readFile(join(folder, 'journal'), 'utf8'), 'in out '.repeat(6))
})

test('the lock of a killed process is taken over', async () => {
  const path = join(folder, 'killed')
  const hold = "console.log('inside'); setInterval(() => {}, 1000); await new Promise(() => {})"
  const holder = locker(`await withLock(${JSON.stringify(path)}, async () => { ${hold} })`)
  await once(holder.stdout, 'data')
  holder.kill('SIGKILL')
  await once(holder, 'exit')
  const signal = AbortSignal.timeout(WAIT_MS)
  assert.equal(await withLock(path, async () => 'taken', { signal }), 'taken')
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
