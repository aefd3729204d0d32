import { create } from '@bufbuild/protobuf'
import { type Timestamp, timestampFromMs, timestampMs } from '@bufbuild/protobuf/wkt'
import type { Entry } from '@tollward/bus'
import { type StoredSigningKey, StoredSigningKeySchema } from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
import { CompactEncrypt, calculateJwkThumbprint, compactDecrypt, errors, exportJWK, generateKeyPair } from 'jose'
import { z } from 'zod'
import { KEY_ALGORITHMS, type KeyAlgorithm, type RingKey } from '../../domain/key-ring.ts'

const KEY_FORMAT = 1

/** Key of a value in the bucket: algorithm and number, so that of several that make the next key only one can. */
const PLACE = /^(ES256|EdDSA)\.([1-9]\d{0,8})$/

/** 256 bits of x, y and d are 43 characters of base64url. */
const coordinate = z.base64url().length(43)
const named = { use: z.literal('sig'), kid: z.string().min(1), x: coordinate, d: coordinate }

const PrivateJwkSchema = z.discriminatedUnion('alg', [
  z.strictObject({ ...named, alg: z.literal('ES256'), kty: z.literal('EC'), crv: z.literal('P-256'), y: coordinate }),
  z.strictObject({ ...named, alg: z.literal('EdDSA'), kty: z.literal('OKP'), crv: z.literal('Ed25519') }),
])

/** A private signing key (RFC 7517). */
export type PrivateJwk = z.output<typeof PrivateJwkSchema>

/** Where a key stands in the bucket. */
export function placeOf({ algorithm, number }: Pick<RingKey, 'algorithm' | 'number'>): string {
  return `${algorithm}.${number}`
}

/** Makes a key of its own, named by its RFC 7638 thumbprint: no verifier can take it for another one. */
export async function makeKey(algorithm: KeyAlgorithm): Promise<PrivateJwk> {
  const { privateKey } = await generateKeyPair(algorithm, { extractable: true })
  const jwk = await exportJWK(privateKey)
  return PrivateJwkSchema.parse({ ...jwk, alg: algorithm, use: 'sig', kid: await calculateJwkThumbprint(jwk) })
}

/** A key as the bucket holds it: its private part encrypted (RFC 7516, dir with A256GCM) under `secret`, 32 bytes. */
export async function sealedKey(jwk: PrivateJwk, signsFromMs: number, nowMs: number, secret: Uint8Array) {
  const encryptedPrivateJwk = await new CompactEncrypt(new TextEncoder().encode(JSON.stringify(jwk)))
    .setProtectedHeader({ alg: 'dir', enc: 'A256GCM' })
    .encrypt(secret)
  return create(StoredSigningKeySchema, {
    format: KEY_FORMAT,
    kid: jwk.kid,
    algorithm: jwk.alg,
    encryptedPrivateJwk,
    createdAt: timestampFromMs(nowMs),
    signsFrom: timestampFromMs(signsFromMs),
  })
}

/** Decrypts a stored key with the first secret that fits. Undefined: none does, or it is not the key that it says it is. */
export async function openedKey(
  { kid, algorithm, encryptedPrivateJwk }: StoredSigningKey,
  secrets: readonly Uint8Array[],
): Promise<PrivateJwk | undefined> {
  const options = { keyManagementAlgorithms: ['dir'], contentEncryptionAlgorithms: ['A256GCM'] }
  for (const secret of secrets) {
    try {
      const { plaintext } = await compactDecrypt(encryptedPrivateJwk, secret, options)
      const jwk = PrivateJwkSchema.parse(JSON.parse(new TextDecoder().decode(plaintext)))
      const isNamed = jwk.kid === kid && jwk.alg === algorithm && (await calculateJwkThumbprint(jwk)) === kid
      return isNamed ? jwk : undefined
    } catch (error) {
      if (!(error instanceof errors.JOSEError)) throw error
    }
  }
  return undefined
}

/** What the ring decides by. AppError `failed_precondition`: stored by a version that this one does not know. */
export function ringKeyOf({ key, value }: Entry<StoredSigningKey>, readable: boolean): RingKey {
  const [, algorithm, number] = PLACE.exec(key) ?? []
  const known = KEY_ALGORITHMS.find((name) => name === algorithm && name === value.algorithm)
  if (value.format !== KEY_FORMAT || !known || !value.createdAt || !value.signsFrom) {
    throw new AppError('failed_precondition', `The signing key ${key} was stored by another version of auth-issuer.`)
  }
  const { signsUntil, removedAt } = value
  return {
    kid: value.kid,
    algorithm: known,
    number: Number(number),
    createdAtMs: timestampMs(value.createdAt),
    signsFromMs: timestampMs(value.signsFrom),
    ...(signsUntil && removedAt ? { retired: retiredAt(signsUntil, removedAt) } : {}),
    readable,
  }
}

function retiredAt(signsUntil: Timestamp, removedAt: Timestamp) {
  return { signsUntilMs: timestampMs(signsUntil), removedAtMs: timestampMs(removedAt) }
}
