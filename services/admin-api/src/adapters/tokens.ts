import type { Bus } from '@tollward/bus'
import { IssuerService, KeyService, type RevokeRequest, UserService } from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
import type { RequestOf } from '../domain/audit.ts'
import { userTarget } from '../domain/audit.ts'
import type { AdminMethods } from './calls.ts'
import { findUser } from './people.ts'

/** Tokens and the keys that sign them, which auth-issuer keeps. */
export function tokenMethods(bus: Bus): Pick<AdminMethods, 'revokeTokens' | 'listKeys' | 'rotateKeys'> {
  const issuer = bus.client(IssuerService)
  const keys = bus.client(KeyService)
  const users = bus.client(UserService)

  const targetOf = async ({ target }: RequestOf<'revokeTokens'>): Promise<RevokeRequest['target']> => {
    if (target.case === undefined || target.value === '') {
      throw new AppError('invalid_argument', 'Say what to revoke: a token, a token hash, a client, a grant, or a user.')
    }
    if (target.case !== 'user') return target
    return { case: 'subject', value: (await findUser(users, target.value)).subject }
  }

  return {
    revokeTokens: async (request, action) => {
      const target = await targetOf(request)
      if (target.case === 'subject') action.target = `tokens of ${userTarget(target.value)}`
      const { revoked } = await issuer.revoke({ target, reason: request.reason || 'revoked by an operator' })
      return { revoked }
    },
    listKeys: async () => ({ keys: (await keys.listKeys({})).keys }),
    rotateKeys: async () => ({ keys: (await keys.rotateKeys({})).keys }),
  }
}
