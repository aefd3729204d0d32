import type { MessageInitShape } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import type { Implementation } from '@tollward/bus'
import { UserSchema, type UserService } from '@tollward/contracts/token'
import type { Person } from '../../domain/account.ts'
import { fitting } from '../fitting.ts'
import type { Accounts } from './accounts.ts'

/** What operators do with people, on the bus. */
export function userService(accounts: Accounts): Implementation<typeof UserService> {
  return {
    createUser: async ({ name, password }) => {
      const { person, madePassword } = await accounts.create(name, password)
      return { user: userOf(person), password: madePassword }
    },
    listUsers: async ({ user }) => {
      if (user === '') {
        const { listed, leftOut } = fitting(UserSchema, (await accounts.list()).map(userOf))
        return { users: listed, leftOut }
      }
      const person = (await accounts.find(user)) ?? (await accounts.findByName(user))
      return { users: person ? [userOf(person)] : [] }
    },
    setPassword: async ({ name, password }) => {
      const { madePassword } = await accounts.setPassword(name, password, 'password set by an operator')
      return { password: madePassword }
    },
    setUserEnabled: async ({ name, enabled }) => ({ user: userOf(await accounts.setEnabled(name, enabled)) }),
    deleteUser: async ({ name }) => {
      await accounts.remove(name)
      return {}
    },
  }
}

function userOf(person: Person): MessageInitShape<typeof UserSchema> {
  return {
    subject: person.subject,
    name: person.name,
    enabled: person.enabled,
    createdAt: timestampFromMs(person.createdAtMs),
    passwordChangedAt: timestampFromMs(person.passwordChangedAtMs),
  }
}
