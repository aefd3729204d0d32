import type { Bus } from '@tollward/bus'
import { IssuerService } from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
import type { AdminMethods } from './calls.ts'

/** Tokens, which auth-issuer keeps. */
export function tokenMethods(bus: Bus): Pick<AdminMethods, 'revokeTokens'> {
  const issuer = bus.client(IssuerService)
  return {
    revokeTokens: async ({ target, reason }) => {
      if (target.case === undefined || target.value === '') {
        throw new AppError('invalid_argument', 'Say what to revoke: a token, a token hash, or a client.')
      }
      const { revoked } = await issuer.revoke({ target, reason: reason || 'revoked by an operator' })
      return { revoked }
    },
  }
}
