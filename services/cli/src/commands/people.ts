import type { Command } from 'commander'
import { answering, leftOutNote, type OutputOptions, written } from '../arguments.ts'
import { json } from '../output.ts'
import { grantRow, sessionRow, userRow } from '../rows.ts'
import { readSecret, type Session, type Surroundings, withSession } from '../session.ts'

const USER_COLUMNS = ['name', 'subject', 'enabled', 'createdAt', 'passwordChangedAt']
const SESSION_COLUMNS = ['sessionHash', 'user', 'signedInAt', 'expiresAt', 'clients']
const GRANT_COLUMNS = ['grantHash', 'user', 'client', 'scopes', 'grantedAt', 'expiresAt']

const STDIN = 'take the password from the standard input, instead of making one and showing it'

type Work = (user: string, session: Session) => Promise<unknown>

interface PasswordOptions extends OutputOptions {
  readonly stdin?: true
}

interface ListOptions extends OutputOptions {
  readonly user?: string
  readonly client?: string
}

/** `users`, and what they have open: `sessions` and `grants`. */
export function addPeopleCommands(program: Command, surroundings: Surroundings): void {
  addUserCommands(program, surroundings)

  const sessions = program.command('sessions').description('browsers in which people are signed in')
  answering(sessions, 'list', 'show all', { isDefault: true })
    .option('--user <user>', "this person's only: a name or subject")
    .action((options: ListOptions) =>
      withSession(surroundings, 'tollward.read', async (session) => {
        const { admin, call } = session
        const [found, names] = await Promise.all([
          admin.listSessions({ user: options.user ?? '' }, call),
          namesOf(session),
        ])
        const rows = found.sessions.map((row) => sessionRow(row, names))
        surroundings.out(written(rows, SESSION_COLUMNS, 'nobody is signed in', options))
        surroundings.err(leftOutNote(found.leftOut, 'older sessions'))
      }),
    )
  answering(sessions, 'end', 'sign a browser out; what clients were let do goes on until its grant is revoked')
    .argument('<hash>', 'as list shows it')
    .action((sessionHash: string, { output }: OutputOptions) =>
      withSession(surroundings, 'tollward.admin', async ({ admin, call }) => {
        const { ended } = await admin.endSession({ sessionHash }, call)
        const answer = ended ? 'ended' : 'there is no such session'
        surroundings.out(output === 'json' ? json({ sessionHash, ended }) : `${answer}\n`)
      }),
    )

  const grants = program.command('grants').description('what people let clients do for them')
  answering(grants, 'list', 'show all', { isDefault: true })
    .option('--user <user>', "this person's only: a name or subject")
    .option('--client <name>', "this client's only")
    .action((options: ListOptions) =>
      withSession(surroundings, 'tollward.read', async (session) => {
        const { admin, call } = session
        const request = { user: options.user ?? '', clientId: options.client ?? '' }
        const [found, names] = await Promise.all([admin.listGrants(request, call), namesOf(session)])
        const rows = found.grants.map((row) => grantRow(row, names))
        surroundings.out(written(rows, GRANT_COLUMNS, 'no grants', options))
        surroundings.err(leftOutNote(found.leftOut, 'older grants'))
      }),
    )
  answering(grants, 'revoke', 'end a grant with all its tokens')
    .argument('<hash>', 'as list and events show it')
    .option('--reason <text>', 'for the audit')
    .action((grantHash: string, { reason, output }: OutputOptions & { reason?: string }) =>
      withSession(surroundings, 'tollward.admin', async ({ admin, call }) => {
        const target = { case: 'grantHash', value: grantHash } as const
        const { revoked } = await admin.revokeTokens({ target, reason: reason ?? '' }, call)
        const answer = revoked ? 'revoked' : 'there is no such grant'
        surroundings.out(output === 'json' ? json({ grantHash, revoked }) : `${answer}\n`)
      }),
    )
}

function addUserCommands(program: Command, surroundings: Surroundings): void {
  const { out } = surroundings
  const users = program.command('users').description('people who can sign in')
  answering(users, 'list', 'show all', { isDefault: true }).action((options: OutputOptions) =>
    withSession(surroundings, 'tollward.read', async ({ admin, call }) => {
      const found = await admin.listUsers({}, call)
      out(written(found.users.map(userRow), USER_COLUMNS, 'no users', options))
      surroundings.err(leftOutNote(found.leftOut, 'users'))
    }),
  )
  answering(users, 'create', 'let a person sign in')
    .argument('<name>')
    .option('--stdin', STDIN)
    .action(async (name: string, options: PasswordOptions) => {
      const given = await givenPassword(options, surroundings)
      await withSession(surroundings, 'tollward.admin', async ({ admin, call }) => {
        const { user, password } = await admin.createUser({ name, password: given }, call)
        const row = { ...(user && userRow(user)), ...made(password) }
        out(options.output === 'json' ? json(row) : `user ${name} created\n${shown(password)}`)
      })
    })
  answering(users, 'password', "replace a person's password; sessions, grants and tokens end")
    .argument('<user>', 'a name or subject')
    .option('--stdin', STDIN)
    .action(async (user: string, options: PasswordOptions) => {
      const given = await givenPassword(options, surroundings)
      await withSession(surroundings, 'tollward.admin', async ({ admin, call }) => {
        const { password } = await admin.setPassword({ user, password: given }, call)
        const row = { user, changed: true, ...made(password) }
        out(options.output === 'json' ? json(row) : `password of ${user} replaced\n${shown(password)}`)
      })
    })
  const change = (name: string, description: string, done: string, work: Work) =>
    answering(users, name, description)
      .argument('<user>', 'a name or subject')
      .action((user: string, { output }: OutputOptions) =>
        withSession(surroundings, 'tollward.admin', async (session) => {
          await work(user, session)
          out(output === 'json' ? json({ user, [done]: true }) : `user ${user} ${done}\n`)
        }),
      )
  const switchedTo =
    (enabled: boolean): Work =>
    (user, { admin, call }) =>
      admin.setUserEnabled({ user, enabled }, call)
  change('disable', 'keep a person out; sessions, grants and tokens end', 'disabled', switchedTo(false))
  change('enable', 'let a disabled person sign in again', 'enabled', switchedTo(true))
  change('delete', 'forget a person; sessions, grants and tokens end', 'deleted', (user, { admin, call }) =>
    admin.deleteUser({ user }, call),
  )
}

async function givenPassword({ stdin }: PasswordOptions, surroundings: Surroundings): Promise<string> {
  return stdin ? await readSecret(surroundings, 'password') : ''
}

function made(password: string) {
  return password === '' ? {} : { password }
}

function shown(password: string): string {
  return password === '' ? '' : `  password, shown this once: ${password}\n`
}

/** Names by subject: sessions and grants know subjects only. */
async function namesOf({ admin, call }: Session): Promise<ReadonlyMap<string, string>> {
  return new Map((await admin.listUsers({}, call)).users.map(({ subject, name }) => [subject, name]))
}
