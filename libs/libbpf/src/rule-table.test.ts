import assert from 'node:assert/strict'
import { once } from 'node:events'
import { join } from 'node:path'
import { test } from 'node:test'
import { Worker } from 'node:worker_threads'
import { formatAddress, rangeContains } from '@tollward/contracts'
import { RULE_MATCH_KEY } from './layout.ts'
import { compileRuleTable, RULE_PREFIXES_MAX } from './rule-table.ts'
import { address, ETHERTYPE, ethernet, frameFrom, ipv4, ipv6, PROTOCOL, tcp, udp } from './test-packets.ts'
import { loadSensor, needsKernel, type TestRule, termsOf } from './test-sensor.ts'

const SENDER = join(import.meta.dirname, 'test-sender.ts')

test('rules beyond 1,024 of a direction, and those whose ranges have no room, are left out; the others stand', () => {
  const rules = Array.from({ length: 1026 }, (_, id): TestRule => ({ id, action: 'drop' }))
  const egress: TestRule = { id: 2000, action: 'drop', direction: 'egress' }
  const { table, leftOut } = compileRuleTable([...rules, egress].map(termsOf))
  assert.deepEqual([table.rules.ingress.length, table.rules.egress.length], [1024, 1])
  assert.deepEqual(
    leftOut.map(({ rule, reason }) => [rule.id, reason]),
    [
      [1024, 'rules'],
      [1025, 'rules'],
    ],
  )
  const wide = Array.from({ length: 200 }, (_, index) => `10.0.${index}.0/24`)
  const some = compileRuleTable(
    [{ id: 1, action: 'drop', sources: wide } as const, { id: 2, action: 'drop' } as const].map(termsOf),
    100,
  )
  assert.deepEqual(
    some.leftOut.map(({ rule, reason }) => [rule.id, reason]),
    [[1, 'prefixes']],
  )
  assert.deepEqual(
    some.table.rules.ingress.map(({ id }) => id),
    [2],
  )
  assert(some.table.keys.length / RULE_MATCH_KEY.bytes <= 100)
})

test('a set at the limit of its prefixes fits into the kernel beside another such', { skip: needsKernel }, async () => {
  using sensor = await loadSensor()
  const rule = (id: number): TestRule => ({
    ...{ id, action: 'drop' },
    sources: Array.from({ length: 1000 }, (_, index) => `${id}.${index >> 8}.${index & 255}.0/24`),
  })
  const rules = Array.from({ length: 40 }, (_, index) => rule(index + 1))
  const { table, leftOut } = compileRuleTable(rules.map(termsOf))
  const prefixes = table.keys.length / RULE_MATCH_KEY.bytes
  assert(prefixes <= RULE_PREFIXES_MAX && prefixes > RULE_PREFIXES_MAX - 1000, String(prefixes))
  assert(leftOut.length > 0 && leftOut.every(({ reason }) => reason === 'prefixes'))
  const standing = rules.slice(0, rules.length - leftOut.length)
  for (let time = 0; time < 2; time++) await sensor.rules(...standing)
  assert.equal(sensor.judge(frameFrom('32.3.231.1')), 'drop')
  assert.equal(sensor.judge(frameFrom('32.3.232.1')), 'pass')
})

test('the kernel finds the rule that comparing one rule after another finds', { skip: needsKernel }, async () => {
  using sensor = await loadSensor()
  sensor.configure({ managementPorts: [] })
  const random = randomNumbers(20_261_122)
  const pick = <T>(list: readonly T[]): T => list[random(list.length)] as T
  for (let set = 0; set < 30; set++) {
    const rules = Array.from({ length: 1 + random(120) }, (_, id) => randomRule(id, random, pick))
    await sensor.rules(...rules)
    for (let packet = 0; packet < 100; packet++) {
      const wanted = randomPacket(random, pick)
      const expected = rules.find((rule) => matches(rule, wanted))
      const frame = frameOf(wanted)
      const what = JSON.stringify({ expected, wanted: { ...wanted, source: formatAddress(wanted.source) } })
      const earlier = expected && sensor.countOf(expected.id).matched
      assert.equal(sensor.judge(frame), expected?.action === 'drop' ? 'drop' : 'pass', what)
      if (expected) assert.equal(sensor.countOf(expected.id).matched, (earlier ?? 0n) + 1n, what)
    }
  }
})

