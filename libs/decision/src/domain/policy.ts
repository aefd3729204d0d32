import { type ApiPolicy, limitsOf } from '@tollward/documents'
import { type ClaimCheck, type Conditions, compileClaim, compileConditions, type RequestView } from './conditions.ts'
import { collect, compilePath, emptyNode, type PathNode, plant } from './path-pattern.ts'
import type { Limit } from './rate.ts'
import { compileRewriting, type Rewriting } from './rewriting.ts'
import type { Fault } from './target.ts'

type RuleDocument = ApiPolicy['spec']['rules'][number]
type TokenDocument = NonNullable<RuleDocument['require']>['token']

/** One ApiPolicy document, as far as it isn't rules. */
interface Policy {
  readonly name: string
  readonly sourceLimit: Limit | undefined
}

export type LimitedBy = NonNullable<RuleDocument['limit']>['by']

/** One of a rule's limits. */
export interface RuleLimit extends Limit {
  readonly by: LimitedBy
  /** By whom it counts; several that count by the same are told apart by their seconds. */
  readonly name: string
  /** Of the keys under which it counts: the rule and this limit of it. */
  readonly keyPrefix: string
}

/** One compiled rule. */
export interface Rule {
  /** policy/rule */
  readonly id: string
  readonly methods: ReadonlySet<string> | undefined
  readonly conditions: Conditions
  readonly anonymous: boolean
  readonly denyReason: string | undefined
  readonly scopes: readonly string[]
  readonly audience: string | undefined
  /** Each must hold of the caller's token. */
  readonly claims: readonly ClaimCheck[]
  readonly boundTo: NonNullable<TokenDocument['boundTo']> | undefined
  readonly plan: string | undefined
  readonly limits: readonly RuleLimit[]
  readonly rewriting: Rewriting | undefined
}

/** A rule, and how early it comes among those of its host: 0 is the most specific. */
interface RankedRule {
  readonly rank: number
  readonly rule: Rule
}

/** Everything that the policies say about one host pattern. */
export interface HostPolicies {
  /** By name; each one's source limit holds. */
  readonly policies: readonly Policy[]
  /** These policies only observe: what they would refuse is recorded and let through. */
  readonly observes: boolean
  /** Some rule asks what a body says. */
  readonly readsBodies: boolean
  readonly root: PathNode<RankedRule>
}

/** All policies, ready to be asked. Immutable: a change of documents makes another one. */
export interface PolicyIndex {
  readonly exactHosts: ReadonlyMap<string, HostPolicies>
  /** By what follows "*.". */
  readonly wildcardHosts: ReadonlyMap<string, HostPolicies>
  readonly anyHost: HostPolicies | undefined
}

/**
 * Compiles policies. Of the host patterns that match a request only the most specific one counts: the name itself, then the
 * longest "*.name", then "*". All policies with that pattern count together; but beside one that enforces, those that only
 * observe are left out, so that trying a policy never opens what another one closes.
 */
export function compilePolicies(documents: Iterable<ApiPolicy>): PolicyIndex {
  const byPattern = new Map<string, ApiPolicy[]>()
  for (const document of [...documents].sort((a, b) => compareText(a.metadata.name, b.metadata.name))) {
    for (const pattern of new Set(document.spec.hosts)) {
      byPattern.set(pattern, [...(byPattern.get(pattern) ?? []), document])
    }
  }
  const exactHosts = new Map<string, HostPolicies>()
  const wildcardHosts = new Map<string, HostPolicies>()
  let anyHost: HostPolicies | undefined
  // A policy of many hosts is compiled once for all those that have the same policies.
  const compiledOf = new Map<string, HostPolicies>()
  for (const [pattern, sharing] of byPattern) {
    const names = sharing.map(({ metadata }) => metadata.name).join(' ')
    const compiled = compiledOf.get(names) ?? compileHost(sharing)
    compiledOf.set(names, compiled)
    if (pattern === '*') anyHost = compiled
    else if (pattern.startsWith('*.')) wildcardHosts.set(pattern.slice(2), compiled)
    else exactHosts.set(pattern, compiled)
  }
  return { exactHosts, wildcardHosts, anyHost }
}

/** The policies for a canonical host; undefined where none is: then nothing is admitted. */
export function policiesFor(index: PolicyIndex, host: string): HostPolicies | undefined {
  const exact = index.exactHosts.get(host)
  if (exact) return exact
  if (index.wildcardHosts.size > 0) {
    for (let dot = host.indexOf('.'); dot >= 0; dot = host.indexOf('.', dot + 1)) {
      const wildcard = index.wildcardHosts.get(host.slice(dot + 1))
      if (wildcard) return wildcard
    }
  }
  return index.anyHost
}

/** Which rule decides depends on what the caller's token says. */
export const TOKEN_NEEDED = 'token-needed'

/**
 * The rule that decides: the first of those that match, in the order of `compareRules`; undefined where none does. A fault where
 * it cannot be told whether a rule matches that comes before all that do. TOKEN_NEEDED where that depends on claims and
 * `request.claims` are not known yet.
 */
