import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import type { Implementation } from '@tollward/bus'
import { GrantSchema, type GrantService, SessionSchema } from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
import { fitting } from './fitting.ts'
import type { Stores } from './stores.ts'

const HASH = /^[0-9a-f]{64}$/

/** What auth-issuer answers on the bus about the sessions and grants of people. */
export function grantService({
  grants,
  sessions,
}: Pick<Stores, 'grants' | 'sessions'>): Implementation<typeof GrantService> {
  return {
    listSessions: async ({ subject }) => {
      const found = await sessions.list(subject === '' ? undefined : subject)
      const { listed, leftOut } = fitting(
        SessionSchema,
        found
          .sort((a, b) => b.signedInAtMs - a.signedInAtMs)
          .map(({ signedInAtMs, expiresAtMs, clientIds, ...session }) => ({
            ...session,
            clientIds: [...clientIds],
            signedInAt: timestampFromMs(signedInAtMs),
            expiresAt: timestampFromMs(expiresAtMs),
          })),
      )
      return { sessions: listed, leftOut }
    },

    endSession: async ({ sessionHash }) => {
      if (!HASH.test(sessionHash)) {
        throw new AppError('invalid_argument', 'A session hash is 64 lower-case hexadecimal digits.')
      }
      return { ended: await sessions.end(sessionHash) }
    },

    listGrants: async ({ subject, clientId }) => {
      const found = await grants.list({ subject, clientId })
      const { listed, leftOut } = fitting(
        GrantSchema,
        found
          .sort((a, b) => b.grantedAtMs - a.grantedAtMs)
          .map(({ grantedAtMs, expiresAtMs, scopes, audience, ...grant }) => ({
            ...grant,
            scopes: [...scopes],
            audience: [...audience],
            grantedAt: timestampFromMs(grantedAtMs),
            expiresAt: timestampFromMs(expiresAtMs),
          })),
      )
      return { grants: listed, leftOut }
    },
  }
}
