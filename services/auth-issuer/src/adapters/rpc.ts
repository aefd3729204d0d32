import { randomBytes } from 'node:crypto'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import type { Implementation } from '@tollward/bus'
import type { IssuerService } from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
import type { Provider } from 'oidc-provider'
import { type IssuedToken, internalClaims, tokenHash, worthOf } from '../domain/token.ts'
import type { IssuerMetrics } from '../metrics.ts'
import type { Clients } from './clients.ts'
import type { KeyRing } from './keys/key-ring.ts'
import { GENERATION } from './provider.ts'
import type { Tokens } from './tokens.ts'

/** Longest token that is looked up: ours have 43 characters, and those of other issuers are not ours. */
const TOKEN_LENGTH_MAX = 512

const HASH = /^[0-9a-f]{64}$/

const JTI_BYTES = 16

const REASON_LENGTH_MAX = 300

export interface RpcOptions {
  readonly issuer: string
  readonly provider: () => Provider
  readonly keys: Pick<KeyRing, 'mint' | 'signIntrospection'>
  readonly clients: Clients
  readonly tokens: Tokens
  readonly metrics: IssuerMetrics
}

/** What auth-issuer answers on the bus. */
export function issuerService(options: RpcOptions): Implementation<typeof IssuerService> {
  const { issuer, keys, clients, tokens, metrics } = options
  return {
    exchange: async ({ token }) => {
      const info = await exchange(token, options)
      metrics.exchanges.inc({ result: info ? 'active' : 'inactive' })
      return { info: info ?? { active: false } }
    },

    authenticateClient: async ({ clientId, clientSecret }) => {
      const authenticated = await clients.authenticate(clientId, clientSecret)
      metrics.authentications.inc({ result: authenticated ? 'right' : 'wrong' })
      return { authenticated }
    },

    revoke: async ({ target, reason }) => {
      if (reason.length > REASON_LENGTH_MAX) {
        throw new AppError('invalid_argument', `A reason has at most ${REASON_LENGTH_MAX} characters.`)
      }
      switch (target.case) {
        case 'token':
          return { revoked: await tokens.revoke(tokenHash(target.value), reason) }
        case 'tokenHash':
          if (!HASH.test(target.value)) {
            throw new AppError('invalid_argument', 'A token hash is 64 lower-case hexadecimal digits.')
          }
          return { revoked: await tokens.revoke(target.value, reason) }
        case 'clientId': {
          const revoked = await clients.endTokens(target.value, reason)
          if (revoked) metrics.revocations.inc({ of: 'client' })
          return { revoked }
        }
        default:
          throw new AppError('invalid_argument', 'Say what to revoke: token, token_hash or client_id.')
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

function parsedAnswer(json: string): unknown {
  try {
    return JSON.parse(json)
  } catch (error) {
    throw new AppError('invalid_argument', 'The introspection answer is not JSON.', { cause: error })
  }
}

async function exchange(token: string, { provider, clients, keys, issuer }: RpcOptions) {
  if (token === '' || token.length > TOKEN_LENGTH_MAX) return undefined
  const issued = await issuedToken(token, provider())
  if (!issued) return undefined
  const nowSeconds = Math.floor(Date.now() / 1000)
  const worth = worthOf(issued, await clients.find(issued.clientId), nowSeconds)
  if (!worth) return undefined
  const claims = internalClaims(worth, issuer, randomBytes(JTI_BYTES).toString('base64url'), nowSeconds)
  return {
    active: true,
    tokenHash: tokenHash(token),
    clientId: worth.clientId,
    subject: worth.subject,
    scopes: [...worth.scopes],
    audience: [...worth.audience],
    issuedAt: timestampFromMs(worth.issuedAtSeconds * 1000),
    expiresAt: timestampFromMs(worth.expiresAtSeconds * 1000),
    internalToken: await keys.mint(claims),
    internalTokenExpiresAt: timestampFromMs(claims.exp * 1000),
  }
}

/** A token as oidc-provider finds it. Without client, time or generation it is none that this service made. */
async function issuedToken(token: string, provider: Provider): Promise<IssuedToken | undefined> {
  const found = await provider.ClientCredentials.find(token)
  if (!found?.clientId || found.iat === undefined || found.exp === undefined) return undefined
  const generation = found.extra?.[GENERATION]
  if (typeof generation !== 'string') return undefined
  return {
    clientId: found.clientId,
    // RFC 9068, section 2.2: where no person is involved the subject is the client.
    subject: found.clientId,
    scopes: [...found.scopes],
    audience: [found.aud ?? []].flat(),
    issuedAtSeconds: found.iat,
    expiresAtSeconds: found.exp,
    generation,
  }
}
