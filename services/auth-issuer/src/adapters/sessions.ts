import type { Bus, Entry } from '@tollward/bus'
import { errors } from 'oidc-provider'
import { z } from 'zod'
import type { Accounts } from './grants.ts'
import {
  endOf,
  hashOf,
  isAlreadyThere,
  isConflict,
  keyOf,
  keyOfHash,
  type NewPayload,
  type Payload,
  recordBucket,
  recordOf,
  remembered,
  type StoredRecord,
  sameEnd,
} from './records.ts'

/** What a session says that oidc-provider's other models do not. */
const SessionSchema = z.looseObject({
  uid: z.string(),
  accountId: z.string().optional(),
  exp: z.int().optional(),
  /** Key of the id that it has now; any other is none of it. */
  idKey: z.string().optional(),
  /** Of the account, when its person signed in. */
  generation: z.string().optional(),
  loginTs: z.int().optional(),
  authorizations: z.record(z.string(), z.unknown()).default({}),
})
type SessionPayload = z.output<typeof SessionSchema>

const PointerSchema = z.looseObject({ uidKey: z.string() })

/** A session as an operator or its person sees it. */
export interface SessionView {
  /** SHA-256 of its uid, lower-case hexadecimal. */
  readonly sessionHash: string
  readonly subject: string
  readonly signedInAtMs: number
  readonly expiresAtMs: number
  readonly clientIds: readonly string[]
}

/** Sessions of people in browsers. A session is good only under the generation of its account. */
export interface Sessions {
  /** Keeps a session. `signedInUnder` is the account's generation if somebody signs in with this request. */
  save(
    id: string,
    payload: NewPayload,
    lifetimeSeconds: number | undefined,
    signedInUnder: string | undefined,
  ): Promise<void>
  find(id: string): Promise<Payload | undefined>
  findByUid(uid: string): Promise<Payload | undefined>
  remove(id: string): Promise<void>
  /** Live sessions: of a person, or all. */
  list(subject: string | undefined): Promise<SessionView[]>
  /** Ends the session whose uid has this SHA-256 (lower-case hexadecimal). False: there is none. */
  end(sessionHash: string): Promise<boolean>
}

const WRITE_ATTEMPTS_MAX = 5

/** Stands for the person in the key of a session in which nobody is signed in. */
const NOBODY = '-'

/**
 * Opens the sessions. Each is kept under its uid, which stays the same (`session.<hash of uid>.<person>`); its id, which is the
 * cookie's and changes, leads there (`id.<hash of id>`).
 */
export function openSessions(bus: Bus, accounts: Accounts): Sessions {
  const bucket = recordBucket(bus, 'Session')

  const isGood = async (
    { value: { payload, revoked } }: Entry<StoredRecord>,
    find = accounts.find,
  ): Promise<boolean> => {
    if (revoked) return false
    if (payload.accountId === undefined) return true
    const account = await find(payload.accountId)
    return account?.enabled === true && account.generation === SessionSchema.parse(payload).generation
  }

  const good = async (entry: Entry<StoredRecord> | undefined, find = accounts.find) =>
    entry && (await isGood(entry, find)) ? entry : undefined

  const entryOf = async (id: string): Promise<Entry<StoredRecord> | undefined> => {
    const pointer = await bucket.get(idKey(id))
    if (!pointer) return undefined
    const entry = await bucket.match(uidFilter(PointerSchema.parse(pointer.value.payload).uidKey))
    return entry && SessionSchema.parse(entry.value.payload).idKey === idKey(id) ? entry : undefined
  }

  /** Under which generation the session's person is signed in. */
  const generationFor = async ({ accountId, generation }: SessionPayload, signedInUnder: string | undefined) => {
    if (accountId === undefined) return undefined
    if (signedInUnder === undefined && generation !== undefined) return generation
    const account = await accounts.find(accountId)
    // The password was right under a generation that has ended since.
    const ended = signedInUnder !== undefined && signedInUnder !== account?.generation
    if (!account?.enabled || ended) throw new errors.AccessDenied('this account was signed out everywhere')
    return account.generation
  }

  return {
    save: async (id, payload, lifetimeSeconds, signedInUnder) => {
      const session = SessionSchema.parse(payload)
      const generation = await generationFor(session, signedInUnder)
      const uidKey = keyOf(session.uid)
      const key = `session.${uidKey}.${session.accountId === undefined ? NOBODY : keyOf(session.accountId)}`
      const record = recordOf({ ...payload, idKey: idKey(id), ...(generation === undefined ? {} : { generation }) })
      const end = endOf(record, lifetimeSeconds)
      await bucket.put(idKey(id), recordOf({ uidKey }), end)
      for (let attempt = 1; ; attempt++) {
        const before = await bucket.match(uidFilter(uidKey))
        if (before?.value.revoked) throw new errors.AccessDenied('this session was ended')
        try {
          if (before?.key === key) await bucket.update(key, record, before.revision, end)
          else await bucket.create(key, record, end)
          if (before && before.key !== key) await bucket.remove(before.key)
          return
        } catch (error) {
          if (!(isConflict(error) || isAlreadyThere(error)) || attempt === WRITE_ATTEMPTS_MAX) throw error
        }
      }
    },

    find: async (id) => withoutKey(await good(await entryOf(id))),

    findByUid: async (uid) => withoutKey(await good(await bucket.match(uidFilter(keyOf(uid))))),

    remove: async (id) => {
      const entry = await entryOf(id)
      await bucket.remove(idKey(id))
      if (entry && !entry.value.revoked) await bucket.remove(entry.key)
    },

    list: async (subject) => {
      const entries = await bucket.entries(`session.*.${subject === undefined ? '*' : keyOf(subject)}`)
      const find = remembered(accounts.find)
      const live = await Promise.all(entries.map((entry) => good(entry, find)))
      return live.flatMap((entry) => {
        if (!entry) return []
        const { accountId, loginTs, authorizations, exp = 0 } = SessionSchema.parse(entry.value.payload)
        if (accountId === undefined || exp * 1000 <= Date.now()) return []
        return {
          sessionHash: hashOf(entry.key.split('.')[1] ?? ''),
          subject: accountId,
          signedInAtMs: (loginTs ?? 0) * 1000,
          expiresAtMs: exp * 1000,
          clientIds: Object.keys(authorizations),
        }
      })
    },

    end: async (sessionHash) => {
      for (let attempt = 1; ; attempt++) {
        const entry = await bucket.match(uidFilter(keyOfHash(sessionHash)))
        if (!entry || entry.value.revoked) return false
        // A mark, not a removal: a request that is under way must not bring the session back.
        const revoked = { atMs: Date.now(), reason: 'session ended', announced: true }
        try {
          await bucket.update(entry.key, { ...entry.value, revoked }, entry.revision, sameEnd(entry))
          return true
        } catch (error) {
          if (!isConflict(error) || attempt === WRITE_ATTEMPTS_MAX) throw error
        }
      }
    },
  }
}

function idKey(id: string): string {
  return `id.${keyOf(id)}`
}

function uidFilter(uidKey: string): string {
  return `session.${uidKey}.*`
}

function withoutKey(entry: Entry<StoredRecord> | undefined): Payload | undefined {
  if (!entry) return undefined
  const { idKey: _ours, ...payload } = entry.value.payload
  return payload
}
