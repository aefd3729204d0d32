import assert from 'node:assert/strict'
import { join } from 'node:path'
import { type AddressRange, parseRange } from '@tollward/contracts'
import { requires } from '@tollward/testkit'
import {
  type Block,
  type BlockMaps,
  type BpfObject,
  blockMaps,
  blockTarget,
  COUNTER,
  type CounterName,
  compile,
  compileRuleTable,
  decodeBlock,
  decodeRuleCount,
  encodeBlock,
  encodeConfig,
  type GuardConfig,
  guardAddresses,
  loadObject,
  type RuleCount,
  RuleTables,
  type RuleTerms,
  tableSizes,
  testRun,
} from './mod.ts'
import { pidNamespaceInum } from './pid-namespace.ts'
import { address } from './test-packets.ts'

const BPF_DIRECTORY = join(import.meta.dirname, '../../../bpf')
const XDP_DROP = 1
const XDP_PASS = 2
const TC_ACT_SHOT = 2
const TC_ACT_UNSPEC = 0xffff_ffff
/** Small, so that many tests may hold a sensor at once. */
const TEST_ENTRIES = 512

/** All but the scratch space. */
export const PINNED_MAPS = [
  'rule_set',
  'rule_match',
  'rules',
  'rule_counts',
  'buckets',
  'syn_ports',
  'fragments',
  'guard_events',
  'config',
  'guarded',
  'guarded_filter',
  'block_exact',
  'block_hash',
  'block_overflow',
  'block_cidr4',
  'block_cidr6',
  'block_lengths4',
  'counters',
  'first_hits',
  'flows_a',
  'flows_b',
  'active_flows',
  'spilled_flows',
  'connections',
  'kernel_drops_a',
  'kernel_drops_b',
  'active_kernel_drops',
  'drop_totals',
]

/** For node:test's option `skip` of whatever loads programs. */
export const needsKernel: string | false = await requires({
  root: true,
  tools: ['clang', 'make'],
  files: ['/usr/include/bpf/bpf_helpers.h', '/sys/kernel/btf/vmlinux'],
})

/** Path of the compiled object, made if it is missing or stale. */
export function compileSensor(): Promise<string> {
  return compile(BPF_DIRECTORY, 'build/sensor.bpf.o')
}

/** The real programs in the kernel, attached nowhere. */
export class TestSensor implements Disposable {
  readonly object: BpfObject
  readonly #rules: RuleTables
  readonly #blocks: BlockMaps

  constructor(object: BpfObject) {
    this.object = object
    this.#blocks = blockMaps({ map: (name) => object.map(name) })
    this.#rules = new RuleTables({
      rule_set: object.map('rule_set'),
      rule_match: object.map('rule_match'),
      rules: object.map('rules'),
    })
    this.configure({})
  }

  configure(config: Partial<GuardConfig>): void {
    const value = encodeConfig({
      mode: 'enforce',
      managementPorts: [22, 4222, 9090],
      netnsInum: 0,
      pidnsInum: pidNamespaceInum(),
      ...config,
    })
    this.object.map('config').update(Buffer.alloc(4), value)
  }

  /** Puts these rules in force, in this order, instead of those before. */
  async rules(...rules: readonly TestRule[]): Promise<void> {
    const { table, leftOut } = compileRuleTable(rules.map(termsOf))
    assert.deepEqual(leftOut, [])
    await this.#rules.install(table)
  }

  /** What a rule counted. */
  countOf(id: number): RuleCount {
    const value = this.object.map('rule_counts').lookup(uint32(id))
    assert(value)
    return decodeRuleCount(value)
  }

  /** Blocks a range for ever, unless told otherwise. */
  block(cidr: string, block: Partial<Block> = {}): void {
    const target = targetOf(cidr)
    const value = encodeBlock(target, { expiresNs: 0n, ruleId: 1, mode: 'drop', ...block })
    this.#blocks[target.map].update(target.key, value)
  }

  /** Guards these addresses, and no longer others. */
  guard(...addresses: readonly string[]): void {
    assert.equal(guardAddresses({ map: (name) => this.object.map(name) }, addresses.map(address)), 0)
  }

  lift(cidr: string): void {
    const target = targetOf(cidr)
    assert(this.#blocks[target.map].delete(target.key), `${cidr} was blocked`)
  }

  blockOf(cidr: string): Block {
    const target = targetOf(cidr)
    const value = this.#blocks[target.map].lookup(target.key)
    assert(value, `${cidr} is blocked`)
    return decodeBlock(value)
  }

  /** What the guard does with an arriving frame. */
  judge(frame: Buffer): 'drop' | 'pass' {
    const { result } = testRun(this.object.program('xdp_guard'), frame)
    assert(result === XDP_DROP || result === XDP_PASS, `a verdict, not ${result}`)
    return result === XDP_DROP ? 'drop' : 'pass'
  }

  /** What the guard does with a leaving frame. */
  judgeLeaving(frame: Buffer): 'drop' | 'pass' {
    const { result } = testRun(this.object.program('guard_egress'), frame)
    assert(result === TC_ACT_SHOT || result === TC_ACT_UNSPEC, `a verdict, not ${result}`)
    return result === TC_ACT_SHOT ? 'drop' : 'pass'
  }

  /** How many packets each counter counts since `since`; those at 0 are left out. */
  counters(since: Partial<Record<CounterName, number>> = {}): Partial<Record<CounterName, number>> {
    const map = this.object.map('counters')
    const key = Buffer.alloc(4)
    const found: Partial<Record<CounterName, number>> = {}
    for (const [name, index] of Object.entries(COUNTER) as [CounterName, number][]) {
      key.writeUInt32LE(index)
      const count = Number(map.sumOfCpus(key)) - (since[name] ?? 0)
      if (count > 0) found[name] = count
    }
    return found
  }

  [Symbol.dispose](): void {
    this.object.close()
  }
}

export async function loadSensor(): Promise<TestSensor> {
  const maxEntries = TEST_ENTRIES
  const small = ['flows_a', 'flows_b', 'connections', 'buckets', 'fragments'].map(
    (name) => [name, { maxEntries }] as const,
  )
  return new TestSensor(
    loadObject(await compileSensor(), {
      maps: { ...Object.fromEntries(small), ...tableSizes(maxEntries) },
    }),
  )
}

/** A rule as a test writes it; what it leaves out is anything, for ever, in force. */
export interface TestRule extends Partial<Omit<RuleTerms, 'sources' | 'destinations'>> {
  readonly id: number
  readonly action: RuleTerms['action']
  readonly sources?: readonly string[]
  readonly destinations?: readonly string[]
}

export function termsOf({ sources, destinations, ...rule }: TestRule): RuleTerms {
  return {
    ...{ direction: 'ingress', protocol: 'any', mode: 'enforce', expiresNs: 0n, ...rule },
    sources: sources?.map(rangeOf),
    destinations: destinations?.map(rangeOf),
  }
}

function rangeOf(cidr: string): AddressRange {
  const range = parseRange(cidr)
  assert(range, `${cidr} is a range`)
  return range
}

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32LE(value)
  return bytes
}

function targetOf(cidr: string) {
  return blockTarget(rangeOf(cidr))
}
