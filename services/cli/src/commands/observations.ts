import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { AppError } from '@tollward/errors'
import { type Command, Option } from 'commander'
import { answering, count, duration, type OutputOptions, written } from '../arguments.ts'
import { explanation, explanationText } from '../explaining.ts'
import { json, printable } from '../output.ts'
import { alertRow, decisionRow, flowRow } from '../rows.ts'
import { following, type Surroundings, withSession } from '../session.ts'

const ALERT_COLUMNS = ['publishedAt', 'severity', 'title', 'disposition', 'message']

interface FlowOptions extends OutputOptions {
  readonly node?: string
}

/** `alerts`, `flows` and `explain`. */
export function addObservationCommands(program: Command, surroundings: Surroundings): void {
  answering(program, 'alerts', 'show the findings that SIEMs get')
    .option('--since <duration>', 'how far back', duration, 24 * 3_600_000)
    .option('--limit <number>', 'the newest so many', count, 100)
    .action((options: OutputOptions & { since: number; limit: number }) =>
      withSession(surroundings, 'tollward.read', async ({ admin, call }) => {
        const since = timestampFromMs(Date.now() - options.since)
        const { findings } = await admin.listAlerts({ since, limit: options.limit }, call)
        surroundings.out(written(findings.map(alertRow), ALERT_COLUMNS, 'no alerts', options))
      }),
    )

  answering(program, 'flows', 'show what the sensors see; with -o json a line of JSON each')
    .addOption(new Option('-f, --follow', 'as they come, until Ctrl-C').makeOptionMandatory())
    .option('--node <name>', 'of this node only')
    .action((options: FlowOptions) => followFlows(options, surroundings))

  answering(program, 'explain', 'show what a decision id stands for, and what to do next')
    .argument('<decision>', 'the value of x-tollward-decision')
    .action((decisionId: string, { output }: OutputOptions) =>
      withSession(surroundings, 'tollward.read', async (session) => {
        const { call } = await session.admin.explainDecision({ decisionId }, session.call)
        if (!call) throw new AppError('internal', 'admin-api answered without the decision.')
        const told = await explanation(decisionRow(call), session)
        surroundings.out(output === 'json' ? json(told) : explanationText(told))
      }),
    )
}

function followFlows(options: FlowOptions, surroundings: Surroundings): Promise<void> {
  return following(surroundings, 'tollward.read', async ({ admin, stream }, flowed) => {
    for await (const { batch } of admin.watchFlows({ node: options.node ?? '' }, stream)) {
      flowed()
      for (const flow of batch?.flows ?? []) surroundings.out(flowLine(flowRow(flow, batch?.node ?? ''), options))
      if (batch && batch.lost > 0n) surroundings.err(`${printable(batch.node)} left out ${batch.lost} records\n`)
    }
  })
}

function flowLine(row: ReturnType<typeof flowRow>, { output }: OutputOptions): string {
  if (output === 'json') return `${JSON.stringify(row)}\n`
  const { node, lastSeenAt, direction, source, destination, protocol, packets, bytes, droppedPackets } = row
  const counts = `protocol ${protocol}, ${packets} packets, ${bytes} bytes, ${droppedPackets} dropped`
  return `${printable(`${lastSeenAt} ${node} ${direction} ${row.interface} ${source} > ${destination}: ${counts}`)}\n`
}
