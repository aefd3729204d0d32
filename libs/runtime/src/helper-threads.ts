import { readdirSync, readFileSync } from 'node:fs'
import { setPriority } from 'node:os'

/** V8's threads, most of whose work is collecting garbage. */
const HELPER = 'V8Worker'
/** Of helpers that run beside a busy main thread: about a tenth of its share (niceness, setpriority(2)). */
const NICENESS = 10

/**
 * Has the threads that collect garbage yield to the one that answers. Where a service has a core for itself, four of them would
 * take turns with it for a tenth of a second each time that the heap is marked, and every request in between would be late; where there
 * are idle cores, nothing changes. Returns how many there are: none where this system does not tell threads apart.
 */
export function calmHelperThreads(): number {
  let calmed = 0
  for (const thread of threads()) {
    if (readFileSync(`/proc/self/task/${thread}/comm`, 'utf8').trim() !== HELPER) continue
    // On Linux the priority of a thread is its own, and its number is a process's where a process is asked for.
    setPriority(Number(thread), NICENESS)
    calmed += 1
  }
  return calmed
}

function threads(): string[] {
  try {
    return readdirSync('/proc/self/task')
  } catch {
    // No Linux.
    return []
  }
}
