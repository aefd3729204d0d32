import { hkdfSync } from 'node:crypto'
import { AppError } from '@tollward/errors'
import { readSecretFile } from '@tollward/runtime'

const SECRET_BYTES = 32

/** What keys are derived for. Each purpose has a key of its own, so that none says anything of another. */
const PURPOSES = {
  /** Signs cookies. */
  cookies: 'cookies',
  /** DPoP nonces, which every replica has to recognise (RFC 9449, section 8). */
  dpopNonces: 'dpop-nonces',
  /** Successors of refresh tokens, so that a rotation can be finished by whoever is asked again. */
  refreshSuccessors: 'refresh-successors',
  /** What is kept of a browser's way through sign-in and of device codes, so that what is kept is of no use alone. */
  records: 'records',
  /** Private signing keys at rest. */
  signingKeys: 'signing-keys',
  /** Names that people tried to sign in with, and sources, in keys and events. */
  attempts: 'attempts',
  /** Tokens in forms, against requests forged by other sites. */
  forms: 'forms',
} as const

export type Purpose = keyof typeof PURPOSES

/** Keys of 32 bytes that every replica derives alike (HKDF with SHA-256, RFC 5869). */
export interface MasterSecret {
  /** The key in use. */
  derive(purpose: Purpose): Buffer
  /** The key in use and those before it, whose work is still accepted. */
  deriveAll(purpose: Purpose): [Buffer, ...Buffer[]]
}

/**
 * Reads the secrets that all replicas share from a file that only its owner can read: one a line, 32 bytes as base64url; the
 * first one is in use. AppError `failed_precondition` says what is wrong.
 */
export function readMasterSecret(path: string): MasterSecret {
  const lines = readSecretFile(path)
    .split(/\s+/)
    .filter((line) => line !== '')
  const secrets = lines.map((line) => Buffer.from(line, 'base64url'))
  const [first, ...others] = secrets
  if (!first || secrets.some((secret) => secret.length !== SECRET_BYTES)) {
    throw new AppError(
      'failed_precondition',
      `${path} has to hold secrets of ${SECRET_BYTES} bytes as base64url, one a line; make one with: openssl rand 32 | basenc --base64url`,
    )
  }
  const derived = (secret: Buffer, purpose: Purpose) =>
    Buffer.from(hkdfSync('sha256', secret, '', `tollward auth-issuer ${PURPOSES[purpose]}`, SECRET_BYTES))
  return {
    derive: (purpose) => derived(first, purpose),
    deriveAll: (purpose) => [derived(first, purpose), ...others.map((secret) => derived(secret, purpose))],
  }
}
