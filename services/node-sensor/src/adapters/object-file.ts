import { existsSync, readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { compile, probeSupport } from '@tollward/libbpf'

const BPF_DIRECTORY = join(import.meta.dirname, '../../../../bpf')
const OBJECT = 'build/sensor.bpf.o'
const SOURCE = 'sensor.bpf.c'
const INCLUDE = 'include'

/** What this machine lacks to run the sensor, each with what to do about it. `configured` is the setting `bpfObject`. */
export async function whatIsMissing(configured: string | undefined): Promise<readonly string[]> {
  const { missingToLoad, missingToCompile } = await probeSupport()
  if (configured !== undefined)
    return existsSync(configured) ? missingToLoad : [...missingToLoad, `the file ${configured} (TOLLWARD_BPF_OBJECT)`]
  return isStale() ? [...missingToLoad, ...missingToCompile] : missingToLoad
}

/** Path of the compiled programs, made first if that is needed. */
export async function objectFile(configured: string | undefined): Promise<string> {
  if (configured !== undefined) return configured
  return isStale() ? compile(BPF_DIRECTORY, OBJECT) : join(BPF_DIRECTORY, OBJECT)
}

/** Looked at here and not by make, so that a machine without compiler runs what was compiled elsewhere. */
function isStale(): boolean {
  const object = join(BPF_DIRECTORY, OBJECT)
  if (!existsSync(object)) return true
  const madeMs = statSync(object).mtimeMs
  const headers = readdirSync(join(BPF_DIRECTORY, INCLUDE)).map((name) => join(INCLUDE, name))
  // As the Makefile says: other programs beside this one are none of its sources.
  return [SOURCE, 'Makefile', ...headers].some((name) => statSync(join(BPF_DIRECTORY, name)).mtimeMs > madeMs)
}
