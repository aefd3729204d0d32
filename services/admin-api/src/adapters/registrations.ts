import type { Bus } from '@tollward/bus'
import { RegistrationService } from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
import type { AdminMethods } from './calls.ts'

/** Clients that registered themselves, which auth-issuer keeps. */
export function registrationMethods(
  bus: Bus,
): Pick<AdminMethods, 'listRegisteredClients' | 'removeRegisteredClient' | 'createInitialAccessToken'> {
  const registrations = bus.client(RegistrationService)
  return {
    listRegisteredClients: async () => {
      const { clients, leftOut } = await registrations.listRegisteredClients({})
      return { clients, leftOut }
    },

    removeRegisteredClient: async ({ clientId }) => {
      if (clientId === '') throw new AppError('invalid_argument', 'Say which client.')
      return { removed: (await registrations.removeRegisteredClient({ clientId })).removed }
    },

    createInitialAccessToken: async ({ lifetimeSeconds, scopes, audience, grants, registrationsMax }) => {
      const bounds = { lifetimeSeconds, scopes, audience, grants, registrationsMax }
      const { token, expiresAt } = await registrations.createInitialAccessToken(bounds)
      return expiresAt ? { token, expiresAt } : { token }
    },
  }
}
