import { hash, randomBytes, timingSafeEqual } from 'node:crypto'
import { create } from '@bufbuild/protobuf'
import { timestampFromMs, timestampMs } from '@bufbuild/protobuf/wkt'
import type { Bus, Entry } from '@tollward/bus'
import { bucketContract, contract } from '@tollward/contracts'
import {
  ClientChangedSchema,
  ClientRevokedSchema,
  type RegistrationTerms,
  RegistrationTermsSchema,
  type StoredClient,
  StoredClientSchema,
} from '@tollward/contracts/token'
import { API_VERSION, ClientSchema } from '@tollward/documents'
import { AppError } from '@tollward/errors'
import { fromDocument, type RegisteredClient, usesSecret } from '../../domain/client.ts'
import {
  isRegistrationId,
  putOffLapse,
  type Registration,
  registrationId,
  type Spec,
  type Terms,
  TermsSchema,
  UNUSED_LIFETIME_MS,
} from '../../domain/registration.ts'
import type { IssuerMetrics } from '../../metrics.ts'
import { openRoster } from './roster.ts'

const FORMAT = 1

const SECRET_BYTES = 32
const GENERATION_BYTES = 16

/** Writers of one client that may come between before we give up; there are hardly ever two. */
const WRITE_ATTEMPTS_MAX = 5

/** What a client is told once. Empty: nothing new. */
export interface ShownSecrets {
  readonly clientSecret: string
  readonly registrationToken: string
}

/** Clients that registered. Each look at one finishes what a crash has left: an end that nobody was told of, a deletion. */
export interface Registrations {
  /** The client as it stands at this moment. */
  find(clientId: string): Promise<RegisteredClient | undefined>
  /** AppError `resource_exhausted` where as many have registered themselves as may. */
  register(clientId: string, spec: Spec, terms: Terms): Promise<Registration & ShownSecrets>
  /** The registration that this registration access token is of. */
  managed(clientId: string, registrationToken: string): Promise<Managed | undefined>
  /** Replaces what is registered, and the registration access token. Undefined: somebody else did, or it is gone. */
  update(managed: Managed, spec: Spec): Promise<(Registration & ShownSecrets) | undefined>
  /** Ends the client and its tokens. Resolves when the bus has acknowledged the event. False: there is no such client. */
  remove(clientId: string, reason: string): Promise<boolean>
  /** Ends every token of the client. Resolves when the bus has acknowledged the event. False: there is no such client. */
  endTokens(clientId: string, reason: string): Promise<boolean>
  /** Puts off that a self-registered client lapses: it has just got a token, or bought a pass. */
  noteUse(clientId: string, of: 'token' | 'pass'): Promise<void>
  /** All of them, newest first. */
  list(): Promise<Registration[]>
}

/** A registration, and whether its secret is `secret`. */
export interface Managed extends Registration {
  readonly entry: Entry<StoredClient>
  isSecret(secret: string): boolean
}

const clientsContract = bucketContract(StoredClientSchema)
const clientRevoked = contract(ClientRevokedSchema)
const clientChanged = contract(ClientChangedSchema)