test('while sets replace each other under load, no packet is judged by half of each', {
  skip: needsKernel,
}, async () => {
  using sensor = await loadSensor()
  const frames = [frameFrom('10.7.7.7'), frameFrom('2001:db8:7::7')]
  // Wherever the rule stands, and whatever is around it, it drops these; nothing else does.
  const drop: TestRule = { id: 500, action: 'drop', sources: ['10.7.7.0/24', '2001:db8:7::/48'] }
  const others = (first: number, count: number) =>
    Array.from(
      { length: count },
      (_, index): TestRule => ({
        ...{ id: first + index, action: 'allow', protocol: 'tcp' },
        sources: [`10.7.${index & 255}.${index >> 8}/32`, '10.8.0.0/16'],
        ports: [[9000, 9000 + index]],
      }),
    )
  const sets = [[drop, ...others(0, 70)], [...others(100, 300), drop], [drop]]
  await sensor.rules(...(sets[0] ?? []))
  const stop = new Int32Array(new SharedArrayBuffer(4))
  const { fd } = sensor.object.program('xdp_guard')
  const worker = new Worker(SENDER, { workerData: { fd, frames, stop } })
  const finished = once(worker, 'message')
  for (let time = 1; time <= 12; time++) await sensor.rules(...(sets[time % sets.length] ?? []))
  Atomics.store(stop, 0, 1)
  const [sent] = await finished
  await worker.terminate()
  const { droppedRule, allowed, passed, droppedRate } = sensor.counters()
  assert(sent > 0)
  assert.deepEqual(
    { droppedRule, allowed, passed, droppedRate },
    { droppedRule: sent, allowed: undefined, passed: undefined, droppedRate: undefined },
  )
})

interface WantedPacket {
  readonly source: Uint8Array
  readonly destination: Uint8Array
  readonly protocol: 'tcp' | 'udp' | 'icmp' | 'other'
  readonly port: number
}

type Random = (below: number) => number
type Pick = <T>(list: readonly T[]) => T

/** Few values, so that packets meet rules, and rules each other. */
function randomRange(random: Random): string {
  const [a, b, c] = [random(2), random(3), random(3)]
  if (random(2) === 0) return ['0.0.0.0/0', `10.${a}.0.0/16`, `10.${a}.${b}.0/24`, `10.${a}.${b}.${c}`][random(4)] ?? ''
  return ['::/0', `2001:db8:${a}::/48`, `2001:db8:${a}:${b}::/64`, `2001:db8:${a}:${b}::${c}`][random(4)] ?? ''
}

function randomRule(id: number, random: Random, pick: Pick): TestRule {
  const ranges = () =>
    random(3) === 0 ? {} : { list: Array.from({ length: 1 + random(3) }, () => randomRange(random)) }
  const protocol = pick(['tcp', 'udp', 'icmp', 'any'] as const)
  const hasPorts = (protocol === 'tcp' || protocol === 'udp') && random(2) === 0
  const ports = Array.from({ length: 1 + random(2) }, () => {
    const first = 1 + random(40)
    return [first, first + random(30)] as const
  })
  const { list: sources } = ranges()
  const { list: destinations } = ranges()
  return {
    ...{ id, protocol, action: pick(['drop', 'allow'] as const) },
    ...(sources && { sources }),
    ...(destinations && { destinations }),
    ...(hasPorts && { ports }),
  }
}

function randomPacket(random: Random, pick: Pick): WantedPacket {
  const [prefix, join] = random(2) === 0 ? ['10.', '.'] : ['2001:db8:', ':']
  const host = () =>
    address(
      prefix === '10.'
        ? `10.${random(3)}.${random(4)}.${random(4)}`
        : `${prefix}${random(3)}${join}${random(4)}::${1 + random(3)}`,
    )
  const protocol = pick(['tcp', 'udp', 'icmp', 'other'] as const)
  return { source: host(), destination: host(), protocol, port: 1 + random(80) }
}

/** What a rule means, said in the plainest way. */
function matches(rule: TestRule, { source, destination, protocol, port }: WantedPacket): boolean {
  const terms = termsOf(rule)
  const within = (ranges: typeof terms.sources, address: Uint8Array) =>
    ranges === undefined ||
    ranges.some((range) => isV4(range.address) === isV4(address) && rangeContains(range, address))
  return (
    within(terms.sources, source) &&
    within(terms.destinations, destination) &&
    (terms.protocol === 'any' || terms.protocol === protocol) &&
    (terms.ports === undefined || terms.ports.some(([first, last]) => port >= first && port <= last))
  )
}

function frameOf({ source, destination, protocol, port }: WantedPacket): Buffer {
  const number = {
    tcp: PROTOCOL.tcp,
    udp: PROTOCOL.udp,
    icmp: isV4(source) ? PROTOCOL.icmp : PROTOCOL.icmp6,
    other: 99,
  }[protocol]
  const payload = {
    tcp: tcp({ destinationPort: port }),
    udp: udp({ destinationPort: port }),
    icmp: Buffer.alloc(8),
    other: Buffer.alloc(8),
  }[protocol]
  const packet = { source: formatAddress(source), destination: formatAddress(destination), protocol: number, payload }
  return isV4(source) ? ethernet(ETHERTYPE.ipv4, ipv4(packet)) : ethernet(ETHERTYPE.ipv6, ipv6(packet))
}

function isV4(address: Uint8Array): boolean {
  return formatAddress(address).includes('.')
}

/** Numbers below a bound, the same at every run (mulberry32). */
function randomNumbers(seed: number): Random {
  let state = seed
  return (below) => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below
  }
}
