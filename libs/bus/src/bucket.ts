import { type DescMessage, fromBinary, type MessageShape, toBinary } from '@bufbuild/protobuf'
import { DeliverPolicy, type JsMsg } from '@nats-io/jetstream'
import { headers, type MsgHdrs } from '@nats-io/transport-node'
import type { BucketContract } from '@tollward/contracts'
import { AppError } from '@tollward/errors'
import { Undecodable } from './consume.ts'
import { busError, isWrongLastSequence } from './errors.ts'
import { type Following, openFeed } from './feed.ts'
import type { Session } from './session.ts'
import { storedMessage } from './stored-message.ts'

const WRITE_TIMEOUT_MS = 3000

/** The mark of a removed key stays this long; whoever watches for changes was told meanwhile. */
const TOMBSTONE_TTL_SECONDS = 3600

/** When a value ends, in milliseconds since the epoch: the server's own timer is coarse and its clock another's. */
const EXPIRES_HEADER = 'Tollward-Expires-Ms'

const KEY = /^[-/_=.a-zA-Z0-9]{1,255}$/

/** Entries of a bucket that are read between two reports of how far it is: some milliseconds. */
const PROGRESS_EVERY = 1000

/** A key in which whole parts between dots may be any. */
const FILTER = /^([-/_=a-zA-Z0-9]+|\*)(\.([-/_=a-zA-Z0-9]+|\*))*$/

export interface Entry<T> {
  readonly key: string
  readonly value: T
  /** Sequence in the bucket's stream: what compare-and-set compares. */
  readonly revision: number
  readonly expiresAtMs?: number
}

export interface WriteOptions {
  /** The value ends then: readers take it as absent, the server removes it within a second. */
  readonly expiresAtMs?: number
}

/** Hears what changes in a whole bucket. */
interface BucketWatcher<T> {
  /** One key changed; undefined: it was removed or ended. */
  change(key: string, entry: Entry<T> | undefined): void
  /** While everything is read: so many entries were, of so many that there were as it began. Told every PROGRESS_EVERY entries. */
  progress?(read: number, total: number): void
}

/** Watches a whole bucket. */
export interface BucketObserver<T> extends BucketWatcher<T> {
  /** Everything that is in the bucket; at the start and again after every loss of the connection. */
  snapshot(entries: ReadonlyMap<string, Entry<T>>): void
}

/** Watches a bucket that is too large to be held as a map beside what is made of it. */
export interface BucketBuilder<T> extends BucketWatcher<T> {
  /** Everything that is in the bucket is about to be read; at the start and again after every loss of the connection. */
  begin(): SnapshotDraft<T>
}

/** What is made of everything that is in a bucket, entry by entry. It is dropped if reading has to begin again. */
export interface SnapshotDraft<T> {
  /** An entry, or what became of one meanwhile; undefined: it was removed or ended. */
  set(key: string, entry: Entry<T> | undefined): void
  /** Everything was read. */
  finish(): void
}

/** A NATS key/value bucket. Keys hold letters, digits and -/_=. only. */
export interface Bucket<T> {
  /** Reads from the leader, so that what was written is seen. A value whose end has come is absent. */
  get(key: string): Promise<Entry<T> | undefined>
  /** Writes if the key is absent; AppError `already_exists` otherwise. Returns the revision. */
  create(key: string, value: T, options?: WriteOptions): Promise<number>
  /** Writes if the revision is still the expected one; AppError `conflict` otherwise. Returns the new revision. */
  update(key: string, value: T, revision: number, options?: WriteOptions): Promise<number>
  /** Writes whatever is there. Returns the revision. */
  put(key: string, value: T, options?: WriteOptions): Promise<number>
  /** Removes; with a revision only if it is still that one (AppError `conflict`). Removing what is absent is no error. */
  remove(key: string, options?: { readonly revision?: number }): Promise<void>
  /** The entry that was written last of those whose keys match; in a filter `*` stands for any one part between dots. */
  match(filter: string): Promise<Entry<T> | undefined>
  /** Everything that is in the bucket now, or what of it has a matching key. */
  entries(filter?: string): Promise<Entry<T>[]>
  /** Watches the bucket, or what of it has a matching key, until disposed. Resolves after the first snapshot. */
  follow(observer: BucketObserver<T> | BucketBuilder<T>, filter?: string): Promise<Following>
}