/** Opens the registered clients. Until disposed they are followed, to know how many have registered themselves. */
export async function openRegistrations({
  bus,
  issuer,
  selfRegisteredMax,
  metrics,
}: {
  bus: Bus
  issuer: string
  selfRegisteredMax: number
  metrics: IssuerMetrics
}): Promise<Registrations & AsyncDisposable> {
  const clients = bus.bucket(clientsContract)
  const roster = await openRoster(clients, metrics)

  const announceEnd = async (entry: Entry<StoredClient>): Promise<Entry<StoredClient>> => {
    const { clientId, generation, unannouncedEndAt, unannouncedEndReason: reason, deleted } = entry.value
    const event = create(ClientRevokedSchema, { clientId, reason })
    if (unannouncedEndAt) event.revokedAt = unannouncedEndAt
    await bus.publish(clientRevoked, event, { id: `client.revoked.${clientId}.${generation}` })
    try {
      if (deleted) {
        await clients.remove(entry.key, { revision: entry.revision })
        return entry
      }
      const { unannouncedEndAt: _told, ...rest } = entry.value
      const value = create(StoredClientSchema, { ...rest, unannouncedEndReason: '' })
      return { ...entry, value, revision: await clients.update(entry.key, value, entry.revision, endOf(entry)) }
    } catch (error) {
      // Whoever was faster has told it too, or ended everything once more and will tell that.
      if (isOutrun(error)) return entry
      throw error
    }
  }

  const read = async (clientId: string): Promise<Entry<StoredClient> | undefined> => {
    if (!isRegistrationId(clientId)) return undefined
    const entry = await clients.get(keyOf(clientId))
    if (!entry) return undefined
    if (entry.value.format !== FORMAT) {
      throw new AppError('internal', 'A client is stored in a format that this version cannot read.')
    }
    if (!entry.value.unannouncedEndAt) return entry
    const told = await announceEnd(entry)
    metrics.revocationsFinished.inc()
    return told.value.deleted ? undefined : told
  }

  /** Writes a change unless somebody else wrote meanwhile: then once more on what they wrote. */
  const change = async (
    clientId: string,
    next: (entry: Entry<StoredClient>) => { value: StoredClient; expiresAtMs?: number } | undefined,
  ): Promise<Entry<StoredClient> | undefined> => {
    for (let attempt = 1; ; attempt++) {
      const entry = await read(clientId)
      const wanted = entry && next(entry)
      if (!wanted) return undefined
      const { value, ...end } = { ...endOf(entry), ...wanted }
      try {
        return { ...entry, value, revision: await clients.update(entry.key, value, entry.revision, end) }
      } catch (error) {
        if (!isOutrun(error) || attempt === WRITE_ATTEMPTS_MAX) throw error
      }
    }
  }

  const end = async (clientId: string, reason: string, deleted: boolean): Promise<boolean> => {
    const ended = await change(clientId, ({ value }) => ({
      value: create(StoredClientSchema, {
        ...value,
        generation: newGeneration(),
        unannouncedEndAt: timestampFromMs(Date.now()),
        unannouncedEndReason: reason,
        deleted,
      }),
    }))
    if (!ended) return false
    await announceEnd(ended)
    if (deleted) metrics.revocations.inc({ of: 'client' })
    return true
  }

  return {
    find: async (clientId) => {
      const entry = await read(clientId)
      if (!entry) return undefined
      const { secretHash, generation } = entry.value
      return clientOf(registrationOf(entry.value), issuer, {
        hash: Buffer.from(secretHash).toString('hex'),
        generation,
      })
    },

    register: async (clientId, spec, terms) => {
      const full = new AppError(
        'resource_exhausted',
        'As many clients have registered themselves as may; try again later.',
      )
      if (terms.selfRegistered && roster.size >= selfRegisteredMax) throw full
      const shown = newSecrets(spec)
      const registeredAtMs = Date.now()
      const value = create(StoredClientSchema, {
        format: FORMAT,
        clientId,
        specJson: JSON.stringify(spec),
        terms: storedTerms(terms),
        secretHash: hashOf(shown.clientSecret),
        registrationTokenHash: hashOf(shown.registrationToken),
        generation: newGeneration(),
        registeredAt: timestampFromMs(registeredAtMs),
      })
      const key = keyOf(clientId)
      const options = terms.selfRegistered ? { expiresAtMs: registeredAtMs + UNUSED_LIFETIME_MS } : {}
      const write = () => clients.create(key, value, options)
      if (!terms.selfRegistered) await write()
      else if ((await roster.sizeAfter(key, write)) > selfRegisteredMax) {
        await clients.remove(key)
        throw full
      }
      return { clientId, spec, terms, registeredAtMs, ...shown }
    },

    managed: async (clientId, registrationToken) => {
      const entry = await read(clientId)
      if (!entry || !isHashOf(entry.value.registrationTokenHash, registrationToken)) return undefined
      return { ...registrationOf(entry.value), entry, isSecret: (text) => isHashOf(entry.value.secretHash, text) }
    },

    update: async ({ entry, clientId, terms, registeredAtMs, spec: before }, spec) => {
      const kept = usesSecret(spec) && usesSecret(before)
      const made = newSecrets(spec)
      const shown = kept ? { ...made, clientSecret: '' } : made
      const value = create(StoredClientSchema, {
        ...entry.value,
        specJson: JSON.stringify(spec),
        secretHash: kept ? entry.value.secretHash : hashOf(shown.clientSecret),
        registrationTokenHash: hashOf(shown.registrationToken),
      })
      try {
        await clients.update(entry.key, value, entry.revision, endOf(entry))
      } catch (error) {
        if (isOutrun(error)) return undefined
        throw error
      }
      const changedAt = timestampFromMs(Date.now())
      await bus.publish(clientChanged, create(ClientChangedSchema, { clientId, changedAt }))
      return { clientId, spec, terms, registeredAtMs, ...shown }
    },

    remove: (clientId, reason) => end(clientId, reason, true),
    endTokens: (clientId, reason) => end(clientId, reason, false),

    noteUse: async (clientId, of) => {
      await change(clientId, ({ value, expiresAtMs }) => {
        if (expiresAtMs === undefined) return undefined
        const paid = value.paid || of === 'pass'
        const lapsesAtMs = putOffLapse(expiresAtMs, paid, Date.now())
        if (lapsesAtMs === undefined && paid === value.paid) return undefined
        return {
          value: create(StoredClientSchema, { ...value, paid }),
          expiresAtMs: Math.max(lapsesAtMs ?? 0, expiresAtMs),
        }
      })
    },

    list: async () => {
      const live = (await clients.entries()).filter(({ value }) => value.format === FORMAT && !value.deleted)
      return live.map(({ value }) => registrationOf(value)).sort((a, b) => b.registeredAtMs - a.registeredAtMs)
    },

    [Symbol.asyncDispose]: () => roster[Symbol.asyncDispose](),
  }
}

