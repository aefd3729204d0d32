import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import type { Implementation } from '@tollward/bus'
import type { GrantService } from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
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
      return {
        sessions: found.map(({ signedInAtMs, expiresAtMs, clientIds, ...session }) => ({
          ...session,
          clientIds: [...clientIds],
          signedInAt: timestampFromMs(signedInAtMs),
          expiresAt: timestampFromMs(expiresAtMs),
        })),
      }
    },

    endSession: async ({ sessionHash }) => {
      if (!HASH.test(sessionHash)) {
        throw new AppError('invalid_argument', 'A session hash is 64 lower-case hexadecimal digits.')
      }
      return { ended: await sessions.end(sessionHash) }
    },

    listGrants: async ({ subject, clientId }) => {
      const found = await grants.list({ subject, clientId })
      return {
        grants: found.map(({ grantedAtMs, expiresAtMs, scopes, audience, ...grant }) => ({
          ...grant,
          scopes: [...scopes],
          audience: [...audience],
          grantedAt: timestampFromMs(grantedAtMs),
          expiresAt: timestampFromMs(expiresAtMs),
        })),
      }
    },
  }
}
