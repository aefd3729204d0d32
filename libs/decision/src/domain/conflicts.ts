import { parseRange } from '@tollward/contracts'
import type { ApiPolicy } from '@tollward/documents'
import { compilePolicies, type HostPolicies, type Rule } from './policy.ts'

type RuleDocument = ApiPolicy['spec']['rules'][number]
type Match = RuleDocument['match']
type Condition = NonNullable<Match['conditions']>[number]

/** Two rules or policies of which one takes something from the other. */
export interface Conflict {
  readonly kind: 'contradiction' | 'duplicate' | 'never-reached' | 'overlap' | 'left-out' | 'not-compared'
  /** policy/rule that holds; of policies that only observe, the name of a policy. Empty where nothing was compared. */
  readonly winner: string
  readonly loser: string
  /** What holds, where, why, and what to do. */
  readonly detail: string
}

/** Conflicts told at once; whoever has more begins with these. */
export const CONFLICTS_MAX = 100
/** Pairs of rules compared in one go; some 0.5 µs each, and nothing else runs meanwhile. */
export const COMPARISONS_MAX = 1_000_000

interface Found {
  readonly kind: Conflict['kind']
  readonly winner: string
  readonly loser: string
  readonly why: string
  readonly remedy: string
  readonly hosts: string[]
}

/** One rule as it is compared with others of the same path. */
interface Comparable {
  readonly id: string
  readonly policy: string
  readonly denies: boolean
  readonly methods: readonly string[] | undefined
  readonly conditions: readonly Condition[]
  readonly match: Match
  /** What it asks for and does, as text. */
  readonly says: string
}

/**
 * Where policies that are in force together speak against each other: rules that match the same requests and say different
 * things, or the same twice; rules that nothing reaches, because those before them match all that they match; policies that
 * observe and are left out beside one that enforces. Which rule comes first is what the engine says. Only what is certain is
 * told: a rule that is reported as never reached decides about no request.
 */
export function policyConflicts(policies: readonly ApiPolicy[]): Conflict[] {
  const found = new Map<string, Found>()
  const rules = new Map<string, Comparable>()
  for (const { metadata, spec } of policies) {
    for (const rule of spec.rules) rules.set(`${metadata.name}/${rule.name}`, comparable(metadata.name, rule))
  }
  const budget = { left: COMPARISONS_MAX }
  for (const { hosts, sharing } of sharingHosts(policies)) {
    const tell: Tell = (conflict) => {
      const key = JSON.stringify([conflict.kind, conflict.winner, conflict.loser])
      const known = found.get(key)
      if (known) known.hosts.push(...hosts)
      else if (found.size < CONFLICTS_MAX) found.set(key, { ...conflict, hosts: [...hosts] })
    }
    leftOut(sharing, tell)
    for (const ordered of sharingPath(compiledOnce(sharing))) {
      const comparables = ordered.flatMap(({ id }) => rules.get(id) ?? [])
      unreached(comparables, budget, tell)
    }
  }
  const conflicts = [...found.values()].map(worded)
  return budget.left < 0 ? [...conflicts, NOT_COMPARED] : conflicts
}

/** Host patterns with the policies that count there together; patterns of the same policies once. */
function sharingHosts(
  policies: readonly ApiPolicy[],
): { readonly hosts: readonly string[]; readonly sharing: readonly ApiPolicy[] }[] {
  const byHost = new Map<string, ApiPolicy[]>()
  for (const policy of policies) {
    for (const host of new Set(policy.spec.hosts)) byHost.set(host, [...(byHost.get(host) ?? []), policy])
  }
  const alike = Map.groupBy(byHost, ([, sharing]) => sharing.map(({ metadata }) => metadata.name).join(' '))
  return [...alike.values()].map((group) => ({ hosts: group.map(([host]) => host), sharing: group[0]?.[1] ?? [] }))
}

/** These policies as the engine has them at each host that they share. */
function compiledOnce(sharing: readonly ApiPolicy[]): HostPolicies | undefined {
  return compilePolicies(sharing.map((policy) => ({ ...policy, spec: { ...policy.spec, hosts: ['*'] } }))).anyHost
}

const NOT_COMPARED: Conflict = {
  ...{ kind: 'not-compared', winner: '', loser: '' },
  detail: `More than ${COMPARISONS_MAX} pairs of rules have the same path; those beyond were not compared with each other. Split the policies by host or path.`,
}

