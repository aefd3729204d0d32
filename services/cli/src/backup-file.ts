import { createHash } from 'node:crypto'
import { type FileHandle, open, rm } from 'node:fs/promises'
import { fromBinary, toBinary } from '@bufbuild/protobuf'
import { type ExportLedgerResponse, type Pass, PassSchema } from '@tollward/contracts/payment'
import { AppError } from '@tollward/errors'
import { z } from 'zod'

/*
 * A back-up is text, a JSON object a line: a head, each entry of the ledger, each pass, their sums, and the SHA-256 of
 * every byte before it. A file without it is no back-up.
 */

const FORMAT = 1
const base64 = z.base64().transform((text) => Buffer.from(text, 'base64'))
const Head = z.strictObject({
  tollwardBackup: z.literal(FORMAT),
  network: z.string(),
  descriptor: z.string(),
  madeAt: z.iso.datetime(),
})
const Sums = z.strictObject({ entries: z.int().min(0), passes: z.int().min(0), nextAddressIndex: z.int().min(0) })
const Seal = z.strictObject({ sha256: z.string() })
const Line = z.union([z.strictObject({ entry: base64 }), z.strictObject({ pass: base64 }), Sums, Seal, Head])

/** What a back-up is of. */
export type BackupSummary = Omit<z.output<typeof Head>, 'tollwardBackup'> & z.output<typeof Sums>

/** Writes a back-up to a new file, readable by its owner only. What fails leaves no file. AppError `already_exists` if there is one. */
export async function writeBackup(path: string, parts: AsyncIterable<ExportLedgerResponse>): Promise<BackupSummary> {
  const file = await openNew(path)
  try {
    const summary = await writeParts(file, parts)
    await file.sync()
    await file.close()
    return summary
  } catch (error) {
    await file.close()
    await rm(path, { force: true })
    throw error
  }
}

/** Reads a whole back-up once. AppError `invalid_argument` if it is none, or damaged, or not all of it is there. */
export async function checkBackup(path: string): Promise<BackupSummary> {
  const hash = createHash('sha256')
  const counted = { entries: 0, passes: 0 }
  let head: z.output<typeof Head> | undefined
  let sums: z.output<typeof Sums> | undefined
  let sha256: string | undefined
  for await (const text of linesOf(path)) {
    const line = parsed(text, path)
    if (sha256 !== undefined || (head === undefined) !== 'tollwardBackup' in line) throw damaged(path)
    if ('sha256' in line) sha256 = line.sha256
    else hash.update(`${text}\n`)
    if ('tollwardBackup' in line) head = line
    if ('entries' in line) sums = line
    if ('entry' in line) counted.entries += 1
    if ('pass' in line) counted.passes += 1
  }
  const isWhole = sums?.entries === counted.entries && sums.passes === counted.passes
  if (head === undefined || sums === undefined || !isWhole || hash.digest('hex') !== sha256) throw damaged(path)
  const { network, descriptor, madeAt } = head
  return { network, descriptor, madeAt, ...sums }
}

/** The entries of a checked back-up, and then its passes. */
export async function* readBackup(path: string): AsyncGenerator<{ entry: Uint8Array } | { pass: Pass }> {
  for await (const text of linesOf(path)) {
    const line = parsed(text, path)
    if ('entry' in line) yield line
    if ('pass' in line) yield { pass: fromBinary(PassSchema, line.pass) }
  }
}

async function writeParts(file: FileHandle, parts: AsyncIterable<ExportLedgerResponse>): Promise<BackupSummary> {
  const hash = createHash('sha256')
  const write = async (lines: readonly object[]) => {
    const text = lines.map((line) => `${JSON.stringify(line)}\n`).join('')
    hash.update(text)
    await file.write(text)
  }
  const summary = { network: '', descriptor: '', madeAt: new Date().toISOString() }
  const counted = { entries: 0, passes: 0, nextAddressIndex: 0 }
  for await (const { entries, passes, network, descriptor, nextAddressIndex } of parts) {
    if (summary.network === '') {
      Object.assign(summary, { network, descriptor })
      await write([{ tollwardBackup: FORMAT, ...summary }])
    }
    await write(entries.map((entry) => ({ entry: Buffer.from(entry).toString('base64') })))
    await write(passes.map((pass) => ({ pass: Buffer.from(toBinary(PassSchema, pass)).toString('base64') })))
    counted.entries += entries.length
    counted.passes += passes.length
    counted.nextAddressIndex = Math.max(counted.nextAddressIndex, nextAddressIndex)
  }
  await write([counted])
  await file.write(`${JSON.stringify({ sha256: hash.digest('hex') })}\n`)
  return { ...summary, ...counted }
}

async function openNew(path: string): Promise<FileHandle> {
  try {
    return await open(path, 'wx', 0o600)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw unusable(path, error)
    throw new AppError('already_exists', `${path} is there already; give the back-up another name.`, { cause: error })
  }
}

async function* linesOf(path: string): AsyncGenerator<string> {
  let file: FileHandle
  try {
    file = await open(path)
  } catch (error) {
    throw unusable(path, error)
  }
  // Closes the file at its end, and when nobody reads on.
  yield* file.readLines()
}

function parsed(text: string, path: string): z.output<typeof Line> {
  try {
    return Line.parse(JSON.parse(text))
  } catch (error) {
    throw damaged(path, error)
  }
}

function damaged(path: string, cause?: unknown): AppError {
  return new AppError('invalid_argument', `${path} is no whole back-up: it is damaged, or not all of it is there.`, {
    cause,
  })
}

function unusable(path: string, error: unknown): AppError {
  const reason = error instanceof Error ? error.message : String(error)
  return new AppError('failed_precondition', `${path} cannot be opened: ${reason}.`, { cause: error })
}
