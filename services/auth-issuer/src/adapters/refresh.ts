import { create } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import type { Bus } from '@tollward/bus'
import { contract } from '@tollward/contracts'
import { RefreshRotatedSchema } from '@tollward/contracts/token'
import { errors } from 'oidc-provider'
import { grantHash } from '../domain/grant.ts'
import { isInGrace, mayRotate, successorOf } from '../domain/refresh.ts'
import { tokenHash } from '../domain/token.ts'
import {
  endOf,
  isAlreadyThere,
  isConflict,
  keyOf,
  keyOfHash,
  type NewPayload,
  type Payload,
  recordBucket,
  recordOf,
  type StoredRecord,
  sameEnd,
} from './records.ts'

const WRITE_ATTEMPTS_MAX = 5

/**
 * Refresh tokens. Each use leads to one successor, whose value follows from the token that it replaces. So a rotation that was
 * cut off at any step is finished by a retry, at whichever replica, and there are never two live successors.
 */
export interface RefreshTokens {
  /** Keeps a token; `replaced` is the one that it is the successor of. A successor that is there already stays as it is. */
  save(id: string, payload: NewPayload, replaced: string | undefined): Promise<void>
  /** The payload; `consumed` is in it from the end of the grace window after its use. */
  find(id: string): Promise<Payload | undefined>
  /**
   * Marks the token as used, or goes on with a use within the grace window. Returns the value of the token that replaces it.
   * InvalidGrant: somebody is ahead.
   */
  consume(id: string): Promise<string>
  /** Id of the grant of the token with this SHA-256 (lower-case hexadecimal), used or not; undefined: there is none. */
  grantOf(tokenHash: string): Promise<string | undefined>
  /** Nobody takes it any more, used or not. It stays, so that nothing can bring it back. */
  remove(id: string): Promise<void>
}

const refreshRotated = contract(RefreshRotatedSchema)

/** Opens the refresh tokens. `successorKeys` are the secrets that successors are derived with, the one in use first. */
export function openRefreshTokens(bus: Bus, successorKeys: readonly [Buffer, ...Buffer[]]): RefreshTokens {
  const bucket = recordBucket(bus, 'RefreshToken')

  const announceRotated = async (
    id: string,
    { grantId = '', clientId = '', accountId = '' }: Payload,
    replaced: string,
  ) => {
    const event = create(RefreshRotatedSchema, {
      tokenHash: tokenHash(replaced),
      successorHash: tokenHash(id),
      grantHash: grantHash(grantId),
      clientId,
      subject: accountId,
      rotatedAt: timestampFromMs(Date.now()),
    })
    await bus.publish(refreshRotated, event, { id: `refresh.rotated.${event.tokenHash}` })
  }

  const keep = async (id: string, record: StoredRecord) => {
    try {
      await bucket.create(keyOf(id), record, endOf(record, undefined))
    } catch (error) {
      if (!isAlreadyThere(error)) throw error
    }
  }

  /** Writes a record again unless somebody changed it meanwhile: then `next` decides again. Undefined: nothing to write. */
  const change = async (id: string, next: (record: StoredRecord | undefined) => Promise<StoredRecord | undefined>) => {
    for (let attempt = 1; ; attempt++) {
      const entry = await bucket.get(keyOf(id))
      const value = await next(entry?.value)
      if (!entry || !value) return
      try {
        await bucket.update(entry.key, value, entry.revision, sameEnd(entry))
        return
      } catch (error) {
        if (!isConflict(error) || attempt === WRITE_ATTEMPTS_MAX) throw error
      }
    }
  }

  return {
    save: async (id, payload, replaced) => {
      const record = recordOf(payload)
      await Promise.all([
        keep(id, record),
        ...(replaced === undefined ? [] : [announceRotated(id, record.payload, replaced)]),
      ])
    },

    find: async (id) => {
      const record = (await bucket.get(keyOf(id)))?.value
      if (!record || record.revoked) return undefined
      const { payload, usedAtMs } = record
      if (usedAtMs === undefined || isInGrace(record, Date.now())) return payload
      return { ...payload, consumed: Math.floor(usedAtMs / 1000) }
    },

    consume: async (id) => {
      const candidates = successorKeys.map((key) => successorOf(id, key))
      let value = candidates[0]
      await change(id, async (record) => {
        // A rotation that began under an older secret goes on under that.
        if (record?.successor !== undefined) value = candidates.find((one) => keyOf(one) === record.successor)
        const successor = record?.successor === undefined ? undefined : await bucket.get(record.successor)
        const nowMs = Date.now()
        if (!record || value === undefined || !mayRotate(record, successor?.value, nowMs)) throw usedBefore()
        return record.usedAtMs === undefined ? { ...record, usedAtMs: nowMs, successor: keyOf(value) } : undefined
      })
      if (value === undefined) throw usedBefore()
      return value
    },

    grantOf: async (hash) => (await bucket.get(keyOfHash(hash)))?.value.payload.grantId,

    remove: (id) =>
      change(id, async (record) =>
        record && !record.revoked
          ? { ...record, revoked: { atMs: Date.now(), reason: 'ended by its client', announced: true } }
          : undefined,
      ),
  }
}

function usedBefore(): errors.InvalidGrant {
  return new errors.InvalidGrant('refresh token was used before')
}
