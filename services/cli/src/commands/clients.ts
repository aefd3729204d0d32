import { text as textOf } from 'node:stream/consumers'
import type { StoredDocument } from '@tollward/contracts/document'
import { readStored } from '@tollward/documents'
import { AppError } from '@tollward/errors'
import { type Command, Option } from 'commander'
import { answering, type OutputOptions, written } from '../arguments.ts'
import { json } from '../output.ts'
import { documentRow } from '../rows.ts'
import { type Surroundings, withSession } from '../session.ts'

const COLUMNS = ['name', 'grants', 'scopes', 'disabled', 'appliedAt']

interface RevokeOptions extends OutputOptions {
  readonly client?: string
  readonly hash?: string
  readonly stdin?: true
  readonly reason?: string
}

/** `clients` and `tokens`. */
export function addClientCommands(program: Command, surroundings: Surroundings): void {
  const clients = program.command('clients').description('OAuth clients; apply makes them')
  answering(clients, 'list', 'show all', { isDefault: true }).action((options: OutputOptions) =>
    withSession(surroundings, 'tollward.read', async ({ admin, call }) => {
      const { documents } = await admin.listDocuments({ kind: 'Client' }, call)
      surroundings.out(written(documents.map(clientRow), COLUMNS, 'no clients', options))
    }),
  )
  answering(clients, 'secret', 'replace the secret of a client; its tokens end')
    .argument('<name>')
    .action((clientId: string, { output }: OutputOptions) =>
      withSession(surroundings, 'tollward.admin', async ({ admin, call }) => {
        const { clientSecret } = await admin.replaceClientSecret({ clientId }, call)
        surroundings.out(output === 'json' ? json({ clientId, clientSecret }) : `${clientSecret}\n`)
      }),
    )

  const tokens = program.command('tokens').description('access tokens')
  const target = ['client', 'hash', 'stdin']
  answering(tokens, 'revoke', 'end one token, or all of a client')
    .addOption(
      new Option('--client <name>', 'all tokens of this client').conflicts(target.filter((name) => name !== 'client')),
    )
    .addOption(new Option('--hash <hex>', 'the token with this SHA-256, as events show it').conflicts('stdin'))
    .addOption(new Option('--stdin', 'the token on the standard input: as an argument others could see it'))
    .option('--reason <text>', 'for the audit')
    .action((options: RevokeOptions) => revoke(options, surroundings))
}

async function revoke(options: RevokeOptions, surroundings: Surroundings): Promise<void> {
  const target = await targetOf(options, surroundings)
  await withSession(surroundings, 'tollward.admin', async ({ admin, call }) => {
    const { revoked } = await admin.revokeTokens({ target, reason: options.reason ?? '' }, call)
    const answer = revoked ? 'revoked' : 'there was nothing to revoke'
    surroundings.out(options.output === 'json' ? json({ revoked }) : `${answer}\n`)
  })
}

async function targetOf({ client, hash, stdin }: RevokeOptions, surroundings: Surroundings) {
  if (client !== undefined) return { case: 'clientId', value: client } as const
  if (hash !== undefined) return { case: 'tokenHash', value: hash } as const
  if (stdin) return { case: 'token', value: (await textOf(surroundings.stdin)).trim() } as const
  throw new AppError('invalid_argument', 'Say what to revoke: --client NAME, --hash SHA256, or --stdin.')
}

function clientRow(stored: StoredDocument) {
  const { name, appliedBy, appliedAt } = documentRow(stored)
  const reading = readStored(stored)
  if ('fault' in reading || reading.document.kind !== 'Client') return { name, appliedBy, appliedAt }
  const { grants, scopes, audience, disabled } = reading.document.spec
  return { name, grants, scopes, audience, disabled, appliedBy, appliedAt }
}
