import type { StoredDocument } from '@tollward/contracts/document'
import { readStored } from '@tollward/documents'
import type { Command } from 'commander'
import { answering, count, duration, leftOutNote, type OutputOptions, several, written } from '../arguments.ts'
import { json } from '../output.ts'
import { documentRow, registeredClientRow, timeText } from '../rows.ts'
import { type Surroundings, withSession } from '../session.ts'

const COLUMNS = ['name', 'origin', 'grants', 'scopes', 'disabled', 'appliedAt', 'registeredAt']

interface InviteOptions extends OutputOptions {
  readonly ttl: number
  readonly registrations: number
  readonly scope: readonly string[]
  readonly audience: readonly string[]
  readonly grant: readonly string[]
}

/** `clients`. */
export function addClientCommands(program: Command, surroundings: Surroundings): void {
  const clients = program.command('clients').description('OAuth clients; apply makes them, or they register')
  answering(clients, 'list', 'show all', { isDefault: true }).action((options: OutputOptions) =>
    withSession(surroundings, 'tollward.read', async ({ admin, call }) => {
      const [{ documents }, { clients: registered, leftOut }] = await Promise.all([
        admin.listDocuments({ kind: 'Client' }, call),
        admin.listRegisteredClients({}, call),
      ])
      const rows = [...documents.map(clientRow), ...registered.map(registeredClientRow)]
      surroundings.out(written(rows, COLUMNS, 'no clients', options))
      surroundings.err(leftOutNote(leftOut, 'older registered clients'))
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
  answering(clients, 'remove', 'forget a client that registered itself; its tokens end')
    .argument('<name>')
    .action((clientId: string, { output }: OutputOptions) =>
      withSession(surroundings, 'tollward.admin', async ({ admin, call }) => {
        const { removed } = await admin.removeRegisteredClient({ clientId }, call)
        const none = `${clientId} is no registered client; one of a document ends with: delete Client ${clientId}`
        const answer = removed ? `${clientId} is removed` : none
        surroundings.out(output === 'json' ? json({ clientId, removed }) : `${answer}\n`)
      }),
    )
  answering(clients, 'invite', 'let somebody register clients: makes an initial access token')
    .option('--ttl <duration>', 'for how long it is good', duration, 3_600_000)
    .option('--registrations <number>', 'for how many clients', count, 1)
    .option('--scope <scope>', 'what such a client may have at most; may be given again', several, [])
    .option('--audience <audience>', 'what its tokens may be for at most; may be given again', several, [])
    .option('--grant <grant>', 'how it may get tokens; may be given again', several, [])
    .action((options: InviteOptions) => invite(options, surroundings))
}

async function invite(options: InviteOptions, surroundings: Surroundings): Promise<void> {
  const { ttl, registrations: registrationsMax, scope: scopes, audience, grant: grants, output } = options
  const request = { lifetimeSeconds: Math.ceil(ttl / 1000), registrationsMax, scopes, audience, grants }
  await withSession(surroundings, 'tollward.admin', async ({ admin, call }) => {
    const { token, expiresAt } = await admin.createInitialAccessToken(
      { ...request, scopes: [...scopes], audience: [...audience], grants: [...grants] },
      call,
    )
    const row = { token, expiresAt: timeText(expiresAt), registrationsMax }
    const use = `good until ${row.expiresAt}: a bearer token for the registration endpoint that discovery names`
    surroundings.out(output === 'json' ? json(row) : `initial access token, shown this once: ${token}\n${use}\n`)
  })
}

function clientRow(stored: StoredDocument) {
  const { name, appliedBy, appliedAt } = documentRow(stored)
  const origin = 'document'
  const reading = readStored(stored)
  if ('fault' in reading || reading.document.kind !== 'Client') return { name, origin, appliedBy, appliedAt }
  const { displayName, grants, scopes, audience, authentication, disabled } = reading.document.spec
  return { name, origin, displayName, grants, scopes, audience, authentication, disabled, appliedBy, appliedAt }
}
