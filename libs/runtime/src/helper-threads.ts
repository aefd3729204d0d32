import { readdirSync, readFileSync } from 'node:fs'
import { constants, setPriority } from 'node:os'
import { join } from 'node:path'
import { setFlagsFromString } from 'node:v8'

/** V8's threads, most of whose work is collecting garbage. */
const HELPER = 'V8Worker'
/** Of helpers that run beside a busy main thread: about a tenth of its share (niceness, setpriority(2)). */
const NICENESS = 10
/** What the system says of a thread that has ended since it was listed. */
const GONE: readonly unknown[] = [-constants.errno.ENOENT, -constants.errno.ESRCH]

/**
 * Has the threads that collect garbage yield to the one that answers. Where a service has a core for itself, four of them would
 * take turns with it for a tenth of a second each time that the heap is marked, and every request in between would be late; where there
 * are idle cores, nothing changes. Collections of young objects, during which the main thread would wait for helpers that nobody lets run, it
 * does alone. Returns how many helpers there are: none where this system does not tell threads apart. `tasks` is where it does (proc(5)).
 */
export function calmHelperThreads(tasks = '/proc/self/task'): number {
  setFlagsFromString('--no-parallel-scavenge')
  return threads(tasks).filter((thread) => calm(tasks, thread)).length
}

function calm(tasks: string, thread: string): boolean {
  try {
    if (readFileSync(join(tasks, thread, 'comm'), 'utf8').trim() !== HELPER) return false
    // On Linux the priority of a thread is its own, and its number is a process's where a process is asked for.
    setPriority(Number(thread), NICENESS)
    return true
  } catch (error) {
    if (error instanceof Error && 'errno' in error && GONE.includes(error.errno)) return false
    throw error
  }
}

function threads(tasks: string): string[] {
  try {
    return readdirSync(tasks)
  } catch {
    // No Linux.
    return []
  }
}
