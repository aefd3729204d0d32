import type { MessageInitShape } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import type { Implementation } from '@tollward/bus'
import { RegisteredClientSchema, type RegistrationService } from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
import {
  INITIAL_TOKEN_LIFETIME_SECONDS_MAX,
  INITIAL_TOKEN_REGISTRATIONS_MAX,
  type Registration,
  type Terms,
  TermsSchema,
} from '../../domain/registration.ts'
import { fitting } from '../fitting.ts'
import type { InitialTokens } from './initial-tokens.ts'
import type { Registrations } from './registrations.ts'

/** What operators do about clients that register. */
export function registrationService({
  registrations,
  initialTokens,
}: {
  registrations: Registrations
  initialTokens: InitialTokens
}): Implementation<typeof RegistrationService> {
  return {
    listRegisteredClients: async () => {
      const { listed, leftOut } = fitting(RegisteredClientSchema, (await registrations.list()).map(presentClient))
      return { clients: listed, leftOut }
    },

    removeRegisteredClient: async ({ clientId }) => ({
      removed: await registrations.remove(clientId, 'client removed by an operator'),
    }),

    createInitialAccessToken: async (request) => {
      const { lifetimeSeconds, registrationsMax } = request
      const registrations = registrationsMax || 1
      if (lifetimeSeconds < 1 || lifetimeSeconds > INITIAL_TOKEN_LIFETIME_SECONDS_MAX) {
        const message = `An initial access token is good for 1 to ${INITIAL_TOKEN_LIFETIME_SECONDS_MAX} seconds.`
        throw new AppError('invalid_argument', message)
      }
      if (registrations > INITIAL_TOKEN_REGISTRATIONS_MAX) {
        const message = `An initial access token is good for at most ${INITIAL_TOKEN_REGISTRATIONS_MAX} registrations.`
        throw new AppError('invalid_argument', message)
      }
      const expiresAtMs = Date.now() + lifetimeSeconds * 1000
      const token = await initialTokens.create(termsFrom(request), registrations, expiresAtMs)
      return { token, expiresAt: timestampFromMs(expiresAtMs) }
    },
  }
}

/** Terms as an operator wrote them, by the rules of Client documents. AppError `invalid_argument`. */
function termsFrom(request: {
  readonly grants: readonly string[]
  readonly scopes: readonly string[]
  readonly audience: readonly string[]
}): Terms {
  const result = TermsSchema.safeParse({
    grants: request.grants.length === 0 ? ['client_credentials'] : request.grants,
    scopes: request.scopes,
    audience: request.audience,
  })
  if (result.success) return { ...result.data, selfRegistered: false }
  const faults = result.error.issues.map(({ path, message }) => `${path.join('.')}: ${message}`)
  throw new AppError('invalid_argument', `Such clients cannot be: ${faults.join('; ')}`)
}

function presentClient({
  clientId,
  spec,
  terms,
  registeredAtMs,
}: Registration): MessageInitShape<typeof RegisteredClientSchema> {
  return {
    clientId,
    clientName: spec.displayName ?? '',
    grants: [...spec.grants],
    scopes: [...spec.scopes],
    audience: [...spec.audience],
    selfRegistered: terms.selfRegistered,
    registeredAt: timestampFromMs(registeredAtMs),
  }
}
