import { resourceOf } from './audience.ts'
import type { RegisteredClient } from './client.ts'
import type { IssuedToken } from './token.ts'

/** What a token exchange asks for (RFC 8693, section 2.1). Empty lists: whatever can be had. */
export interface Wanted {
  readonly audiences: readonly string[]
  /** The same as resource indicators (RFC 8707). */
  readonly resources: readonly string[]
  readonly scopes: readonly string[]
}

/** What the exchanged token is worth, or why there is none (RFC 8693, section 2.2.2). */
export type Exchanged =
  | { readonly worth: IssuedToken }
  | { readonly error: 'invalid_target' | 'invalid_scope'; readonly description: string }

/**
 * Narrows a token to what a client may pass on: audiences that both the token and the client have, scopes of the token. Subject,
 * client, confirmation and end stay the token's.
 */
export function exchanged(
  token: IssuedToken,
  client: Pick<RegisteredClient, 'audience'>,
  { audiences, resources, scopes }: Wanted,
): Exchanged {
  const common = token.audience.filter((name) => client.audience.includes(name))
  const asksFor = (name: string) => audiences.includes(name) || resources.includes(resourceOf(name))
  const isHad = [
    ...audiences.map((audience) => common.includes(audience)),
    ...resources.map((resource) => common.some((name) => resourceOf(name) === resource)),
  ].every((had) => had)
  if (!isHad || common.length === 0) {
    const description = 'the subject token and the audience of this client do not both have what was asked for'
    return { error: 'invalid_target', description }
  }
  if (!scopes.every((scope) => token.scopes.includes(scope))) {
    return { error: 'invalid_scope', description: 'the subject token does not have every scope that was asked for' }
  }
  const isNarrowed = audiences.length + resources.length > 0
  return {
    worth: {
      ...token,
      audience: isNarrowed ? common.filter(asksFor) : common,
      scopes: scopes.length === 0 ? token.scopes : [...new Set(scopes)],
    },
  }
}
