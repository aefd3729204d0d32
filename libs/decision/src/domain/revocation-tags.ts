import type { TokenInfo } from '@tollward/contracts/token'

/**
 * What an answer about a token depends on besides the token itself, as tags of a RevocableCache whose keys are SHA-256 of tokens
 * (lower-case hexadecimal, so that no tag is a key).
 */
export function tagsOf({
  clientId,
  grantHash,
  subject,
}: Pick<TokenInfo, 'clientId' | 'grantHash' | 'subject'>): readonly string[] {
  const tags = [clientTag(clientId)]
  if (subject !== clientId) tags.push(subjectTag(subject))
  if (grantHash !== '') tags.push(grantTag(grantHash))
  return tags
}

/** The tag of everything that depends on a client. */
export function clientTag(clientId: string): string {
  return tag('client', clientId)
}

/** The tag of everything under an OAuth grant. */
export function grantTag(grantHash: string): string {
  return tag('grant', grantHash)
}

/** The tag of everything that somebody has. */
export function subjectTag(subject: string): string {
  return tag('subject', subject)
}

/** Joined, it is one text; a template would have a cache keep its parts as well. */
function tag(kind: string, name: string): string {
  return [kind, name].join(' ')
}
