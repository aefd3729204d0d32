import { parseRange } from '@tollward/contracts'
import type { ApiPolicy } from '@tollward/documents'
import { RE2JS } from 're2js'
import { maskedKey } from './block-list.ts'
import { BodyView, type RpcCall } from './body.ts'
import { joinedHas, nominated, singleValue } from './fields.ts'
import type { RequestFacts } from './judge.ts'
import { QueryView } from './query.ts'
import type { Fault, Target } from './target.ts'

type RuleMatch = ApiPolicy['spec']['rules'][number]['match']
type Condition = NonNullable<RuleMatch['conditions']>[number]
type Comparison = Pick<Condition, 'equals' | 'oneOf' | 'matches' | 'present'>

/** Characters of a value that is compared with a regular expression; each takes up to 0.1 µs. */
export const PATTERN_TEXT_MAX = 4096

export type Claims = Readonly<Record<string, unknown>>

/** What rules compare, read at most once and only where a rule asks. */
export class RequestView {
  readonly facts: RequestFacts
  readonly query: QueryView
  readonly body: BodyView
  #headers: Map<string, string | undefined | false> | undefined
  #nominated: ReadonlySet<string> | undefined
  /** What the caller's token says; undefined: nobody has asked yet; false: there is none that is worth anything. */
  claims: Claims | undefined | false

  constructor(facts: RequestFacts, { query }: Target) {
    this.facts = facts
    this.query = new QueryView(query)
    this.body = new BodyView(facts, this.query)
  }

