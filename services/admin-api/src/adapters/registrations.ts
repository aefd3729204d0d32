import type { Bus } from '@tollward/bus'
import { RegistrationService } from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
import type { AdminMethods } from './calls.ts'

/** Longer ones are forgotten somewhere before they are used. */
const INVITATION_SECONDS_MAX = 30 * 24 * 3600

/** Clients that registered themselves, which auth-issuer keeps. */
export function registrationMethods(
  bus: Bus,
): Pick<AdminMethods, 'listRegisteredClients' | 'removeRegisteredClient' | 'createInitialAccessToken'> {
  const registrations = bus.client(RegistrationService)
  return {
    listRegisteredClients: async () => ({ clients: (await registrations.listRegisteredClients({})).clients }),

    removeRegisteredClient: async ({ clientId }) => {
      if (clientId === '') throw new AppError('invalid_argument', 'Say which client.')
      return { removed: (await registrations.removeRegisteredClient({ clientId })).removed }
    },

    createInitialAccessToken: async ({ lifetimeSeconds, scopes, audience, grants, registrationsMax }) => {
      if (lifetimeSeconds < 1 || lifetimeSeconds > INVITATION_SECONDS_MAX) {
        const bounds = `it is good for 1 to ${INVITATION_SECONDS_MAX} seconds (30 days)`
        throw new AppError('invalid_argument', `Say for how long the token is good: ${bounds}.`)
      }
      const request = { lifetimeSeconds, scopes, audience, grants, registrationsMax }
      const { token, expiresAt } = await registrations.createInitialAccessToken(request)
      return expiresAt ? { token, expiresAt } : { token }
    },
  }
}
