import { hash } from 'node:crypto'
import type { Bucket, Bus, Codec, Entry } from '@tollward/bus'
import { AppError } from '@tollward/errors'
import { z } from 'zod'

/**
 * How long after its end a record is still there, for whoever asks for it whether it is over or not: as long as clocks may
 * differ (oidc-provider's clockTolerance).
 */
const KEPT_AFTER_END_MS = 15_000

const seconds = z.int().optional()
const text = z.string().optional()

/** What a bucket holds for one value of a model. The payload is oidc-provider's, without the id, which is the secret. */
const RecordSchema = z.strictObject({
  format: z.literal(1),
  payload: z.looseObject({
    iat: seconds,
    exp: seconds,
    clientId: text,
    accountId: text,
    grantId: text,
    scope: text,
    aud: text,
    jkt: text,
    'x5t#S256': text,
    extra: z.looseObject({ generation: text }).optional(),
  }),
  /** Of a grant: of whose account and client it is; it is good only while these are theirs. */
  generations: z.strictObject({ account: z.string(), client: z.string() }).optional(),
  usedAtMs: z.int().optional(),
  /** Of a refresh token that was used: key of the one that replaces it. */
  successor: text,
  /** Set first, so that nobody takes the value any more; announced when the bus has acknowledged the event. */
  revoked: z
    .strictObject({
      atMs: z.int(),
      reason: z.string(),
      announced: z.boolean(),
      /** SHA-256 of the refresh token whose return ended the grant. */
      reusedToken: text,
    })
    .optional(),
})

export type StoredRecord = z.output<typeof RecordSchema>
export type Revocation = NonNullable<StoredRecord['revoked']>
export type Payload = StoredRecord['payload']

/** What oidc-provider gives to be kept. */
export type NewPayload = Record<string, unknown>

const encoder = new TextEncoder()
const decoder = new TextDecoder()

const codec: Codec<StoredRecord> = {
  encode: (record) => encoder.encode(JSON.stringify(record)),
  decode: (bytes) => RecordSchema.parse(JSON.parse(decoder.decode(bytes))),
}

/** The bucket of one of oidc-provider's models. */
export function recordBucket(bus: Bus, model: string): Bucket<StoredRecord> {
  return bus.codedBucket(`oidc-${model}`, codec)
}

/** A new record. The id must not be in it: for opaque tokens it is the bearer secret. */
export function recordOf({ jti: _secret, ...payload }: NewPayload): StoredRecord {
  return RecordSchema.parse({ format: 1, payload })
}

/** Key of a value: SHA-256 of its id. */
export function keyOf(id: string): string {
  return hash('sha256', id, 'base64url')
}

/** SHA-256 of the id, lower-case hexadecimal, from the key. */
export function hashOf(key: string): string {
  return Buffer.from(key, 'base64url').toString('hex')
}

/** Key of the value whose id has this SHA-256, lower-case hexadecimal. */
export function keyOfHash(sha256: string): string {
  return Buffer.from(sha256, 'hex').toString('base64url')
}

/** How long a record is kept: `exp`, or else the lifetime from now, and what clocks may differ. */
export function endOf({ payload }: StoredRecord, lifetimeSeconds: number | undefined): { expiresAtMs?: number } {
  const endMs = payload.exp === undefined ? undefined : payload.exp * 1000
  const expiresAtMs = endMs ?? (lifetimeSeconds === undefined ? undefined : Date.now() + lifetimeSeconds * 1000)
  return expiresAtMs === undefined ? {} : { expiresAtMs: expiresAtMs + KEPT_AFTER_END_MS }
}

/** The end that a record has, for writing it again: a write without one would keep it for ever. */
export function sameEnd({ expiresAtMs }: Entry<StoredRecord>): { expiresAtMs?: number } {
  return expiresAtMs === undefined ? {} : { expiresAtMs }
}

export function isConflict(error: unknown): boolean {
  return error instanceof AppError && error.code === 'conflict'
}

export function isAlreadyThere(error: unknown): boolean {
  return error instanceof AppError && error.code === 'already_exists'
}

/** Asks once for each id: a list has many records of few people and clients. */
export function remembered<T>(ask: (id: string) => Promise<T>): (id: string) => Promise<T> {
  const answers = new Map<string, Promise<T>>()
  return (id) => {
    const answer = answers.get(id) ?? ask(id)
    answers.set(id, answer)
    return answer
  }
}
