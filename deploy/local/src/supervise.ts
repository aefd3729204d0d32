import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createWriteStream, existsSync, mkdirSync, renameSync, statSync, type WriteStream } from 'node:fs'
import { dirname } from 'node:path'

/** A program that the stack keeps running. */
export interface Program {
  readonly name: string
  readonly command: string
  readonly args: readonly string[]
  /** All of its environment. */
  readonly env: Readonly<Record<string, string>>
  readonly logFile: string
  /** Asked while it starts and from then on; false, or a throw: not ready. */
  readonly isReady: () => Promise<boolean>
}

export type ProgramState = 'starting' | 'ready' | 'not ready' | 'restarting' | 'stopped'

/** Where a program stands; what a display shows. */
export interface ProgramStatus {
  readonly name: string
  readonly state: ProgramState
  readonly restarts: number
  /** How the last run ended, if it was not asked to. */
  readonly lastEnd?: string
}

/** A program that dies comes back after these delays; a run of STABLE_MS starts them again from the first. */
const RESTART_DELAYS_MS = [100, 250, 500, 1000, 2000, 5000] as const
const STABLE_MS = 60_000

/** A program that does not end by itself within this time is killed. */
const STOP_MAX_MS = 12_000

const PROBE_STARTING_MS = 100
const PROBE_RUNNING_MS = 1000

/** A log file that grew beyond this is moved aside when its program starts; one old one is kept. */
const LOG_MAX_BYTES = 20 * 1024 * 1024

/** Keeps one program running until stopped. */
export class Supervised {
  readonly #program: Program
  readonly #onChange: (status: ProgramStatus) => void
  readonly #stopping = new AbortController()
  #child: ChildProcess | undefined
  #state: ProgramState = 'starting'
  #restarts = 0
  #lastEnd: string | undefined
  #running: Promise<void> = Promise.resolve()
  readonly #readyWaiters = new Set<() => void>()

  constructor(program: Program, onChange: (status: ProgramStatus) => void) {
    this.#program = program
    this.#onChange = onChange
  }

  get status(): ProgramStatus {
    const status = { name: this.#program.name, state: this.#state, restarts: this.#restarts }
    return this.#lastEnd === undefined ? status : { ...status, lastEnd: this.#lastEnd }
  }

  get pid(): number | undefined {
    return this.#child?.pid
  }

  /** Starts it. Resolves when it is ready for the first time; rejects if it is not within the time, with the end of the story. */
  async start(timeoutMs: number): Promise<void> {
    this.#running = this.#keep()
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    this.#readyWaiters.add(resolve)
    const timer = setTimeout(() => reject(new Error(this.#whyNotReady(timeoutMs))), timeoutMs)
    const onStop = () => reject(new Error(`${this.#program.name} was stopped while starting`))
    this.#stopping.signal.addEventListener('abort', onStop, { once: true })
    try {
      await promise
    } finally {
      clearTimeout(timer)
      this.#readyWaiters.delete(resolve)
    }
  }

  /** Ends it: SIGTERM, later SIGKILL. Resolves when it has ended. */
  async stop(): Promise<void> {
    this.#stopping.abort()
    const child = this.#child
    if (child) {
      child.kill('SIGTERM')
      const killer = setTimeout(() => child.kill('SIGKILL'), STOP_MAX_MS)
      await this.#running
      clearTimeout(killer)
    }
    this.#set('stopped')
  }

  async #keep(): Promise<void> {
    let delayIndex = 0
    while (!this.#stopping.signal.aborted) {
      const startedMs = performance.now()
      this.#lastEnd = await this.#runOnce()
      if (this.#stopping.signal.aborted) return
      if (performance.now() - startedMs > STABLE_MS) delayIndex = 0
      const delayMs = RESTART_DELAYS_MS[Math.min(delayIndex, RESTART_DELAYS_MS.length - 1)] ?? 0
      delayIndex += 1
      this.#restarts += 1
      this.#set('restarting')
      await this.#pause(delayMs)
    }
  }

  async #runOnce(): Promise<string> {
    const { command, args, env, logFile } = this.#program
    const log = openLog(logFile)
    // Its own process group: Ctrl-C on the terminal reaches the supervisor alone, which ends the programs in order.
    const child = spawn(command, args, { env: { ...env }, stdio: ['ignore', 'pipe', 'pipe'], detached: true })
    this.#child = child
    child.stdout.pipe(log, { end: false })
    child.stderr.pipe(log, { end: false })
    const ended = new AbortController()
    const probing = this.#probe(ended.signal)
    try {
      const [code, signal] = (await once(child, 'close')) as [number | null, string | null]
      return signal ?? `exit code ${code}`
    } catch (error) {
      return String(error)
    } finally {
      this.#child = undefined
      ended.abort()
      await probing
      log.end()
    }
  }

  async #probe(ended: AbortSignal): Promise<void> {
    this.#set('starting')
    while (!ended.aborted && !this.#stopping.signal.aborted) {
      const ready = await this.#program.isReady().catch(() => false)
      if (ended.aborted) return
      if (ready) {
        this.#set('ready')
        for (const resolve of this.#readyWaiters) resolve()
      } else if (this.#state === 'ready') this.#set('not ready')
      await this.#pause(this.#state === 'ready' ? PROBE_RUNNING_MS : PROBE_STARTING_MS, ended)
    }
  }

  #pause(milliseconds: number, ended?: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const done = () => {
        clearTimeout(timer)
        resolve()
      }
      const timer = setTimeout(done, milliseconds)
      ended?.addEventListener('abort', done, { once: true })
      if (this.#stopping.signal.aborted) done()
      else this.#stopping.signal.addEventListener('abort', done, { once: true })
    })
  }

  #set(state: ProgramState): void {
    if (this.#state === state) return
    this.#state = state
    this.#onChange(this.status)
  }

  #whyNotReady(timeoutMs: number): string {
    const { name, logFile } = this.#program
    const end = this.#lastEnd === undefined ? '' : `; its last run ended with ${this.#lastEnd}`
    return `${name} was not ready after ${timeoutMs / 1000} s${end}. Its log: ${logFile}`
  }
}

function openLog(path: string): WriteStream {
  mkdirSync(dirname(path), { recursive: true })
  if (existsSync(path) && statSync(path).size > LOG_MAX_BYTES) renameSync(path, `${path}.old`)
  return createWriteStream(path, { flags: 'a', mode: 0o600 })
}
