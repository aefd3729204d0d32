import { AppError } from '@tollward/errors'
import { type Document, isAlias, isMap, isScalar, isSeq, LineCounter, type Node, parseAllDocuments, visit } from 'yaml'
import { z } from 'zod'
import { BLOCK_LIST_KIND, type BlockList, BlockListSchema } from './block-list.ts'
import { EXAMPLES_KIND, type PolicyExamples, PolicyExamplesSchema } from './examples.ts'
import { type KernelRule, KernelRuleSchema } from './kernel-rule.ts'
import { KINDS, type Kind, type TollwardDocument } from './kinds.ts'
import { nearest } from './nearest.ts'

/** Bytes of one document: with its envelope it must fit in a NATS message, which is 1 MiB by default. */
export const DOCUMENT_BYTES_MAX = 524_288
/** Bytes of one text: reading 1 MiB of YAML takes about a second, and nothing else runs meanwhile. */
export const TEXT_BYTES_MAX = 1_048_576
/** Documents of one text: each costs a read and a write when it is applied. */
const DOCUMENTS_PER_TEXT_MAX = 500
/** How many values the aliases of one document may stand for: a few lines of YAML can otherwise stand for billions. */
const ALIASED_VALUES_MAX = 100
/** Faults looked for in one document: finding the place of each takes a walk through it. */
const FAULTS_PER_DOCUMENT_MAX = 100
/** Faults told at once: more would not fit in the trailers of a gRPC answer, and nobody reads them. */
const FAULTS_TOLD_MAX = 20
const REASON_LENGTH_MAX = 240
const PATH_LENGTH_MAX = 120
const KEY_LENGTH_MAX = 40

/** One thing that is wrong in a text. Line and column count from 1. */
export interface DocumentFault {
  readonly file: string
  readonly line: number
  readonly column: number
  /** Such as spec.rules[0].match.path; empty where it is about the whole text. */
  readonly path: string
  /** One sentence without full stop. */
  readonly reason: string
}

/** Everything that is wrong in a text. The message has a line a fault: file:line: path: reason. */
export class DocumentError extends AppError {
  readonly faults: readonly DocumentFault[]

  constructor(faults: readonly DocumentFault[]) {
    const told = faults.slice(0, FAULTS_TOLD_MAX).map(formatFault)
    if (faults.length > told.length) told.push(`and ${faults.length - told.length} more`)
    super('invalid_argument', told.join('\n'))
    this.faults = faults
  }
}

/** A document, and the part of the text that it was written as. */
export interface DocumentSource<Read = TollwardDocument> {
  readonly document: Read
  readonly yaml: string
  /** A fault in this document that only shows beside others, placed in the text. */
  fault(path: readonly (string | number)[], reason: string): DocumentFault
}

/** Writes a fault as compilers do. */
export function formatFault({ file, line, path, reason }: DocumentFault): string {
  return `${file}:${line}: ${path === '' ? '' : `${path}: `}${reason}`
}

/**
 * Reads every document of a YAML 1.2 text, separated by "---". Defaults are filled in. Throws a DocumentError with all faults
 * if any document has one: a text is taken whole or not at all.
 */
export function parseDocuments(yamlText: string, fileName: string): TollwardDocument[] {
  return parseSources(yamlText, fileName).map(({ document }) => document)
}

/** As parseDocuments, with the text of each document: parsed alone it gives the same document. */
export function parseSources(yamlText: string, fileName: string): DocumentSource[] {
  return readSources<TollwardDocument>(yamlText, fileName, KINDS)
}

/** As parseSources, for the examples that stand next to policies: such a text holds nothing else. */
export function parseExamples(yamlText: string, fileName: string): DocumentSource<PolicyExamples>[] {
  return readSources<PolicyExamples>(yamlText, fileName, { [EXAMPLES_KIND]: PolicyExamplesSchema })
}

