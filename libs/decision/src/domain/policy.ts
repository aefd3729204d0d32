import type { ApiPolicy } from '@tollward/documents'
import { type HeaderList, singleValue } from './fields.ts'
import type { Limit } from './rate.ts'
import type { Target } from './target.ts'

type RuleDocument = ApiPolicy['spec']['rules'][number]

/** One ApiPolicy document, as far as it isn't rules. */
interface Policy {
  readonly name: string
  readonly sourceLimit: Limit | undefined
}

type LimitedBy = NonNullable<RuleDocument['limit']>['by']

/** One compiled rule. */
export interface Rule {
  /** policy/rule */
  readonly id: string
  readonly methods: ReadonlySet<string> | undefined
  readonly headers: readonly (readonly [name: string, value: string])[]
  readonly anonymous: boolean
  readonly denyReason: string | undefined
  readonly scopes: readonly string[]
  readonly audience: string | undefined
  readonly plan: string | undefined
  readonly limit: (Limit & { readonly by: LimitedBy }) | undefined
}

/** Everything that the policies say about one host pattern. */
export interface HostPolicies {
  /** By name; each one's source limit holds. */
  readonly policies: readonly Policy[]
  /** These policies only observe: what they would refuse is recorded and let through. */
  readonly observes: boolean
  readonly root: Node
  /** Lower-case names of the headers that rules of this host compare. */
  readonly headerNames: readonly string[]
}

interface Node {
  readonly literals: Map<string, Node>
  parameter: Node | undefined
  /** Rules whose path ends here, best first. */
  readonly exact: Rule[]
  /** Rules whose prefix ends here, best first. */
  readonly prefix: Rule[]
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
  for (const [pattern, sharing] of byPattern) {
    const compiled = compileHost(sharing)
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

/**
 * The rule that decides: of those that match, the most specific. Segment by segment from the left a literal comes before a
 * {parameter} and that before the end of a prefix; where the paths are the same, a path before a prefix, then more header
 * conditions, then rules that name methods, then deny rules, then the policy's name and the order in it. 'ambiguous' if a
 * header that rules of this host compare came more than once.
 */
export function matchRule(
  host: HostPolicies,
  method: string,
  { segments }: Target,
  headers: HeaderList,
): Rule | undefined | 'ambiguous' {
  const values = new Map<string, string | undefined>()
  for (const name of host.headerNames) {
    const value = singleValue(headers, name)
    if (value === false) return 'ambiguous'
    values.set(name, value)
  }
  return search(host.root, segments, 0, method, values)
}

function search(
  node: Node,
  segments: readonly string[],
  depth: number,
  method: string,
  headers: ReadonlyMap<string, string | undefined>,
): Rule | undefined {
  const segment = segments[depth]
  const literal = segment !== undefined && node.literals.get(segment)
  const parameter = segment !== undefined && segment !== '' && node.parameter
  return (
    (literal && search(literal, segments, depth + 1, method, headers)) ||
    (parameter && search(parameter, segments, depth + 1, method, headers)) ||
    (segment === undefined && node.exact.find((rule) => conditionsHold(rule, method, headers))) ||
    node.prefix.find((rule) => conditionsHold(rule, method, headers))
  )
}

function conditionsHold(rule: Rule, method: string, headers: ReadonlyMap<string, string | undefined>): boolean {
  if (rule.methods && !rule.methods.has(method)) return false
  return rule.headers.every(([name, value]) => headers.get(name) === value)
}

function compileHost(documents: readonly ApiPolicy[]): HostPolicies {
  const root = emptyNode()
  const headerNames = new Set<string>()
  const policies: Policy[] = []
  const nodes = new Set<Node>()
  const enforcing = documents.filter(({ spec }) => spec.mode === 'enforce')
  const observes = enforcing.length === 0
  for (const { metadata, spec } of observes ? documents : enforcing) {
    policies.push({ name: metadata.name, sourceLimit: spec.sourceLimit })
    for (const document of spec.rules) {
      const node = nodeAt(root, pathSegments(document.match))
      const rule = compileRule(metadata.name, document)
      const rules = document.match.path === undefined ? node.prefix : node.exact
      rules.push(rule)
      nodes.add(node)
      for (const [name] of rule.headers) headerNames.add(name)
    }
  }
  for (const { exact, prefix } of nodes) {
    // Sorting is stable: what compares equal stays in the order of policies and of rules in them.
    exact.sort(compareConditions)
    prefix.sort(compareConditions)
  }
  return { policies, observes, root, headerNames: [...headerNames] }
}

/** "/" as a path is one empty segment, as a request's path is; as a prefix it is none and covers everything. */
function pathSegments({ path, prefix = '/' }: RuleDocument['match']): string[] {
  if (path !== undefined) return path.slice(1).split('/')
  return prefix === '/' ? [] : prefix.slice(1).split('/')
}

function nodeAt(root: Node, segments: readonly string[]): Node {
  let node = root
  for (const segment of segments) {
    if (segment.startsWith('{')) {
      node.parameter ??= emptyNode()
      node = node.parameter
    } else {
      const next = node.literals.get(segment) ?? emptyNode()
      node.literals.set(segment, next)
      node = next
    }
  }
  return node
}

function compileRule(policy: string, { name, match, require, ...rule }: RuleDocument): Rule {
  return {
    id: `${policy}/${name}`,
    methods: match.methods && new Set(match.methods),
    headers: Object.entries(match.headers ?? {}).map(([header, value]) => [header.toLowerCase(), value]),
    anonymous: rule.anonymous === true,
    denyReason: rule.deny?.reason,
    scopes: require?.token.scopes ?? [],
    audience: require?.token.audience,
    plan: require?.payment?.plan,
    limit: rule.limit,
  }
}

function compareConditions(a: Rule, b: Rule): number {
  return (
    b.headers.length - a.headers.length ||
    Number(b.methods !== undefined) - Number(a.methods !== undefined) ||
    Number(b.denyReason !== undefined) - Number(a.denyReason !== undefined)
  )
}

function compareText(a: string, b: string): number {
  return a < b ? -1 : Number(a > b)
}

function emptyNode(): Node {
  return { literals: new Map(), parameter: undefined, exact: [], prefix: [] }
}
