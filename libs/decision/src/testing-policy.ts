import assert from 'node:assert/strict'
import { parseAddress, parseRange, rangeContains } from '@tollward/contracts'
import { type ApiPolicy, ApiPolicySchema } from '@tollward/documents'
import fc from 'fast-check'
import { RequestView } from './domain/conditions.ts'
import type { RequestFacts } from './domain/judge.ts'
import { compilePolicies, matchRule, policiesFor, TOKEN_NEEDED } from './domain/policy.ts'
import { canonicalTarget, FAULTS } from './domain/target.ts'

/*
 * The policy engine held against a plain reading of the order in docs/documents.md: list all rules, keep those that match, take the
 * first. Slow, and written apart from the engine: nothing below this line but `engine` uses its code.
 */

type RuleDocument = ApiPolicy['spec']['rules'][number]
type Match = RuleDocument['match']
type Condition = NonNullable<Match['conditions']>[number]
/** Of a condition: it holds, it doesn't, or that cannot be told. */
type Answer = boolean | 'unclear'

/** A request, with what its parts mean beside how they are written. */
export interface ReferenceRequest {
  readonly method: string
  readonly host: string
  /** Segments as rules compare them. */
  readonly segments: readonly string[]
  /** Whether ":" in segments is sent percent-encoded. */
  readonly encodes: boolean
  readonly query: readonly (readonly [name: string, value: string])[]
  readonly headers: readonly (readonly [name: string, value: string])[]
  readonly address: string
  readonly principal: string | undefined
  readonly body: ReferenceBody
  /** Of the caller's token; false: there is none that is worth anything. */
  readonly claims: Readonly<Record<string, unknown>> | false
}

export type ReferenceBody =
  | { readonly is: 'none' }
  | { readonly is: 'unreadable'; readonly text: string; readonly isWhole: boolean }
  | { readonly is: 'calls'; readonly calls: readonly { readonly method: string; readonly tool?: string }[] }
  | { readonly is: 'operation'; readonly names: readonly string[]; readonly chosen: string | undefined }

/** The id of the rule that decides; undefined: none; 'refused': it cannot be told which one. */
export function reference(documents: readonly ApiPolicy[], request: ReferenceRequest): string | undefined {
  const patterns = documents.flatMap(({ spec }) => spec.hosts).filter((pattern) => hostMatches(pattern, request.host))
  const specificity = (pattern: string) => (pattern === '*' ? 0 : pattern.startsWith('*') ? pattern.length : 1000)
  const best = patterns.toSorted((a, b) => specificity(b) - specificity(a))[0]
  const sharing = documents.filter(({ spec }) => spec.hosts.some((pattern) => pattern === best))
  const enforcing = sharing.filter(({ spec }) => spec.mode === 'enforce')
  const rules = (enforcing.length > 0 ? enforcing : sharing)
    .toSorted((a, b) => (a.metadata.name < b.metadata.name ? -1 : 1))
    .flatMap(({ metadata, spec }) => spec.rules.map((rule) => ({ id: `${metadata.name}/${rule.name}`, rule })))
    .toSorted((a, b) => order(a.rule, b.rule))
  for (const { id, rule } of rules) {
    const answers = answersOf(rule.match, request)
    if (answers.includes(false)) continue
    return answers.includes('unclear') ? 'refused' : id
  }
  return undefined
}

function hostMatches(pattern: string, host: string): boolean {
  if (pattern === '*') return true
  return pattern.startsWith('*.') ? host.endsWith(pattern.slice(1)) : host === pattern
}

/** Segments of a pattern; an open one ends with **. */
function patternOf({ path, prefix, glob }: Match): string[] {
  if (path !== undefined)
    return path
      .slice(1)
      .split('/')
      .map((part) => (part.startsWith('{') ? '{}' : part))
  if (glob !== undefined) return glob.slice(1).split('/')
  const parts =
    prefix === '/'
      ? []
      : (prefix ?? '')
          .slice(1)
          .split('/')
          .map((part) => (part.startsWith('{') ? '{}' : part))
  return [...parts, '**']
}

