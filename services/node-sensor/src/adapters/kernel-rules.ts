import { timestampMs } from '@bufbuild/protobuf/wkt'
import type { Bus, Entry, Following } from '@tollward/bus'
import { bucketContract } from '@tollward/contracts'
import { type StoredDocument, StoredDocumentSchema } from '@tollward/contracts/document'
import { type KernelRule, readStored } from '@tollward/documents'
import { type BpfMap, decodeRuleCount, RuleTables, wallTimeToBootNs } from '@tollward/libbpf'
import type { Logger } from 'pino'
import { compileRules, type RuleFault } from '../domain/kernel-rules.ts'
import type { Metrics } from '../metrics.ts'
import type { Kernel } from './kernel.ts'

/** Keys of KernelRule documents in the bucket. */
const FILTER = 'KernelRule.*'
/** After the kernel refused a set; what was in force stays so. */
const RETRY_MS = 2000
const NOT_YET = 'is about to be put in force'

/** A rule as the bucket has it. */
interface StoredRule {
  readonly name: string
  readonly spec: KernelRule['spec']
  readonly expiresAtMs: number | undefined
  readonly appliedAtMs: number
}

/** A rule as it is on this node. */
export interface RuleReading {
  readonly name: string
  readonly spec: KernelRule['spec']
  /** Packets that matched, since this sensor began with the rule. */
  readonly matched: bigint
  /** Dropped, or in audit mode would have been. */
  readonly over: bigint
  /** When the last one matched, by the kernel's clock; 0n: none has. */
  readonly lastNs: bigint
  /** Why it is not in force. */
  readonly fault: string | undefined
}

interface KernelRulesOptions {
  readonly kernel: Kernel
  readonly metrics: Metrics
  readonly log: Logger
}

/**
 * The rules of the kernel: as the bucket wants them, and as the maps hold them. Every change makes a whole new set, which
 * takes the place of the one in force at once; changes that come meanwhile are in the next one together.
 */
export class KernelRules implements AsyncDisposable {
  readonly #tables: RuleTables
  readonly #counts: BpfMap
  readonly #metrics: Metrics
  readonly #log: Logger
  #stored: ReadonlyMap<string, StoredRule> = new Map()
  #ids: ReadonlyMap<string, number> = new Map()
  #leftOut: readonly RuleFault[] = []
  #refusal: string | undefined
  /** Rules that were changed since the set in force was made, with the time of their being applied. */
  #changed = new Map<string, number>()
  #isStale = false
  #installing: Promise<void> = Promise.resolve()
  #retry: NodeJS.Timeout | undefined
  #isClosed = false

