import { hash } from 'node:crypto'
import type { RegisteredClient } from './client.ts'

/** Life of the JWT that goes upstream: long enough to be cached, short enough that its theft is worth little. */
export const INTERNAL_TOKEN_LIFETIME_SECONDS = 60

/** An id token is read right after it was issued; keys would have to be published for as long as the longest lives. */
const ID_TOKEN_LIFETIME_MAX_SECONDS = 3600

/** How long a key is published after it signed last: the life of the longest token that it signed, and 5 minutes for clocks that differ. */
export const KEY_RETENTION_MS = (ID_TOKEN_LIFETIME_MAX_SECONDS + 300) * 1000

/** Life of an id token: that of the client's access tokens, as far as the keys allow. */
export function idTokenLifetime(tokenLifetimeSeconds: number): number {
  return Math.min(tokenLifetimeSeconds, ID_TOKEN_LIFETIME_MAX_SECONDS)
}

/** An access token as it was issued. Times are whole seconds since the epoch (RFC 7519, NumericDate). */
export interface IssuedToken {
  readonly clientId: string
  readonly subject: string
  readonly scopes: readonly string[]
  readonly audience: readonly string[]
  readonly issuedAtSeconds: number
  readonly expiresAtSeconds: number
  readonly generation: string
  /** Id of the OAuth grant that it was issued under; undefined: the client acts for itself. */
  readonly grantId?: string | undefined
  readonly confirmation?: Confirmation | undefined
}

/** RFC 7800 "cnf": the token is worth something only together with a proof of possession. */
export type Confirmation = { readonly jkt: string } | { readonly 'x5t#S256': string }

/** Claims of the internal token (RFC 9068, section 2.2). */
export interface InternalClaims {
  readonly iss: string
  readonly sub: string
  readonly aud: string | string[]
  readonly client_id: string
  readonly scope: string
  readonly iat: number
  readonly exp: number
  readonly jti: string
  /** SHA-256 of the access token that it stands for, lower-case hexadecimal: it is worth nothing once that is. */
  readonly origin: string
  readonly cnf?: Confirmation
  /** Who passes it on in the name of its subject (RFC 8693, section 4.1). */
  readonly act?: { readonly sub: string }
}

/** SHA-256 of a token, lower-case hexadecimal: the only name of a token in keys, events and logs. */
export function tokenHash(token: string): string {
  return hash('sha256', token, 'hex')
}

/** What counts of a client when one of its tokens is looked at. */
export type TokenHolder = Pick<RegisteredClient, 'clientId' | 'generation' | 'scopes' | 'audience'>

/**
 * What a token is worth now: as issued, less what its client has lost since. Undefined: nothing, because it is over, its
 * client is gone, its client's tokens were ended, or nothing that it was for is left.
 */
export function worthOf(
  token: IssuedToken,
  client: TokenHolder | undefined,
  nowSeconds: number,
): IssuedToken | undefined {
  if (client === undefined || client.clientId !== token.clientId) return undefined
  if (token.generation !== client.generation) return undefined
  if (token.expiresAtSeconds <= nowSeconds) return undefined
  const audience = token.audience.filter((name) => client.audience.includes(name))
  if (audience.length === 0) return undefined
  return { ...token, audience, scopes: token.scopes.filter((scope) => client.scopes.includes(scope)) }
}

/** What is left of a token's worth in an internal token that was made for it, by its verified claims. Undefined: nothing. */
export function narrowed(
  token: IssuedToken,
  { scope, aud, exp }: { scope?: unknown; aud?: unknown; exp?: number | undefined },
): IssuedToken | undefined {
  const names = [aud].flat()
  const audience = token.audience.filter((name) => names.includes(name))
  if (audience.length === 0 || exp === undefined) return undefined
  const scopes = typeof scope === 'string' ? scope.split(' ') : []
  return {
    ...token,
    audience,
    scopes: token.scopes.filter((name) => scopes.includes(name)),
    expiresAtSeconds: Math.min(token.expiresAtSeconds, exp),
  }
}

/** The claims of the internal token for an access token: never more, never longer. */
export function internalClaims(
  token: IssuedToken,
  {
    issuer,
    jti,
    origin,
    actor,
    nowSeconds,
  }: { issuer: string; jti: string; origin: string; actor?: string | undefined; nowSeconds: number },
): InternalClaims {
  const [audience] = token.audience
  return {
    iss: issuer,
    sub: token.subject,
    aud: token.audience.length === 1 && audience !== undefined ? audience : [...token.audience],
    client_id: token.clientId,
    scope: token.scopes.join(' '),
    iat: nowSeconds,
    exp: Math.min(nowSeconds + INTERNAL_TOKEN_LIFETIME_SECONDS, token.expiresAtSeconds),
    jti,
    origin,
    ...(token.confirmation === undefined ? {} : { cnf: token.confirmation }),
    ...(actor === undefined ? {} : { act: { sub: actor } }),
  }
}
