import { hash } from 'node:crypto'
import { type CallerKind, type CallerName, formatCaller, isCallerName, writeCaller } from '@tollward/contracts'
import { AppError } from '@tollward/errors'
import type { Command } from 'commander'
import { answering, duration, leftOutNote, type OutputOptions, written } from '../arguments.ts'
import { json, printable } from '../output.ts'
import { blockRow } from '../rows.ts'
import { type Surroundings, withSession } from '../session.ts'

const COLUMNS = ['blocked', 'expiresAt', 'decidedBy', 'reason']

const SHA256 = /^[0-9a-f]{64}$/
const WHOM = 'an address or CIDR, client:ID, subject:ID, grant:SHA256, or token:SHA256'

interface AddOptions extends OutputOptions {
  readonly ttl: number
  readonly reason?: string
}

/** `blocks`. */
export function addDefenceCommands(program: Command, surroundings: Surroundings): void {
  const blocks = program.command('blocks').description('sources and callers that are refused')
  answering(blocks, 'list', 'show all', { isDefault: true }).action((options: OutputOptions) =>
    withSession(surroundings, 'tollward.read', async ({ admin, call }) => {
      const found = await admin.listBlocks({}, call)
      const rows = found.blocks.map(blockRow)
      const shown = options.output === 'json' ? rows : rows.map((row) => ({ ...row, blocked: blockedText(row) }))
      surroundings.out(written(shown, COLUMNS, 'nobody is blocked', options))
      surroundings.err(leftOutNote(found.leftOut, 'older blocks'))
    }),
  )

  answering(
    blocks,
    'add',
    'refuse an address or range for a while, in the kernel and at the proxies, or a caller at the proxies',
  )
    .argument('<whom>', WHOM)
    .requiredOption('--ttl <duration>', 'for how long, such as 60s', duration)
    .option('--reason <text>', 'for the audit')
    .action((whom: string, { ttl, reason, output }: AddOptions) =>
      withSession(surroundings, 'tollward.admin', async ({ admin, call }) => {
        const request = { ...blockedBy(whom), ttlSeconds: Math.ceil(ttl / 1000), reason: reason ?? '' }
        const { block } = await admin.addBlock(request, call)
        if (!block) throw new AppError('internal', 'admin-api answered without the block.')
        const row = blockRow(block)
        surroundings.out(output === 'json' ? json(row) : `${blockedText(row)} is blocked until ${row.expiresAt}\n`)
      }),
    )

  answering(blocks, 'remove', 'let an address, range or caller through again')
    .argument('<whom>', WHOM)
    .action((whom: string, { output }: OutputOptions) =>
      withSession(surroundings, 'tollward.admin', async ({ admin, call }) => {
        const named = callerNamed(whom)
        const { removed } = await admin.removeBlock(blockedBy(whom), call)
        const blocked = named ? { caller: formatCaller(named) } : { cidr: whom }
        const answer = removed ? 'is let through again' : 'was not blocked'
        surroundings.out(output === 'json' ? json({ ...blocked, removed }) : `${blockedText(blocked)} ${answer}\n`)
      }),
    )
}

function blockedText({ cidr = '', caller = cidr }: { cidr?: string; caller?: string }): string {
  return printable(caller)
}

/** What admin-api is asked to block or let through. */
function blockedBy(whom: string) {
  const caller = callerNamed(whom)
  return caller ? { caller: writeCaller(caller) } : { cidr: whom }
}

/**
 * The caller that `kind:value` names; undefined: it is no such form, but an address. A token itself is hashed here, and never
 * leaves the process. AppError `invalid_argument` says what is wrong with a value.
 */
function callerNamed(whom: string): CallerName | undefined {
  const match = /^(token|grant|client|subject):(.*)$/s.exec(whom)
  if (!match) return undefined
  const [, kind, text = ''] = match as unknown as [string, CallerKind, string]
  const isToken = kind === 'token' && text !== '' && !SHA256.test(text)
  const caller = { kind, value: isToken ? hash('sha256', text, 'hex') : text }
  if (isCallerName(caller)) return caller
  throw new AppError('invalid_argument', `That names no ${kind}; say ${WHOM}.`)
}
