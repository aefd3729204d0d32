import assert from 'node:assert/strict'
import { test } from 'node:test'
import { KERNEL_RULES_MAX } from './kernel-rule.ts'
import { roomFaults } from './kernel-rule-faults.ts'
import { documentKey, parseSources } from './parse.ts'

const sourcesOf = (first: number, count: number, direction = 'ingress') =>
  parseSources(
    Array.from({ length: count }, (_, index) =>
      JSON.stringify({
        ...{ apiVersion: 'tollward.dev/v1', kind: 'KernelRule', metadata: { name: `r${first + index}` } },
        spec: { direction, action: 'drop' },
      }),
    ).join('\n---\n'),
    'f',
  )
const inForce = (count: number) => {
  const rules = [0, 1, 2].flatMap((part) => sourcesOf(part * 500, 500)).slice(0, count)
  return new Map(rules.map(({ document }) => [documentKey(document.kind, document.metadata.name), document]))
}

test('rules for which no node has room are refused by line and name; those that take the place of others need none', () => {
  assert.deepEqual(roomFaults(sourcesOf(0, 500), inForce(KERNEL_RULES_MAX)), [])
  assert.deepEqual(roomFaults(sourcesOf(2000, 1), inForce(KERNEL_RULES_MAX - 1)), [])
  assert.deepEqual(roomFaults(sourcesOf(2000, 3, 'egress'), inForce(KERNEL_RULES_MAX)), [])
  const faults = roomFaults(sourcesOf(2000, 3), inForce(KERNEL_RULES_MAX - 1))
  assert.deepEqual(
    faults.map(({ line, path, reason }) => [line, path, reason]),
    [
      [3, 'metadata.name', 'is rule 1025 of ingress, and nodes have room for 1024; delete some'],
      [5, 'metadata.name', 'is rule 1026 of ingress, and nodes have room for 1024; delete some'],
    ],
  )
})