export interface Codec<T> {
  readonly encode: (value: T) => Uint8Array
  readonly decode: (bytes: Uint8Array) => T
}

/** Values of one proto schema. */
export function protoCodec<Desc extends DescMessage>(contract: BucketContract<Desc>): Codec<MessageShape<Desc>> {
  return {
    encode: (value) => toBinary(contract.schema, value),
    decode: (bytes) => fromBinary(contract.schema, bytes),
  }
}

/** Bytes as they are. */
export const rawCodec: Codec<Uint8Array> = { encode: (value) => value, decode: (bytes) => bytes }

/** A change of a bucket as its stream holds it: a value, or the mark of its end. */
export interface BucketChange<T> {
  readonly key: string
  readonly value?: T
  readonly revision: number
  readonly ended?: 'removed' | 'expired'
}

/** Reads a message of a bucket's stream. Throws Undecodable. */
export function bucketChange<T>(name: string, codec: Codec<T>, message: JsMsg): BucketChange<T> {
  const key = message.subject.slice(`$KV.${name}.`.length)
  const revision = message.info.streamSequence
  const ended = endOf(message.headers)
  return ended ? { key, revision, ended } : { key, revision, value: decodeWith(codec, message.data, name) }
}

/** Opens a bucket that the provisioner made. */
export function openBucket<T>(session: Session, name: string, codec: Codec<T>): Bucket<T> {
  const stream = `KV_${name}`
  const subjectOf = (key: string) => {
    if (!KEY.test(key)) throw new AppError('invalid_argument', `"${key}" cannot be a key of the bucket ${name}.`)
    return `$KV.${name}.${key}`
  }

  const readRaw = async (subject: string): Promise<{ live?: Entry<T>; revision: number }> => {
    try {
      const message = await storedMessage(session, stream, { last_by_subj: subject })
      if (!message) return { revision: 0 }
      if (endOf(message.headers)) return { revision: message.seq }
      const key = message.subject.slice(`$KV.${name}.`.length)
      const entry = entryOf(key, decodeWith(codec, message.data, name), message.seq, message.headers)
      return isOver(entry) ? { revision: message.seq } : { live: entry, revision: message.seq }
    } catch (error) {
      if (error instanceof Undecodable)
        throw new AppError('internal', `A value of the bucket ${name} is damaged.`, { cause: error })
      throw busError(error, `Reading the bucket ${name}`)
    }
  }

  const write = async (key: string, bytes: Uint8Array, head: MsgHdrs): Promise<number> => {
    try {
      return Number((await session.requests.request(subjectOf(key), bytes, WRITE_TIMEOUT_MS, head)).seq)
    } catch (error) {
      throw busError(error, `Writing the bucket ${name}`)
    }
  }

  const bucket: Bucket<T> = {
    get: async (key) => (await readRaw(subjectOf(key))).live,

    match: async (filter) => (await readRaw(filterOf(name, filter))).live,

    create: async (key, value, options) => {
      const bytes = codec.encode(value)
      try {
        return await write(key, bytes, writeHeaders(options, 0))
      } catch (error) {
        if (!isWrongLastSequence((error as AppError).cause)) throw error
      }
      // The key may hold no more than the mark of an earlier value's end.
      const { live, revision } = await readRaw(subjectOf(key))
      if (live) throw new AppError('already_exists', `The bucket ${name} has this key already.`)
      return write(key, bytes, writeHeaders(options, revision)).catch((error: unknown) => {
        if (error instanceof AppError && error.code === 'conflict') {
          throw new AppError('already_exists', `The bucket ${name} has this key already.`, { cause: error })
        }
        throw error
      })
    },

    update: (key, value, revision, options) => write(key, codec.encode(value), writeHeaders(options, revision)),

    put: (key, value, options) => write(key, codec.encode(value), writeHeaders(options)),

    remove: async (key, options = {}) => {
      const head = writeHeaders({}, options.revision)
      head.set('KV-Operation', 'DEL')
      head.set('Nats-TTL', `${TOMBSTONE_TTL_SECONDS}s`)
      await write(key, new Uint8Array(), head)
    },

    entries: async (filter = '>') => {
      const { promise, resolve } = Promise.withResolvers<Entry<T>[]>()
      const observer = {
        snapshot: (all: ReadonlyMap<string, Entry<T>>) => resolve([...all.values()]),
        change: () => {},
      }
      await using _following = await followBucket(session, name, codec, observer, filterOf(name, filter))
      return await promise
    },

    follow: (observer, filter = '>') => followBucket(session, name, codec, observer, filterOf(name, filter)),
  }
  return bucket
}