/** A new client_id that nobody has. */
export function newClientId(): string {
  return registrationId(randomBytes)
}

export function storedTerms({ grants, scopes, audience, selfRegistered }: Terms): RegistrationTerms {
  return create(RegistrationTermsSchema, {
    grants: [...grants],
    scopes: [...scopes],
    audience: [...audience],
    selfRegistered,
  })
}

export function termsOf(stored: RegistrationTerms | undefined): Terms {
  const { grants, scopes, audience, selfRegistered } = stored ?? create(RegistrationTermsSchema)
  return { ...TermsSchema.parse({ grants, scopes, audience }), selfRegistered }
}

function registrationOf({ clientId, specJson, terms, registeredAt }: StoredClient): Registration {
  return {
    clientId,
    spec: ClientSchema.shape.spec.parse(JSON.parse(specJson)),
    terms: termsOf(terms),
    registeredAtMs: registeredAt ? timestampMs(registeredAt) : 0,
  }
}

/** The client as if it had a document. */
export function clientOf(
  { clientId, spec, terms }: Pick<Registration, 'clientId' | 'spec' | 'terms'>,
  issuer: string,
  secret: { hash: string; generation: string },
): RegisteredClient {
  const document = { apiVersion: API_VERSION, kind: 'Client', metadata: { name: clientId }, spec } as const
  return { ...fromDocument(document, issuer, secret), selfRegistered: terms.selfRegistered }
}

function newSecrets(spec: Spec): ShownSecrets {
  const secret = () => randomBytes(SECRET_BYTES).toString('base64url')
  return { clientSecret: usesSecret(spec) ? secret() : '', registrationToken: secret() }
}

function newGeneration(): string {
  return randomBytes(GENERATION_BYTES).toString('base64url')
}

function keyOf(clientId: string): string {
  return hash('sha256', clientId, 'base64url')
}

function hashOf(secret: string): Uint8Array {
  return secret === '' ? new Uint8Array() : hash('sha256', secret, 'buffer')
}

function isHashOf(expected: Uint8Array, secret: string): boolean {
  const given = hash('sha256', secret, 'buffer')
  return expected.length === given.length && timingSafeEqual(expected, given)
}

function endOf({ expiresAtMs }: Entry<StoredClient>): { expiresAtMs?: number } {
  return expiresAtMs === undefined ? {} : { expiresAtMs }
}

function isOutrun(error: unknown): boolean {
  return error instanceof AppError && error.code === 'conflict'
}
