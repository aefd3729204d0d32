import { readdirSync, readFileSync } from 'node:fs'

/**
 * The environment variable by which every program of a stack is known again after its supervisor was killed. Its value is the
 * stack's state directory.
 */
export const STACK_MARK = 'LOCAL_STACK'

const END_MAX_MS = 10_000
const LOOK_AGAIN_MS = 50

/**
 * Ends what an earlier supervisor of this stack left running when it was killed: a killed supervisor ends nothing, so that
 * traffic goes on. Returns how many programs there were.
 */
export async function endLeftovers(state: string): Promise<number> {
  const found = marked(state)
  for (const pid of found) signal(pid, 'SIGTERM')
  const deadline = performance.now() + END_MAX_MS
  while (marked(state).length > 0) {
    if (performance.now() > deadline) for (const pid of marked(state)) signal(pid, 'SIGKILL')
    // Nothing tells of the end of a process that is not a child.
    await new Promise((resolve) => setTimeout(resolve, LOOK_AGAIN_MS))
  }
  return found.length
}

function marked(state: string): number[] {
  return processIds().filter((pid) => pid !== process.pid && environmentOf(pid).includes(`${STACK_MARK}=${state}`))
}

function processIds(): number[] {
  try {
    return readdirSync('/proc')
      .filter((name) => /^\d+$/.test(name))
      .map(Number)
  } catch {
    // No /proc on this system: then nothing can be known again.
    return []
  }
}

function environmentOf(pid: number): string[] {
  try {
    return readFileSync(`/proc/${pid}/environ`, 'utf8').split('\0')
  } catch {
    // Ended meanwhile, or another user's.
    return []
  }
}

function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}
