import { createHmac, randomBytes } from 'node:crypto'
import type { Bus } from '@tollward/bus'
import { AppError } from '@tollward/errors'
import { z } from 'zod'
import { SEAL_IV_BYTES, seal, unseal } from '../domain/seal.ts'
import {
  endOf,
  isAlreadyThere,
  isConflict,
  keyOf,
  type NewPayload,
  type Payload,
  recordBucket,
  recordOf,
  type StoredRecord,
  sameEnd,
} from './records.ts'

const WRITE_ATTEMPTS_MAX = 5

const SealedSchema = z.looseObject({ sealed: z.string() })
const PointerSchema = z.looseObject({ sealedId: z.string() })

/** Values of a model that is used once at most: codes, pushed requests, what browsers are in the middle of. */
export interface Values {
  /** Keeps a value, or another state of it. That it was used stays true. */
  save(id: string, payload: NewPayload, lifetimeSeconds: number | undefined): Promise<void>
  /** The payload without id, with `consumed` if it was used; undefined: unknown or over. */
  find(id: string): Promise<Payload | undefined>
  /** Id and payload of the value whose user code this is. */
  findByUserCode(code: string): Promise<{ id: string; payload: Payload } | undefined>
  /** Marks the value as used. False: it was used before, or is gone. Of several at once, one gets true. */
  consume(id: string): Promise<boolean>
  remove(id: string): Promise<void>
}

/**
 * Opens the values of a model. With `secrets` they are kept sealed under their own id, for models that hold other secrets, such as
 * the session's cookie or a user code.
 */
export function openValues(bus: Bus, model: string, secrets?: readonly [Buffer, ...Buffer[]]): Values {
  const bucket = recordBucket(bus, model)

  const closed = (id: string, payload: NewPayload): StoredRecord => {
    const record = recordOf(payload)
    if (!secrets) return record
    const { exp } = record.payload
    const sealed = seal(JSON.stringify(record.payload), id, secrets[0], randomBytes(SEAL_IV_BYTES))
    return { format: 1, payload: { sealed, ...(exp === undefined ? {} : { exp }) } }
  }

  const opened = (id: string, { payload }: StoredRecord): Payload => {
    if (!secrets) return payload
    const text = unseal(SealedSchema.parse(payload).sealed, id, secrets)
    if (text === undefined)
      throw new AppError('internal', 'A stored value cannot be opened with the secrets of this replica.')
    return recordOf(JSON.parse(text)).payload
  }

  const savePointer = async (id: string, { userCode }: NewPayload, end: { expiresAtMs?: number }) => {
    if (!secrets || typeof userCode !== 'string') return
    const sealedId = seal(id, userCode, secrets[0], randomBytes(SEAL_IV_BYTES))
    await bucket.put(userCodeKey(userCode, secrets[0]), recordOf({ sealedId }), end)
  }

  const find = async (id: string): Promise<Payload | undefined> => {
    const entry = await bucket.get(keyOf(id))
    if (!entry) return undefined
    const { usedAtMs } = entry.value
    const payload = opened(id, entry.value)
    return usedAtMs === undefined ? payload : { ...payload, consumed: Math.floor(usedAtMs / 1000) }
  }

  return {
    save: async (id, payload, lifetimeSeconds) => {
      const record = closed(id, payload)
      const end = endOf(record, lifetimeSeconds)
      await savePointer(id, payload, end)
      for (let attempt = 1; ; attempt++) {
        const before = await bucket.get(keyOf(id))
        const usedAtMs = before?.value.usedAtMs
        const value = usedAtMs === undefined ? record : { ...record, usedAtMs }
        try {
          await (before ? bucket.update(before.key, value, before.revision, end) : bucket.create(keyOf(id), value, end))
          return
        } catch (error) {
          if (!(isConflict(error) || isAlreadyThere(error)) || attempt === WRITE_ATTEMPTS_MAX) throw error
        }
      }
    },

    find,

    findByUserCode: async (code) => {
      for (const secret of secrets ?? []) {
        const pointer = await bucket.get(userCodeKey(code, secret))
        const id = pointer && unseal(PointerSchema.parse(pointer.value.payload).sealedId, code, [secret])
        const payload = id === undefined ? undefined : await find(id)
        if (id !== undefined && payload) return { id, payload }
      }
      return undefined
    },

    consume: async (id) => {
      const entry = await bucket.get(keyOf(id))
      if (!entry || entry.value.usedAtMs !== undefined) return false
      try {
        await bucket.update(entry.key, { ...entry.value, usedAtMs: Date.now() }, entry.revision, sameEnd(entry))
        return true
      } catch (error) {
        if (isConflict(error)) return false
        throw error
      }
    },

    remove: (id) => bucket.remove(keyOf(id)),
  }
}

/** User codes are short: a plain hash of one could be guessed. */
function userCodeKey(code: string, secret: Buffer): string {
  return `user.${createHmac('sha256', secret).update(code).digest('base64url')}`
}