  constructor({ kernel, metrics, log }: KernelRulesOptions) {
    this.#tables = new RuleTables({
      rule_set: kernel.map('rule_set'),
      rule_match: kernel.map('rule_match'),
      rules: kernel.map('rules'),
    })
    this.#counts = kernel.map('rule_counts')
    this.#metrics = metrics
    this.#log = log
  }

  /** Wants exactly these, by their key in the bucket. Resolves when they are in force, or could not be. */
  replace(rules: ReadonlyMap<string, StoredRule>): Promise<void> {
    this.#stored = rules
    this.#changed.clear()
    return this.#makeAnew()
  }

  /** Wants this rule in the place of the one with this key; undefined: none. */
  set(key: string, rule: StoredRule | undefined): Promise<void> {
    const stored = new Map(this.#stored)
    if (rule) stored.set(key, rule)
    else stored.delete(key)
    this.#stored = stored
    if (rule) this.#changed.set(key, rule.appliedAtMs)
    return this.#makeAnew()
  }

  /** The rule that is wanted under this key of the bucket. */
  wanted(key: string): StoredRule | undefined {
    return this.#stored.get(key)
  }

  /** Converts every expiry anew: the wall clock was set. */
  convertExpiries(): Promise<void> {
    return this.#stored.size === 0 ? Promise.resolve() : this.#makeAnew()
  }

  /** What the kernel counted of each rule. */
  readings(): RuleReading[] {
    const faults = new Map(this.#leftOut.map(({ name, reason }) => [name, reason]))
    return [...this.#stored.values()].map(({ name, spec }) => {
      const id = this.#ids.get(name)
      const counted = id === undefined ? undefined : this.#counts.lookup(keyOf(id))
      const counts = counted ? decodeRuleCount(counted) : { matched: 0n, over: 0n, lastNs: 0n }
      const missing = id === undefined ? (this.#refusal ?? NOT_YET) : undefined
      return { name, spec, ...counts, fault: faults.get(name) ?? missing }
    })
  }

  /** The names of the rules in force, by the number that the kernel knows them by. */
  names(): Map<number, string> {
    return new Map([...this.#ids].map(([name, id]) => [id, name]))
  }

  /** Why rules are not as the bucket wants them; undefined: they are. */
  fault(): string | undefined {
    if (this.#refusal !== undefined) return this.#refusal
    const [first] = this.#leftOut
    return first && `${this.#leftOut.length} not in force, such as ${first.name}: ${first.reason}`
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#isClosed = true
    clearTimeout(this.#retry)
    await this.#installing
  }

  #makeAnew(): Promise<void> {
    if (!this.#isStale) {
      this.#isStale = true
      this.#installing = this.#installing.then(() => this.#install())
    }
    return this.#installing
  }

  /** Never rejects: what could not be done is told, and tried again. */
  async #install(): Promise<void> {
    if (this.#isClosed) return
    this.#isStale = false
    clearTimeout(this.#retry)
    const changed = this.#changed
    this.#changed = new Map()
    const startedMs = performance.now()
    const wanted = [...this.#stored.values()].map(({ name, spec, expiresAtMs }) => {
      return { name, spec, expiresNs: expiresAtMs === undefined ? 0n : wallTimeToBootNs(expiresAtMs) }
    })
    try {
      const { table, ids, newIds, faults } = compileRules(wanted, this.#ids)
      for (const id of newIds) this.#counts.update(keyOf(id), Buffer.alloc(this.#counts.valueBytes))
      await this.#tables.install(table)
      this.#ids = ids
      this.#show(faults)
      this.#refusal = undefined
      const nowMs = Date.now()
      for (const appliedAtMs of changed.values())
        if (appliedAtMs > 0) this.#metrics.ruleApply.observe(Math.max(0, nowMs - appliedAtMs) / 1000)
      const tookMs = Math.round(performance.now() - startedMs)
      this.#log.info({ rules: ids.size, leftOut: faults.length, tookMs }, 'kernel rules are as the bucket is')
    } catch (error) {
      this.#metrics.ruleRefusals.inc()
      if (this.#refusal === undefined) this.#log.error({ err: error }, 'kernel rules could not be put in force')
      this.#refusal = `the kernel did not take them: ${error instanceof Error ? error.message : String(error)}`
      this.#retry = setTimeout(() => void this.#makeAnew(), RETRY_MS).unref()
    }
    this.#metrics.rules.set({ state: 'in_force' }, this.#ids.size)
    this.#metrics.rules.set({ state: 'left_out' }, this.#leftOut.length)
  }

  #show(faults: readonly RuleFault[]): void {
    const told = new Set(this.#leftOut.map(({ name }) => name))
    for (const { name, reason } of faults)
      if (!told.has(name)) this.#log.error({ rule: name, why: reason }, 'kernel rule is not in force on this node')
    this.#leftOut = faults
  }
}

interface FollowRulesOptions {
  readonly bus: Bus
  readonly rules: KernelRules
  readonly metrics: Metrics
  readonly log: Logger
}

/**
 * Begins to keep the kernel's rules as the bucket is. Resolves when they were read. A document that cannot be read leaves what
 * was in force under its name.
 */
export function followKernelRules({ bus, rules, metrics, log }: FollowRulesOptions): Promise<Following> {
  const read = (key: string, entry: Entry<StoredDocument>): StoredRule | undefined => {
    const reading = readStored(entry.value)
    if ('document' in reading && reading.document.kind === 'KernelRule') {
      const { appliedAt } = entry.value
      const { metadata, spec } = reading.document
      const appliedAtMs = appliedAt ? timestampMs(appliedAt) : 0
      return { name: metadata.name, spec, expiresAtMs: entry.expiresAtMs, appliedAtMs }
    }
    metrics.rulesUnreadable.inc()
    const fault = 'fault' in reading ? reading.fault : 'is of another kind'
    log.error({ key, fault }, 'stored kernel rule could not be read; what was in force under its name stays')
    return rules.wanted(key)
  }
  return bus.bucket(bucketContract(StoredDocumentSchema)).follow(
    {
      snapshot: (entries) => {
        const all = [...entries].map(([key, entry]) => [key, read(key, entry)] as const)
        void rules.replace(new Map(all.flatMap(([key, rule]) => (rule ? [[key, rule] as const] : []))))
      },
      change: (key, entry) => void rules.set(key, entry && read(key, entry)),
    },
    FILTER,
  )
}

function keyOf(id: number): Buffer {
  const key = Buffer.alloc(4)
  key.writeUInt32LE(id)
  return key
}
