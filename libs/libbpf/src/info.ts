import { closeSync, readFileSync } from 'node:fs'
import { check, libbpf } from './native.ts'

/** BPF_STATS_RUN_TIME of <linux/bpf.h>. */
const RUN_TIME = 0

/** What a program did while the kernel counted it, and what it takes of memory. */
export interface ProgramStats {
  /** As <linux/bpf.h> numbers them; 6 is XDP. */
  readonly type: number
  /** Only of the times in which runs were counted: see countRuns. */
  readonly runs: bigint
  readonly runNs: bigint
  /** Runs that were left out because the program ran already on that CPU. */
  readonly missed: bigint
  readonly bytes: number
}

/** What the kernel says of a program, by an open descriptor. */
export function programStats({ fd }: { readonly fd: number }): ProgramStats {
  const info = descriptorInfo(fd)
  return {
    type: Number(info.get('prog_type') ?? 0),
    runs: BigInt(info.get('run_cnt') ?? 0),
    runNs: BigInt(info.get('run_time_ns') ?? 0),
    missed: BigInt(info.get('recursion_misses') ?? 0),
    bytes: Number(info.get('memlock') ?? 0),
  }
}

/** Bytes of memory that a map takes, as the kernel accounts them; older kernels know the most that it may come to. */
export function mapBytes({ fd }: { readonly fd: number }): number {
  return Number(descriptorInfo(fd).get('memlock') ?? 0)
}

/**
 * Lets the kernel count the runs of all programs and their time until disposed, or until the process ends, whichever way: some
 * 20 ns a run. Whoever measures for a short while learns the average all the same.
 */
export function countRuns(): Disposable {
  const fd = check('bpf_enable_stats', libbpf().bpf_enable_stats(RUN_TIME))
  return { [Symbol.dispose]: () => closeSync(fd) }
}

/** The fields that the kernel shows of an open descriptor. */
function descriptorInfo(fd: number): Map<string, string> {
  const lines = readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8').split('\n')
  return new Map(
    lines.flatMap((line) => {
      const [name, value] = line.split(':')
      return name && value !== undefined ? [[name, value.trim()] as const] : []
    }),
  )
}
