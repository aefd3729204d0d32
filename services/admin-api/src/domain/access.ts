import type { TokenInfo } from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'

/** What the operators' tokens are for. A token for anything else is worth nothing here, whatever its scopes. */
const AUDIENCE = 'urn:tollward:admin'

export type Scope = 'tollward.read' | 'tollward.admin'

/** Longer ones are no tokens of ours: those have 43 characters. */
const TOKEN_LENGTH_MAX = 512

/** Who calls: the OAuth client of the token, and what else the token says of it. */
export interface Caller {
  readonly clientId: string
  readonly subject: string
  readonly tokenHash: string
  readonly grantHash: string
}

/** The token of an authorization field (RFC 6750, section 2.1). AppError `unauthenticated` if there is none. */
export function bearerToken(fields: readonly unknown[]): string {
  const [field] = fields
  const token = typeof field === 'string' ? /^Bearer ([\w~+/.-]+=*)$/i.exec(field)?.[1] : undefined
  if (fields.length !== 1 || token === undefined || token.length > TOKEN_LENGTH_MAX) {
    throw new AppError('unauthenticated', 'Send one access token as "authorization: Bearer <token>".')
  }
  return token
}

/** Who the token stands for. AppError `unauthenticated` if it is worth nothing, or nothing here. */
export function callerOf(info: TokenInfo | undefined): Caller {
  if (!info?.active || info.clientId === '' || !info.audience.includes(AUDIENCE)) {
    throw new AppError('unauthenticated', 'The access token is not valid here; get a new one.')
  }
  const { clientId, subject, tokenHash, grantHash } = info
  return { clientId, subject, tokenHash, grantHash }
}

/** AppError `permission_denied` if the token lacks the scope. */
export function requireScope(info: TokenInfo | undefined, scope: Scope): void {
  if (!info?.scopes.includes(scope)) {
    throw new AppError('permission_denied', `The access token lacks the scope ${scope}.`)
  }
}
