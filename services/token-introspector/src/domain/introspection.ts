import { timestampMs } from '@bufbuild/protobuf/wkt'
import type { Confirmation, TokenInfo } from '@tollward/contracts/token'

/** What is told of a token that is active (RFC 7662, section 2.2). */
export interface Introspection {
  readonly active: true
  readonly iss: string
  readonly client_id: string
  readonly sub: string
  readonly scope: string
  readonly aud: string | string[]
  readonly token_type: 'Bearer' | 'DPoP'
  readonly cnf?: { readonly jkt: string } | { readonly 'x5t#S256': string }
  readonly iat?: number
  readonly exp?: number
}

/** A client that authenticated itself. */
export interface Caller {
  readonly clientId: string
  /** Audiences whose tokens it may ask about, besides its own tokens. */
  readonly introspects: readonly string[]
}

/** RFC 6750, section 2.1: what can be in an Authorization header. Ours have 43 characters; the bounds are generous. */
const TOKEN = /^[A-Za-z0-9._~+/-]{20,2048}={0,2}$/

/** A JWT's three parts (RFC 7515, section 3.1), each with something in it. */
const JWT = /^[\w-]+\.[\w-]+\.[\w-]+$/

/** Whether the text can be an access token: what cannot is not worth a question to the issuer. */
export function isTokenShaped(text: string): boolean {
  return TOKEN.test(text)
}

/** Whether the text can be one of the tokens that travel inside; those from outside have no dots. */
export function isJwtShaped(text: string): boolean {
  return JWT.test(text)
}

/**
 * Whether a caller is told anything of a token. Only the client that has it, and those whose document says that they introspect its
 * audience, are; to others it is as unknown as one that does not exist.
 */
export function mayKnow({ clientId, introspects }: Caller, info: TokenInfo): boolean {
  if (!info.active) return false
  return info.clientId === clientId || info.audience.some((name) => introspects.includes(name))
}

/** What those who may know are told of an active token, whoever they are. */
export function introspectionOf(info: TokenInfo, issuer: string): Introspection {
  const [audience] = info.audience
  return {
    active: true,
    iss: issuer,
    client_id: info.clientId,
    sub: info.subject,
    scope: info.scopes.join(' '),
    aud: info.audience.length === 1 && audience !== undefined ? audience : info.audience,
    token_type: info.confirmation?.method.case === 'jkt' ? 'DPoP' : 'Bearer',
    ...confirmed(info.confirmation),
    ...(info.issuedAt ? { iat: Math.floor(timestampMs(info.issuedAt) / 1000) } : {}),
    ...(info.expiresAt ? { exp: Math.floor(timestampMs(info.expiresAt) / 1000) } : {}),
  }
}

/** RFC 9449, section 6.2, and RFC 8705, section 3.2. */
function confirmed(confirmation: Confirmation | undefined) {
  const { method } = confirmation ?? {}
  if (method?.case === 'jkt') return { cnf: { jkt: method.value } }
  if (method?.case === 'x5tS256') return { cnf: { 'x5t#S256': method.value } }
  return {}
}
