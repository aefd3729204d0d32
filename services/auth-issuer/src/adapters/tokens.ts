import { create } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import type { Bucket, Bus, Entry } from '@tollward/bus'
import { contract } from '@tollward/contracts'
import { TokenIssuedSchema, TokenRevokedSchema } from '@tollward/contracts/token'
import { grantHash } from '../domain/grant.ts'
import type { IssuerMetrics } from '../metrics.ts'
import {
  hashOf,
  keyOf,
  keyOfHash,
  type NewPayload,
  type Payload,
  recordBucket,
  recordOf,
  type StoredRecord,
} from './records.ts'
import { type Revocable, revocable } from './revocable.ts'

/** Models whose values are access tokens: of people, and of clients that act for themselves. */
const TOKEN_MODELS = ['AccessToken', 'ClientCredentials'] as const
type TokenModel = (typeof TOKEN_MODELS)[number]

/** Access tokens: announced when issued and when revoked. */
export interface Tokens {
  /** Resolves when the token is kept and the bus has acknowledged the event. */
  issue(model: TokenModel, id: string, payload: NewPayload): Promise<void>
  /** The token's payload without id; undefined: unknown, over or revoked. */
  find(model: TokenModel, id: string): Promise<Payload | undefined>
  /** The payload of the token with this SHA-256 (lower-case hexadecimal), of whichever model. */
  findByHash(tokenHash: string): Promise<Payload | undefined>
  /** Ends the token with this SHA-256. Resolves when the bus has acknowledged the event. False: there was none. */
  revoke(tokenHash: string, reason: string): Promise<boolean>
}

const tokenIssued = contract(TokenIssuedSchema)
const tokenRevoked = contract(TokenRevokedSchema)

/** Opens the access tokens, one bucket a model. */
export function openTokens(bus: Bus, metrics: IssuerMetrics): Tokens {
  const announceRevoked: Parameters<typeof revocable>[1] = async ({ key, value: { payload } }, { atMs, reason }) => {
    const event = create(TokenRevokedSchema, {
      tokenHash: hashOf(key),
      clientId: payload.clientId ?? '',
      revokedAt: timestampFromMs(atMs),
      reason,
      expiresAt: timestampFromMs((payload.exp ?? 0) * 1000),
    })
    await bus.publish(tokenRevoked, event, { id: `token.revoked.${event.tokenHash}` })
    metrics.revocations.inc({ of: 'token' })
  }

  const stores = new Map<TokenModel, { bucket: Bucket<StoredRecord>; revocable: Revocable }>(
    TOKEN_MODELS.map((model) => {
      const bucket = recordBucket(bus, model)
      return [model, { bucket, revocable: revocable(bucket, announceRevoked, metrics) }]
    }),
  )

  const announceIssued = async (key: string, payload: Payload) => {
    const event = create(TokenIssuedSchema, {
      tokenHash: hashOf(key),
      clientId: payload.clientId ?? '',
      scopes: payload.scope?.split(' ') ?? [],
      issuedAt: timestampFromMs((payload.iat ?? 0) * 1000),
      expiresAt: timestampFromMs((payload.exp ?? 0) * 1000),
      grantHash: payload.grantId === undefined ? '' : grantHash(payload.grantId),
      subject: payload.accountId ?? payload.clientId ?? '',
    })
    await bus.publish(tokenIssued, event, { id: `token.issued.${event.tokenHash}` })
    metrics.issued.inc()
  }

  /** Where a token was found last: those that are asked about one after the other are mostly of one kind. */
  let likely: TokenModel = 'AccessToken'

  const findByKey = async (model: TokenModel, key: string): Promise<Payload | undefined> => {
    const store = stores.get(model)
    const entry = await store?.revocable.live(await store.bucket.get(key))
    return entry && !isOver(entry) ? entry.value.payload : undefined
  }

  return {
    issue: async (model, id, payload) => {
      const key = keyOf(id)
      const record = recordOf(payload)
      const end = record.payload.exp === undefined ? {} : { expiresAtMs: record.payload.exp * 1000 }
      // The token is given to its client only when both are done, so their order does not matter.
      await Promise.all([stores.get(model)?.bucket.create(key, record, end), announceIssued(key, record.payload)])
    },

    find: (model, id) => findByKey(model, keyOf(id)),

    findByHash: async (tokenHash) => {
      const key = keyOfHash(tokenHash)
      for (const model of [likely, ...TOKEN_MODELS.filter((other) => other !== likely)]) {
        const payload = await findByKey(model, key)
        if (!payload) continue
        likely = model
        return payload
      }
      return undefined
    },

    revoke: async (tokenHash, reason) => {
      const key = keyOfHash(tokenHash)
      for (const { revocable } of stores.values()) if (await revocable.revoke(key, { reason })) return true
      return false
    },
  }
}

function isOver({ value: { payload } }: Entry<StoredRecord>): boolean {
  return payload.exp === undefined || payload.exp * 1000 <= Date.now()
}