function pathMatches(pattern: readonly string[], segments: readonly string[], isGlob: boolean): boolean {
  const [first, ...others] = pattern
  if (first === undefined) return segments.length === 0
  if (first === '**') {
    return (
      pathMatches(others, segments, isGlob) || (segments.length > 0 && pathMatches(pattern, segments.slice(1), isGlob))
    )
  }
  const [segment, ...rest] = segments
  return segment !== undefined && segmentMatches(first, segment, isGlob) && pathMatches(others, rest, isGlob)
}

function segmentMatches(part: string, segment: string, isGlob: boolean): boolean {
  if (part === '{}') return segment !== ''
  if (!isGlob || !part.includes('*')) return part === segment
  const escaped = part.replace(/[.$()+]/g, '\\$&').replaceAll('*', '.*')
  return segment !== '' && new RegExp(`^${escaped}$`).test(segment)
}

/** Below 0: the first is more specific. */
function order(a: RuleDocument, b: RuleDocument): number {
  return (
    comparePaths(steps(a.match), steps(b.match)) ||
    conditionCount(b.match) - conditionCount(a.match) ||
    Number(b.match.methods !== undefined) - Number(a.match.methods !== undefined) ||
    Number(b.deny !== undefined) - Number(a.deny !== undefined)
  )
}

/** Each step of a path: how general its kind is, and how little of it is literal. */
function steps(match: Match): (readonly [kind: number, notLiteral: number])[] {
  const pattern = patternOf(match).filter((part, index, all) => part !== '**' || all[index - 1] !== '**')
  const isOpen = pattern.at(-1) === '**'
  const parts = isOpen ? pattern.slice(0, -1) : pattern
  const middle = parts.map((part): [number, number] => {
    if (part === '**') return [4, 0]
    if (part === '{}' || (match.glob !== undefined && /^\*+$/.test(part))) return [2, 0]
    return match.glob !== undefined && part.includes('*') ? [1, -part.replaceAll('*', '').length] : [0, 0]
  })
  return [...middle, [isOpen ? 5 : 3, 0]]
}

function comparePaths(a: ReturnType<typeof steps>, b: ReturnType<typeof steps>): number {
  for (const [index, [kind, notLiteral]] of a.entries()) {
    const [otherKind, otherNotLiteral] = b[index] ?? [0, 0]
    if (kind !== otherKind) return kind - otherKind
    if (notLiteral !== otherNotLiteral) return notLiteral - otherNotLiteral
  }
  return 0
}

function conditionCount(match: Match): number {
  const { headers = {}, conditions = [], sources, principals, namespaces, graphqlOperations, rpcMethods, tools } = match
  const lists = [sources, principals, namespaces, graphqlOperations, rpcMethods, tools]
  return Object.keys(headers).length + conditions.length + lists.filter((list) => list !== undefined).length
}

function answersOf(match: Match, request: ReferenceRequest): Answer[] {
  const { methods, headers = {}, conditions = [], sources, principals, namespaces } = match
  const address = parseAddress(request.address)
  return [
    pathMatches(patternOf(match), request.segments, match.glob !== undefined),
    methods === undefined || methods.some((method) => method === request.method),
    ...Object.entries(headers).map(([header, equals]) => compared({ header, equals }, request)),
    ...conditions.map((condition) => compared(condition, request)),
    sources === undefined ||
      sources.some((source) => {
        const range = parseRange(source)
        return range !== undefined && address !== undefined && rangeContains(range, address)
      }),
    principals === undefined || (request.principal !== undefined && named(principals, request.principal)),
    namespaces === undefined || namespaces.some((name) => request.principal?.includes(`/ns/${name}/sa/`)),
    ...bodyAnswers(match, request.body),
  ]
}

function compared(condition: Condition, { headers, query, claims }: ReferenceRequest): Answer {
  if (condition.claim !== undefined) return claims && claimCompares(condition, condition.claim, claims)
  const name = condition.header?.toLowerCase() ?? condition.query
  const values =
    condition.header === undefined
      ? query.filter(([other]) => other === name)
      : headers.filter(([other]) => other.toLowerCase() === name)
  if (condition.present !== undefined && condition.header !== undefined) return values.length > 0 === condition.present
  if (values.length > 1) return 'unclear'
  if (condition.present !== undefined) return values.length > 0 === condition.present
  const [value] = values
  return value !== undefined && isAsWanted(condition, value[1])
}

