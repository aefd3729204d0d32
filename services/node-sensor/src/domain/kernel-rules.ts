import { parseRange } from '@tollward/contracts'
import { type KernelRule, portsBetween } from '@tollward/documents'
import { compileRuleTable, RULE_IDS, type RuleTable, type RuleTerms } from '@tollward/libbpf'

/** A KernelRule document as it is to be enforced. */
export interface WantedRule {
  /** metadata.name */
  readonly name: string
  readonly spec: KernelRule['spec']
  /** Clock of the kernel programs; 0n: never. */
  readonly expiresNs: bigint
}

/** A rule that the kernel's maps have no room for. */
export interface RuleFault {
  readonly name: string
  readonly reason: string
}

export interface CompiledRules {
  /** For RuleTables.install. */
  readonly table: RuleTable
  /** Place of each rule in the map `rule_counts`, and its id in events; without those left out. */
  readonly ids: ReadonlyMap<string, number>
  /** Those of `ids` that were not in `previous`: what `rule_counts` holds there is of a rule that is gone. */
  readonly newIds: readonly number[]
  readonly faults: readonly RuleFault[]
}

const WHY = {
  rules: 'the kernel programs have no room for more rules of this direction',
  prefixes: 'the kernel programs have no room for so many address and port ranges',
} as const

/**
 * Contents of the kernel's maps for these rules, looked at by priority and then by name. What is left out for want of room has
 * a fault, and the others stand. `previous` are the ids of the set before: a rule that stays keeps its own, and a new one takes
 * none of those, since packets under way still count there.
 */
export function compileRules(rules: readonly WantedRule[], previous: ReadonlyMap<string, number>): CompiledRules {
  const ordered = [...rules].sort(byPriority)
  const used = new Set(previous.values())
  const names = new Map<number, string>()
  const faults: RuleFault[] = []
  const terms: RuleTerms[] = []
  let next = 0
  for (const rule of ordered) {
    while (used.has(next)) next += 1
    const id = previous.get(rule.name) ?? next
    if (id >= RULE_IDS) {
      faults.push({ name: rule.name, reason: WHY.rules })
      continue
    }
    used.add(id)
    names.set(id, rule.name)
    terms.push(readTerms(rule, id))
  }
  const { table, leftOut } = compileRuleTable(terms)
  for (const { rule, reason } of leftOut) {
    faults.push({ name: names.get(rule.id) ?? '', reason: WHY[reason] })
    names.delete(rule.id)
  }
  const known = new Set(previous.values())
  return {
    table,
    ids: new Map([...names].map(([id, name]) => [name, id])),
    newIds: [...names.keys()].filter((id) => !known.has(id)),
    faults,
  }
}

function readTerms({ spec, expiresNs }: WantedRule, id: number): RuleTerms {
  const { direction, protocol, sources, destinations, ports, action, rate, mode } = spec
  return {
    ...{ id, expiresNs, direction, protocol, action, mode },
    sources: sources?.map(parsed(parseRange)),
    destinations: destinations?.map(parsed(parseRange)),
    ports: ports?.map(parsed(portsBetween)),
    ...(rate && { rate: { packetsPerSecond: rate.packetsPerSecond, burst: rate.burst ?? rate.packetsPerSecond } }),
  }
}

/** The schema has made sure that the text can be read. */
function parsed<In, Out>(parse: (text: In) => Out | undefined): (text: In) => Out {
  return (text) => {
    const value = parse(text)
    if (value === undefined) throw new TypeError(`${text} is not what its schema says`)
    return value
  }
}

function byPriority(a: WantedRule, b: WantedRule): number {
  return a.spec.priority - b.spec.priority || (a.name < b.name ? -1 : 1)
}
