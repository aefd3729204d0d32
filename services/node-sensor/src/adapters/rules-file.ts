import { readFile, rename, stat, utimes, writeFile } from 'node:fs/promises'
import { setTimeout as delay } from 'node:timers/promises'
import { formatFault, type Guarded, TEXT_BYTES_MAX } from '@tollward/documents'
import { AppError, toAppError } from '@tollward/errors'
import type { Logger } from 'pino'
import { guardedFaults, type HostRules, readHostRules } from '../domain/host-rules.ts'
import type { HostMetrics } from '../metrics.ts'

/** A change is read when two looks have seen the same: an editor may still be writing. */
const LOOK_INTERVAL_MS = 500
/** Guarded entries that are named in the log. */
const NAMED_MAX = 20
const ABSENT = 'absent'

/** A text, and when it was changed last. */
interface Written {
  readonly text: string
  readonly changedAtMs: number
}

interface RulesFileOptions {
  readonly path: string
  /** Where the last good text is kept, for a start at which the file is wrong. */
  readonly keptPath: string
  readonly guarded: () => Guarded
  /** Puts rules in force, all of them or none. */
  readonly enforce: (rules: HostRules) => Promise<void>
  readonly metrics: HostMetrics
  readonly log: Logger
}

/** The rules file of this host. What is wrong with it never takes the place of what was right. */
export class RulesFile {
  readonly #options: RulesFileOptions
  /** The file as it was read last, and as it was seen last. */
  #read = ''
  #seen = ''
  #fault: string | undefined
  #rules: HostRules | undefined
  #takenAtMs = 0
  #isKept = false
  #wake: () => void = () => undefined
  #isAsked = false

  constructor(options: RulesFileOptions) {
    this.#options = options
  }

  /** Reads it for the first time; where it is wrong, the last good rules are put in force, if there are any. */
  async begin(): Promise<void> {
    await this.#load()
    if (this.#rules) return
    const { keptPath, log } = this.#options
    try {
      const { text, changedAtMs } = await read(keptPath)
      await this.#enforce(readHostRules(text, keptPath, changedAtMs, Date.now()))
      this.#isKept = true
      log.warn({ file: keptPath }, 'the last good rules are in force')
    } catch (error) {
      log.warn({ why: toAppError(error).message }, 'there are no earlier rules; what the kernel has stays in force')
    }
  }

  /** Follows it until the signal is aborted. */
  async follow(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      const woken = new Promise<void>((resolve) => {
        this.#wake = resolve
      })
      if (!this.#isAsked)
        await Promise.race([woken, delay(LOOK_INTERVAL_MS, undefined, { signal }).catch(() => undefined)])
      const isAsked = this.#isAsked
      this.#isAsked = false
      const seen = await signatureOf(this.#options.path)
      const isSettled = seen === this.#seen
      this.#seen = seen
      if (!signal.aborted && (isAsked || (isSettled && seen !== this.#read))) await this.#load()
    }
  }

  /** Reads it again at once, changed or not. */
  reload(): void {
    this.#isAsked = true
    this.#wake()
  }

  /** Why the rules in force are not those of the file; undefined: they are. */
  fault(): string | undefined {
    return this.#fault
  }

  /** The name of the list that a block is of, by its number. */
  listName(id: number): string | undefined {
    return this.#rules?.lists.get(id)
  }

  /** For whoever asks how the host is. */
  reading() {
    return {
      file: this.#options.path,
      ...(this.#takenAtMs > 0 && { takenAt: new Date(this.#takenAtMs).toISOString() }),
      rules: this.#rules?.rules.size ?? 0,
      blocks: this.#rules?.blocks.length ?? 0,
      /** The file is wrong, and those are in force that were right before this process began. */
      isKept: this.#isKept,
      ...(this.#fault !== undefined && { fault: this.#fault }),
    }
  }

  async #load(): Promise<void> {
    const { path, metrics, log } = this.#options
    const before = await signatureOf(path)
    try {
      const written = await read(path)
      // It is being written; the next look will see it change no more.
      if ((await signatureOf(path)) !== before) return
      this.#read = before
      const rules = readHostRules(written.text, path, written.changedAtMs, Date.now())
      await this.#enforce(rules)
      this.#isKept = false
      this.#fault = undefined
      metrics.rulesFiles.inc({ result: 'taken' })
      log.info({ file: path, rules: rules.rules.size, blocks: rules.blocks.length }, 'rules file is in force')
      this.#tellGuarded(rules)
      await this.#keep(written)
    } catch (error) {
      this.#read = before
      this.#fault = toAppError(error).message
      metrics.rulesFiles.inc({ result: 'refused' })
      log.error({ file: path, why: this.#fault }, 'rules file is refused; what was in force stays')
    }
  }

  async #enforce(rules: HostRules): Promise<void> {
    await this.#options.enforce(rules)
    this.#rules = rules
    this.#takenAtMs = Date.now()
  }

  /** No reason to refuse the file: this host may have got the address later, and the others must be blocked after a reboot too. */
  #tellGuarded({ sources }: HostRules): void {
    const faults = guardedFaults(sources, this.#options.guarded())
    for (const fault of faults.slice(0, NAMED_MAX))
      this.#options.log.warn({ why: formatFault(fault) }, 'part of the rules file does nothing')
  }

  async #keep({ text, changedAtMs }: Written): Promise<void> {
    const { keptPath, log } = this.#options
    try {
      const next = `${keptPath}.new`
      await writeFile(next, text, { mode: 0o600 })
      await utimes(next, changedAtMs / 1000, changedAtMs / 1000)
      await rename(next, keptPath)
    } catch (error) {
      log.warn({ err: error }, 'the good rules could not be kept; a start with a wrong file will have none')
    }
  }
}

/** Reads a text. AppError if there is none, or more than anybody parses. */
export async function read(path: string): Promise<Written> {
  try {
    const { size, mtimeMs } = await regular(path)
    if (size > TEXT_BYTES_MAX) throw new AppError('invalid_argument', `${path} is larger than ${TEXT_BYTES_MAX} bytes`)
    return { text: await readFile(path, 'utf8'), changedAtMs: mtimeMs }
  } catch (error) {
    if (error instanceof AppError) throw error
    const why = error instanceof Error ? error.message : String(error)
    throw new AppError('failed_precondition', `${path} cannot be read: ${why}`, { cause: error })
  }
}

async function regular(path: string) {
  const found = await stat(path)
  if (!found.isFile()) throw new AppError('failed_precondition', `${path} is no file`)
  return found
}

/** Changes whenever the file does. */
async function signatureOf(path: string): Promise<string> {
  try {
    const { ino, size, mtimeNs } = await stat(path, { bigint: true })
    return `${ino} ${size} ${mtimeNs}`
  } catch {
    return ABSENT
  }
}