function isAsWanted({ equals, oneOf, matches }: Condition, value: string): boolean {
  if (equals !== undefined) return value === equals
  return oneOf?.includes(value) ?? new RegExp(`^(?:${matches})$`).test(value)
}

function claimCompares(condition: Condition, claim: string, claims: Readonly<Record<string, unknown>>): boolean {
  const nested = claim
    .split('.')
    .reduce<unknown>((value, key) => (value as Record<string, unknown> | undefined)?.[key], claims)
  const value = claim in claims ? claims[claim] : nested
  if (condition.present !== undefined) return (value !== undefined && value !== null) === condition.present
  return [value]
    .flat()
    .some((one) => one !== undefined && one !== null && typeof one !== 'object' && isAsWanted(condition, String(one)))
}

function named(names: readonly string[], name: string): boolean {
  return names.some((known) => (known.endsWith('*') ? name.startsWith(known.slice(0, -1)) : known === name))
}

function bodyAnswers({ graphqlOperations, rpcMethods, tools }: Match, body: ReferenceBody): Answer[] {
  const answers: Answer[] = []
  const ofCalls = (
    names: readonly string[],
    nameOf: (call: { method: string; tool?: string }) => string | undefined,
  ): Answer => {
    if (body.is === 'none') return false
    if (body.is !== 'calls') return 'unclear'
    const meant = body.calls.filter((call) => named(names, nameOf(call) ?? '\0'))
    return meant.length === 0 ? false : meant.length === body.calls.length || 'unclear'
  }
  if (graphqlOperations) answers.push(ofOperation(graphqlOperations, body))
  if (rpcMethods) answers.push(ofCalls(rpcMethods, ({ method }) => method))
  if (tools) answers.push(ofCalls(tools, ({ method, tool }) => (method === 'tools/call' ? tool : undefined)))
  return answers
}

function ofOperation(operations: readonly string[], body: ReferenceBody): Answer {
  if (body.is === 'none') return false
  if (body.is === 'unreadable') return 'unclear'
  // Calls of JSON-RPC have an id, which may be that of a stored operation.
  if (body.is === 'calls') return 'unclear'
  const { names, chosen } = body
  if (new Set(names).size < names.length) return 'unclear'
  if (chosen === undefined && names.length > 1) return 'unclear'
  const name = chosen ?? names[0] ?? ''
  return names.includes(name) ? operations.includes(name) : 'unclear'
}

/** How the request is written. */
function factsOf(request: ReferenceRequest): RequestFacts {
  const address = parseAddress(request.address)
  assert.ok(address)
  const path = `/${request.segments.join('/')}`
  const query = request.query
    .map(([name, value]) => `${encodeURIComponent(name)}=${encodeURIComponent(value)}`)
    .join('&')
  const { body } = request
  const text = written(body)
  return {
    method: request.method,
    scheme: 'https',
    host: request.host,
    target: (request.encodes ? path.replaceAll(':', '%3a') : path) + (query && `?${query}`),
    address,
    headers: [...request.headers.flat(), ...(text === undefined ? [] : ['content-type', 'application/json'])],
    principal: request.principal,
    body: { bytes: Buffer.from(text ?? ''), isWhole: body.is !== 'unreadable' || body.isWhole },
  }
}

function written(body: ReferenceBody): string | undefined {
  switch (body.is) {
    case 'none':
      return undefined
    case 'unreadable':
      return body.text
    case 'calls': {
      const calls = body.calls.map(({ method, tool }, id) => ({ jsonrpc: '2.0', id, method, params: { name: tool } }))
      return JSON.stringify(calls.length === 1 ? calls[0] : calls)
    }
    case 'operation': {
      const query = body.names.map((name) => `query ${name} { a(b: "query x { y }") }`).join(' ')
      return JSON.stringify({ query, operationName: body.chosen })
    }
  }
}

