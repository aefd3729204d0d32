import { execFileSync } from 'node:child_process'
import { availableParallelism, constants, setPriority } from 'node:os'
import process from 'node:process'

/** Where the servers run that are measured; the generator of load runs on the first, which also has the machine's own work to do. */
export const SERVER_CORE = 1
export const GENERATOR_CORE = 0

/** Before anything is bound: a bound process counts only the cores that it is bound to. */
const CORES = availableParallelism()

/**
 * Binds this process, and so every program that it starts from now on, to one core. Where there is only one, nothing can be
 * kept apart.
 */
export function moveTo(core: number): void {
  if (core >= CORES) return
  execFileSync('taskset', ['--all-tasks', '--cpu-list', '--pid', String(core), String(process.pid)])
}

/**
 * Lets this process go before others on its core, so that who measures does not wait for whom it measures. Programs that it starts
 * from now on inherit it. Only root may: false for anybody else, who measures their own waiting too.
 */
export function goFirst(): boolean {
  try {
    setPriority(constants.priority.PRIORITY_HIGHEST)
    return true
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ERR_SYSTEM_ERROR') return false
    throw error
  }
}
