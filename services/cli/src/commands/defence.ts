import { AppError } from '@tollward/errors'
import type { Command } from 'commander'
import { answering, duration, type OutputOptions, written } from '../arguments.ts'
import { json } from '../output.ts'
import { blockRow } from '../rows.ts'
import { type Surroundings, withSession } from '../session.ts'

const COLUMNS = ['cidr', 'expiresAt', 'decidedBy', 'reason']

interface AddOptions extends OutputOptions {
  readonly ttl: number
  readonly reason?: string
}

/** `blocks`. */
export function addDefenceCommands(program: Command, surroundings: Surroundings): void {
  const blocks = program.command('blocks').description('sources that are refused')
  answering(blocks, 'list', 'show all', { isDefault: true }).action((options: OutputOptions) =>
    withSession(surroundings, 'tollward.read', async ({ admin, call }) => {
      const found = await admin.listBlocks({}, call)
      surroundings.out(written(found.blocks.map(blockRow), COLUMNS, 'nobody is blocked', options))
    }),
  )

  answering(blocks, 'add', 'refuse an address or range for a while, in the kernel and at the proxies')
    .argument('<cidr>')
    .requiredOption('--ttl <duration>', 'for how long, such as 60s', duration)
    .option('--reason <text>', 'for the audit')
    .action((cidr: string, { ttl, reason, output }: AddOptions) =>
      withSession(surroundings, 'tollward.admin', async ({ admin, call }) => {
        const request = { cidr, ttlSeconds: Math.ceil(ttl / 1000), reason: reason ?? '' }
        const { block } = await admin.addBlock(request, call)
        if (!block) throw new AppError('internal', 'admin-api answered without the block.')
        const row = blockRow(block)
        surroundings.out(output === 'json' ? json(row) : `${row.cidr} is blocked until ${row.expiresAt}\n`)
      }),
    )

  answering(blocks, 'remove', 'let an address or range through again')
    .argument('<cidr>')
    .action((cidr: string, { output }: OutputOptions) =>
      withSession(surroundings, 'tollward.admin', async ({ admin, call }) => {
        const { removed } = await admin.removeBlock({ cidr }, call)
        const answer = removed ? `${cidr} is let through again` : `${cidr} was not blocked`
        surroundings.out(output === 'json' ? json({ cidr, removed }) : `${answer}\n`)
      }),
    )
}