/** As parseSources, for the rules file of one host: such a text holds nothing else. One of comments alone has no documents. */
export function parseHostRules(yamlText: string, fileName: string): DocumentSource<KernelRule | BlockList>[] {
  // An empty file may be one that is just being written; to have no rules is said by a comment.
  if (yamlText.includes('#') && yamlText.split('\n').every((line) => /^\s*(#|$)/.test(line))) return []
  return readSources<KernelRule | BlockList>(yamlText, fileName, {
    KernelRule: KernelRuleSchema,
    [BLOCK_LIST_KIND]: BlockListSchema,
  })
}

/** What every document has, of whatever kind. */
interface Named {
  readonly kind: string
  readonly metadata: { readonly name: string }
}
type Schemas<Read> = Readonly<Record<string, z.ZodType<Read>>>

function readSources<Read extends Named>(
  yamlText: string,
  fileName: string,
  schemas: Schemas<Read>,
): DocumentSource<Read>[] {
  const lines = new LineCounter()
  const file = shortened(fileName, PATH_LENGTH_MAX)
  const faultAt: FaultAt = (offset, path, reason) => {
    const { line, col } = lines.linePos(offset)
    const place = { file, line: Math.max(line, 1), column: Math.max(col, 1) }
    return { ...place, path: shortened(path, PATH_LENGTH_MAX), reason: shortened(reason, REASON_LENGTH_MAX) }
  }
  const whole = (reason: string) => new DocumentError([{ file, line: 1, column: 1, path: '', reason }])
  if (Buffer.byteLength(yamlText) > TEXT_BYTES_MAX) throw whole(`the text is larger than ${TEXT_BYTES_MAX} bytes`)

  const options = {
    lineCounter: lines,
    prettyErrors: false,
    stringKeys: true,
    uniqueKeys: false,
    version: '1.2',
  } as const
  const all = [...parseAllDocuments(yamlText, options)]
  const parsed = all
    .map((document, index) => ({ document, yaml: textBetween(yamlText, all[index - 1], document) }))
    .filter(({ document }) => !isBlank(document))
  if (parsed.length === 0) throw whole('there is no document in the text')
  if (parsed.length > DOCUMENTS_PER_TEXT_MAX) throw whole(`the text has more than ${DOCUMENTS_PER_TEXT_MAX} documents`)

  const faults: DocumentFault[] = []
  const sources: DocumentSource<Read>[] = []
  const seen = new Map<string, number>()
  for (const { document, yaml } of parsed) {
    const read = readDocument(document, yaml, schemas, faultAt)
    if ('faults' in read) {
      faults.push(...read.faults)
      continue
    }
    const { kind, metadata } = read.document
    const offset = offsetOf(document, ['metadata', 'name'])
    const first = seen.get(documentKey(kind, metadata.name))
    const reason = `${kind}/${metadata.name} stands in this text twice, first in line ${first}`
    if (first !== undefined) faults.push(faultAt(offset, 'metadata.name', reason))
    seen.set(documentKey(kind, metadata.name), first ?? lines.linePos(offset).line)
    sources.push({
      document: read.document,
      yaml,
      fault: (path, reason) => faultAt(offsetOf(document, path), formatPath(path), reason),
    })
  }
  if (faults.length > 0) throw new DocumentError(faults.sort((a, b) => a.line - b.line || a.column - b.column))
  return sources
}

/** Whether the text names a kind of document. */
export function isKind(text: string): text is Kind {
  return Object.hasOwn(KINDS, text)
}

/** The key of a document in the bucket `documents`. */
export function documentKey(kind: string, name: string): string {
  return `${kind}.${Buffer.from(name).toString('base64url')}`
}

type FaultAt = (offset: number, path: string, reason: string) => DocumentFault
type Path = readonly PropertyKey[]

function readDocument<Read extends Named>(
  document: Document.Parsed,
  yaml: string,
  schemas: Schemas<Read>,
  faultAt: FaultAt,
): { document: Read } | { faults: DocumentFault[] } {
  const start = document.contents?.range[0] ?? document.range[0]
  if (Buffer.byteLength(yaml) > DOCUMENT_BYTES_MAX) {
    return { faults: [faultAt(start, '', `the document is larger than ${DOCUMENT_BYTES_MAX} bytes`)] }
  }
  const notYaml = [...document.errors, ...document.warnings].slice(0, FAULTS_PER_DOCUMENT_MAX)
  if (notYaml.length > 0) {
    return { faults: notYaml.map(({ pos, message }) => faultAt(pos[0], pathAt(document, pos[0]), plain(message))) }
  }
  if (document.directives.yaml.explicit || Object.keys(document.directives.tags).length > 1) {
    return { faults: [faultAt(start, '', 'directives, lines that begin with %, are not taken')] }
  }
  const repeated = repeatedKeys(document)
  if (repeated.length > 0) {
    return { faults: repeated.map((offset) => faultAt(offset, pathAt(document, offset), 'stands twice in its map')) }
  }
  if (!isMap(document.contents)) {
    return { faults: [faultAt(start, '', 'a document is a map that begins with apiVersion')] }
  }

  let value: { kind?: unknown }
  try {
    value = document.toJS({ maxAliasCount: ALIASED_VALUES_MAX })
  } catch (error) {
    if (!(error instanceof ReferenceError)) throw error
    return { faults: [faultAt(firstAlias(document) ?? start, '', plain(error.message))] }
  }
  const schema = typeof value.kind === 'string' && Object.hasOwn(schemas, value.kind) && schemas[value.kind]
  if (!schema) {
    const reason = kindFault(value.kind, Object.keys(schemas))
    return { faults: [faultAt(offsetOf(document, ['kind']), 'kind', reason)] }
  }
  const result = schema.safeParse(value, { reportInput: true })
  if (result.success) return { document: result.data }
  const faults = result.error.issues.flatMap((issue) => faultsOf(issue, schema)).slice(0, FAULTS_PER_DOCUMENT_MAX)
  return {
    faults: faults.map(({ path, reason, wanted }) =>
      faultAt(offsetOf(document, path, wanted), formatPath(path), reason),
    ),
  }
}

function kindFault(written: unknown, known: readonly string[]): string {
  if (written === undefined) return 'is required'
  if (written === EXAMPLES_KIND)
    return 'are examples, which are not applied: run "npx --no tollward policy test" on this file'
  if (written === BLOCK_LIST_KIND && known.includes('KernelRule'))
    return 'is for the rules file of one host; run "npx --no tollward blocks add" for each'
  if (typeof written === 'string' && isKind(written))
    return known.includes(EXAMPLES_KIND)
      ? `is no ${EXAMPLES_KIND}: keep it in a file of its own and name that in spec.policies`
      : `needs the other services; the rules file of one host holds ${known.join(' and ')}`
  return `is no kind of document${suggestion(written, known)}`
}

interface SchemaFault {
  path: Path
  reason: string
  wanted?: 'key'
}

function faultsOf(issue: z.core.$ZodIssue, schema: z.ZodType): SchemaFault[] {
  if (issue.code !== 'unrecognized_keys') return [{ path: issue.path, reason: reasonOf(issue) }]
  const known = knownKeys(schema, issue.path)
  return issue.keys.slice(0, FAULTS_PER_DOCUMENT_MAX).map((key) => {
    return { path: [...issue.path, key], reason: `is no known field${suggestion(key, known)}`, wanted: 'key' }
  })
}

function reasonOf(issue: z.core.$ZodIssue): string {
  switch (issue.code) {
    case 'invalid_type':
      if (issue.input === undefined) return 'is required'
      if (issue.expected === 'int') return 'must be a whole number'
      return `must be ${NOUNS[issue.expected] ?? issue.expected}, not ${nounOf(issue.input)}`
    case 'invalid_value': {
      if (issue.input === undefined) return 'is required'
      const values = issue.values.map(String)
      const choice = values.length === 1 ? values.join() : `one of ${values.join(', ')}`
      return `must be ${choice}${suggestion(issue.input, values)}`
    }
    case 'invalid_key':
      return plain(issue.issues[0]?.message ?? issue.message)
    case 'too_small':
      return `must ${sizeOf(issue.origin, 'at least', issue.minimum)}`
    case 'too_big':
      return `must ${sizeOf(issue.origin, 'at most', issue.maximum)}`
    default:
      return plain(issue.message)
  }
}

const NOUNS: Readonly<Record<string, string>> = {
  string: 'a text',
  number: 'a number',
  boolean: 'true or false',
  array: 'a list',
  object: 'a map',
  record: 'a map',
}

function nounOf(value: unknown): string {
  if (value === null) return 'empty'
  return NOUNS[Array.isArray(value) ? 'array' : typeof value] ?? typeof value
}

function sizeOf(origin: string, bound: string, size: number | bigint): string {
  if (origin === 'string') return `have ${bound} ${size} characters`
  if (origin === 'array') return `have ${bound} ${size} ${size === 1 ? 'entry' : 'entries'}`
  return `be ${bound} ${size}`
}

function suggestion(written: unknown, known: readonly string[]): string {
  const near = typeof written === 'string' ? nearest(written, known) : undefined
  return near === undefined ? '' : `; did you mean ${near}?`
}

/** The fields that the schema has at this path, for a suggestion. */
function knownKeys(schema: z.core.$ZodType, path: Path): string[] {
  if (schema instanceof z.ZodOptional || schema instanceof z.ZodDefault) return knownKeys(schema.unwrap(), path)
  const [head, ...rest] = path
  if (schema instanceof z.ZodArray && head !== undefined) return knownKeys(schema.element, rest)
  if (!(schema instanceof z.ZodObject)) return []
  if (head === undefined) return Object.keys(schema.shape)
  const below = schema.shape[String(head)]
  return below === undefined ? [] : knownKeys(below, rest)
}

/**
 * Where a plain value at the path begins, or the key of a list or map, or of a field that is not wanted at all; where there is
 * none, the key of the nearest map that should hold it.
 */
function offsetOf(document: Document.Parsed, path: Path, wanted: 'value' | 'key' = 'value'): number {
  let node: unknown = document.contents
  let offset = document.contents?.range[0] ?? document.range[0]
  for (const [index, key] of path.entries()) {
    if (isAlias(node)) node = node.resolve(document)
    if (isSeq(node)) {
      node = node.items[Number(key)]
      offset = startOf(node) ?? offset
    } else if (isMap(node)) {
      const pair = node.items.find((item) => isScalar(item.key) && item.key.value === key)
      const takesValue = wanted === 'value' && index === path.length - 1 && isScalar(pair?.value)
      offset = startOf(takesValue ? pair?.value : pair?.key) ?? offset
      node = pair?.value
    }
  }
  return offset
}

/** Where keys stand that their map has already. The parser's own check compares each key with each other one. */
function repeatedKeys(document: Document.Parsed): number[] {
  const offsets: number[] = []
  visit(document, {
    Map: (_, { items }) => {
      const seen = new Set<unknown>()
      for (const { key } of items) {
        const name = isScalar(key) ? key.value : key
        if (seen.has(name)) offsets.push(startOf(key) ?? 0)
        seen.add(name)
      }
    },
  })
  return offsets.slice(0, FAULTS_PER_DOCUMENT_MAX)
}

/** The path of the innermost value or key that holds the offset. */
function pathAt(document: Document.Parsed, offset: number): string {
  const path: PropertyKey[] = []
  const holds = (first: unknown, last = first) =>
    (startOf(first) ?? Infinity) <= offset && offset <= (endOf(last) ?? -1)
  visit(document, {
    Pair: (_, { key, value }) => {
      if (!holds(key, value ?? key)) return visit.SKIP
      path.push(isScalar(key) ? String(key.value) : '?')
    },
    Seq: (_, { items }) => {
      const index = items.findIndex((item) => holds(item))
      if (index >= 0) path.push(index)
    },
  })
  return formatPath(path)
}

function startOf(node: unknown): number | undefined {
  return (node as Node | null | undefined)?.range?.[0]
}

function endOf(node: unknown): number | undefined {
  return (node as Node | null | undefined)?.range?.[1]
}

function firstAlias(document: Document.Parsed): number | undefined {
  let offset: number | undefined
  visit(document, {
    Alias: (_, alias) => {
      offset = alias.range?.[0]
      return visit.BREAK
    },
  })
  return offset
}

function formatPath(path: Path): string {
  const parts = path.map((key) => {
    if (typeof key === 'number') return `[${key}]`
    const text = shortened(String(key), KEY_LENGTH_MAX)
    return /^[\w-]+$/.test(text) ? `.${text}` : `[${JSON.stringify(text)}]`
  })
  return parts.join('').replace(/^\./, '')
}

/** Neither a value nor a comment of its own: what "---" at the end of a text leaves. */
function isBlank(document: Document.Parsed): boolean {
  return document.errors.length === 0 && isScalar(document.contents) && document.contents.source === ''
}

/** The text of a document: from the end of the one before, so that comments at its head are part of it. */
function textBetween(text: string, before: Document.Parsed | undefined, document: Document.Parsed): string {
  const own = text.slice(before?.range[2] ?? 0, document.range[2])
  return `${own.replace(/^---[ \t]*\r?\n/, '').trimEnd()}\n`
}

/** Messages of libraries as part of our sentence. */
function plain(message: string): string {
  const [first = ''] = message.split('\n')
  return first.replace(/^[A-Z](?=[a-z])/, (letter) => letter.toLowerCase()).replace(/\.$/, '')
}

function shortened(text: string, lengthMax: number): string {
  return text.length <= lengthMax ? text : `${text.slice(0, lengthMax - 1)}…`
}
