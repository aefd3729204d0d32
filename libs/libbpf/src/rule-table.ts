import { setTimeout } from 'node:timers/promises'
import {
  type Direction,
  encodeRule,
  RULE,
  RULE_BITS,
  RULE_DIMENSION,
  RULE_MATCH_KEY,
  RULE_SET,
  RULES_MAX,
  type Rule,
} from './layout.ts'
import type { BpfMap } from './map.ts'

/**
 * Prefixes that the rules of one set may have in `rule_match`: half of what it holds (bpf/include/maps.h), since the next
 * set is written beside the one that is in force.
 */
export const RULE_PREFIXES_MAX = 32_768
/** Bytes that a transport begins with; `any` has none to match. */
const PROTOCOLS = { tcp: [[6]], udp: [[17]], icmp: [[1], [58]], any: [[]] } as const
/** Stands for a transport that nobody could read, as of a later fragment without its first (IANA reserves the number). */
const UNKNOWN_PROTOCOL = 255
/** The dimension before the value, in bits: generation, direction, dimension, 0. */
const HEAD_BITS = 32
const PROTOCOL_BITS = 8
const PORT_BITS = 16
const DIRECTIONS = ['ingress', 'egress'] as const
const VALUE_BYTES = RULE_MATCH_KEY.bytes - RULE_MATCH_KEY.value
const WORD_BITS = 64
const MAPPED_PREFIX = Buffer.from('00000000000000000000ffff', 'hex')
const MAPPED_BITS = 8 * MAPPED_PREFIX.length
const NOTHING = new Uint8Array(VALUE_BYTES)
const NO_RULES = Buffer.alloc(RULE_BITS.bytes)
const ONLY_KEY = Buffer.alloc(4)
/** A packet is under way in the programs for a microsecond, and for as long as a hypervisor takes its CPU away. */
const SETTLE_MS = 100

/** A rule with what packets have to be to match it. */
export interface RuleTerms extends Rule {
  readonly direction: Direction
  /** `icmp` is that of IPv4 and of IPv6. */
  readonly protocol: 'tcp' | 'udp' | 'icmp' | 'any'
  /** In the 128-bit form; undefined: all. */
  readonly sources?: readonly Prefix[] | undefined
  readonly destinations?: readonly Prefix[] | undefined
  /** Of the destination, first and last; for tcp and udp. Undefined: all, and packets that show no port. */
  readonly ports?: readonly (readonly [first: number, last: number])[] | undefined
}

/** The first bits of an address. */
export interface Prefix {
  readonly address: Uint8Array
  readonly prefixLength: number
}

/** What the maps hold for the rules of both directions, but for the generation. */
export interface RuleTable {
  readonly rules: Readonly<Record<Direction, readonly RuleTerms[]>>
  /** Keys and values of `rule_match`, one after another; the generation in the keys is 0. */
  readonly keys: Buffer
  readonly values: Buffer
}

export interface LeftOutRule {
  readonly rule: RuleTerms
  /** Too many rules of its direction, or too many prefixes. */
  readonly reason: 'rules' | 'prefixes'
}

/**
 * Makes the contents of the maps from rules in the order in which they are to be looked at. A rule for which there is no room
 * is left out, and the others stand.
 *
 * Every rule has a bit in each dimension of a packet (source, destination, transport). An entry of the trie holds the bits of
 * all rules that its prefix lets match, those of the shorter prefixes included, so one search of the longest prefix gives all
 * of them, and the lowest bit that all dimensions share is the first rule that matches: three searches for a packet, however
 * many rules there are. Building takes O(n log n) steps for n prefixes, and 136 bytes for each: 0.3 s at the most of both.
 */
export function compileRuleTable(rules: readonly RuleTerms[], prefixesMax = RULE_PREFIXES_MAX) {
  const taken = { ingress: [] as RuleTerms[], egress: [] as RuleTerms[] }
  const leftOut: LeftOutRule[] = []
  const tries = new Map<string, DimensionTrie>()
  let prefixes = 0
  for (const rule of rules) {
    const list = taken[rule.direction]
    const wanted = prefixesOf(rule).map((prefix) => ({ prefix, node: nodeName(prefix) }))
    const added = wanted.filter(({ prefix, node }) => !tries.get(trieName(rule.direction, prefix))?.has(node)).length
    if (list.length === RULES_MAX || prefixes + added > prefixesMax) {
      leftOut.push({ rule, reason: list.length === RULES_MAX ? 'rules' : 'prefixes' })
      continue
    }
    for (const { prefix, node } of wanted) {
      const name = trieName(rule.direction, prefix)
      const trie = tries.get(name) ?? new DimensionTrie(rule.direction, prefix)
      tries.set(name, trie)
      if (trie.add(node, prefix, list.length)) prefixes += 1
    }
    list.push(rule)
  }
  const entries = [...tries.values()].flatMap((trie) => [...trie.entries()])
  const table: RuleTable = {
    rules: taken,
    keys: Buffer.concat(entries.map(({ key }) => key)),
    values: Buffer.concat(entries.map(({ value }) => value)),
  }
  return { table, leftOut }
}

