import { cpuMs } from './cpu.ts'
import { type Load, load, type Target } from './http-load.ts'
import { median, percentile, rounded } from './latencies.ts'

/** One server, or one way to ask it, of several that are measured in turns. */
export interface Contender {
  readonly what: string
  /** Processes that do its work, by name. */
  readonly processes: Readonly<Record<string, number>>
  /** Called before each of its turns. */
  readonly target: () => Target | Promise<Target>
}

/** How long, and how often in turns: a slow moment of the machine hits all of them. */
export interface Effort {
  readonly connections: number
  readonly warmUpMs: number
  readonly turnMs: number
  readonly rounds: number
}

export const FULL: Effort = { connections: 32, warmUpMs: 1500, turnMs: 1500, rounds: 5 }
/** For tests: each way is gone once, and nothing is measured. */
export const GLANCE: Effort = { connections: 4, warmUpMs: 1, turnMs: 1, rounds: 1 }

/** One line of a contest's table. */
export interface ContestRow {
  readonly what: string
  readonly perSecond: number
  readonly p50Ms: number
  readonly p99Ms: number
  /** Of the first contender's throughput, in the same round. */
  readonly share: number
  /** CPU time of its processes for one answer, in microseconds: what is left of a comparison on a busy machine. */
  readonly cpuMicros: string
  /** CPU of the generator as a share of its core. */
  readonly generator: number
}

/** One turn, and the CPU time that each process used in it, in milliseconds. */
interface Turn extends Load {
  readonly cpuMs: Readonly<Record<string, number>>
}

/** Lets them take turns. Shares and rates are medians over the rounds. */
export async function contest(contenders: readonly Contender[], effort: Effort): Promise<ContestRow[]> {
  const rounds = contenders.map((): Turn[] => [])
  for (let round = 0; round < effort.rounds; round++) {
    for (const [index, contender] of contenders.entries()) {
      if (round === 0) await load(await contender.target(), effort.connections, effort.warmUpMs)
      rounds[index]?.push(await turn(contender, effort))
    }
  }
  return contenders.map(({ what }, index) => row(what, rounds[index] ?? [], rounds[0] ?? []))
}

async function turn({ target, processes }: Contender, { connections, turnMs }: Effort): Promise<Turn> {
  const asked = await target()
  const used = () => Object.entries(processes).map(([name, pid]) => [name, cpuMs(pid)] as const)
  const before = new Map(used())
  const measured = await load(asked, connections, turnMs)
  return { ...measured, cpuMs: Object.fromEntries(used().map(([name, ms]) => [name, ms - (before.get(name) ?? 0)])) }
}

function row(what: string, rounds: readonly Turn[], bareRounds: readonly Load[]): ContestRow {
  const latencies = rounds.flatMap(({ latenciesMs }) => latenciesMs)
  return {
    what,
    perSecond: Math.round(median(rounds.map(rate))),
    p50Ms: percentile(latencies, 0.5),
    p99Ms: percentile(latencies, 0.99),
    share: rounded(median(rounds.map((round, index) => rate(round) / rate(bareRounds[index] ?? round)))),
    cpuMicros: cpuMicros(rounds),
    generator: rounded(median(rounds.map(({ generatorShare }) => generatorShare))),
  }
}

function cpuMicros(rounds: readonly Turn[]): string {
  const answers = rounds.reduce((sum, { latenciesMs }) => sum + latenciesMs.length, 0)
  const names = Object.keys(rounds[0]?.cpuMs ?? {})
  const each = names.map((name) => ({ name, ms: rounds.reduce((sum, { cpuMs: used }) => sum + (used[name] ?? 0), 0) }))
  const micros = (ms: number) => Math.round((ms * 1000) / Math.max(1, answers))
  const parts = each.map(({ name, ms }) => `${name} ${micros(ms)}`).join(' + ')
  return names.length === 1 ? parts : `${parts} = ${micros(each.reduce((sum, { ms }) => sum + ms, 0))}`
}

/** Answers a second. */
function rate({ latenciesMs, durationMs }: Load): number {
  return (latenciesMs.length * 1000) / durationMs
}
