import { existsSync, readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { compile, probeSupport } from '@tollward/libbpf'

const BPF_DIRECTORY = join(import.meta.dirname, '../../../../bpf')
const INCLUDE = 'include'

/** Sources of kernel programs, each compiled to an object of its own. */
export type ObjectName = 'sensor' | 'calls'

/** What this machine lacks to run the sensor, each with what to do about it. `configured` is the setting `bpfObject`. */
export async function whatIsMissing(configured: string | undefined): Promise<readonly string[]> {
  const { missingToLoad, missingToCompile } = await probeSupport()
  if (configured !== undefined)
    return existsSync(configured) ? missingToLoad : [...missingToLoad, `the file ${configured} (TOLLWARD_BPF_OBJECT)`]
  return isStale('sensor') ? [...missingToLoad, ...missingToCompile] : missingToLoad
}

/** Path of compiled programs, made first if that is needed. */
export async function objectFile(configured: string | undefined, name: ObjectName = 'sensor'): Promise<string> {
  if (configured !== undefined) return configured
  return isStale(name) ? compile(BPF_DIRECTORY, pathOf(name)) : join(BPF_DIRECTORY, pathOf(name))
}

function pathOf(name: ObjectName): string {
  return `build/${name}.bpf.o`
}

/** Looked at here and not by make, so that a machine without compiler runs what was compiled elsewhere. */
function isStale(name: ObjectName): boolean {
  const object = join(BPF_DIRECTORY, pathOf(name))
  if (!existsSync(object)) return true
  const madeMs = statSync(object).mtimeMs
  const headers = readdirSync(join(BPF_DIRECTORY, INCLUDE)).map((header) => join(INCLUDE, header))
  // As the Makefile says: other programs beside this one are none of its sources.
  return [`${name}.bpf.c`, 'Makefile', ...headers].some((file) => statSync(join(BPF_DIRECTORY, file)).mtimeMs > madeMs)
}
