import { create } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import type { Bus, Entry } from '@tollward/bus'
import { contract } from '@tollward/contracts'
import { ConsentGivenSchema, GrantRevokedSchema, RefreshReusedSchema } from '@tollward/contracts/token'
import { errors } from 'oidc-provider'
import { z } from 'zod'
import { audienceOf } from '../domain/audience.ts'
import { grantFilter, grantHash, grantHashOf, grantKey } from '../domain/grant.ts'
import type { IssuerMetrics } from '../metrics.ts'
import type { Clients } from './clients.ts'
import {
  endOf,
  isConflict,
  type NewPayload,
  type Payload,
  type Revocation,
  recordBucket,
  recordOf,
  remembered,
  type StoredRecord,
} from './records.ts'
import { revocable } from './revocable.ts'

const WRITE_ATTEMPTS_MAX = 5

/** What is asked of people's accounts: under which generation everything of a person is good now. */
export interface Accounts {
  find(subject: string): Promise<{ readonly generation: string; readonly enabled: boolean } | undefined>
  /** Ends sessions, grants and tokens of the person. False: there is nobody. */
  endEverything(subject: string, reason: string): Promise<boolean>
}

/** An OAuth grant as an operator or its person sees it. */
export interface GrantView {
  /** SHA-256 of its id, lower-case hexadecimal. */
  readonly grantHash: string
  readonly subject: string
  readonly clientId: string
  readonly scopes: readonly string[]
  readonly audience: readonly string[]
  readonly grantedAtMs: number
  readonly expiresAtMs: number
}

/** What people let clients do. Everything issued under a grant is good only as long as the grant is. */
export interface Grants {
  /** Keeps a grant, new or extended, and tells of the consent. A grant that was ended stays so: InvalidGrant. */
  save(id: string, payload: NewPayload, lifetimeSeconds: number | undefined): Promise<void>
  /** The grant's payload; undefined: unknown, ended, or of a person or client all of whose grants were ended since. */
  find(id: string): Promise<Payload | undefined>
  /** Ends a grant with all its tokens. Resolves when the bus has acknowledged the event. False: there was nothing live. */
  revoke(id: string, why: Pick<Revocation, 'reason' | 'reusedToken'>): Promise<boolean>
  /** The same, by the SHA-256 of its id (lower-case hexadecimal). */
  revokeByHash(hash: string, reason: string): Promise<boolean>
  /** Live grants: of a person, to a client, or all. */
  list(of: { subject?: string; clientId?: string }): Promise<GrantView[]>
}

/** What a grant says that oidc-provider's other models do not. */
const TermsSchema = z.looseObject({
  openid: z.looseObject({ scope: z.string().optional() }).optional(),
  resources: z.record(z.string(), z.string()).default({}),
})

const consentGiven = contract(ConsentGivenSchema)
const grantRevoked = contract(GrantRevokedSchema)
const refreshReused = contract(RefreshReusedSchema)

/** Opens the grants. */
export function openGrants(options: {
  bus: Bus
  clients: Pick<Clients, 'find'>
  accounts: Accounts
  metrics: IssuerMetrics
}): Grants {
  const { bus, clients, accounts, metrics } = options
  const bucket = recordBucket(bus, 'Grant')

  const announceRevoked = async ({ key, value: { payload } }: Entry<StoredRecord>, revocation: Revocation) => {
    const at = timestampFromMs(revocation.atMs)
    const party = { grantHash: grantHashOf(key), clientId: payload.clientId ?? '', subject: payload.accountId ?? '' }
    const { reason, reusedToken } = revocation
    const event = create(GrantRevokedSchema, { ...party, revokedAt: at, reason })
    const reused = create(RefreshReusedSchema, { ...party, tokenHash: reusedToken ?? '', reusedAt: at })
    await Promise.all([
      bus.publish(grantRevoked, event, { id: `grant.revoked.${party.grantHash}` }),
      ...(reusedToken === undefined
        ? []
        : [bus.publish(refreshReused, reused, { id: `refresh.reused.${party.grantHash}.${reusedToken}` })]),
    ])
    metrics.revocations.inc({ of: 'grant' })
  }
  const ending = revocable(bucket, announceRevoked, metrics)

  const termsOf = (payload: Payload) => {
    const { openid, resources } = TermsSchema.parse(payload)
    const scopes = [openid?.scope ?? '', ...Object.values(resources)].flatMap((text) => text.split(' '))
    return {
      scopes: [...new Set(scopes.filter((scope) => scope !== ''))],
      audience: Object.keys(resources).map(audienceOf),
    }
  }

  const announceConsent = async (id: string, payload: Payload) => {
    const event = create(ConsentGivenSchema, {
      grantHash: grantHash(id),
      clientId: payload.clientId ?? '',
      subject: payload.accountId ?? '',
      ...termsOf(payload),
      givenAt: timestampFromMs(Date.now()),
    })
    await bus.publish(consentGiven, event)
  }

  const parties = { account: accounts.find, client: clients.find }

  const generationsOf = async (
    { accountId = '', clientId = '' }: Payload,
    find = parties,
  ): Promise<StoredRecord['generations']> => {
    const [account, client] = await Promise.all([find.account(accountId), find.client(clientId)])
    return account?.enabled && client ? { account: account.generation, client: client.generation } : undefined
  }

  const live = async (
    found: Entry<StoredRecord> | undefined,
    find = parties,
  ): Promise<Entry<StoredRecord> | undefined> => {
    const entry = await ending.live(found)
    if (!entry) return undefined
    const now = await generationsOf(entry.value.payload, find)
    const { generations } = entry.value
    return now && generations?.account === now.account && generations.client === now.client ? entry : undefined
  }

  const extend = async (id: string, record: StoredRecord, end: { expiresAtMs?: number }) => {
    for (let attempt = 1; ; attempt++) {
      const before = await bucket.get(grantKey(id))
      const generations = before ? before.value.generations : await generationsOf(record.payload)
      if (before?.value.revoked || !generations) throw new errors.InvalidGrant('grant was ended')
      const value = { ...record, generations }
      try {
        await (before
          ? bucket.update(before.key, value, before.revision, end)
          : bucket.create(grantKey(id), value, end))
        return
      } catch (error) {
        if (!isConflict(error) || attempt === WRITE_ATTEMPTS_MAX) throw error
      }
    }
  }

  return {
    save: async (id, payload, lifetimeSeconds) => {
      const record = recordOf(payload)
      await extend(id, record, endOf(record, lifetimeSeconds))
      await announceConsent(id, record.payload)
    },

    find: async (id) => (await live(await bucket.get(grantKey(id))))?.value.payload,

    revoke: (id, why) => ending.revoke(grantKey(id), why),

    revokeByHash: async (hash, reason) => {
      const entry = await bucket.match(grantFilter({ grantHash: hash }))
      return entry !== undefined && ending.revoke(entry.key, { reason })
    },

    list: async (of) => {
      const find = { account: remembered(parties.account), client: remembered(parties.client) }
      const found = await bucket.entries(grantFilter(of))
      const entries = await Promise.all(found.map((entry) => live(entry, find)))
      return entries.flatMap((entry) => {
        if (!entry) return []
        const { payload } = entry.value
        const expiresAtMs = (payload.exp ?? 0) * 1000
        if (expiresAtMs <= Date.now()) return []
        return {
          grantHash: grantHashOf(entry.key),
          subject: payload.accountId ?? '',
          clientId: payload.clientId ?? '',
          ...termsOf(payload),
          grantedAtMs: (payload.iat ?? 0) * 1000,
          expiresAtMs,
        }
      })
    },
  }
}
