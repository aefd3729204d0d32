import { randomBytes } from 'node:crypto'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { createLocalJWKSet, type JWK, type JWTPayload, errors as joseErrors, jwtVerify } from 'jose'
import { grantHash } from '../domain/grant.ts'
import {
  type Confirmation,
  type InternalClaims,
  type IssuedToken,
  internalClaims,
  narrowed,
  tokenHash,
  worthOf,
} from '../domain/token.ts'
import type { KeyRing } from './keys/key-ring.ts'
import type { Payload } from './records.ts'
import type { Stores } from './stores.ts'

/** Longest token that is looked up: opaque ones have 43 characters, internal ones some hundred. */
const TOKEN_LENGTH_MAX = 4096

const JTI_BYTES = 16

const INTERNAL_ALGORITHM = 'ES256'

export interface ExchangeOptions {
  readonly issuer: string
  readonly keys: Pick<KeyRing, 'mint' | 'jwks'>
  readonly stores: Pick<Stores, 'tokens' | 'grants' | 'clients'>
}

/** A token that is good now, and by which name it is revoked. */
export interface LiveToken {
  /** SHA-256 of the opaque token, lower-case hexadecimal. */
  readonly hash: string
  readonly worth: IssuedToken
  readonly selfRegistered: boolean
}

/** Looks tokens up at their source. */
export interface Exchange {
  /**
   * What an opaque token is worth now; undefined: nothing. With `heard`, by its client as it was heard of last: whoever then hears that
   * the client was changed or revoked has to ask again without.
   */
  lookUp(token: string, options?: { readonly heard?: boolean }): Promise<LiveToken | undefined>
  /** The same for an internal token of ours: never more than it says, and nothing once its origin is worth nothing. */
  lookUpInternal(token: string): Promise<LiveToken | undefined>
  /** Makes an internal token for what `worth` says; `actor` is the client that passes it on. */
  mint(hash: string, worth: IssuedToken, actor?: string): Promise<{ token: string; claims: InternalClaims }>
}

export function openExchange({ issuer, keys, stores }: ExchangeOptions): Exchange {
  const { tokens, grants, clients } = stores
  const verify = internalVerifier(issuer, keys)

  const lookUpHash = async (hash: string, heard = false): Promise<LiveToken | undefined> => {
    const payload = await tokens.findByHash(hash)
    const issued = payload && issuedToken(payload)
    if (!issued) return undefined
    const { grantId } = issued
    const [client, grant] = await Promise.all([
      heard ? clients.findHeard(issued.clientId) : clients.find(issued.clientId),
      grantId === undefined ? undefined : grants.find(grantId),
    ])
    if (grantId !== undefined && (!grant || grant.clientId !== issued.clientId)) return undefined
    const worth = worthOf(issued, client, Math.floor(Date.now() / 1000))
    // Before a token is refused the source is asked.
    if (!worth && heard) return lookUpHash(hash)
    return worth && client && { hash, worth, selfRegistered: client.selfRegistered }
  }

  return {
    lookUp: async (token, { heard } = {}) =>
      token === '' || token.length > TOKEN_LENGTH_MAX ? undefined : await lookUpHash(tokenHash(token), heard),

    lookUpInternal: async (token) => {
      if (token.length > TOKEN_LENGTH_MAX) return undefined
      const claims = await verify(token)
      if (typeof claims?.origin !== 'string') return undefined
      const live = await lookUpHash(claims.origin)
      const worth = live && narrowed(live.worth, claims)
      return worth && { ...live, worth }
    },

    mint: async (hash, worth, actor) => {
      const jti = randomBytes(JTI_BYTES).toString('base64url')
      const nowSeconds = Math.floor(Date.now() / 1000)
      const claims = internalClaims(worth, { issuer, jti, origin: hash, actor, nowSeconds })
      return { token: await keys.mint(claims), claims }
    },
  }
}

/** The answer of IssuerService.Exchange for a token that is good. */
export async function tokenInfoOf(live: LiveToken, internal: Awaited<ReturnType<Exchange['mint']>> | undefined) {
  const { hash, worth, selfRegistered } = live
  return {
    active: true,
    tokenHash: hash,
    clientId: worth.clientId,
    subject: worth.subject,
    scopes: [...worth.scopes],
    audience: [...worth.audience],
    issuedAt: timestampFromMs(worth.issuedAtSeconds * 1000),
    expiresAt: timestampFromMs(worth.expiresAtSeconds * 1000),
    grantHash: worth.grantId === undefined ? '' : grantHash(worth.grantId),
    selfRegistered,
    ...(worth.confirmation === undefined ? {} : { confirmation: { method: methodOf(worth.confirmation) } }),
    ...(internal === undefined
      ? {}
      : { internalToken: internal.token, internalTokenExpiresAt: timestampFromMs(internal.claims.exp * 1000) }),
  }
}

function methodOf(confirmation: Confirmation) {
  return 'jkt' in confirmation
    ? { case: 'jkt' as const, value: confirmation.jkt }
    : { case: 'x5tS256' as const, value: confirmation['x5t#S256'] }
}

/** A token as it is kept. Without client, time or generation it is none that this service made. */
function issuedToken(payload: Payload): IssuedToken | undefined {
  const { clientId, accountId, scope, aud, iat, exp, extra, grantId, jkt, 'x5t#S256': x5t } = payload
  if (clientId === undefined || iat === undefined || exp === undefined || extra?.generation === undefined)
    return undefined
  // A person's token without grant would outlive everything that ends it.
  if (accountId !== undefined && grantId === undefined) return undefined
  return {
    clientId,
    // RFC 9068, section 2.2: where no person is involved the subject is the client.
    subject: accountId ?? clientId,
    scopes: scope?.split(' ') ?? [],
    audience: aud === undefined ? [] : [aud],
    issuedAtSeconds: iat,
    expiresAtSeconds: exp,
    generation: extra.generation,
    grantId,
    confirmation: jkt !== undefined ? { jkt } : x5t !== undefined ? { 'x5t#S256': x5t } : undefined,
  }
}

/** Verifies internal tokens against the keys of the moment; undefined: not ours, over, or no access token. */
function internalVerifier(issuer: string, keys: Pick<KeyRing, 'jwks'>) {
  let of: unknown
  let keySet = createLocalJWKSet({ keys: [] })
  return async (token: string): Promise<JWTPayload | undefined> => {
    const jwks = keys.jwks()
    if (of !== jwks) {
      of = jwks
      keySet = createLocalJWKSet({ keys: jwks.keys.map(publicPart) })
    }
    try {
      const checks = { issuer, typ: 'at+jwt', algorithms: [INTERNAL_ALGORITHM], requiredClaims: ['exp', 'origin'] }
      return (await jwtVerify(token, keySet, checks)).payload
    } catch (error) {
      if (error instanceof joseErrors.JOSEError) return undefined
      throw error
    }
  }
}

function publicPart({ d: _private, ...key }: JWK): JWK {
  return key
}
