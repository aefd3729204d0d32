import { create, type MessageInitShape } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import type { Bus, Entry, WriteOptions } from '@tollward/bus'
import { bucketContract } from '@tollward/contracts'
import { type AppliedDocumentSchema, Change } from '@tollward/contracts/admin'
import { type StoredDocument, StoredDocumentSchema } from '@tollward/contracts/document'
import { IssuerService } from '@tollward/contracts/token'
import {
  afterSnapshot,
  type DocumentSource,
  documentKey,
  endOfDocument,
  type Guarded,
  isKind,
  KINDS,
  parseSources,
  STORED_FORMAT,
} from '@tollward/documents'
import { AppError } from '@tollward/errors'
import type { Logger } from 'pino'
import { shortTarget } from '../domain/audit.ts'
import { conflictsAfter, orderedForApply, refuseIfNeeded } from '../domain/changes.ts'
import type { Metrics } from '../metrics.ts'
import type { AdminMethods } from './calls.ts'

/** Sum of the texts in one answer; a caller that meets it asks for one name. */
const LISTED_BYTES_MAX = 32 * 1024 * 1024

/** Clients with another kind of authentication have no secret that could be shown. */
const SECRET_AUTHENTICATION: ReadonlySet<string> = new Set(['client_secret_basic', 'client_secret_post'])

type Entries = ReadonlyMap<string, Entry<StoredDocument>>

/** One write of an apply, and what takes it back. */
interface Write {
  readonly key: string
  readonly title: string
  readonly before: Entry<StoredDocument> | undefined
  readonly revision: number
}

/** Documents, in the bucket that this service alone writes; and the secrets of clients, which auth-issuer keeps. */
export function documentMethods({
  bus,
  guarded,
  metrics,
  log,
}: {
  bus: Bus
  guarded: Guarded
  metrics: Metrics
  log: Logger
}): Pick<AdminMethods, 'apply' | 'listDocuments' | 'deleteDocument' | 'replaceClientSecret'> {
  const bucket = bus.bucket(bucketContract(StoredDocumentSchema))
  const issuer = bus.client(IssuerService)
  const inTurn = turns()

  const readAll = async (): Promise<Entries> => {
    return new Map((await bucket.entries()).map((entry) => [entry.key, entry]))
  }
  const inForceOf = (entries: Entries) => {
    const { inForce, faults } = afterSnapshot(new Map(), new Map([...entries].map(([key, { value }]) => [key, value])))
    for (const fault of faults) log.warn({ fault }, 'stored document could not be read')
    metrics.documentFaults.inc(faults.length)
    return inForce
  }

  const write = async (source: DocumentSource, before: Entry<StoredDocument> | undefined, clientId: string) => {
    const { kind, metadata } = source.document
    const key = documentKey(kind, metadata.name)
    const nowMs = Date.now()
    const value = create(StoredDocumentSchema, {
      ...{ format: STORED_FORMAT, kind, name: metadata.name, yaml: source.yaml },
      ...{ appliedBy: clientId, appliedAt: timestampFromMs(nowMs) },
    })
    const options = endingAt(endOfDocument(source.document, nowMs))
    const revision = before
      ? await bucket.update(key, value, before.revision, options)
      : await bucket.create(key, value, options)
    return { key, title: titleOf(source), before, revision }
  }

  const takeBack = async (writes: readonly Write[]): Promise<string[]> => {
    const stuck: string[] = []
    for (const { key, title, before, revision } of writes.toReversed()) {
      try {
        if (before) await bucket.update(key, before.value, revision, endingAt(before.expiresAtMs))
        else await bucket.remove(key, { revision })
      } catch (error) {
        log.error({ err: error, document: title }, 'document could not be taken back')
        stuck.push(title)
      }
    }
    return stuck
  }

  const writeAll = async (sources: readonly DocumentSource[], entries: Entries, clientId: string) => {
    const changes = new Map<string, Change>()
    const writes: Write[] = []
    for (const source of sources) {
      const before = entries.get(documentKey(source.document.kind, source.document.metadata.name))
      const title = titleOf(source)
      const change = changeOf(source, before)
      changes.set(title, change)
      if (change === Change.UNCHANGED) continue
      try {
        writes.push(await write(source, before, clientId))
      } catch (error) {
        throw notApplied(error, title, await takeBack(writes))
      }
    }
    return changes
  }

  /**
   * Tells auth-issuer of a client, and returns its first secret. Also for one that is unchanged: an apply that was cut off
   * between the two is made good by the next.
   */
  const takeUp = async ({ document }: DocumentSource, change: Change): Promise<string> => {
    if (document.kind !== 'Client') return ''
    const { metadata, spec } = document
    const clientId = metadata.name
    try {
      if (change !== Change.CREATED) await issuer.noteClientChange({ clientId })
      if (spec.disabled) {
        await issuer.revoke({ target: { case: 'clientId', value: clientId }, reason: 'client disabled' })
        return ''
      }
      const { clientSecret } = await issuer.replaceClientSecret({ clientId, onlyIfMissing: true })
      return SECRET_AUTHENTICATION.has(spec.authentication) ? clientSecret : ''
    } catch (error) {
      const message = `Everything is applied, but auth-issuer did not take up Client/${clientId}; apply again.`
      throw new AppError('unavailable', message, { cause: error })
    }
  }

  return {
    apply: ({ yaml, fileName, dryRun }, action) =>
      inTurn(async () => {
        const sources = parseSources(yaml, fileName || 'text')
        action.target = shortTarget(sources.map(titleOf).join(', '))
        const entries = await readAll()
        const inForce = inForceOf(entries)
        const { clientId } = action.caller
        const ordered = orderedForApply(sources, inForce, clientId, guarded)
        const conflicts = conflictsAfter(sources, inForce)
        if (dryRun) return { applied: sources.map((source) => foreseen(source, entries)), conflicts }
        const changes = await writeAll(ordered, entries, clientId)
        const applied: MessageInitShape<typeof AppliedDocumentSchema>[] = []
        for (const source of sources) {
          const { kind, metadata } = source.document
          const change = changes.get(titleOf(source)) ?? Change.UNSPECIFIED
          applied.push({ kind, name: metadata.name, change, clientSecret: await takeUp(source, change) })
        }
        return { applied, conflicts }
      }),

    listDocuments: async ({ kind, name }) => {
      requireKind(kind)
      const found = [...(await readAll()).values()]
        .map(({ value }) => value)
        .filter((document) => document.kind === kind && (name === '' || document.name === name))
        .sort((a, b) => (a.name < b.name ? -1 : 1))
      if (name !== '' && found.length === 0) throw new AppError('not_found', `There is no ${kind}/${name}.`)
      if (found.reduce((sum, { yaml }) => sum + yaml.length, 0) > LISTED_BYTES_MAX) {
        throw new AppError(
          'too_large',
          `All documents of the kind ${kind} are too much for one answer; ask for one name.`,
        )
      }
      return { documents: found }
    },

    deleteDocument: ({ kind, name }) =>
      inTurn(async () => {
        requireKind(kind)
        const entries = await readAll()
        refuseIfNeeded(kind, name, inForceOf(entries))
        const key = documentKey(kind, name)
        const entry = entries.get(key)
        if (entry) await bucket.remove(key, { revision: entry.revision })
        // Also where the document is gone: an earlier deletion may have been cut off between the two.
        if (kind === 'Client') await forget(name, entry !== undefined)
        if (!entry) throw new AppError('not_found', `There is no ${kind}/${name}.`)
        return {}
      }),

    replaceClientSecret: async ({ clientId }) => {
      const { clientSecret } = await issuer.replaceClientSecret({ clientId, onlyIfMissing: false })
      if (clientSecret !== '') return { clientSecret }
      throw new AppError('failed_precondition', 'This client has no secret: it authenticates otherwise.')
    },
  }

  async function forget(clientId: string, deleted: boolean): Promise<void> {
    try {
      await issuer.forgetClient({ clientId })
    } catch (error) {
      if (!deleted) return
      const message = `Client/${clientId} is deleted and gets no tokens, but auth-issuer did not forget its secret; delete it again.`
      throw new AppError('unavailable', message, { cause: error })
    }
  }
}

