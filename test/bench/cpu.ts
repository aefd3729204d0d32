import { execFileSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import type { Identity } from '../scenario/identity.ts'

/** Clock ticks a second in /proc/<pid>/stat (Linux has 100 everywhere we run). */
const TICKS_PER_SECOND = Number(execFileSync('getconf', ['CLK_TCK'], { encoding: 'utf8' }))
/** Fields of /proc/<pid>/stat behind the name of the program, counted from 0. */
const [USER_TIME, SYSTEM_TIME] = [11, 12]

/** CPU time that a process has used so far, in milliseconds. */
export function cpuMs(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return ((Number(fields[USER_TIME]) + Number(fields[SYSTEM_TIME])) * 1000) / TICKS_PER_SECOND
}

/** The nats-server that has this store, by the name "nats-server"; nothing where it runs in a container. */
export function natsProcess({ nats }: Pick<Identity, 'nats'>): Record<string, number> {
  const pid = pidWith(nats.storeDir)
  return pid === undefined ? {} : { 'nats-server': pid }
}

/** The process whose command line holds this text, such as a directory that only it was told of; undefined: there is none. */
function pidWith(text: string): number | undefined {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .find((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(text)
      } catch {
        // It ended while we looked.
        return false
      }
    })
}