type Tell = (conflict: Omit<Found, 'hosts'>) => void

function leftOut(sharing: readonly ApiPolicy[], tell: Tell): void {
  const enforcing = sharing.find(({ spec }) => spec.mode === 'enforce')
  if (!enforcing) return
  for (const { metadata, spec } of sharing) {
    if (spec.mode === 'enforce') continue
    tell({
      ...{ kind: 'left-out', winner: enforcing.metadata.name, loser: metadata.name },
      why: `Policy ${metadata.name} only observes and is left out, because policy ${enforcing.metadata.name} enforces there`,
      remedy: 'To try it, give it a host of its own; to have it hold, set its mode to enforce.',
    })
  }
}

/** For each rule of one path, best first, what those before it leave to it. */
function unreached(ordered: readonly Comparable[], budget: { left: number }, tell: Tell): void {
  for (const [index, rule] of ordered.entries()) {
    const before = ordered.slice(0, index)
    budget.left -= before.length
    if (budget.left < 0) return
    const takers = takersOf(rule, before)
    if (takers) tell(nothingLeft(rule, takers))
    else for (const other of before) overlap(other, rule, tell)
  }
}

/** The rules that together match all that this one matches; undefined if it has something to itself. */
function takersOf(rule: Comparable, before: readonly Comparable[]): Comparable[] | undefined {
  const covering = before.filter((other) => coversBeside(other, rule))
  const whole = covering.find((other) => coversMethods(other, rule.methods))
  if (whole) return [whole]
  if (!rule.methods) return undefined
  const takers = new Set<Comparable>()
  for (const method of rule.methods) {
    const taker = covering.find((other) => coversMethods(other, [method]))
    if (!taker) return undefined
    takers.add(taker)
  }
  return [...takers]
}

function nothingLeft(rule: Comparable, takers: readonly Comparable[]): Omit<Found, 'hosts'> {
  const [winner = rule] = takers
  const pair = { winner: winner.id, loser: rule.id }
  if (takers.length > 1) {
    const names = takers.map(({ id }) => id).join(', ')
    const why = `Rule ${rule.id} is never reached: rules ${names} come first and together match all that it matches`
    return { kind: 'never-reached', ...pair, why, remedy: 'Remove it, or match less in the others.' }
  }
  const isSame = coversBeside(rule, winner) && coversMethods(rule, winner.methods)
  if (!isSame) {
    const why = `Rule ${rule.id} is never reached: rule ${winner.id} comes first${reasonOf(winner, rule)} and matches all that it matches`
    return { kind: 'never-reached', ...pair, why, remedy: `Remove ${rule.id}, or match less in ${winner.id}.` }
  }
  if (winner.says === rule.says) {
    const why = `Rules ${winner.id} and ${rule.id} match the same requests and say the same`
    return { kind: 'duplicate', ...pair, why, remedy: 'Remove one of them.' }
  }
  const why = `Rules ${winner.id} and ${rule.id} match the same requests and say different things; ${winner.id} holds${reasonOf(winner, rule)}, and ${rule.id} is never reached`
  return { kind: 'contradiction', ...pair, why, remedy: 'Remove one of them.' }
}

/** Both name methods, everything else is the same, and for the methods that both name they say different things. */
function overlap(winner: Comparable, loser: Comparable, tell: Tell): void {
  if (!winner.methods || !loser.methods || winner.says === loser.says) return
  const shared = winner.methods.filter((method) => loser.methods?.includes(method))
  if (shared.length === 0 || !coversBeside(winner, loser) || !coversBeside(loser, winner)) return
  tell({
    ...{ kind: 'overlap', winner: winner.id, loser: loser.id },
    why: `Rules ${winner.id} and ${loser.id} say different things about ${shared.join(', ')}; ${winner.id} holds${reasonOf(winner, loser)}`,
    remedy: `Take ${shared.join(', ')} out of one of them.`,
  })
}

function reasonOf(winner: Comparable, loser: Comparable): string {
  if (winner.conditions.length !== loser.conditions.length) return ', because it compares more'
  if (winner.denies !== loser.denies) return ', because rules that deny come first'
  if (winner.policy !== loser.policy) return `, because ${winner.policy} comes before ${loser.policy} in the alphabet`
  return ', because it stands first'
}

const HOSTS_NAMED_MAX = 3