/** Maps of the sensor that a RuleTables writes. */
export interface RuleMaps {
  readonly rule_set: BpfMap
  readonly rule_match: BpfMap
  readonly rules: BpfMap
}

/**
 * Keeps the kernel's set of rules. A set is written beside the one that is in force and then takes its place by one write, so
 * that no packet is judged by half of each.
 */
export class RuleTables {
  readonly #maps: RuleMaps
  /** Keys of both generations in `rule_match`, as far as they are this process' own. */
  readonly #written: (Buffer | undefined)[] = [undefined, undefined]
  #installedMs = 0

  constructor(maps: RuleMaps) {
    this.#maps = maps
  }

  /**
   * Writes a set and puts it in force. Throws BpfError when the kernel refuses an entry: what was in force then stays so. One
   * call at a time.
   */
  async install({ rules, keys, values }: RuleTable): Promise<void> {
    const { rule_set, rule_match } = this.#maps
    // Packets under way may still read the set before this one, which is about to be overwritten.
    await setTimeout(Math.max(0, this.#installedMs + SETTLE_MS - performance.now()))
    const generation = 1 - this.#generation()
    this.#sweep(generation)
    for (const [direction, name] of DIRECTIONS.entries()) this.#writeRules(generation, direction, rules[name])
    const ofGeneration = Buffer.from(keys)
    for (let at = 0; at < keys.length; at += RULE_MATCH_KEY.bytes)
      ofGeneration.writeUInt8(generation, at + RULE_MATCH_KEY.generation)
    // Before it is written: it may be written in part.
    this.#written[generation] = ofGeneration
    rule_match.updateBatch(ofGeneration, values)
    const set = Buffer.alloc(RULE_SET.bytes)
    set.writeUInt32LE(generation, RULE_SET.generation)
    set.writeUInt32LE(rules.ingress.length, RULE_SET.ingressRules)
    set.writeUInt32LE(rules.egress.length, RULE_SET.egressRules)
    rule_set.update(ONLY_KEY, set)
    this.#installedMs = performance.now()
  }

  /** Removes what is left of the set that is not in force. */
  #sweep(generation: number): void {
    const { rule_match } = this.#maps
    // Of a set that an earlier process wrote the trie itself has to be asked, at a call for each entry.
    const stale = this.#written[generation] ?? Buffer.concat([...rule_match.keys()].filter(isOf(generation)))
    for (let at = 0; at < stale.length; at += RULE_MATCH_KEY.bytes)
      rule_match.delete(stale.subarray(at, at + RULE_MATCH_KEY.bytes))
    this.#written[generation] = Buffer.alloc(0)
  }

  #generation(): number {
    return this.#maps.rule_set.lookup(ONLY_KEY)?.readUInt32LE(RULE_SET.generation) === 1 ? 1 : 0
  }

  #writeRules(generation: number, direction: number, rules: readonly RuleTerms[]): void {
    if (rules.length === 0) return
    const first = (generation * DIRECTIONS.length + direction) * RULES_MAX
    const keys = Buffer.alloc(4 * rules.length)
    for (const index of rules.keys()) keys.writeUInt32LE(first + index, 4 * index)
    this.#maps.rules.updateBatch(keys, Buffer.concat(rules.map(encodeRule), RULE.bytes * rules.length))
  }
}

function isOf(generation: number): (key: Buffer) => boolean {
  return (key) => key.readUInt8(RULE_MATCH_KEY.generation) === generation
}

function isMapped(address: Uint8Array): boolean {
  return MAPPED_PREFIX.equals(address.subarray(0, MAPPED_PREFIX.length))
}

interface Bits {
  readonly value: Uint8Array
  readonly bits: number
}

interface DimensionPrefix extends Bits {
  readonly dimension: keyof typeof RULE_DIMENSION
  /** Of addresses. */
  readonly family: 0 | 4 | 6
}

function trieName(direction: Direction, { dimension, family }: DimensionPrefix): string {
  return `${direction} ${dimension} ${family}`
}

/** All prefixes that let a packet match the rule, in all dimensions. */
function prefixesOf({ protocol, sources, destinations, ports, action }: RuleTerms): DimensionPrefix[] {
  const addresses = (dimension: 'source' | 'destination', prefixes: readonly Prefix[] | undefined) =>
    prefixes
      ? prefixes.map(({ address, prefixLength }) => {
          const family = prefixLength >= MAPPED_BITS && isMapped(address) ? 4 : 6
          return { dimension, family, value: address, bits: prefixLength } as const
        })
      : ([4, 6] as const).map((family) => ({ dimension, family, value: NOTHING, bits: 0 }))
  const protocols = PROTOCOLS[protocol]
  const transports = protocols.flatMap((bytes) =>
    ports ? ports.flatMap((range) => portPrefixes(bytes, range)) : transport('transport', bytes),
  )
  // A packet that shows no port gets nothing that a port grants, and escapes no rule that names one.
  const isStrict = action === 'drop' || action === 'rate-limit'
  const unknown = isStrict || !ports ? protocols.map((bytes) => transport('unknownTransport', bytes)) : []
  if (isStrict && protocol !== 'any') unknown.push(transport('unknownTransport', [UNKNOWN_PROTOCOL]))
  return [...addresses('source', sources), ...addresses('destination', destinations), ...transports, ...unknown]
}

