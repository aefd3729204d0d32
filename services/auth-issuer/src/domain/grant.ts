import { hash } from 'node:crypto'

/** Base64url digits of a SHA-256 that name a person or a client in a grant's id: 132 bits. */
const NAME_DIGITS = 22

/**
 * Id of an OAuth grant: who gave it, to which client, and 43 random base64url digits. So the grants of a person and those of a
 * client are found by their keys.
 */
export function grantId(subject: string, clientId: string, random: string): string {
  return `${nameOf(subject)}.${nameOf(clientId)}.${random}`
}

/** Key under which a grant is kept: its id, the random part replaced by a hash of the whole. */
export function grantKey(id: string): string {
  const [subject = '', client = ''] = id.split('.')
  return `${subject}.${client}.${hash('sha256', id, 'base64url')}`
}

/** SHA-256 of a grant's id, lower-case hexadecimal: the only name of a grant in events and logs. */
export function grantHash(id: string): string {
  return hash('sha256', id, 'hex')
}

/** The same, from the key. */
export function grantHashOf(key: string): string {
  return Buffer.from(key.split('.').at(-1) ?? '', 'base64url').toString('hex')
}

/** Matches the keys of what is given; `grantHash` is that of `grantHash()`. */
export function grantFilter(of: { subject?: string; clientId?: string; grantHash?: string }): string {
  const subject = of.subject ? nameOf(of.subject) : '*'
  const client = of.clientId ? nameOf(of.clientId) : '*'
  return `${subject}.${client}.${of.grantHash ? Buffer.from(of.grantHash, 'hex').toString('base64url') : '*'}`
}

function nameOf(text: string): string {
  return hash('sha256', text, 'base64url').slice(0, NAME_DIGITS)
}
