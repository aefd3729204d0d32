import assert from 'node:assert/strict'
import { test } from 'node:test'
import { enumValues, structLayout } from './btf.ts'
import * as flowLayout from './flow-layout.ts'
import * as layout from './layout.ts'
import { compileSensor, needsKernel } from './test-sensor.ts'

const STRUCTS = {
  config: layout.CONFIG,
  block: layout.BLOCK,
  block_slot: layout.BLOCK_SLOT,
  block_hash: layout.BLOCK_HASH,
  guarded_filter: layout.GUARDED_FILTER,
  cidr4_key: layout.CIDR4_KEY,
  cidr6_key: layout.CIDR6_KEY,
  flow_key: flowLayout.FLOW_KEY,
  connection: flowLayout.CONNECTION,
  connection_state: flowLayout.CONNECTION_STATE,
  flow: flowLayout.FLOW,
  spilled_flow: flowLayout.SPILLED_FLOW,
  kernel_drop: flowLayout.KERNEL_DROP,
  first_hit: layout.FIRST_HIT,
  rate: layout.RATE,
  rule_set: layout.RULE_SET,
  rule_match_key: layout.RULE_MATCH_KEY,
  rule_bits: layout.RULE_BITS,
  rule: layout.RULE,
  rule_count: layout.RULE_COUNT,
  bucket_key: layout.BUCKET_KEY,
  fragment_key: layout.FRAGMENT_KEY,
  fragment: layout.FRAGMENT,
  guard_event: layout.GUARD_EVENT,
} as const

test('every structure has the same size and offsets in C and in TypeScript', { skip: needsKernel }, async () => {
  const object = await compileSensor()
  for (const [name, { bytes, ...offsets }] of Object.entries(STRUCTS)) {
    const inC = structLayout(object, name)
    const { zero: _padding, ...members } = inC.offsets
    assert.equal(bytes, inC.bytes, `size of ${name}`)
    assert.deepEqual(rename(offsets), members, `members of ${name}`)
  }
})

test('every counter has the same number in C and in TypeScript', { skip: needsKernel }, async () => {
  const inC = enumValues(await compileSensor(), 'counter')
  const inTypeScript = Object.entries(layout.COUNTER).map(([name, index]) => [
    `COUNTER_${snake(name).toUpperCase()}`,
    index,
  ])
  assert.deepEqual({ ...Object.fromEntries(inTypeScript), COUNTER_SLOTS: 96 }, inC)
})

/** In C the sum of bytes is `bytes`, which the tables use for the size. */
function rename(offsets: Record<string, number>): Record<string, number> {
  return Object.fromEntries(
    Object.entries(offsets).map(([name, at]) => [name === 'bytesTotal' ? 'bytes' : snake(name), at]),
  )
}

function snake(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)
}
