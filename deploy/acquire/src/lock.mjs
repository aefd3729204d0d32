// Plain JavaScript, because bootstrap.mjs takes this lock on a Node that cannot run TypeScript.
import { link, mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { dirname } from 'node:path'

/** How often a waiting process looks whether the lock is free: nothing tells it across processes. */
const RETRY_MS = 100

let taken = 0

/**
 * Runs `work` while no other process on this machine holds the lock file at `path`.
 * The lock of a process that has died is taken over.
 *
 * @template T
 * @param {string} path the lock file; its folder is made if missing
 * @param {() => Promise<T>} work
 * @param {{ onWait?: (holder: number) => void, signal?: AbortSignal }} [options] `onWait` is called once, with the
 *   holder's process id, if the lock is not free at once; `signal` ends the waiting, not the work
 * @returns {Promise<T>}
 */
export async function withLock(path, work, { onWait, signal } = {}) {
  await mkdir(dirname(path), { recursive: true })
  const mine = `${path}.${process.pid}.${++taken}`
  await writeFile(mine, await processIdentity(process.pid))
  try {
    let told = false
    // A hard link appears whole or not at all, so a lock file always names its holder.
    while (!(await linked(mine, path))) {
      signal?.throwIfAborted()
      const holder = await contentOf(path)
      if (holder === undefined) continue
      if (await isAlive(holder)) {
        if (!told) onWait?.(Number.parseInt(holder, 10))
        told = true
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS))
      } else {
        await removeStale(path, holder, `${mine}.stale`)
      }
    }
    try {
      return await work()
    } finally {
      await rm(path, { force: true })
    }
  } finally {
    await rm(mine, { force: true })
  }
}

/** A process id alone may have been given to another process since, so Linux's start time goes with it. */
async function processIdentity(pid) {
  const stat = await contentOf(`/proc/${pid}/stat`)
  // The command name, in parentheses, may itself hold spaces; field 22 of the whole is the start time.
  const startTime = stat?.slice(stat.lastIndexOf(')') + 2).split(' ')[19]
  return `${pid} ${startTime ?? ''}\n`
}

async function isAlive(holder) {
  const pid = Number.parseInt(holder, 10)
  try {
    process.kill(pid, 0)
  } catch (error) {
    if (error.code === 'ESRCH') return false
    if (error.code !== 'EPERM') throw error
  }
  return (await processIdentity(pid)) === holder
}

/** Moves a dead holder's lock away; one that somebody took in the meantime is put back. */
async function removeStale(path, holder, aside) {
  try {
    await rename(path, aside)
  } catch (error) {
    if (error.code === 'ENOENT') return
    throw error
  }
  if ((await contentOf(aside)) !== holder) await linked(aside, path)
  await rm(aside, { force: true })
}

async function linked(from, to) {
  try {
    await link(from, to)
    return true
  } catch (error) {
    if (error.code === 'EEXIST') return false
    throw error
  }
}

async function contentOf(path) {
  try {
    return await readFile(path, 'utf8')
  } catch (error) {
    if (error.code === 'ENOENT' || error.code === 'ESRCH') return undefined
    throw error
  }
}
