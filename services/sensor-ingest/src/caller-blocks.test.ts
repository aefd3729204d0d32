import assert from 'node:assert/strict'
import { test } from 'node:test'
import { create } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { callerKey, contract, writeCaller } from '@tollward/contracts'
import {
  type BlockDecided,
  BlockDecidedSchema,
  type BlockLifted,
  BlockLiftedSchema,
  BlockSchema,
  LiftCause,
} from '@tollward/contracts/enforcement'
import { eventually, requires } from '@tollward/testkit'
import { blocks, startStack } from './test-stack.ts'

const skip = await requires({ tools: ['nats-server'] })
const CALLER = { kind: 'client', value: 'shop' } as const

test('the audit says who was blocked, and who was lifted or lapsed, also of callers', { skip }, async () => {
  await using stack = await startStack()
  const service = await stack.start('sensor-ingest')
  const decided: BlockDecided[] = []
  const lifted: BlockLifted[] = []
  await using _decided = await stack.bus.follow(contract(BlockDecidedSchema), 'beginning', (event) => {
    decided.push(event)
  })
  await using _lifted = await stack.bus.follow(contract(BlockLiftedSchema), 'beginning', (event) => {
    lifted.push(event)
  })
  const bucket = stack.bus.bucket(blocks)
  const block = async (ttlMs: number) => {
    const expiresAtMs = Date.now() + ttlMs
    const end = { decidedBy: 'operator:grace', expiresAt: timestampFromMs(expiresAtMs) }
    const value = create(BlockSchema, { format: 2, caller: writeCaller(CALLER), reason: 'test', ...end })
    return bucket.put(callerKey(CALLER), value, { expiresAtMs })
  }
  const revision = await block(600_000)
  await bucket.remove(callerKey(CALLER))
  await block(1000)
  await eventually(() => lifted.length === 2, { what: 'its removal and its lapse' })
  assert.deepEqual(
    lifted.map(({ caller, cause, prefixLength }) => [caller?.by.value, cause, prefixLength]),
    [
      ['shop', LiftCause.REMOVED, 0],
      ['shop', LiftCause.EXPIRED, 0],
    ],
  )
  assert.equal(decided.length, 2)
  assert.deepEqual([decided[0]?.block?.caller?.by.value, Number(decided[0]?.revision)], ['shop', revision])
  assert.ok(!service.lines.some((line) => /"level":"(warn|error)"/.test(line)), service.lines.join('\n'))
})
