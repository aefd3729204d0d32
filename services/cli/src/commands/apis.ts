import type { Command } from 'commander'
import { apiLine, apiRow } from '../api-rows.ts'
import { answering, type OutputOptions, written } from '../arguments.ts'
import { printable } from '../output.ts'
import { following, type Surroundings, withSession } from '../session.ts'

const COLUMNS = ['host', 'method', 'path', 'side', 'calls', 'statuses', 'credentials', 'sensitive', 'lastSeenAt']

interface ApiOptions extends OutputOptions {
  readonly follow?: true
  readonly host?: string
}

/** `apis`: endpoints that the sensors saw calls of. */
export function addApiCommands(program: Command, surroundings: Surroundings): void {
  answering(
    program,
    'apis',
    'show the endpoints that the sensors saw calls of; followed, with -o json a line of JSON each',
  )
    .option('-f, --follow', 'those that are being called, until Ctrl-C')
    .option('--host <name>', 'of this host only, as callers name it')
    .action((options: ApiOptions) => (options.follow ? follow(options, surroundings) : list(options, surroundings)))
}

function list(options: ApiOptions, surroundings: Surroundings): Promise<void> {
  return withSession(surroundings, 'tollward.read', async ({ admin, call }) => {
    const { endpoints, unplaced, forgotten, lost } = await admin.listApis({ host: options.host ?? '' }, call)
    const rows = endpoints.map(apiRow)
    const shown = options.output === 'json' ? rows : rows.map(apiLine)
    surroundings.out(written(shown, COLUMNS, 'no sensor has told of a call yet', options))
    if (unplaced > 0n) surroundings.err(`tollward: ${unplaced} calls belong to no endpoint: not found, or unreadable\n`)
    if (forgotten > 0n) surroundings.err(`tollward: ${forgotten} endpoints had to make room for others\n`)
    if (lost > 0n) surroundings.err(`tollward: the sensors left out ${lost} calls\n`)
  })
}

function follow(options: ApiOptions, surroundings: Surroundings): Promise<void> {
  return following(surroundings, 'tollward.read', async ({ admin, stream }, flowed) => {
    for await (const { endpoints } of admin.watchApis({ host: options.host ?? '' }, stream)) {
      flowed()
      for (const endpoint of endpoints) surroundings.out(line(apiRow(endpoint), options))
    }
  })
}

function line(row: ReturnType<typeof apiRow>, { output }: OutputOptions): string {
  if (output === 'json') return `${JSON.stringify(row)}\n`
  const { lastSeenAt, side, method, host, path, calls, statuses, credentials } = apiLine(row)
  return `${printable(`${lastSeenAt} ${side} ${method} ${host}${path}: ${calls} calls, ${statuses}, ${credentials}`)}\n`
}
