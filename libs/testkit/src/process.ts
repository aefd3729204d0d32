import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { createInterface } from 'node:readline'
import type { Readable } from 'node:stream'

/** One run of a program, as a process or in a container. */
export interface ProgramRun {
  /** What it wrote to standard output and standard error, line by line. */
  readonly lines: readonly string[]
  /** Settles when it has ended and all its output is read: its exit code, or the signal that ended it. */
  readonly exited: Promise<number | NodeJS.Signals>
  /** Ends it in an orderly way: SIGTERM, after ten seconds (or as its options say) SIGKILL. Settles when it has ended. */
  stop(): Promise<number | NodeJS.Signals>
  /** Sends a signal, by default SIGKILL, and settles when the process has ended. */
  kill(signal?: NodeJS.Signals): Promise<number | NodeJS.Signals>
}

/** A program that a test started as a process. */
export interface RunningProcess extends ProgramRun, AsyncDisposable {
  readonly pid: number
  /** The first line, past or to come, that matches. Throws if it does not come, or if the process ends before. */
  line(pattern: RegExp, timeoutMs?: number): Promise<string>
}

/** How to start a program; `env` is all of its environment, by default the test's own. */
export interface ProcessOptions {
  env?: NodeJS.ProcessEnv
  cwd?: string
  /** How long it may take to end in an orderly way, before it is killed; default 10 s. */
  stopTimeoutMs?: number
  /** Its output is added to these; for a program that runs several times in one test. */
  lines?: string[]
}

/** How long a program may take to end in an orderly way. */
export const STOP_TIMEOUT_MS = 10_000
const LINE_TIMEOUT_MS = 10_000
/** Lines that an error repeats: enough to see why a program ended. */
const ERROR_LINES = 20

const SETPRIV = ['/usr/bin/setpriv', '/bin/setpriv'].find(existsSync)

/** Starts a program that ends with the test: at the end of its scope, and on Linux also when the test itself is killed. */
export async function startProcess(
  command: string,
  args: readonly string[],
  { env = process.env, cwd, lines = [], stopTimeoutMs = STOP_TIMEOUT_MS }: ProcessOptions = {},
): Promise<RunningProcess> {
  const bound = SETPRIV === undefined ? [command, ...args] : [SETPRIV, '--pdeathsig', 'KILL', command, ...args]
  const child = spawn(bound[0] ?? command, bound.slice(1), { env, cwd, stdio: ['ignore', 'pipe', 'pipe'] })
  await once(child, 'spawn')
  return observed(child, command, lines, stopTimeoutMs)
}

function observed(child: ChildProcess, command: string, lines: string[], stopTimeoutMs: number): RunningProcess {
  const onLine = new Set<(line: string) => void>()
  for (const stream of [child.stdout, child.stderr]) {
    if (stream !== null) readLines(stream, lines, onLine)
  }
  const exited = once(child, 'close').then(([code, signal]): number | NodeJS.Signals => code ?? signal)
  const kill = async (signal: NodeJS.Signals = 'SIGKILL') => {
    child.kill(signal)
    return await exited
  }
  const stop = async () => {
    const timer = setTimeout(() => child.kill('SIGKILL'), stopTimeoutMs)
    try {
      return await kill('SIGTERM')
    } finally {
      clearTimeout(timer)
    }
  }
  const line = async (pattern: RegExp, timeoutMs = LINE_TIMEOUT_MS) => {
    const past = lines.find((said) => pattern.test(said))
    if (past !== undefined) return past
    const { promise, resolve, reject } = Promise.withResolvers<string>()
    const listener = (said: string) => pattern.test(said) && resolve(said)
    const failed = (why: string) => reject(new Error(`${command} ${why} without a line ${pattern}:\n${tail(lines)}`))
    const timer = setTimeout(() => failed(`ran for ${timeoutMs} ms`), timeoutMs)
    exited.then((how) => failed(`ended (${how})`))
    onLine.add(listener)
    try {
      return await promise
    } finally {
      clearTimeout(timer)
      onLine.delete(listener)
    }
  }
  return {
    pid: child.pid ?? 0,
    lines,
    exited,
    stop,
    kill,
    line,
    [Symbol.asyncDispose]: async () => void (await stop()),
  }
}

/** Adds what comes from `stream` to `lines`. */
export function readLines(stream: Readable, lines: string[], onLine: ReadonlySet<(line: string) => void>): void {
  createInterface({ input: stream }).on('line', (line) => {
    lines.push(line)
    for (const listener of onLine) listener(line)
  })
}

/** The end of a program's output, for error messages. */
function tail(lines: readonly string[]): string {
  return lines.slice(-ERROR_LINES).join('\n')
}

/** Runs `work`, and throws as soon as the process ends meanwhile; `work` learns of it by its signal. */
export async function whileRunning<T>(
  running: ProgramRun,
  what: string,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const ended = new AbortController()
  const failure = running.exited.then((how): never => {
    ended.abort()
    throw new Error(`${what} ended (${how}):\n${tail(running.lines)}`)
  })
  return await Promise.race([work(ended.signal), failure])
}
