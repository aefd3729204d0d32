import { execFile } from 'node:child_process'
import { constants } from 'node:fs'
import { access, mkdir, mkdtemp, readFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { delimiter, join, resolve } from 'node:path'
import { withLock } from './lock.mjs'

/** How to run something that was acquired: `command` with `args` before the caller's own arguments. */
export interface Tool {
  command: string
  args: readonly string[]
  version: string
  /** Where it came from, in words for people. */
  from: string
}

/** What every acquire function takes. */
export interface AcquireOptions {
  /** The repository; private copies go under its `.tollward/tools/`. */
  root?: string
  /** Path of a program that the user chose; nothing else is looked for then. */
  configured?: string
  /** Told, in one line each, what is going on. */
  progress?: (line: string) => void
}

/** Something could not be had. The message names each way that was tried, and what would help. */
export class AcquireError extends Error {
  override name = 'AcquireError'
}

/** Acquire options with nothing left open. */
export interface Acquisition {
  /** Folder of the private copies. */
  folder: string
  configured: string | undefined
  progress: (line: string) => void
}

/** How often a long step says that it goes on. */
const PROGRESS_INTERVAL_MS = 3_000
/** apt-get's simulation of an installation is the longest thing read back; it is well below this. */
const OUTPUT_BYTES_MAX = 16 * 1024 * 1024
/** Lines of a failed program's output that its error repeats: enough for apt's and pip's reasons. */
const ERROR_LINES = 5

const REPOSITORY = resolve(import.meta.dirname, '../../..')

export function acquisition({ root = REPOSITORY, configured, progress = () => {} }: AcquireOptions): Acquisition {
  return { folder: join(root, '.tollward/tools'), configured, progress }
}

/**
 * Runs a program to its end and returns its standard output.
 * Throws AcquireError with the last lines of its output if it cannot be started or fails.
 */
export function run(command: string, args: readonly string[], cwd?: string, env?: NodeJS.ProcessEnv): Promise<string> {
  return new Promise((succeed, fail) => {
    const options = {
      cwd,
      maxBuffer: OUTPUT_BYTES_MAX,
      env: { ...process.env, LC_ALL: 'C', DEBIAN_FRONTEND: 'noninteractive', ...env },
    }
    execFile(command, args, options, (error, stdout, stderr) => {
      if (error === null) return succeed(stdout)
      const said = `${stdout}\n${stderr}`.trim().split('\n').slice(-ERROR_LINES).join('\n')
      fail(new AcquireError(`${command} ${args[0] ?? ''} failed: ${said || error.message}`, { cause: error }))
    })
  })
}

/** Says what is being done, and again every few seconds until it is done. */
export async function reported<T>(progress: (line: string) => void, what: string, work: () => Promise<T>): Promise<T> {
  progress(what)
  const start = performance.now()
  const timer = setInterval(
    () => progress(`${what}: ${Math.round((performance.now() - start) / 1_000)} s so far`),
    PROGRESS_INTERVAL_MS,
  )
  try {
    return await work()
  } finally {
    clearInterval(timer)
  }
}

/** The full path of a program on the PATH, or undefined. */
export async function findOnPath(name: string): Promise<string | undefined> {
  // sbin is missing from an ordinary user's PATH on Debian, where nats-server and ip live.
  const folders = [...(process.env.PATH ?? '').split(delimiter), '/usr/sbin', '/sbin', '/usr/local/sbin']
  for (const folder of folders.filter((folder) => folder !== '')) {
    const path = join(folder, name)
    if (await isProgram(path)) return path
  }
  return undefined
}

async function isProgram(path: string): Promise<boolean> {
  try {
    await access(path, constants.X_OK)
    return (await stat(path)).isFile()
  } catch (error) {
    if (isErrorWithCode(error, 'ENOENT', 'EACCES', 'ENOTDIR')) return false
    throw error
  }
}

export function isErrorWithCode(error: unknown, ...codes: string[]): boolean {
  return error instanceof Error && 'code' in error && codes.includes(String(error.code))
}

/**
 * The private copy called `name`, made by `build` if it is not there yet. `build` fills an empty folder beside the final
 * place, which is renamed when it succeeds: others see the copy whole or not at all. Only one process builds at a time.
 * `build` returns the tool with paths relative to that folder, `{folder}` standing for it.
 */
export async function privateCopy(
  { folder, progress }: Acquisition,
  name: string,
  build: (folder: string) => Promise<Tool>,
): Promise<Tool> {
  const place = join(folder, name)
  const ready = await readCopy(place)
  if (ready !== undefined) return ready
  const onWait = (holder: number) => progress(`${name}: process ${holder} is getting it already, waiting for that`)
  return await withLock(
    join(folder, `${name}.lock`),
    async () => {
      const made = await readCopy(place)
      if (made !== undefined) return made
      // What an earlier, interrupted or incompatible attempt left.
      await rm(place, { recursive: true, force: true })
      await mkdir(folder, { recursive: true })
      const draft = await mkdtemp(join(folder, `${name}.partial-`))
      try {
        const tool = await build(draft)
        await writeFile(join(draft, 'tool.json'), `${JSON.stringify(tool, undefined, 2)}\n`)
        await rename(draft, place)
        return placed(tool, place)
      } finally {
        await rm(draft, { recursive: true, force: true })
      }
    },
    { onWait },
  )
}

async function readCopy(place: string): Promise<Tool | undefined> {
  try {
    // Written by privateCopy itself, and complete because of the rename.
    const tool: Tool = JSON.parse(await readFile(join(place, 'tool.json'), 'utf8'))
    return placed(tool, place)
  } catch (error) {
    if (isErrorWithCode(error, 'ENOENT')) return undefined
    throw error
  }
}

function placed(tool: Tool, place: string): Tool {
  const inPlace = (text: string) => text.replaceAll('{folder}', place)
  return { ...tool, command: inPlace(tool.command), args: tool.args.map(inPlace) }
}

/** One way to come by a tool: undefined where there is nothing of the kind, AcquireError where it did not work. */
export interface Way {
  name: string
  take: () => Promise<Tool | undefined>
}

/** Tries each way in turn and returns the first tool; if none works, the error holds all the reasons and `advice`. */
export async function firstOf(ways: readonly Way[], progress: (line: string) => void, advice: string): Promise<Tool> {
  const reasons: string[] = []
  for (const { name, take } of ways) {
    try {
      const tool = await take()
      if (tool !== undefined) return tool
      reasons.push(`${name}: not there`)
    } catch (error) {
      if (!(error instanceof AcquireError)) throw error
      reasons.push(`${name}: ${error.message}`)
      progress(error.message)
    }
  }
  throw new AcquireError([...reasons, advice].join('\n'))
}