/** What the engine says, asked as a judgement asks it. */
export function engine(documents: readonly ApiPolicy[], request: ReferenceRequest): string | undefined {
  const facts = factsOf(request)
  const target = canonicalTarget(facts.host, facts.target)
  assert.ok(typeof target === 'object', `${facts.target} is ${target}`)
  const host = policiesFor(compilePolicies(documents), target.host)
  if (!host) return undefined
  const view = new RequestView(facts, target)
  let rule = matchRule(host, target.segments, view)
  if (rule === TOKEN_NEEDED) {
    view.claims = request.claims
    rule = matchRule(host, target.segments, view)
    assert.notEqual(rule, TOKEN_NEEDED)
  }
  if (typeof rule !== 'string') return rule?.id
  assert.ok(rule in FAULTS, rule)
  return 'refused'
}

const word = fc.constantFrom('a', 'b', 'ab', 'v1:do')
const parameter = fc.constantFrom('{id}', '{name}')
const join = (parts: readonly string[]) => `/${parts.join('/')}`
const template = fc.array(fc.oneof({ arbitrary: word, weight: 3 }, parameter), { maxLength: 3 }).map(join)
const glob = fc
  .array(fc.oneof({ arbitrary: word, weight: 2 }, fc.constantFrom('*', 'a*', '*b', '*', 'v*:d*', '**')), {
    maxLength: 5,
  })
  .filter((parts) => parts.filter((part) => part === '**').length <= 2)
  .map(join)
const place = fc.oneof(fc.record({ path: template }), fc.record({ prefix: template }), fc.record({ glob }))
const text = fc.constantFrom('1', '2', '12')
const comparison = fc.oneof(
  fc.record({ equals: text }),
  fc.record({ oneOf: fc.uniqueArray(text, { minLength: 1 }) }),
  fc.record({ matches: fc.constantFrom('1|2', '1.*', '[12]+', '2') }),
  fc.record({ present: fc.boolean() }),
)
const subject = fc.oneof(
  fc.record({ header: fc.constantFrom('x-a', 'X-B') }),
  fc.record({ query: fc.constantFrom('q', 'r s') }),
  fc.record({ claim: fc.constantFrom('tenant', 'roles', 'deep.level', 'http://x.y/z') }),
)
const condition = fc.tuple(subject, comparison).map(([about, wanted]) => ({ ...about, ...wanted }))
const list = <V>(...values: V[]) => fc.uniqueArray(fc.constantFrom(...values), { minLength: 1, maxLength: 3 })
/** Mostly absent, so that rules match at all. */
const rarely = <V>(arbitrary: fc.Arbitrary<V>) => fc.oneof({ arbitrary: fc.constant(undefined), weight: 7 }, arbitrary)
const extras = fc.record({
  methods: rarely(list('GET', 'POST')),
  headers: rarely(fc.dictionary(fc.constantFrom('x-a', 'x-b'), text, { minKeys: 1, maxKeys: 2 })),
  conditions: fc.oneof(fc.constant(undefined), fc.array(condition, { minLength: 1, maxLength: 2 })),
  sources: rarely(list('192.0.2.0/24', '192.0.2.1', '2001:db8::/32')),
  principals: rarely(list('spiffe://x/ns/shop/sa/web', 'spiffe://x/ns/*')),
  namespaces: rarely(list('shop', 'bank')),
  body: rarely(
    fc.oneof(
      fc.record({ graphqlOperations: list('Read', 'Write') }),
      fc.record({ rpcMethods: list('tools/call', 'tools/*', 'list') }),
      fc.record({ tools: list('read', 'wri*') }),
      fc.record({ rpcMethods: list('tools/*'), tools: list('read') }),
    ),
  ),
})
const rule = fc.record({ place, extras, denies: fc.boolean() })
const policy = fc.record({
  hosts: list('*', '*.example', 'api.example'),
  mode: fc.constantFrom('enforce', 'enforce', 'observe'),
  rules: fc.array(rule, { minLength: 1, maxLength: 8 }),
})

