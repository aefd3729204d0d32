import { AppError } from '@tollward/errors'
import { type Command, Option } from 'commander'
import { answering, type OutputOptions, written } from '../arguments.ts'
import { json } from '../output.ts'
import { keyRow } from '../rows.ts'
import { readSecret, type Surroundings, withSession } from '../session.ts'

const KEY_COLUMNS = ['kid', 'algorithm', 'state', 'signsFrom', 'signsUntil', 'removedAt']

interface RevokeOptions extends OutputOptions {
  readonly client?: string
  readonly user?: string
  readonly grant?: string
  readonly hash?: string
  readonly stdin?: true
  readonly reason?: string
}

/** `tokens` and the `keys` that sign them. */
export function addTokenCommands(program: Command, surroundings: Surroundings): void {
  const tokens = program.command('tokens').description('access tokens')
  const targets = [
    new Option('--client <name>', 'all tokens of this client'),
    new Option('--user <user>', 'all sessions, grants and tokens of this person: a name or subject'),
    new Option('--grant <hash>', 'all tokens under this grant'),
    new Option('--hash <hash>', 'the token with this SHA-256, as events show it'),
    new Option('--stdin', 'the token on the standard input: as an argument others could see it'),
  ]
  const names = targets.map((option) => option.attributeName())
  const revoking = answering(tokens, 'revoke', 'end one token, or all of a client, a person or a grant')
  for (const target of targets)
    revoking.addOption(target.conflicts(names.filter((name) => name !== target.attributeName())))
  revoking.option('--reason <text>', 'for the audit').action((options: RevokeOptions) => revoke(options, surroundings))

  const keys = program.command('keys').description('the keys that sign tokens')
  answering(keys, 'list', 'show all', { isDefault: true }).action((options: OutputOptions) =>
    withSession(surroundings, 'tollward.read', async ({ admin, call }) => {
      const found = (await admin.listKeys({}, call)).keys.map((key) => keyRow(key, Date.now()))
      surroundings.out(written(found, KEY_COLUMNS, 'no keys', options))
    }),
  )
  answering(keys, 'rotate', 'make new ones; they sign once everybody had the time to fetch them').action(
    (options: OutputOptions) =>
      withSession(surroundings, 'tollward.admin', async ({ admin, call }) => {
        const found = (await admin.rotateKeys({}, call)).keys.map((key) => keyRow(key, Date.now()))
        surroundings.out(written(found, KEY_COLUMNS, 'no keys', options))
      }),
  )
}

async function revoke(options: RevokeOptions, surroundings: Surroundings): Promise<void> {
  const target = await targetOf(options, surroundings)
  await withSession(surroundings, 'tollward.admin', async ({ admin, call }) => {
    const { revoked } = await admin.revokeTokens({ target, reason: options.reason ?? '' }, call)
    const answer = revoked ? 'revoked' : 'there was nothing to revoke'
    surroundings.out(options.output === 'json' ? json({ revoked }) : `${answer}\n`)
  })
}

async function targetOf({ client, user, grant, hash, stdin }: RevokeOptions, surroundings: Surroundings) {
  if (client !== undefined) return { case: 'clientId', value: client } as const
  if (user !== undefined) return { case: 'user', value: user } as const
  if (grant !== undefined) return { case: 'grantHash', value: grant } as const
  if (hash !== undefined) return { case: 'tokenHash', value: hash } as const
  if (stdin) return { case: 'token', value: (await readSecret(surroundings, 'token')).trim() } as const
  const ways = '--client NAME, --user NAME, --grant SHA256, --hash SHA256, or --stdin'
  throw new AppError('invalid_argument', `Say what to revoke: ${ways}.`)
}