function requireKind(kind: string): void {
  if (!isKind(kind)) {
    throw new AppError('invalid_argument', `There is no such kind; the kinds are ${Object.keys(KINDS).join(', ')}.`)
  }
}

function changeOf({ document, yaml }: DocumentSource, before: Entry<StoredDocument> | undefined): Change {
  if (!before) return Change.CREATED
  // What ends by itself is applied again to last longer.
  if (endOfDocument(document, 0) !== undefined) return Change.REPLACED
  return before.value.yaml === yaml ? Change.UNCHANGED : Change.REPLACED
}

/** What an apply would say of a document. */
function foreseen(source: DocumentSource, entries: Entries): MessageInitShape<typeof AppliedDocumentSchema> {
  const { kind, metadata } = source.document
  return { kind, name: metadata.name, change: changeOf(source, entries.get(documentKey(kind, metadata.name))) }
}

function endingAt(expiresAtMs: number | undefined): WriteOptions {
  return expiresAtMs === undefined ? {} : { expiresAtMs }
}

function titleOf({ document }: DocumentSource): string {
  return `${document.kind}/${document.metadata.name}`
}

function notApplied(error: unknown, title: string, stuck: readonly string[]): AppError {
  const code = error instanceof AppError ? error.code : 'internal'
  const outrun = code === 'conflict' || code === 'already_exists'
  const why = outrun ? `${title} was changed by somebody else meanwhile` : `${title} could not be stored`
  const state = stuck.length === 0 ? 'nothing was applied' : `${stuck.join(', ')} could not be taken back`
  return new AppError(outrun ? 'conflict' : code, `${why}; ${state}. Apply again.`, { cause: error })
}

/** Runs one after the other: what a change was checked against stays as it was until it is written. */
function turns(): <T>(work: () => Promise<T>) => Promise<T> {
  let last: Promise<unknown> = Promise.resolve()
  return (work) => {
    const next = last.then(work, work)
    last = next
    return next
  }
}
