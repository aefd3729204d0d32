import { hash, randomBytes, timingSafeEqual } from 'node:crypto'
import { create } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import type { BucketObserver, Bus, Entry } from '@tollward/bus'
import { bucketContract, contract } from '@tollward/contracts'
import { type StoredDocument, StoredDocumentSchema } from '@tollward/contracts/document'
import {
  ClientChangedSchema,
  ClientRevokedSchema,
  type ClientSecret,
  ClientSecretSchema,
} from '@tollward/contracts/token'
import { type Client, documentKey, readStored } from '@tollward/documents'
import { AppError } from '@tollward/errors'
import type { Logger } from 'pino'
import {
  fromDocument,
  fromOperator,
  isClientId,
  type OperatorClient,
  type RegisteredClient,
  usesSecret,
} from '../domain/client.ts'

const SECRET_FORMAT = 1

/** RFC 6749, section 10.10 asks for 128 bits at least. So many make a plain hash as good as a slow one. */
const SECRET_BYTES = 32

const NO_SECRET = new Uint8Array()

const GENERATION_BYTES = 16

/** Writers of one client's secret that may come between before we give up; there are hardly ever two. */
const WRITE_ATTEMPTS_MAX = 5

/** Clients: what their documents say, and the state that only this service has. */
export interface Clients extends AsyncDisposable {
  /** The client as it stands at this moment; undefined: unknown, disabled, or without the secret that it needs. */
  find(clientId: string): Promise<RegisteredClient | undefined>
  /**
   * The client as this replica has heard of it last, which is a millisecond old or so. For issuing tokens: what one is worth is
   * decided by `find` whenever somebody looks at it. Whoever would refuse something asks `find` first.
   */
  findHeard(clientId: string): Promise<RegisteredClient | undefined>
  /** The client if this is its secret. Takes the same time for any wrong one. */
  authenticate(clientId: string, secret: string): Promise<RegisteredClient | undefined>
  /**
   * Makes a new secret and ends the tokens of the old one. Empty: there is one already and `onlyIfMissing` was asked, or the
   * client authenticates otherwise; then a secret that it had before ends.
   */
  replaceSecret(clientId: string, onlyIfMissing: boolean): Promise<string>
  /** Ends every token that the client has. False: it never had one. */
  endTokens(clientId: string, reason: string): Promise<boolean>
  /** Forgets the secret and ends every token. */
  forget(clientId: string): Promise<void>
  /** Tells everybody that what was answered about the client's tokens may be out of date. */
  noteChange(clientId: string): Promise<void>
}

/** Clients that registered themselves; asked for ids that no document can have. */
export interface Registrations {
  find(clientId: string): Promise<RegisteredClient | undefined>
  /** Resolves when the bus has acknowledged the event. False: there is no such client. */
  endTokens(clientId: string, reason: string): Promise<boolean>
}

const documentsContract = bucketContract(StoredDocumentSchema)
const secretsContract = bucketContract(ClientSecretSchema)
const clientRevoked = contract(ClientRevokedSchema)
const clientChanged = contract(ClientChangedSchema)

/** A feed that was silent for longer is behind: then the source is asked. The server is heard every second. */
const SILENCE_MAX_MS = 2500

/** Where a document and a client's state are looked up. */
interface Source {
  document(key: string): Promise<Entry<StoredDocument> | undefined>
  state(key: string): Promise<Entry<ClientSecret> | undefined>
}