function worded({ kind, winner, loser, why, remedy, hosts }: Found): Conflict {
  const named = hosts.slice(0, HOSTS_NAMED_MAX).join(', ')
  const more = hosts.length > HOSTS_NAMED_MAX ? ` and ${hosts.length - HOSTS_NAMED_MAX} more hosts` : ''
  return { kind, winner, loser, detail: `At ${named}${more}: ${why}. ${remedy}` }
}

/** The rules of one host that match the same paths: each list as the engine goes through it. */
function* sharingPath(host: HostPolicies | undefined): Generator<readonly Rule[]> {
  const nodes = host ? [host.root] : []
  for (let node = nodes.pop(); node; node = nodes.pop()) {
    yield node.here.map(({ rule }) => rule)
    yield node.anywhere.map(({ rule }) => rule)
    const gapped = Map.groupBy(node.gapped, ({ pattern }) => JSON.stringify([pattern.gaps, pattern.isOpen]))
    for (const group of gapped.values()) yield group.map(({ rule }) => rule.rule)
    nodes.push(...node.literals.values(), ...node.globs.map((glob) => glob.node))
    if (node.any) nodes.push(node.any)
  }
}

function comparable(policy: string, { name, match, ...rest }: RuleDocument): Comparable {
  const headers = Object.entries(match.headers ?? {}).map(([header, equals]): Condition => ({ header, equals }))
  return {
    ...{ id: `${policy}/${name}`, policy, denies: rest.deny !== undefined, methods: match.methods, match },
    conditions: [...headers, ...(match.conditions ?? [])].map((condition) => {
      return condition.header === undefined ? condition : { ...condition, header: condition.header.toLowerCase() }
    }),
    says: JSON.stringify(rest),
  }
}

function coversMethods({ methods }: Comparable, wanted: readonly string[] | undefined): boolean {
  if (!methods) return true
  return wanted?.every((method) => methods.some((own) => own === method)) === true
}

/** Whether every request of this path that `inner` matches, `outer` matches too, whatever its method. False where that is not certain. */
function coversBeside(outer: Comparable, inner: Comparable): boolean {
  const { match } = outer
  return (
    outer.conditions.every((wanted) => inner.conditions.some((given) => implies(given, wanted))) &&
    each(inner.match.sources, match.sources, (given, wanted) => isWithin(given, wanted)) &&
    each(inner.match.principals, match.principals, isPart) &&
    each(inner.match.namespaces, match.namespaces, (given, wanted) => given === wanted) &&
    each(inner.match.graphqlOperations, match.graphqlOperations, (given, wanted) => given === wanted) &&
    each(inner.match.rpcMethods, match.rpcMethods, isPart) &&
    each(inner.match.tools, match.tools, isPart)
  )
}

/** Whether each of what is given lies in one of what is wanted. What is not given is everything. */
function each(
  given: readonly string[] | undefined,
  wanted: readonly string[] | undefined,
  lies: (given: string, wanted: string) => boolean,
): boolean {
  if (!wanted) return true
  return given?.every((one) => wanted.some((other) => lies(one, other))) === true
}

/** Whether a name with * for its end is part of another such name. */
function isPart(given: string, wanted: string): boolean {
  return wanted.endsWith('*') ? given.startsWith(wanted.slice(0, -1)) : given === wanted
}

function isWithin(given: string, wanted: string): boolean {
  const [inner, outer] = [parseRange(given), parseRange(wanted)]
  if (!inner || !outer || inner.prefixLength < outer.prefixLength) return false
  for (let bit = 0; bit < outer.prefixLength; bit += 8) {
    const kept = Math.min(8, outer.prefixLength - bit)
    const mask = (0xff << (8 - kept)) & 0xff
    if (((inner.address[bit / 8] ?? 0) ^ (outer.address[bit / 8] ?? 0)) & mask) return false
  }
  return true
}

/** Whether what satisfies the one condition satisfies the other. */
function implies(given: Condition, wanted: Condition): boolean {
  if (given.header !== wanted.header || given.query !== wanted.query || given.claim !== wanted.claim) return false
  const values = given.equals === undefined ? given.oneOf : [given.equals]
  const allowed = wanted.equals === undefined ? wanted.oneOf : [wanted.equals]
  if (values && allowed) return values.every((value) => allowed.includes(value))
  return given.matches === wanted.matches && given.present === wanted.present && !values === !allowed
}
