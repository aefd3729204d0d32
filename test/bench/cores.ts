import { execFileSync } from 'node:child_process'
import { availableParallelism } from 'node:os'
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