/** Opens the clients, and follows their documents and states. */
export async function openClients({
  bus,
  issuer,
  operator,
  registrations,
  log,
}: {
  bus: Bus
  issuer: string
  operator: OperatorClient | undefined
  registrations?: Registrations
  log: Logger
}): Promise<Clients> {
  const documents = bus.bucket(documentsContract)
  const secrets = bus.bucket(secretsContract)

  /** Documents as they were read last: parsing one takes longer than all the rest of a request. */
  const parsed = new Map<string, { revision: number; document: Client | undefined }>()

  const parse = (clientId: string, stored: StoredDocument): Client | undefined => {
    const reading = readStored(stored)
    if ('fault' in reading) {
      log.error({ clientId, fault: reading.fault }, 'client document cannot be read; the client is refused')
      return undefined
    }
    return reading.document.kind === 'Client' && !reading.document.spec.disabled ? reading.document : undefined
  }

  const document = async (clientId: string, source: Source): Promise<Client | undefined> => {
    if (!isClientId(clientId)) return undefined
    const stored = await source.document(documentKey('Client', clientId))
    if (!stored) {
      parsed.delete(clientId)
      return undefined
    }
    const { revision } = stored
    const known = parsed.get(clientId)
    if (known?.revision === revision) return known.document
    const found = parse(clientId, stored.value)
    parsed.set(clientId, { revision, document: found })
    return found
  }

  const leader: Source = { document: (key) => documents.get(key), state: (key) => stateOf(key) }
  const heardDocuments = new Map<string, Entry<StoredDocument>>()
  const heardStates = new Map<string, Entry<ClientSecret>>()
  const heard: Source = {
    document: async (key) => heardDocuments.get(key),
    state: async (key) => heardStates.get(key),
  }
  await using opening = new AsyncDisposableStack()
  const feeds = [
    opening.use(await documents.follow(mirror(heardDocuments))),
    opening.use(await secrets.follow(mirror(heardStates))),
  ]
  const feedsClosed = opening.move()

  /** Tells that every token of the client has ended, and writes down that it was told. */
  const announceEnd = async (entry: Entry<ClientSecret>): Promise<Entry<ClientSecret>> => {
    const { clientId, generation, unannouncedEndAt, unannouncedEndReason: reason } = entry.value
    const event = create(ClientRevokedSchema, { clientId, reason })
    if (unannouncedEndAt) event.revokedAt = unannouncedEndAt
    await bus.publish(clientRevoked, event, { id: `client.revoked.${clientId}.${generation}` })
    const { unannouncedEndAt: _told, ...rest } = entry.value
    const value = create(ClientSecretSchema, { ...rest, unannouncedEndReason: '' })
    try {
      return { ...entry, value, revision: await secrets.update(entry.key, value, entry.revision) }
    } catch (error) {
      // Whoever was faster has told it too, or ended everything once more and will tell that.
      if (isOutrun(error)) return entry
      throw error
    }
  }

  /** A client's state, after whatever was left to tell of it. */
  const stateOf = async (key: string): Promise<Entry<ClientSecret> | undefined> => {
    const entry = await secrets.get(key)
    return entry?.value.unannouncedEndAt ? await announceEnd(entry) : entry
  }

  /**
   * Writes a client's state unless somebody else did meanwhile: then `next` decides again, and returns undefined if there is
   * nothing to write. With `end` every token of the client ends; this is told when it resolves.
   */
  const change = async (
    clientId: string,
    next: (entry: Entry<ClientSecret> | undefined) => Pick<ClientSecret, 'secretHash'> | undefined,
    end?: string,
  ): Promise<Entry<ClientSecret> | undefined> => {
    const key = keyOf(clientId)
    for (let attempt = 1; ; attempt++) {
      const before = await secrets.get(key)
      const wanted = next(before)
      if (!wanted) return undefined
      const now = timestampFromMs(Date.now())
      const value = create(ClientSecretSchema, {
        format: SECRET_FORMAT,
        clientId,
        secretHash: wanted.secretHash,
        generation: randomBytes(GENERATION_BYTES).toString('base64url'),
        changedAt: now,
      })
      if (end !== undefined && before) Object.assign(value, { unannouncedEndAt: now, unannouncedEndReason: end })
      try {
        const revision = await (before ? secrets.update(key, value, before.revision) : secrets.create(key, value))
        const entry = { key, value, revision }
        // This replica at least issues nothing under the old generation any more.
        keepNewer(heardStates, key, entry)
        return value.unannouncedEndAt ? await announceEnd(entry) : entry
      } catch (error) {
        if (!isOutrun(error) || attempt === WRITE_ATTEMPTS_MAX) throw error
      }
    }
  }

  /** A client without secret has a state too, for its generation: made when it is first looked for. */
  const firstState = async (clientId: string) => {
    await change(clientId, (entry) => (entry ? undefined : { secretHash: NO_SECRET }))
    const made = await secrets.get(keyOf(clientId))
    if (!made) throw new AppError('unavailable', 'This client is being deleted; try again in a second.')
    return made
  }

  /** Clients as they were put together last, by their parsed documents and the revision of their state. */
  const joined = new WeakMap<Client, { revision: number; client: RegisteredClient }>()

  const lookUp = async (clientId: string, source: Source): Promise<RegisteredClient | undefined> => {
    if (operator?.clientId === clientId) {
      const entry = await source.state(keyOf(clientId))
      return fromOperator(operator, entry ? readable(entry).generation : '')
    }
    if (!isClientId(clientId)) return registrations?.find(clientId)
    const [found, entry] = await Promise.all([document(clientId, source), source.state(keyOf(clientId))])
    if (!found) return undefined
    if (!usesSecret(found.spec)) {
      const { generation } = readable(entry ?? (await firstState(clientId)))
      return fromDocument(found, issuer, { hash: '', generation })
    }
    if (!entry) return undefined
    const known = joined.get(found)
    if (known?.revision === entry.revision) return known.client
    const { secretHash, generation } = readable(entry)
    if (secretHash.length === 0) return undefined
    const client = fromDocument(found, issuer, { hash: Buffer.from(secretHash).toString('hex'), generation })
    joined.set(found, { revision: entry.revision, client })
    return client
  }

  const clients: Clients = {
    find: (clientId) => lookUp(clientId, leader),

    findHeard: async (clientId) => {
      const current = feeds.every(({ silentForMs }) => silentForMs <= SILENCE_MAX_MS)
      return (current ? await lookUp(clientId, heard) : undefined) ?? (await lookUp(clientId, leader))
    },

    authenticate: async (clientId, secret) => {
      const client = await clients.find(clientId)
      return client !== undefined && isSecretOf(client.secretHash, secret) ? client : undefined
    },

    replaceSecret: async (clientId, onlyIfMissing) => {
      if (operator?.clientId === clientId) {
        throw new AppError('failed_precondition', "The operator's secret is in its file; make a new file instead.")
      }
      const found = await document(clientId, leader)
      if (!found) {
        throw new AppError('not_found', `There is no enabled Client document "${clientId}"; apply one first.`)
      }
      if (!usesSecret(found.spec)) {
        await change(
          clientId,
          (entry) => (entry && readable(entry).secretHash.length > 0 ? { secretHash: NO_SECRET } : undefined),
          'authenticates without a secret now',
        )
        return ''
      }
      const secret = randomBytes(SECRET_BYTES).toString('base64url')
      const secretHash = hash('sha256', secret, 'buffer')
      const changed = await change(
        clientId,
        (entry) => (onlyIfMissing && entry && readable(entry).secretHash.length > 0 ? undefined : { secretHash }),
        'secret replaced',
      )
      return changed ? secret : ''
    },

    endTokens: async (clientId, reason) => {
      if (operator?.clientId !== clientId && !isClientId(clientId)) {
        return (await registrations?.endTokens(clientId, reason)) ?? false
      }
      // The operator's first state: what is told of is not in it yet, so it is written twice.
      if (operator?.clientId === clientId) {
        await change(clientId, (entry) => (entry ? undefined : { secretHash: NO_SECRET }))
      }
      const next = (entry: Entry<ClientSecret> | undefined) => entry && { secretHash: readable(entry).secretHash }
      return (await change(clientId, next, reason)) !== undefined
    },

    forget: async (clientId) => {
      if (operator?.clientId === clientId) {
        throw new AppError('failed_precondition', "The operator's client is in its file; remove that instead.")
      }
      const ended = await change(clientId, (entry) => entry && { secretHash: NO_SECRET }, 'client deleted')
      if (ended) await secrets.remove(ended.key, { revision: ended.revision })
    },

    noteChange: async (clientId) => {
      await bus.publish(
        clientChanged,
        create(ClientChangedSchema, { clientId, changedAt: timestampFromMs(Date.now()) }),
      )
    },

    [Symbol.asyncDispose]: () => feedsClosed.disposeAsync(),
  }
  return clients
}

