import { hash } from 'node:crypto'
import { create } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import type { Bucket, Bus, Entry } from '@tollward/bus'
import { contract } from '@tollward/contracts'
import { TokenIssuedSchema, TokenRevokedSchema } from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
import { z } from 'zod'
import type { IssuerMetrics } from '../metrics.ts'

/** Models whose values are access tokens: they are announced when issued and when revoked. */
const TOKEN_MODELS: ReadonlySet<string> = new Set(['ClientCredentials'])

const WRITE_ATTEMPTS_MAX = 5

/** What a bucket holds for one value of a model. The payload is oidc-provider's, without the id, which is the secret. */
const RecordSchema = z.strictObject({
  format: z.literal(1),
  payload: z.looseObject({
    exp: z.int().optional(),
    iat: z.int().optional(),
    clientId: z.string().optional(),
    scope: z.string().optional(),
  }),
  /** Set first, so that nobody takes the token any more; announced when the bus has acknowledged the event. */
  revoked: z.strictObject({ atMs: z.int(), reason: z.string(), announced: z.boolean() }).optional(),
})
type StoredRecord = z.output<typeof RecordSchema>

type Payload = Record<string, unknown>

/** The values of one model, kept under the SHA-256 of their ids. */
export interface Records {
  /** The payload without id; undefined: unknown, over or revoked. */
  find(id: string): Promise<Payload | undefined>
  save(id: string, payload: Payload, lifetimeSeconds: number | undefined): Promise<void>
  /** Marks the value as used. False: it was used before, or is gone. Of several at once, one gets true. */
  consume(id: string, nowSeconds: number): Promise<boolean>
  remove(id: string): Promise<void>
}

export interface Tokens {
  records(model: string): Records
  /** Ends the token with this SHA-256 (lower-case hexadecimal). Resolves when the bus has acknowledged the event. False: there was none. */
  revoke(tokenHash: string, reason: string): Promise<boolean>
}

const tokenIssued = contract(TokenIssuedSchema)
const tokenRevoked = contract(TokenRevokedSchema)