  /** Whether Connection names one of these headers: then the API does not get it. */
  isDropped(...names: readonly string[]): boolean {
    this.#nominated ??= nominated(this.facts.headers)
    const { size } = this.#nominated
    return size > 0 && names.some((name) => this.#nominated?.has(name))
  }

  /** The value of a header; undefined: it is absent; false: it can be read in more than one way. */
  header(name: string): string | undefined | false {
    this.#headers ??= new Map()
    let value = this.#headers.get(name)
    if (value === undefined && !this.#headers.has(name)) {
      value = singleValue(this.facts.headers, name)
      this.#headers.set(name, value)
    }
    return value
  }
}

/** Whether a condition holds; a fault: this cannot be told, and the request is refused rather than taken for another. */
export type Check = (request: RequestView) => boolean | Fault

/** Whether a claim of the caller's token is as wanted. */
export type ClaimCheck = (claims: Claims) => boolean

/** What a rule compares besides path and method, the cheapest first. */
export interface Conditions {
  readonly checks: readonly Check[]
  readonly claims: readonly ClaimCheck[]
  /** More of them make a rule more specific. */
  readonly count: number
  /** Whether one of them asks what the body says. */
  readonly readsBody: boolean
}

/** Makes everything ready that can be before the first request. */
export function compileConditions(match: RuleMatch): Conditions {
  const { headers = {}, conditions = [], sources, principals, namespaces } = match
  const { graphqlOperations, rpcMethods, tools } = match
  const checks: Check[] = []
  const claims: ClaimCheck[] = []
  if (sources) checks.push(sourceCheck(sources))
  if (principals) checks.push(principalCheck(principals))
  if (namespaces) checks.push(namespaceCheck(new Set(namespaces)))
  for (const [name, equals] of Object.entries(headers)) checks.push(headerCheck(name.toLowerCase(), { equals }))
  for (const condition of conditions) {
    if (condition.header !== undefined) checks.push(headerCheck(condition.header.toLowerCase(), condition))
    else if (condition.query !== undefined) checks.push(queryCheck(condition.query, condition))
    else if (condition.claim !== undefined) claims.push(compileClaim(condition.claim, condition))
  }
  if (graphqlOperations) checks.push(graphqlCheck(new Set(graphqlOperations)))
  if (rpcMethods) checks.push(callsCheck(rpcMethods, ({ method }) => method))
  if (tools) checks.push(callsCheck(tools, ({ tool }) => tool))
  const readsBody = (graphqlOperations ?? rpcMethods ?? tools) !== undefined
  return { checks, claims, count: checks.length + claims.length, readsBody }
}

/** A claim by its name, or nested by dots; of a list it is enough that one element compares. */
export function compileClaim(name: string, comparison: Comparison): ClaimCheck {
  const path = name.split('.')
  const isAsWanted = compareText(comparison)
  const { present } = comparison
  if (present !== undefined) return (claims) => (claimAt(claims, name, path) !== undefined) === present
  return (claims) => {
    const value = claimAt(claims, name, path)
    if (!Array.isArray(value)) return scalarIs(value, isAsWanted)
    return value.some((element) => scalarIs(element, isAsWanted))
  }
}

/** Null is as good as nothing. */
function claimAt(claims: Claims, name: string, path: readonly string[]): unknown {
  if (Object.hasOwn(claims, name)) return claims[name] ?? undefined
  let value: unknown = claims
  for (const key of path) {
    if (typeof value !== 'object' || value === null || Array.isArray(value) || !Object.hasOwn(value, key))
      return undefined
    value = (value as Claims)[key]
  }
  return value ?? undefined
}

/** Numbers and booleans compare as their JSON text; objects with nothing. */
function scalarIs(value: unknown, isAsWanted: (text: string) => boolean): boolean {
  if (typeof value === 'string') return isAsWanted(value)
  return (typeof value === 'number' || typeof value === 'boolean') && isAsWanted(JSON.stringify(value))
}

function compareText({ equals, oneOf, matches }: Comparison): (text: string) => boolean {
  if (equals !== undefined) return (text) => text === equals
  if (oneOf) {
    const wanted = new Set(oneOf)
    return (text) => wanted.has(text)
  }
  if (matches === undefined) return () => false
  const pattern = RE2JS.compile(matches)
  return (text) => pattern.testExact(text)
}

/** Of what a client sends; claims are the issuer's. */
function isTooLong(value: string, { matches }: Comparison): boolean {
  return matches !== undefined && value.length > PATTERN_TEXT_MAX
}

function headerCheck(name: string, comparison: Comparison): Check {
  const { present } = comparison
  const isAsWanted = compareText(comparison)
  return (request) => {
    const value = request.header(name)
    if (value !== undefined && request.isDropped(name)) return 'header-connection'
    if (present !== undefined) return (value !== undefined) === present
    if (value === false) return 'header-duplicated'
    if (value === undefined) return false
    if (isTooLong(value, comparison)) return 'value-too-long'
    if (isAsWanted(value)) return true
    const mayBeJoined = request.facts.headersAreJoined === true && joinedHas(value, isAsWanted)
    return mayBeJoined ? 'header-duplicated' : false
  }
}

function queryCheck(name: string, comparison: Comparison): Check {
  const { present } = comparison
  const isAsWanted = compareText(comparison)
  return (request) => {
    const value = request.query.value(name)
    if (value === false) return 'query-ambiguous'
    if (value !== undefined && isTooLong(value, comparison)) return 'value-too-long'
    return present === undefined ? value !== undefined && isAsWanted(value) : (value !== undefined) === present
  }
}

/** One look-up for each prefix length that occurs. */
function sourceCheck(sources: readonly string[]): Check {
  const byLength = new Map<number, Set<string>>()
  for (const source of sources) {
    const range = parseRange(source)
    if (!range) throw new RangeError(`not a range: ${source}`)
    const keys = byLength.get(range.prefixLength) ?? new Set()
    byLength.set(range.prefixLength, keys.add(maskedKey(range.address, range.prefixLength)))
  }
  const lengths = [...byLength]
  return ({ facts }) => lengths.some(([length, keys]) => keys.has(maskedKey(facts.address, length)))
}

function principalCheck(principals: readonly string[]): Check {
  const isMeant = namedBy(principals)
  return ({ facts }) => facts.principal !== undefined && isMeant(facts.principal)
}

function namespaceCheck(namespaces: ReadonlySet<string>): Check {
  return ({ facts }) => {
    const [, namespace] = /^spiffe:\/\/[^/]+\/ns\/([^/]+)\/sa\/[^/]+$/.exec(facts.principal ?? '') ?? []
    return namespace !== undefined && namespaces.has(namespace)
  }
}

function graphqlCheck(operations: ReadonlySet<string>): Check {
  return ({ body }) => {
    const operation = body.operation()
    if (typeof operation === 'string') return operation
    return operation.name !== undefined && operations.has(operation.name)
  }
}

/** Of a batch every call must be meant: that only some are is refused, or the others would come along. */
function callsCheck(names: readonly string[], nameOf: (call: RpcCall) => string | undefined): Check {
  const isMeant = namedBy(names)
  return ({ body }) => {
    const calls = body.calls()
    if (typeof calls === 'string') return calls
    const meant = calls.filter((call) => {
      const name = nameOf(call)
      return name !== undefined && isMeant(name)
    }).length
    if (meant === 0) return false
    return meant === calls.length || 'batch-mixed'
  }
}

/** Exact names, and beginnings before *. */
function namedBy(names: readonly string[]): (name: string) => boolean {
  const exact = new Set(names.filter((name) => !name.endsWith('*')))
  const beginnings = names.filter((name) => name.endsWith('*')).map((name) => name.slice(0, -1))
  return (name) => exact.has(name) || beginnings.some((beginning) => name.startsWith(beginning))
}