/** Up to three policies. */
export const policies: fc.Arbitrary<ApiPolicy[]> = fc.array(policy, { minLength: 1, maxLength: 3 }).map((made) =>
  made.map(({ hosts, mode, rules }, index) =>
    ApiPolicySchema.parse({
      apiVersion: 'tollward.dev/v1',
      kind: 'ApiPolicy',
      metadata: { name: `p${made.length - index}` },
      spec: {
        hosts,
        mode,
        rules: rules.map(({ place, extras: { body, ...compared }, denies }, number) => ({
          name: `r${number}`,
          match: withoutAbsent({ ...place, ...compared, ...body }),
          ...(denies ? { deny: { reason: 'No.' } } : { require: { token: {} } }),
        })),
      },
    }),
  ),
)

function withoutAbsent(fields: Readonly<Record<string, unknown>>) {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined))
}

const pair = <N extends string>(...names: N[]) => fc.tuple(fc.constantFrom(...names), text)
const claimValue = fc.oneof(
  text,
  fc.constantFrom<unknown>(1, 2, true, null, {}, []),
  fc.array(fc.oneof(text, fc.constant(12)), { maxLength: 3 }),
)
const body: fc.Arbitrary<ReferenceBody> = fc.oneof(
  { arbitrary: fc.constant({ is: 'none' } as const), weight: 2 },
  fc.record({
    is: fc.constant('unreadable' as const),
    text: fc.constantFrom(
      '{',
      'null',
      '[]',
      '{"method":"list","method":"x"}',
      '{"Method":"x","Query":"{a}"}',
      '{"params":{}}'.slice(0, 5),
    ),
    isWhole: fc.boolean(),
  }),
  fc.record({
    is: fc.constant('calls' as const),
    calls: fc.array(
      fc.oneof(
        fc.record({ method: fc.constantFrom('list', 'tools/list', 'other') }),
        fc.record({ method: fc.constant('tools/call'), tool: fc.constantFrom('read', 'write', 'wri', 'drop') }),
      ),
      { minLength: 1, maxLength: 3 },
    ),
  }),
  fc.record({
    is: fc.constant('operation' as const),
    names: fc.array(fc.constantFrom('Read', 'Write', 'Other'), { minLength: 1, maxLength: 3 }),
    chosen: fc.oneof(fc.constant(undefined), fc.constantFrom('Read', 'Write', 'None')),
  }),
)

/** A request that has something to do with them. */
export const requests: fc.Arbitrary<ReferenceRequest> = fc.record({
  method: fc.constantFrom('GET', 'POST', 'DELETE'),
  host: fc.constantFrom('api.example', 'other.example', 'example', 'api.other'),
  segments: fc
    .tuple(fc.array(word, { minLength: 1, maxLength: 5 }), fc.boolean())
    .map(([words, slash]) => (slash ? [...words, ''] : words)),
  encodes: fc.boolean(),
  query: fc.array(pair('q', 'r s', 'z'), { maxLength: 2 }),
  headers: fc.array(pair('x-a', 'X-A', 'x-b', 'x-c'), { maxLength: 3 }),
  address: fc.constantFrom('192.0.2.1', '192.0.2.9', '198.51.100.1', '2001:db8::1'),
  principal: fc.constantFrom(undefined, 'spiffe://x/ns/shop/sa/web', 'spiffe://x/ns/bank/sa/web', 'x.example'),
  body,
  claims: fc.oneof(
    fc.constant(false as const),
    fc.record(
      { tenant: claimValue, roles: claimValue, deep: fc.record({ level: claimValue }), 'http://x.y/z': claimValue },
      { requiredKeys: [] },
    ),
  ),
})

/** Asks engine and reference about so many random policies, three requests each; throws with an example where they differ. */
export function holdAgainstReference(
  runs: number,
  seed?: number,
): { readonly decided: number; readonly refused: number } {
  let decided = 0
  let refused = 0
  fc.assert(
    fc.property(policies, fc.array(requests, { minLength: 3, maxLength: 3 }), (documents, asked) => {
      for (const request of asked) {
        const expected = reference(documents, request)
        assert.equal(engine(documents, request), expected)
        if (expected === 'refused') refused += 1
        else if (expected !== undefined) decided += 1
      }
    }),
    { numRuns: runs, ...(seed === undefined ? {} : { seed }) },
  )
  return { decided, refused }
}
