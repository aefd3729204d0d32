import type { RateLimit } from '@tollward/documents'
import type { Limit } from './rate.ts'

/** What a proxy's descriptor is made of. */
export interface DescriptorEntry {
  readonly key: string
  readonly value: string
}

/** A limit that a descriptor falls under. */
export interface DescriptorLimit {
  /** document/rule */
  readonly id: string
  readonly limit: Limit
  /** It only counts, and refuses nothing. */
  readonly observes: boolean
  /** The values that count apart; they may be secret, and are for hashing only. */
  readonly apart: readonly string[]
}

interface Rule {
  readonly id: string
  readonly limit: Limit
  readonly observes: boolean
}

/** Rules that give values at the same places, by these values. */
interface Shape {
  readonly fixed: readonly boolean[]
  readonly rules: Map<string, Rule>
}

/** By domain, then by the keys of a descriptor: the shapes of its rules, the most specific one first. */
export type RateLimitIndex = ReadonlyMap<string, ReadonlyMap<string, readonly Shape[]>>

/**
 * Makes an index of rate limits. Of rules that match one descriptor the one that gives more values counts, of as many the one that
 * gives them earlier, of the same the one whose document comes first by name.
 */
export function compileRateLimits(documents: Iterable<RateLimit>): RateLimitIndex {
  const index = new Map<string, Map<string, Shape[]>>()
  const byName = [...documents].sort((a, b) => (a.metadata.name < b.metadata.name ? -1 : 1))
  for (const { metadata, spec } of byName) {
    const domain = index.get(spec.domain) ?? new Map<string, Shape[]>()
    index.set(spec.domain, domain)
    for (const { name, entries, limit } of spec.rules) {
      const shapes = domain.get(keysOf(entries)) ?? []
      domain.set(keysOf(entries), shapes)
      const fixed = entries.map(({ value }) => value !== undefined)
      const known = shapes.find((other) => other.fixed.every((isFixed, place) => isFixed === fixed[place]))
      const shape = known ?? { fixed, rules: new Map() }
      if (!known) shapes.push(shape)
      const values = JSON.stringify(entries.flatMap(({ value }) => value ?? []))
      if (!shape.rules.has(values)) {
        shape.rules.set(values, { id: `${metadata.name}/${name}`, limit, observes: spec.mode === 'observe' })
      }
    }
    for (const shapes of domain.values()) shapes.sort((a, b) => weight(b.fixed) - weight(a.fixed))
  }
  return index
}

/** The limit that a descriptor falls under; undefined: under none. */
export function matchDescriptor(
  index: RateLimitIndex,
  domain: string,
  entries: readonly DescriptorEntry[],
): DescriptorLimit | undefined {
  for (const { fixed, rules } of index.get(domain)?.get(keysOf(entries)) ?? []) {
    const given = entries.flatMap(({ value }, place) => (fixed[place] ? [value] : []))
    const rule = rules.get(JSON.stringify(given))
    if (rule) return { ...rule, apart: entries.flatMap(({ value }, place) => (fixed[place] ? [] : [value])) }
  }
  return undefined
}

function keysOf(entries: readonly { readonly key: string }[]): string {
  return JSON.stringify(entries.map(({ key }) => key))
}

/** Orders shapes: by how many values they give, then by how early. */
function weight(fixed: readonly boolean[]): number {
  return fixed.reduce((sum, isFixed, place) => (isFixed ? sum + 2 ** 16 + 2 ** (8 - place) : sum), 0)
}
