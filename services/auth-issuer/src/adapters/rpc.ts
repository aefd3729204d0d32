import type { Implementation } from '@tollward/bus'
import type { IssuerService } from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
import { tokenHash } from '../domain/token.ts'
import type { IssuerMetrics } from '../metrics.ts'
import { openExchange, tokenInfoOf } from './exchange.ts'
import type { Accounts } from './grants.ts'
import type { KeyRing } from './keys/key-ring.ts'
import type { Stores } from './stores.ts'

const HASH = /^[0-9a-f]{64}$/

const REASON_LENGTH_MAX = 300

export interface RpcOptions {
  readonly issuer: string
  readonly keys: Pick<KeyRing, 'mint' | 'jwks' | 'signIntrospection'>
  readonly stores: Pick<Stores, 'clients' | 'tokens' | 'refreshTokens' | 'grants'>
  readonly accounts: Accounts
  readonly metrics: IssuerMetrics
}

/** What auth-issuer answers on the bus. */
export function issuerService(options: RpcOptions): Implementation<typeof IssuerService> {
  const { issuer, keys, stores, accounts, metrics } = options
  const { clients, tokens, refreshTokens, grants } = stores
  const exchange = openExchange(options)
  /** Ends an access token, or the whole grant that a refresh token stands for. */
  const revokeToken = async (hash: string, reason: string): Promise<boolean> => {
    if (await tokens.revoke(hash, reason)) return true
    const grant = await refreshTokens.grantOf(hash)
    return grant !== undefined && grants.revoke(grant, { reason })
  }
  return {
    exchange: async ({ token, acceptInternal, withoutInternalToken, pastCache }) => {
      const live = await exchange.lookUp(token, { heard: !pastCache })
      const internal = !live && acceptInternal ? await exchange.lookUpInternal(token) : undefined
      metrics.exchanges.inc({ result: live || internal ? 'active' : 'inactive' })
      // An internal token is one already: another would be a way to make it last.
      if (internal) return { info: await tokenInfoOf(internal, undefined) }
      if (!live) return { info: { active: false } }
      const minted = withoutInternalToken ? undefined : await exchange.mint(live.hash, live.worth)
      return { info: await tokenInfoOf(live, minted) }
    },

    authenticateClient: async ({ clientId, clientSecret }) => {
      const client = await clients.authenticate(clientId, clientSecret)
      // Who registered itself has nothing to ask other services.
      const authenticated = client?.selfRegistered ? undefined : client
      metrics.authentications.inc({ result: authenticated ? 'right' : 'wrong' })
      return { authenticated: authenticated !== undefined, introspects: [...(authenticated?.introspects ?? [])] }
    },

    revoke: async ({ target, reason }) => {
      if (reason.length > REASON_LENGTH_MAX) {
        throw new AppError('invalid_argument', `A reason has at most ${REASON_LENGTH_MAX} characters.`)
      }
      switch (target.case) {
        case 'token':
          return { revoked: await revokeToken(tokenHash(target.value), reason) }
        case 'tokenHash':
          return { revoked: await revokeToken(hashed(target.value), reason) }
        case 'grantHash':
          return { revoked: await grants.revokeByHash(hashed(target.value), reason) }
        case 'subject':
          return { revoked: await accounts.endEverything(target.value, reason) }
        case 'clientId': {
          const revoked = await clients.endTokens(target.value, reason)
          if (revoked) metrics.revocations.inc({ of: 'client' })
          return { revoked }
        }
        default:
          throw new AppError(
            'invalid_argument',
            'Say what to revoke: token, token_hash, grant_hash, client_id or subject.',
          )
      }
    },

    replaceClientSecret: async ({ clientId, onlyIfMissing }) => ({
      clientSecret: await clients.replaceSecret(clientId, onlyIfMissing),
    }),

    forgetClient: async ({ clientId }) => {
      await clients.forget(clientId)
      metrics.revocations.inc({ of: 'client' })
      return {}
    },

    noteClientChange: async ({ clientId }) => {
      await clients.noteChange(clientId)
      return {}
    },

    signIntrospection: async ({ clientId, introspectionJson }) => {
      const iat = Math.floor(Date.now() / 1000)
      const introspection = parsedAnswer(introspectionJson)
      const claims = { iss: issuer, aud: clientId, iat, token_introspection: introspection }
      return { jwt: await keys.signIntrospection(claims) }
    },
  }
}

function hashed(text: string): string {
  if (HASH.test(text)) return text
  throw new AppError('invalid_argument', 'A hash is 64 lower-case hexadecimal digits.')
}

function parsedAnswer(json: string): unknown {
  try {
    return JSON.parse(json)
  } catch (error) {
    throw new AppError('invalid_argument', 'The introspection answer is not JSON.', { cause: error })
  }
}
