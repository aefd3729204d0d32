import type { ApiPolicy } from '@tollward/documents'
import type { HeaderField, Rewritten } from './answer.ts'
import { type HeaderList, sameVariable } from './fields.ts'
import { changedQuery, type QueryChange } from './query.ts'
import { comparedSegments, type Target } from './target.ts'

type RuleDocument = ApiPolicy['spec']['rules'][number]
type RewriteDocument = NonNullable<RuleDocument['rewrite']>

/** How an admitted request goes on to the API. */
export interface Rewriting {
  /** Undefined: by the path that the client asked for. */
  readonly path: PathChange | undefined
  readonly query: QueryChange | undefined
  readonly headers: { readonly set: readonly HeaderField[]; readonly remove: readonly string[] }
  /** Set on the API's answer. */
  readonly responseHeaders: readonly HeaderField[]
}

interface PathChange {
  /** Texts, and the numbers of the request's segments that stand between them. */
  readonly parts: readonly (string | number)[]
  /** How many segments of the request this stands for; undefined: all of them. */
  readonly replaced: number | undefined
}

/** Makes a rule's rewriting ready; undefined where it has none. */
export function compileRewriting({ match, rewrite }: RuleDocument): Rewriting | undefined {
  if (!rewrite) return undefined
  const { query, headers, responseHeaders } = rewrite
  const set = fieldsOf(headers?.set)
  const isSet = new Set(set.map(([name]) => name))
  const remove = (headers?.remove ?? []).map((name) => name.toLowerCase())
  return {
    path: pathChange(match, rewrite),
    query: query && { set: Object.entries(query.set ?? {}), remove: query.remove ?? [] },
    headers: { set, remove: remove.filter((name) => !isSet.has(name)) },
    responseHeaders: fieldsOf(responseHeaders?.set),
  }
}

function pathChange(match: RuleDocument['match'], { path, prefix }: RewriteDocument): PathChange | undefined {
  const template = path ?? prefix
  if (template === undefined) return undefined
  const matched = segmentsOf(match.path ?? match.prefix)
  const parts = segmentsOf(template).map((segment) => (segment.startsWith('{') ? matched.indexOf(segment) : segment))
  return { parts, replaced: path === undefined ? matched.length : undefined }
}

/** None of "/": as a prefix it stands before everything. */
function segmentsOf(template: string | undefined): string[] {
  return template === undefined || template === '/' ? [] : template.slice(1).split('/')
}

function fieldsOf(record: Readonly<Record<string, string>> | undefined): HeaderField[] {
  return Object.entries(record ?? {}).map(([name, value]) => [name.toLowerCase(), value])
}

/**
 * What the API is asked for instead. Canonical again: texts of a rule hold nothing that needs encoding, and segments of the
 * request are canonical already.
 */
export function rewrittenTarget(target: Target, { path, query }: Rewriting): Target {
  const newPath = path ? rewrittenPath(target.path, path) : target.path
  return {
    host: target.host,
    path: newPath,
    query: query ? changedQuery(target.query, query) : target.query,
    segments: path ? comparedSegments(newPath) : target.segments,
  }
}

function rewrittenPath(path: string, { parts, replaced }: PathChange): string {
  // As the request has them: what rules compare is decoded further.
  const segments = path.slice(1).split('/')
  const begin = parts.map((part) => `/${typeof part === 'string' ? part : (segments[part] ?? '')}`).join('')
  const rest = replaced === undefined ? [] : segments.slice(replaced)
  return begin + rest.map((segment) => `/${segment}`).join('') || '/'
}

/** What a rewriting made different, for proxies that are told of changes only. */
export function rewrittenParts(before: Target, after: Target, { query }: Rewriting): Rewritten {
  return { path: after.path !== before.path, query }
}

/** Names of headers, as sent but in lower case, that some servers would take for one that a rule sets or removes. */
export function variantsOf({ headers: { set, remove } }: Rewriting, sent: HeaderList): string[] {
  const ours = [...remove, ...set.map(([name]) => name)]
  const found = new Set<string>()
  for (let index = 0; index < sent.length; index += 2) {
    const name = (sent[index] ?? '').toLowerCase()
    if (ours.some((known) => known !== name && sameVariable(known, name))) found.add(name)
  }
  return [...found]
}