/** Keeps a map the same as a bucket. */
function mirror<T>(map: Map<string, Entry<T>>): BucketObserver<T> {
  return {
    snapshot: (entries) => {
      map.clear()
      for (const [key, entry] of entries) map.set(key, entry)
    },
    change: (key, entry) => {
      if (entry) keepNewer(map, key, entry)
      else map.delete(key)
    },
  }
}

function keepNewer<T>(map: Map<string, Entry<T>>, key: string, entry: Entry<T>): void {
  const known = map.get(key)
  if (!known || known.revision < entry.revision) map.set(key, entry)
}

/** Whether `secret` has this SHA-256 (lower-case hexadecimal), in a time that tells nothing of either. */
export function isSecretOf(secretHash: string, secret: string): boolean {
  const expected = Buffer.from(secretHash, 'hex')
  const given = hash('sha256', secret, 'buffer')
  return expected.length === given.length && timingSafeEqual(expected, given)
}

function keyOf(clientId: string): string {
  return hash('sha256', clientId, 'base64url')
}

function isOutrun(error: unknown): boolean {
  return error instanceof AppError && (error.code === 'conflict' || error.code === 'already_exists')
}

function readable({ value }: Entry<ClientSecret>): ClientSecret {
  if (value.format !== SECRET_FORMAT) {
    throw new AppError('internal', 'The state of this client is stored in a format that this version cannot read.')
  }
  return value
}