export function matchRule(
  host: HostPolicies,
  segments: readonly string[],
  request: RequestView,
): Rule | undefined | Fault | typeof TOKEN_NEEDED {
  const found: RankedRule[][] = []
  collect(host.root, segments, 0, found)
  for (const { rule } of inOrder(found)) {
    const answer = ruleHolds(rule, request)
    if (answer !== false) return answer === true ? rule : answer
  }
  return undefined
}

/** Whether a rule for this path and method asks what the body says. */
export function mayReadBody(host: HostPolicies, segments: readonly string[], method: string): boolean {
  if (!host.readsBodies) return false
  const found: RankedRule[][] = []
  collect(host.root, segments, 0, found)
  return found
    .flat()
    .some(({ rule: { conditions, methods } }) => conditions.readsBody && methods?.has(method) !== false)
}

/** Each list is in order by itself; mostly they are so one after the other too. */
function inOrder(lists: readonly (readonly RankedRule[])[]): readonly RankedRule[] {
  const [only] = lists
  if (lists.length <= 1) return only ?? []
  const rules = lists.flat()
  for (let index = 1; index < rules.length; index++) {
    if (rankAt(rules, index) < rankAt(rules, index - 1)) return rules.sort((a, b) => a.rank - b.rank)
  }
  return rules
}

function rankAt(rules: readonly RankedRule[], index: number): number {
  return rules[index]?.rank ?? 0
}

/** What clearly fails decides, whatever else cannot be told; claims come last, since asking for them may take a while. */
function ruleHolds({ methods, conditions }: Rule, request: RequestView): boolean | Fault | typeof TOKEN_NEEDED {
  if (methods && !methods.has(request.facts.method)) return false
  let fault: Fault | undefined
  for (const check of conditions.checks) {
    const answer = check(request)
    if (answer === false) return false
    if (answer !== true) fault ??= answer
  }
  if (conditions.claims.length > 0) {
    const { claims } = request
    if (claims === undefined) return TOKEN_NEEDED
    if (!claims || !conditions.claims.every((holds) => holds(claims))) return false
  }
  return fault ?? true
}

function compileHost(documents: readonly ApiPolicy[]): HostPolicies {
  const enforcing = documents.filter(({ spec }) => spec.mode === 'enforce')
  const observes = enforcing.length === 0
  const counting = observes ? documents : enforcing
  const rules = counting.flatMap(({ metadata, spec }) =>
    spec.rules.map((document) => {
      const rule = compileRule(metadata.name, document)
      return { pattern: compilePath(document.match), rule }
    }),
  )
  // Sorting is stable: what compares equal stays in the order of policies and of rules in them.
  rules.sort((a, b) => compareText(a.pattern.rank, b.pattern.rank) || compareRules(a.rule, b.rule))
  const root = emptyNode<RankedRule>()
  for (const [rank, { pattern, rule }] of rules.entries()) plant(root, pattern, { rank, rule })
  const policies = counting.map(({ metadata, spec }) => ({ name: metadata.name, sourceLimit: spec.sourceLimit }))
  const readsBodies = rules.some(({ rule }) => rule.conditions.readsBody)
  return { policies, observes, readsBodies, root }
}

function compileRule(policy: string, document: RuleDocument): Rule {
  const { name, match, require, anonymous, deny } = document
  const token = require?.token
  return {
    id: `${policy}/${name}`,
    methods: match.methods && new Set(match.methods),
    conditions: compileConditions(match),
    anonymous: anonymous === true,
    denyReason: deny?.reason,
    scopes: token?.scopes ?? [],
    audience: token?.audience,
    claims: (token?.claims ?? []).map(({ claim, ...comparison }) => compileClaim(claim, comparison)),
    boundTo: token?.boundTo,
    plan: require?.payment?.plan,
    limits: compileLimits(`${policy}/${name}`, limitsOf(document)),
    rewriting: compileRewriting(document),
  }
}

function compileLimits(ruleId: string, limits: readonly (Limit & { readonly by: LimitedBy })[]): RuleLimit[] {
  return limits.map(({ requests, perSeconds, by }) => {
    const isOnly = limits.filter((other) => other.by === by).length === 1
    const name = isOnly ? by : `${by}-${perSeconds}s`
    return { requests, perSeconds, by, name, keyPrefix: `${ruleId} ${name} ` }
  })
}

/**
 * Of rules whose paths are equally specific: more conditions first, then those that name methods, then deny. A path is the more
 * specific the earlier it is so, segment by segment from the left: a literal, then text with *, of which more is literal first, then
 * a {parameter} or *, then the end of the path, then **, then the end of a prefix.
 */
function compareRules(a: Rule, b: Rule): number {
  return (
    b.conditions.count - a.conditions.count ||
    Number(b.methods !== undefined) - Number(a.methods !== undefined) ||
    Number(b.denyReason !== undefined) - Number(a.denyReason !== undefined)
  )
}

function compareText(a: string, b: string): number {
  return a < b ? -1 : Number(a > b)
}
