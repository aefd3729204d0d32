import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type KernelRule, KernelRuleSchema } from '@tollward/documents'
import { compileRules, type WantedRule } from './kernel-rules.ts'

const NONE = new Map<string, number>()

function wanted(name: string, spec: Partial<KernelRule['spec']> = {}): WantedRule {
  const document = KernelRuleSchema.parse({
    ...{ apiVersion: 'tollward.dev/v1', kind: 'KernelRule', metadata: { name } },
    spec: { direction: 'ingress', action: 'drop', ...spec },
  })
  return { name, spec: document.spec, expiresNs: 0n }
}

test('rules stand in the order of their priorities and then of their names', () => {
  const { table, ids } = compileRules(
    [wanted('b'), wanted('late', { priority: 2000 }), wanted('a'), wanted('first', { priority: 1 })],
    NONE,
  )
  const names = new Map([...ids].map(([name, id]) => [id, name]))
  assert.deepEqual(
    table.rules.ingress.map(({ id }) => names.get(id)),
    ['first', 'a', 'b', 'late'],
  )
})

test('a rule keeps its id while it lives, and a new one takes none that the set before used', () => {
  const first = compileRules([wanted('a'), wanted('b')], NONE)
  const second = compileRules([wanted('0'), wanted('b')], first.ids)
  assert.equal(second.ids.get('b'), first.ids.get('b'))
  assert(![...first.ids.values()].includes(second.ids.get('0') ?? -1))
  assert.deepEqual(second.newIds, [second.ids.get('0')])
  const third = compileRules([wanted('0'), wanted('b'), wanted('c')], second.ids)
  assert.equal(third.ids.get('c'), first.ids.get('a'), 'what is out of use is used again')
})

test('a rule for which there is no room is named with the reason, and the others stand', () => {
  const many = Array.from({ length: 1025 }, (_, index) => wanted(`rule-${String(index).padStart(4, '0')}`))
  const { ids, faults, table } = compileRules([...many, wanted('out', { direction: 'egress' })], NONE)
  assert.deepEqual(
    faults.map(({ name }) => name),
    ['rule-1024'],
  )
  assert.match(faults[0]?.reason ?? '', /no room for more rules/)
  assert(!ids.has('rule-1024') && ids.size === 1025)
  assert.equal(table.rules.egress.length, 1)
  const endless = Array.from({ length: 5000 }, (_, index) => wanted(`rule-${index}`))
  const { faults: more, ids: standing } = compileRules(endless, NONE)
  assert.equal(more.length, 5000 - 1024)
  assert.equal(standing.size, 1024)
})

test('what a document says of addresses, ports, rate and end is what the rule has', () => {
  const { table } = compileRules(
    [
      {
        ...wanted('limit', {
          ...{ direction: 'egress', protocol: 'udp', action: 'rate-limit', mode: 'audit' },
          ...{ ports: [53, '8000-8999'], destinations: ['192.0.2.0/24'], rate: { packetsPerSecond: 100 } },
        }),
        expiresNs: 42n,
      },
    ],
    NONE,
  )
  const [rule] = table.rules.egress
  assert.deepEqual(
    { ...rule, destinations: rule?.destinations?.map(({ prefixLength }) => prefixLength) },
    {
      ...{ id: 0, direction: 'egress', protocol: 'udp', action: 'rate-limit', mode: 'audit', expiresNs: 42n },
      ports: [
        [53, 53],
        [8000, 8999],
      ],
      ...{ sources: undefined, destinations: [120], rate: { packetsPerSecond: 100, burst: 100 } },
    },
  )
})