function transport(dimension: DimensionPrefix['dimension'], bytes: readonly number[], portBits = 0): DimensionPrefix {
  const value = new Uint8Array(VALUE_BYTES)
  value.set(bytes)
  return { dimension, family: 0, value, bits: portBits > 0 ? PROTOCOL_BITS + portBits : PROTOCOL_BITS * bytes.length }
}

/** The fewest prefixes that make up a range of ports: at most 30. */
function portPrefixes(protocol: readonly number[], [first, last]: readonly [number, number]): DimensionPrefix[] {
  const prefixes: DimensionPrefix[] = []
  let from = first
  while (from <= last) {
    let bits = PORT_BITS
    const size = () => 1 << (PORT_BITS - bits)
    while (bits > 0 && from % (2 * size()) === 0 && from + 2 * size() - 1 <= last) bits -= 1
    prefixes.push(
      bits === 0
        ? transport('transport', protocol)
        : transport('transport', [...protocol, from >> 8, from & 0xff], bits),
    )
    from += size()
  }
  return prefixes
}

interface TrieNode {
  readonly value: Buffer
  readonly bits: number
  readonly rules: number[]
}

/** One dimension of one direction and family: which rules each prefix lets match. */
class DimensionTrie {
  readonly #direction: Direction
  readonly #dimension: DimensionPrefix['dimension']
  readonly #family: DimensionPrefix['family']
  readonly #nodes = new Map<string, TrieNode>()

  constructor(direction: Direction, { dimension, family }: DimensionPrefix) {
    this.#direction = direction
    this.#dimension = dimension
    this.#family = family
  }

  has(node: string): boolean {
    return this.#nodes.has(node)
  }

  /** Lets a prefix match a rule, under the prefix' name. Returns whether the prefix is new. */
  add(node: string, prefix: Bits, rule: number): boolean {
    const known = this.#nodes.get(node)
    if (known) known.rules.push(rule)
    else this.#nodes.set(node, { value: firstBits(prefix), bits: prefix.bits, rules: [rule] })
    return known === undefined
  }

  /** Entries of `rule_match`, each with the rules of the shorter prefixes around it. */
  *entries(): Generator<{ key: Buffer; value: Buffer }> {
    // In this order every prefix comes right after those around it.
    const nodes = [...this.#nodes.values()].sort((a, b) => a.value.compare(b.value) || a.bits - b.bits)
    const around: { node: TrieNode; value: Buffer }[] = []
    for (const node of nodes) {
      while (around.length > 0 && !contains(around[around.length - 1]?.node, node)) around.pop()
      const value = Buffer.from(around[around.length - 1]?.value ?? NO_RULES)
      for (const rule of node.rules) setBit(value, rule)
      around.push({ node, value })
      yield { key: this.#key(node), value }
    }
  }

  #key({ value, bits }: TrieNode): Buffer {
    const key = Buffer.alloc(RULE_MATCH_KEY.bytes)
    key.writeUInt32LE(HEAD_BITS + bits, RULE_MATCH_KEY.prefixLength)
    key.writeUInt8(DIRECTIONS.indexOf(this.#direction), RULE_MATCH_KEY.direction)
    key.writeUInt8(RULE_DIMENSION[this.#dimension], RULE_MATCH_KEY.dimension)
    key.writeUInt8(this.#family, RULE_MATCH_KEY.family)
    key.set(value, RULE_MATCH_KEY.value)
    return key
  }
}

function nodeName(prefix: Bits): string {
  return `${firstBits(prefix).toString('latin1')}/${prefix.bits}`
}

/** The value with the bits beyond the prefix at 0. */
function firstBits({ value, bits }: Bits): Buffer {
  const first = Buffer.from(value)
  const whole = bits >> 3
  if (whole < first.length) first[whole] = (first[whole] ?? 0) & (0xff00 >> (bits & 7))
  return first.fill(0, whole + 1)
}

function contains(outer: TrieNode | undefined, inner: TrieNode): boolean {
  return (
    outer !== undefined && outer.bits <= inner.bits && firstBits({ ...inner, bits: outer.bits }).equals(outer.value)
  )
}

/** In a value of `rule_match`; bits of little-endian words are bits of their bytes. */
function setBit(value: Buffer, rule: number): void {
  const word = Math.floor(rule / WORD_BITS)
  const at = (offset: number, bit: number) => {
    const byte = offset + (bit >> 3)
    value[byte] = (value[byte] ?? 0) | (1 << (bit & 7))
  }
  at(RULE_BITS.words, rule)
  at(RULE_BITS.summary, word)
}
