import { timestampMs } from '@bufbuild/protobuf/wkt'
import type { TokenInfo } from '@tollward/contracts/token'

/** An answer of RFC 7662, section 2.2. */
export type Introspection =
  | { readonly active: false }
  | {
      readonly active: true
      readonly client_id: string
      readonly sub: string
      readonly scope: string
      readonly aud: string | string[]
      readonly token_type: 'Bearer'
      readonly iat?: number
      readonly exp?: number
    }

const INACTIVE: Introspection = { active: false }

/** RFC 6750, section 2.1: what can be in an Authorization header. Ours have 43 characters; the bounds are generous. */
const TOKEN = /^[A-Za-z0-9._~+/-]{20,2048}={0,2}$/

/** Whether the text can be an access token: what cannot is not worth a question to the issuer. */
export function isTokenShaped(text: string): boolean {
  return TOKEN.test(text)
}

/**
 * What a caller is told of a token. Only the client that has it and the resource server that it is for (a client whose
 * client_id is in its audience) are told anything; to others it is as unknown as one that does not exist.
 */
export function introspectionFor(caller: string, info: TokenInfo): Introspection {
  if (!info.active) return INACTIVE
  if (info.clientId !== caller && !info.audience.includes(caller)) return INACTIVE
  const [audience] = info.audience
  return {
    active: true,
    client_id: info.clientId,
    sub: info.subject,
    scope: info.scopes.join(' '),
    aud: info.audience.length === 1 && audience !== undefined ? audience : info.audience,
    token_type: 'Bearer',
    ...(info.issuedAt ? { iat: Math.floor(timestampMs(info.issuedAt) / 1000) } : {}),
    ...(info.expiresAt ? { exp: Math.floor(timestampMs(info.expiresAt) / 1000) } : {}),
  }
}