/** Opens the stored values of oidc-provider's models, one bucket each. */
export function openTokens(bus: Bus, metrics: IssuerMetrics): Tokens {
  const buckets = new Map<string, Bucket<Uint8Array>>()
  const bucketOf = (model: string) => {
    const bucket = buckets.get(model) ?? bus.rawBucket(`oidc-${model}`)
    buckets.set(model, bucket)
    return bucket
  }

  const announceIssued = async (key: string, { payload }: StoredRecord) => {
    const event = create(TokenIssuedSchema, {
      tokenHash: hashOf(key),
      clientId: payload.clientId ?? '',
      scopes: payload.scope?.split(' ') ?? [],
      issuedAt: timestampFromMs((payload.iat ?? 0) * 1000),
      expiresAt: timestampFromMs((payload.exp ?? 0) * 1000),
    })
    await bus.publish(tokenIssued, event, { id: `token.issued.${event.tokenHash}` })
    metrics.issued.inc()
  }

  /** Publishes a revocation that stands in the record, and writes down that it was. */
  const announceRevoked = async (model: string, entry: Entry<Uint8Array>, record: StoredRecord) => {
    const { payload, revoked } = record
    if (!revoked) return
    const event = create(TokenRevokedSchema, {
      tokenHash: hashOf(entry.key),
      clientId: payload.clientId ?? '',
      revokedAt: timestampFromMs(revoked.atMs),
      reason: revoked.reason,
      expiresAt: timestampFromMs((payload.exp ?? 0) * 1000),
    })
    await bus.publish(tokenRevoked, event, { id: `token.revoked.${event.tokenHash}` })
    metrics.revocations.inc({ of: 'token' })
    const announced = encode({ ...record, revoked: { ...revoked, announced: true } })
    await bucketOf(model).update(entry.key, announced, entry.revision, endOf(entry)).catch(ignoreConflict)
  }

  const revokeIn = async (model: string, key: string, reason: string): Promise<boolean> => {
    for (let attempt = 1; ; attempt++) {
      const entry = await bucketOf(model).get(key)
      if (!entry) return false
      const record = decode(entry)
      if (record.revoked?.announced) return false
      if (record.revoked) {
        await announceRevoked(model, entry, record)
        return true
      }
      const marked = { ...record, revoked: { atMs: Date.now(), reason, announced: false } }
      try {
        const revision = await bucketOf(model).update(key, encode(marked), entry.revision, endOf(entry))
        await announceRevoked(model, { ...entry, revision }, marked)
        return true
      } catch (error) {
        if (!isConflict(error) || attempt === WRITE_ATTEMPTS_MAX) throw error
      }
    }
  }

  const records = (model: string): Records => ({
    find: async (id) => {
      const entry = await bucketOf(model).get(keyOf(id))
      if (!entry) return undefined
      const record = decode(entry)
      if (!record.revoked) return record.payload
      if (!record.revoked.announced) {
        await announceRevoked(model, entry, record)
        metrics.revocationsFinished.inc()
      }
      return undefined
    },

    save: async (id, { jti: _secret, ...payload }, lifetimeSeconds) => {
      const key = keyOf(id)
      const record = RecordSchema.parse({ format: 1, payload })
      const expiresAtMs = expiryOf(record, lifetimeSeconds)
      const options = expiresAtMs === undefined ? {} : { expiresAtMs }
      if (!TOKEN_MODELS.has(model)) {
        await bucketOf(model).put(key, encode(record), options)
        return
      }
      // The token is given to its client only when both are done, so their order does not matter.
      await Promise.all([bucketOf(model).create(key, encode(record), options), announceIssued(key, record)])
    },

    consume: async (id, nowSeconds) => {
      const entry = await bucketOf(model).get(keyOf(id))
      if (!entry) return false
      const record = decode(entry)
      if (record.revoked || record.payload.consumed !== undefined) return false
      const used = encode({ ...record, payload: { ...record.payload, consumed: nowSeconds } })
      try {
        await bucketOf(model).update(entry.key, used, entry.revision, endOf(entry))
        return true
      } catch (error) {
        if (isConflict(error)) return false
        throw error
      }
    },

    remove: async (id) => {
      if (TOKEN_MODELS.has(model)) await revokeIn(model, keyOf(id), 'revoked by its client')
      else await bucketOf(model).remove(keyOf(id))
    },
  })

  return {
    records,
    revoke: async (tokenHash, reason) => {
      const key = Buffer.from(tokenHash, 'hex').toString('base64url')
      for (const model of TOKEN_MODELS) if (await revokeIn(model, key, reason)) return true
      return false
    },
  }
}

function keyOf(id: string): string {
  return hash('sha256', id, 'base64url')
}

function hashOf(key: string): string {
  return Buffer.from(key, 'base64url').toString('hex')
}

function encode(record: StoredRecord): Uint8Array {
  return new TextEncoder().encode(JSON.stringify(record))
}

function decode({ value }: Entry<Uint8Array>): StoredRecord {
  try {
    return RecordSchema.parse(JSON.parse(new TextDecoder().decode(value)))
  } catch (error) {
    throw new AppError('internal', 'A stored token cannot be read by this version.', { cause: error })
  }
}

function expiryOf({ payload }: StoredRecord, lifetimeSeconds: number | undefined): number | undefined {
  if (payload.exp !== undefined) return payload.exp * 1000
  return lifetimeSeconds === undefined ? undefined : Date.now() + lifetimeSeconds * 1000
}

function endOf({ expiresAtMs }: Entry<Uint8Array>): { expiresAtMs?: number } {
  return expiresAtMs === undefined ? {} : { expiresAtMs }
}

function isConflict(error: unknown): boolean {
  return error instanceof AppError && error.code === 'conflict'
}

/** Whoever was faster wrote the same. */
function ignoreConflict(error: unknown): number {
  if (isConflict(error)) return 0
  throw error
}
