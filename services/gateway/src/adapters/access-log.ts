import { once } from 'node:events'
import { createWriteStream, type WriteStream } from 'node:fs'
import type { Writable } from 'node:stream'
import type { Logger } from 'pino'
import { type Access, type AccessFormat, accessLine } from '../domain/access-line.ts'
import type { GatewayMetrics } from '../metrics.ts'

/** Where requests are written down. */
export interface AccessLog extends AsyncDisposable {
  /** Writes a line, or drops and counts it where the disk is too slow. */
  write(access: () => Access): void
  /** Goes on in a new file of the same name: the old one was moved away. */
  reopen(): void
}

export interface AccessLogOptions {
  readonly format: AccessFormat | 'off'
  /** Appended to; undefined: standard output. */
  readonly file: string | undefined
  readonly stdout: Writable
  readonly metrics: GatewayMetrics
  readonly log: Logger
}

/** Bytes that wait to be written; beyond, lines are dropped rather than memory filled. */
const WAITING_BYTES_MAX = 4 * 1024 * 1024
/** Lines are collected for so long: one write costs as much as one line. */
const FLUSH_EVERY_MS = 100
/** Others than owner and group may not read who called what. */
const MODE = 0o640

/** Opens it. Rejects if the file can't be written. */
export async function openAccessLog({ format, file, stdout, metrics, log }: AccessLogOptions): Promise<AccessLog> {
  if (format === 'off') return { write: () => {}, reopen: () => {}, [Symbol.asyncDispose]: async () => {} }
  let out: Writable = file === undefined ? stdout : await opened(file)
  let waiting: string[] = []
  let waitingBytes = 0
  let timer: NodeJS.Timeout | undefined
  const failed = (error: Error) => log.error({ err: error, file }, 'access log could not be written')
  if (file !== undefined) out.on('error', failed)
  const flush = () => {
    timer = undefined
    if (waiting.length === 0) return
    const lines = waiting
    waiting = []
    waitingBytes = 0
    const result = out.destroyed ? 'dropped' : 'written'
    if (!out.destroyed) out.write(lines.join(''))
    metrics.accessLines.inc({ result }, lines.length)
  }
  return {
    write: (access) => {
      if (waitingBytes + out.writableLength > WAITING_BYTES_MAX) return metrics.accessLines.inc({ result: 'dropped' })
      const line = `${accessLine(access(), format)}\n`
      waiting.push(line)
      waitingBytes += line.length
      timer ??= setTimeout(flush, FLUSH_EVERY_MS)
    },
    reopen: () => {
      if (file === undefined) return
      opened(file).then((fresh) => {
        flush()
        const old = out
        out = fresh.on('error', failed)
        old.end()
        log.info({ file }, 'access log reopened')
      }, failed)
    },
    [Symbol.asyncDispose]: async () => {
      clearTimeout(timer)
      flush()
      if (file === undefined || out.destroyed) return
      out.end()
      await once(out, 'close')
    },
  }
}

async function opened(file: string): Promise<WriteStream> {
  const stream = createWriteStream(file, { flags: 'a', mode: MODE })
  await once(stream, 'open')
  return stream
}
