import { readFile } from 'node:fs/promises'
import { text as textOf } from 'node:stream/consumers'
import { status } from '@grpc/grpc-js'
import { type Kind, TEXT_BYTES_MAX } from '@tollward/documents'
import { AppError } from '@tollward/errors'
import type { Command } from 'commander'
import { AnswerIsNo } from '../answer.ts'
import { answering, kind, type OutputOptions, written } from '../arguments.ts'
import { json } from '../output.ts'
import { appliedRow, documentRow } from '../rows.ts'
import { type Surroundings, withSession } from '../session.ts'

/** `apply`, `get`, `delete`. */
export function addDocumentCommands(program: Command, surroundings: Surroundings): void {
  answering(program, 'apply', 'put the documents of a YAML file in force, all or none')
    .requiredOption('-f, --file <file>', 'the file; - is the standard input')
    .action((options: OutputOptions & { file: string }) => apply(options, surroundings))

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

async function apply({ file, output }: OutputOptions & { file: string }, surroundings: Surroundings): Promise<void> {
  const yaml = file === '-' ? await textOf(surroundings.stdin) : await readDocumentFile(file)
  if (Buffer.byteLength(yaml) > TEXT_BYTES_MAX) {
    throw new AppError('too_large', `${file} is larger than ${TEXT_BYTES_MAX} bytes; apply it in parts.`)
  }
  const fileName = file === '-' ? 'stdin' : file
  try {
    await withSession(surroundings, 'tollward.admin', async ({ admin, call }) => {
      const { applied } = await admin.apply({ yaml, fileName }, call)
      const rows = applied.map(appliedRow)
      surroundings.out(output === 'json' ? json(rows) : rows.map(appliedLine).join(''))
    })
  } catch (error) {
    const faults = faultsOf(error, fileName)
    if (faults === undefined) throw error
    surroundings.err(`${faults}\n`)
    throw new AnswerIsNo()
  }
}

async function readDocumentFile(file: string): Promise<string> {
  try {
    return await readFile(file, 'utf8')
  } catch (error) {
    throw new AppError('invalid_argument', `${file} cannot be read.`, { cause: error })
  }
}

function appliedLine({ kind: of, name, change, clientSecret }: ReturnType<typeof appliedRow>): string {
  const secret = clientSecret === undefined ? '' : `  client secret, shown this once: ${clientSecret}\n`
  return `${of}/${name} ${change}\n${secret}`
}

/** Lines of the form file:line: path: reason, as they are. */
function faultsOf(error: unknown, fileName: string): string | undefined {
  if (!(error instanceof Error && 'code' in error && 'details' in error)) return undefined
  const details = String(error.details)
  return error.code === status.INVALID_ARGUMENT && details.startsWith(`${fileName.slice(0, 100)}`) ? details : undefined
}
