import { resolve } from 'node:path'
import { eventually } from './eventually.ts'
import { type ProgramRun, type RunningProcess, startProcess, whileRunning } from './process.ts'

/** One of Tollward's services, as a process of its own. */
export interface Service extends AsyncDisposable {
  readonly name: string
  /** Of the current run. */
  readonly pid: number
  /** Base of `/metrics`, `/healthz/live` and `/healthz/ready`. */
  readonly healthUrl: string
  /** The log of all its runs, a line of JSON each. */
  readonly lines: readonly string[]
  /** Settles when the current run has ended. */
  readonly exited: ProgramRun['exited']
  /** The first line, of earlier runs too or to come from this one, that matches; see RunningProcess. */
  line(pattern: RegExp, timeoutMs?: number): Promise<string>
  /** Ends it in an orderly way, and returns how it ended: 0 as it should. */
  stop(): Promise<number | NodeJS.Signals>
  /** Sends a signal, by default SIGKILL, and settles when it has ended. */
  kill(signal?: NodeJS.Signals): Promise<number | NodeJS.Signals>
  /** Starts it again once it has ended, by default with the same environment, and waits until it is ready. */
  start(env?: NodeJS.ProcessEnv): Promise<void>
}

const SERVICES = resolve(import.meta.dirname, '../../../services')
const READY_TIMEOUT_MS = 20_000
const PROBE_TIMEOUT_MS = 1_000

/**
 * Starts `services/<name>` with exactly the given environment, which must hold TOLLWARD_HEALTH_PORT, and waits until it says
 * that it is ready. If it ends before, the error holds its exit code and the end of its log.
 */
export function startService(
  name: string,
  env: NodeJS.ProcessEnv,
  { readyTimeoutMs = READY_TIMEOUT_MS } = {},
): Promise<Service> {
  return startProgram(name, resolve(SERVICES, name, 'src/main.ts'), env, readyTimeoutMs)
}

/** Starts any program that keeps the services' contract of health and signals. */
export async function startProgram(
  name: string,
  main: string,
  env: NodeJS.ProcessEnv,
  readyTimeoutMs = READY_TIMEOUT_MS,
): Promise<Service> {
  const lines: string[] = []
  let running = false
  const startRunning = async (environment: NodeJS.ProcessEnv) => {
    const started = await startRun(name, main, environment, lines, readyTimeoutMs)
    running = true
    void started.exited.then(() => {
      running = false
    })
    return started
  }
  let run = await startRunning(env)
  return {
    name,
    get pid() {
      return run.pid
    },
    healthUrl: healthUrl(env),
    lines,
    get exited() {
      return run.exited
    },
    line: (pattern, timeoutMs) => run.line(pattern, timeoutMs),
    stop: () => run.stop(),
    kill: (signal) => run.kill(signal),
    start: async (changed = env) => {
      if (running) throw new Error(`${name} runs already`)
      run = await startRunning(changed)
    },
    [Symbol.asyncDispose]: () => run[Symbol.asyncDispose](),
  }
}

async function startRun(
  name: string,
  main: string,
  env: NodeJS.ProcessEnv,
  lines: string[],
  timeoutMs: number,
): Promise<RunningProcess> {
  const ready = `${healthUrl(env)}/healthz/ready`
  await using stack = new AsyncDisposableStack()
  const run = stack.use(await startProcess(process.execPath, [main], { env, lines }))
  const answersReady = async () => {
    const response = await fetch(ready, { signal: AbortSignal.timeout(PROBE_TIMEOUT_MS) })
    const body = await response.text()
    return response.ok ? true : Promise.reject(new Error(`${response.status} ${body}`))
  }
  await whileRunning(run, name, (signal) => eventually(answersReady, { what: `${name} is ready`, timeoutMs, signal }))
  stack.move()
  return run
}

function healthUrl(env: NodeJS.ProcessEnv): string {
  const port = env.TOLLWARD_HEALTH_PORT
  if (port === undefined) throw new Error('the environment of a service must hold TOLLWARD_HEALTH_PORT')
  return `http://127.0.0.1:${port}`
}