/** What is read of a message's headers. */
type Headers = Pick<Map<string, string>, 'get' | 'has'> | Pick<MsgHdrs, 'get' | 'has'>

async function followBucket<T>(
  session: Session,
  name: string,
  codec: Codec<T>,
  observer: BucketObserver<T> | BucketBuilder<T>,
  filter: string,
): Promise<Following> {
  let past: SnapshotDraft<T> | undefined
  let read = 0
  return openFeed(session, `KV_${name}`, filter, {
    from: () => ({ deliver_policy: DeliverPolicy.LastPerSubject }),
    began: () => {
      past = 'begin' in observer ? observer.begin() : mapDraft(observer)
      read = 0
    },
    message: (message) => {
      if (past && ++read % PROGRESS_EVERY === 0) observer.progress?.(read, read + message.info.pending)
      const key = message.subject.slice(`$KV.${name}.`.length)
      let entry: Entry<T> | undefined
      if (!endOf(message.headers)) {
        try {
          entry = entryOf(key, decodeWith(codec, message.data, name), message.info.streamSequence, message.headers)
        } catch (error) {
          // Keeping what was in force is safer than ending it on bytes that nobody can read.
          session.metrics.undecodable.inc({ feed: `bucket ${name}` })
          session.log.error(
            { err: error, bucket: name, revision: message.info.streamSequence },
            'bucket value could not be decoded',
          )
          return
        }
        if (isOver(entry)) entry = undefined
      }
      if (past) past.set(key, entry)
      else observer.change(key, entry)
    },
    caughtUp: () => {
      const draft = past
      past = undefined
      draft?.finish()
    },
  })
}

function mapDraft<T>(observer: BucketObserver<T>): SnapshotDraft<T> {
  const entries = new Map<string, Entry<T>>()
  return {
    set: (key, entry) => {
      if (entry) entries.set(key, entry)
      else entries.delete(key)
    },
    finish: () => observer.snapshot(entries),
  }
}

function filterOf(name: string, filter: string): string {
  if (filter !== '>' && !FILTER.test(filter)) {
    throw new AppError('invalid_argument', `"${filter}" cannot match keys of the bucket ${name}.`)
  }
  return `$KV.${name}.${filter}`
}

function writeHeaders(options: WriteOptions = {}, expectedRevision?: number): MsgHdrs {
  const head = headers()
  if (expectedRevision !== undefined) head.set('Nats-Expected-Last-Subject-Sequence', String(expectedRevision))
  if (options.expiresAtMs !== undefined) {
    // Whole seconds, at least one, never early: readers look at the exact end themselves.
    head.set('Nats-TTL', `${Math.max(1, Math.ceil((options.expiresAtMs - Date.now()) / 1000))}s`)
    head.set(EXPIRES_HEADER, String(options.expiresAtMs))
  }
  return head
}

function endOf(head: Headers | undefined): 'removed' | 'expired' | undefined {
  if (!head) return undefined
  if (head.get('Nats-Marker-Reason') === 'MaxAge') return 'expired'
  if (head.has('Nats-Marker-Reason') || head.has('KV-Operation')) return 'removed'
  return undefined
}

function entryOf<T>(key: string, value: T, revision: number, head: Headers | undefined): Entry<T> {
  const expires = head?.get(EXPIRES_HEADER)
  return expires ? { key, value, revision, expiresAtMs: Number(expires) } : { key, value, revision }
}

function isOver<T>(entry: Entry<T>): boolean {
  return entry.expiresAtMs !== undefined && entry.expiresAtMs <= Date.now()
}

function decodeWith<T>(codec: Codec<T>, bytes: Uint8Array, name: string): T {
  try {
    return codec.decode(bytes)
  } catch (error) {
    throw new Undecodable(`bytes are no value of the bucket ${name}`, { cause: error })
  }
}
