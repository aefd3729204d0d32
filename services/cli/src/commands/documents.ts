import { text as textOf } from 'node:stream/consumers'
import { status } from '@grpc/grpc-js'
import { type Kind, TEXT_BYTES_MAX } from '@tollward/documents'
import { AppError } from '@tollward/errors'
import type { Command } from 'commander'
import { AnswerIsNo } from '../answer.ts'
import { answering, kind, type OutputOptions, written } from '../arguments.ts'
import { json, printable } from '../output.ts'
import { appliedRow, conflictRow, documentRow } from '../rows.ts'
import { type Surroundings, withSession } from '../session.ts'
import { readText } from '../text-file.ts'

interface ApplyOptions extends OutputOptions {
  readonly file: string
  readonly dryRun?: true
  readonly strict?: true
}

/** `apply`, `get`, `delete`. */
export function addDocumentCommands(program: Command, surroundings: Surroundings): void {
  answering(program, 'apply', 'put the documents of a YAML file in force, all or none')
    .requiredOption('-f, --file <file>', 'the file; - is the standard input')
    .option('--dry-run', 'say what would come of it, and change nothing')
    .option('--strict', 'apply nothing while policies would speak against each other')
    .action((options: ApplyOptions) => apply(options, surroundings))

  answering(program, 'get', 'show the documents of a kind, or one as it was applied')
    .argument('<kind>', 'such as Plan', kind)
    .argument('[name]')
    .action((wanted: Kind, name: string | undefined, options: OutputOptions) =>
      withSession(surroundings, 'tollward.read', async ({ admin, call }) => {
        const { documents } = await admin.listDocuments({ kind: wanted, name: name ?? '' }, call)
        const rows = documents.map(documentRow)
        if (name !== undefined && options.output === 'table')
          surroundings.out(rows.map(({ yaml }) => yaml).join('---\n'))
        else surroundings.out(written(rows, ['name', 'appliedBy', 'appliedAt'], `no ${wanted}`, options))
      }),
    )

  answering(program, 'delete', 'delete a document')
    .argument('<kind>', 'such as Plan', kind)
    .argument('<name>')
    .action((wanted: Kind, name: string, { output }: OutputOptions) =>
      withSession(surroundings, 'tollward.admin', async ({ admin, call }) => {
        await admin.deleteDocument({ kind: wanted, name }, call)
        surroundings.out(
          output === 'json' ? json({ kind: wanted, name, deleted: true }) : `${wanted}/${name} deleted\n`,
        )
      }),
    )
}

async function apply({ file, output, dryRun, strict }: ApplyOptions, surroundings: Surroundings): Promise<void> {
  const yaml = file === '-' ? await textOf(surroundings.stdin) : await readText(file)
  if (Buffer.byteLength(yaml) > TEXT_BYTES_MAX) {
    throw new AppError('too_large', `${file} is larger than ${TEXT_BYTES_MAX} bytes; apply it in parts.`)
  }
  const fileName = file === '-' ? 'stdin' : file
  try {
    await withSession(surroundings, 'tollward.admin', async ({ admin, call }) => {
      const applying = (isDryRun: boolean) => admin.apply({ yaml, fileName, dryRun: isDryRun }, call)
      let answer = await applying(dryRun === true || strict === true)
      const isRefused = strict === true && answer.conflicts.length > 0
      if (strict && !dryRun && !isRefused) answer = await applying(false)
      const changesNothing = dryRun === true || isRefused
      const rows = answer.applied.map(appliedRow)
      const conflicts = answer.conflicts.map(conflictRow)
      if (output === 'json') surroundings.out(json([...rows, ...conflicts]))
      else {
        surroundings.out(rows.map((row) => appliedLine(row, changesNothing)).join(''))
        surroundings.err(conflicts.map(({ detail }) => `warning: ${printable(detail)}\n`).join(''))
      }
      if (!isRefused) return
      surroundings.err('tollward: nothing is applied, because policies would speak against each other\n')
      throw new AnswerIsNo()
    })
  } catch (error) {
    const faults = faultsOf(error, fileName)
    if (faults === undefined) throw error
    surroundings.err(`${faults}\n`)
    throw new AnswerIsNo()
  }
}

function appliedLine(row: ReturnType<typeof appliedRow>, changesNothing: boolean): string {
  const { kind: of, name, change, clientSecret } = row
  if (changesNothing) return `${of}/${name} would be ${change}\n`
  const secret = clientSecret === undefined ? '' : `  client secret, shown this once: ${clientSecret}\n`
  return `${of}/${name} ${change}\n${secret}`
}

/** Lines of the form file:line: path: reason, as they are. */
function faultsOf(error: unknown, fileName: string): string | undefined {
  if (!(error instanceof Error && 'code' in error && 'details' in error)) return undefined
  const details = String(error.details)
  return error.code === status.INVALID_ARGUMENT && details.startsWith(`${fileName.slice(0, 100)}`) ? details : undefined
}
