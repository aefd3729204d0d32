import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { AppError } from '@tollward/errors'
import { type Command, InvalidArgumentError } from 'commander'
import { answering, count, duration, type OutputOptions, written } from '../arguments.ts'
import { standingRow } from '../money-rows.ts'
import { json } from '../output.ts'
import { type Surroundings, withSession } from '../session.ts'

const COLUMNS = [
  ...['clientId', 'score', 'admitted', 'violations', 'foreignTxids', 'alerts', 'failedLogins', 'paidSats'],
  ...['firstSeenAt', 'overriddenBy', 'reasons'],
]
const SCORE_MAX = 1000

interface ListOptions extends OutputOptions {
  readonly client?: string
  readonly limit: number
}

interface WordOptions extends OutputOptions {
  readonly until?: number
  readonly reason: string
}

/** `conduct`: how clients behave, which their discounts depend on. */
export function addConductCommands(program: Command, surroundings: Surroundings): void {
  const conduct = program.command('conduct').description('how clients behave, and what they get off prices for it')
  answering(conduct, 'list', 'show all that anything is known of', { isDefault: true })
    .option('--client <name>', 'this client only')
    .option('--limit <number>', 'at most so many', count, 100)
    .action((options: ListOptions) =>
      withSession(surroundings, 'tollward.read', async ({ admin, call }) => {
        const request = { clientId: options.client ?? '', limit: options.limit }
        const rows = (await admin.listConduct(request, call)).standings.map(standingRow)
        const shown = options.output === 'json' ? rows : rows.map(flat)
        surroundings.out(written(shown, COLUMNS, 'nothing is known of anybody', options))
      }),
    )

  answering(conduct, 'override', "count an operator's word instead of a client's score")
    .argument('<client>')
    .argument('<score>', '0 to 1000', score)
    .requiredOption('--reason <text>', 'for the record and the audit')
    .option('--until <duration>', 'for so long, such as 30d; by default until it is lifted', duration)
    .action((clientId: string, given: number, options: WordOptions) => {
      const until = options.until === undefined ? {} : { until: timestampFromMs(Date.now() + options.until) }
      return override({ clientId, score: given, ...until, reason: options.reason }, options, surroundings)
    })

  answering(conduct, 'lift', 'let the score count again')
    .argument('<client>')
    .option('--reason <text>', 'for the audit', '')
    .action((clientId: string, options: WordOptions) =>
      override({ clientId, reason: options.reason }, options, surroundings),
    )
}

type Word = Parameters<Parameters<Parameters<typeof withSession>[2]>[0]['admin']['overrideConduct']>[0]

async function override(word: Word, { output }: OutputOptions, surroundings: Surroundings): Promise<void> {
  await withSession(surroundings, 'tollward.admin', async ({ admin, call }) => {
    const { standing } = await admin.overrideConduct(word, call)
    if (!standing) throw new AppError('internal', "admin-api answered without the client's standing.")
    const row = standingRow(standing)
    surroundings.out(output === 'json' ? json(row) : `${row.clientId} has a score of ${row.score}\n`)
  })
}

function flat(row: ReturnType<typeof standingRow>) {
  return { ...row, overriddenBy: row.override?.operator, reasons: row.reasons.join(' ') }
}

function score(text: string): number {
  if (!/^\d{1,4}$/.test(text) || Number(text) > SCORE_MAX) throw new InvalidArgumentError('It is 0 to 1000.')
  return Number(text)
}
