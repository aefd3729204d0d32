import { type FileHandle, open, rename, rm, stat } from 'node:fs/promises'
import { dirname } from 'node:path'
import { AppError } from '@tollward/errors'
import { RecentIds } from '../domain/recent-ids.ts'

/** Readable for the group too: what forwards the file runs as another user. */
const FILE_MODE = 0o640

/** Read back at the start to know which findings are written: some 5,000 of them. The queue redelivers far fewer. */
const TAIL_BYTES_MAX = 8 * 1024 * 1024

/** Findings known to be written. About 100 bytes each. */
const RECENT_MAX = 10_000

const NEWLINE = 0x0a

export interface FindingsFileOptions {
  readonly path: string
  /** A file that would grow beyond this is put aside as path.1, the one before as path.2, and so on. */
  readonly bytesMax: number
  /** How many files put aside are kept. */
  readonly keep: number
  /** The oldest file was removed. */
  readonly onRemoved: () => void
}

interface OpenFile {
  readonly handle: FileHandle
  readonly inode: bigint
  size: number
}

/**
 * Findings as lines of JSON, in a file that only this process writes. A line is on the disk before `append` resolves; a
 * finding that is in the file already is not written again, also not after a crash: its end is read back first.
 */
export class FindingsFile implements AsyncDisposable {
  readonly #options: FindingsFileOptions
  #recent = new RecentIds(RECENT_MAX)
  #file: OpenFile | undefined
  #fault: string | undefined

  constructor(options: FindingsFileOptions) {
    this.#options = options
  }

  /** Why the last attempt to write failed; undefined: it did not. */
  get fault(): string | undefined {
    return this.#fault
  }

  /** Appends a finding unless it is there. AppError `unavailable` if the disk does not take it; then nothing of it stays. */
  async append(uid: string, finding: object): Promise<'written' | 'present'> {
    try {
      const file = await this.#current()
      if (this.#recent.has(uid)) {
        this.#fault = undefined
        return 'present'
      }
      const line = Buffer.from(`${JSON.stringify(finding)}\n`)
      const into = file.size > 0 && file.size + line.length > this.#options.bytesMax ? await this.#rotate() : file
      await into.handle.appendFile(line)
      await into.handle.datasync()
      into.size += line.length
      this.#recent.add(uid)
      this.#fault = undefined
      return 'written'
    } catch (error) {
      this.#fault = error instanceof Error ? error.message : String(error)
      await this.#cutOff()
      throw new AppError('unavailable', `${this.#options.path} cannot be written.`, { cause: error })
    }
  }

  /** Opens and repairs the file. Throws what the system says. */
  async openNow(): Promise<void> {
    await this.#current()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const file = this.#file
    this.#file = undefined
    await file?.handle.close()
  }

  /** Takes back what was written of a line. Where not even that can be done, opening the file again does it. */
  async #cutOff(): Promise<void> {
    if (this.#file !== undefined) await Promise.allSettled([this.#file.handle.truncate(this.#file.size)])
    await this[Symbol.asyncDispose]()
  }

  /** The file that has the path now: whoever moves or removes it must not leave us writing where nobody reads. */
  async #current(): Promise<OpenFile> {
    const inode = await inodeOf(this.#options.path)
    if (this.#file !== undefined && this.#file.inode !== inode) await this[Symbol.asyncDispose]()
    this.#file ??= await this.#open()
    return this.#file
  }

  async #open(): Promise<OpenFile> {
    const { path } = this.#options
    this.#recent = new RecentIds(RECENT_MAX)
    await this.#readBack(`${path}.1`)
    const size = await this.#readBack(path)
    const handle = await open(path, 'a', FILE_MODE)
    try {
      // A line without its end was being written when the power or the process went, so it was not acknowledged.
      await handle.truncate(size)
      await handle.sync()
      await syncDirectory(dirname(path))
      return { handle, size, inode: (await handle.stat({ bigint: true })).ino }
    } catch (error) {
      await handle.close()
      throw error
    }
  }

  /** Notes the findings in the end of a file, and returns how many of its bytes are whole lines. */
  async #readBack(path: string): Promise<number> {
    const handle = await open(path, 'r').catch((error: unknown) => {
      if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return undefined
      throw error
    })
    if (handle === undefined) return 0
    try {
      const { size } = await handle.stat()
      const start = Math.max(0, size - TAIL_BYTES_MAX)
      const chunks: Buffer[] = []
      for await (const chunk of handle.createReadStream({ start, autoClose: false })) chunks.push(chunk)
      const tail = Buffer.concat(chunks)
      const end = tail.lastIndexOf(NEWLINE) + 1
      for (const line of tail.toString('utf8', 0, end).split('\n')) this.#note(line)
      return start + end
    } finally {
      await handle.close()
    }
  }

  #note(line: string): void {
    const uid = /"finding_info":\{"uid":"((?:[^"\\]|\\.)*)"/.exec(line)?.[1]
    if (uid !== undefined) this.#recent.add(JSON.parse(`"${uid}"`))
  }

  async #rotate(): Promise<OpenFile> {
    const { path, keep, onRemoved } = this.#options
    await this[Symbol.asyncDispose]()
    const nameOf = (number: number) => (number === 0 ? path : `${path}.${number}`)
    if ((await inodeOf(nameOf(keep))) !== undefined) onRemoved()
    for (let number = keep; number > 0; number--) {
      if ((await inodeOf(nameOf(number - 1))) !== undefined) await rename(nameOf(number - 1), nameOf(number))
    }
    if (keep === 0) await rm(path)
    this.#file = await this.#open()
    return this.#file
  }
}

/** Undefined where there is no file. */
async function inodeOf(path: string): Promise<bigint | undefined> {
  try {
    return (await stat(path, { bigint: true })).ino
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return undefined
    throw error
  }
}

/** Makes new names last. */
async function syncDirectory(path: string): Promise<void> {
  await using handle = await open(path, 'r')
  await handle.sync()
}
