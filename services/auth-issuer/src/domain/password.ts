/** Characters. Attempts are limited, so that what has so many is out of reach of guessing. */
export const PASSWORD_LENGTH_MIN = 12

/** UTF-8, after normalization: more says nothing more, and hashing it costs. */
export const PASSWORD_BYTES_MAX = 1024

/** Parameters of scrypt (RFC 7914): cost 2^ln, block size, parallelization. */
export interface ScryptParameters {
  readonly ln: number
  readonly r: number
  readonly p: number
}

/** OWASP Password Storage Cheat Sheet: 128 MiB and about a third of a second for each hash. */
export const SCRYPT_PARAMETERS: ScryptParameters = { ln: 17, r: 8, p: 1 }

/** Beyond these a stored value is damaged: checking it would take all memory. */
const LN_MAX = 20
const R_MAX = 32
const P_MAX = 16

export interface PasswordHash {
  readonly parameters: ScryptParameters
  readonly salt: Uint8Array
  readonly hash: Uint8Array
}

const PHC = /^\$scrypt\$ln=(\d{1,2}),r=(\d{1,2}),p=(\d{1,2})\$([A-Za-z0-9+/]{11,86})\$([A-Za-z0-9+/]{22,86})$/

/** The password that was meant, whatever keyboard it was typed on (RFC 8265, section 4.2 and NIST ask for one normalization form). */
export function canonicalPassword(text: string): string {
  return text.normalize('NFKC')
}

/** What is wrong with a new password, as a sentence for who chose it; undefined: nothing. */
export function passwordFault(text: string): string | undefined {
  const password = canonicalPassword(text)
  if ([...password].length < PASSWORD_LENGTH_MIN) {
    return `A password has at least ${PASSWORD_LENGTH_MIN} characters. A few words in a row are good.`
  }
  if (Buffer.byteLength(password) > PASSWORD_BYTES_MAX) return `A password has at most ${PASSWORD_BYTES_MAX} bytes.`
  return undefined
}

/** Writes a hash in the PHC string format. */
export function formatPasswordHash({ parameters: { ln, r, p }, salt, hash }: PasswordHash): string {
  return `$scrypt$ln=${ln},r=${r},p=${p}$${unpadded(salt)}$${unpadded(hash)}`
}

/** Reads a hash in the PHC string format. Undefined: it is none, or asks for more memory than any of ours. */
export function parsePasswordHash(text: string): PasswordHash | undefined {
  const match = PHC.exec(text)
  if (!match) return undefined
  const [, ln = '', r = '', p = '', salt = '', hash = ''] = match
  const parameters = { ln: Number(ln), r: Number(r), p: Number(p) }
  if (parameters.ln < 1 || parameters.r < 1 || parameters.p < 1) return undefined
  if (parameters.ln > LN_MAX || parameters.r > R_MAX || parameters.p > P_MAX) return undefined
  return { parameters, salt: Buffer.from(salt, 'base64'), hash: Buffer.from(hash, 'base64') }
}

/** Whether a hash was made with these parameters. */
export function isMadeWith({ parameters: { ln, r, p } }: PasswordHash, wanted: ScryptParameters): boolean {
  return ln === wanted.ln && r === wanted.r && p === wanted.p
}

function unpadded(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('base64').replaceAll('=', '')
}
