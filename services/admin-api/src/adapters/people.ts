import type { Bus, Client } from '@tollward/bus'
import { GrantService, type User, UserService } from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
import { userTarget } from '../domain/audit.ts'
import type { AdminMethods } from './calls.ts'

/** Hashing a password takes a third of a second, and some may be waiting for theirs. */
const PASSWORD_TIMEOUT_MS = 15_000

type PeopleMethods =
  | 'listUsers'
  | 'createUser'
  | 'setPassword'
  | 'setUserEnabled'
  | 'deleteUser'
  | 'listSessions'
  | 'endSession'
  | 'listGrants'

/** People, their sessions, and what they let clients do: auth-issuer keeps it all. Names become subjects in the audit. */
export function peopleMethods(bus: Bus): Pick<AdminMethods, PeopleMethods> {
  const users = bus.client(UserService, { timeoutMs: PASSWORD_TIMEOUT_MS })
  const grants = bus.client(GrantService)

  /** The person who is meant; from here on the audit names them by their subject. */
  const person = async (user: string, action: { target: string }) => {
    const found = await findUser(users, user)
    action.target = userTarget(found.subject)
    return found
  }
  const subjectOf = async (user: string) => (user === '' ? '' : (await findUser(users, user)).subject)

  return {
    listUsers: async () => {
      const { users: listed, leftOut } = await users.listUsers({})
      return { users: listed, leftOut }
    },

    createUser: async ({ name, password }, action) => {
      const created = await users.createUser({ name, password })
      if (!created.user) throw new AppError('internal', 'auth-issuer answered without the user.')
      action.target = userTarget(created.user.subject)
      return { user: created.user, password: created.password }
    },

    setPassword: async ({ user, password }, action) => {
      const { name } = await person(user, action)
      return { password: (await users.setPassword({ name, password })).password }
    },

    setUserEnabled: async ({ user, enabled }, action) => {
      const { name } = await person(user, action)
      const changed = await users.setUserEnabled({ name, enabled })
      return changed.user ? { user: changed.user } : {}
    },

    deleteUser: async ({ user }, action) => {
      const { name } = await person(user, action)
      await users.deleteUser({ name })
      return {}
    },

    listSessions: async ({ user }) => {
      const { sessions, leftOut } = await grants.listSessions({ subject: await subjectOf(user) })
      return { sessions, leftOut }
    },

    endSession: async ({ sessionHash }) => ({ ended: (await grants.endSession({ sessionHash })).ended }),

    listGrants: async ({ user, clientId }) => {
      const { grants: listed, leftOut } = await grants.listGrants({ subject: await subjectOf(user), clientId })
      return { grants: listed, leftOut }
    },
  }
}

/** A person by subject, or by name in any case. AppError `not_found` if there is none. */
export async function findUser(service: Client<typeof UserService>, user: string): Promise<User> {
  if (user === '') throw new AppError('invalid_argument', 'Say which user: a name, or a subject as events show it.')
  const { users } = await service.listUsers({ user })
  const lower = user.toLowerCase()
  const found = users.find(({ subject }) => subject === user) ?? users.find(({ name }) => name.toLowerCase() === lower)
  if (!found) throw new AppError('not_found', 'There is no such user.')
  return found
}
