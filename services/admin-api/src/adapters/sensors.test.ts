import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { create, type MessageInitShape } from '@bufbuild/protobuf'
import { timestampNow } from '@bufbuild/protobuf/wkt'
import { credentials, status } from '@grpc/grpc-js'
import { bucketContract } from '@tollward/contracts'
import { AdminService } from '@tollward/contracts/admin'
import { type GrpcClient, grpcClient } from '@tollward/contracts/grpc'
import { SensorStateSchema } from '@tollward/contracts/sensor'
import { requires } from '@tollward/testkit'
import { READER, startTestStack, type TestStack } from '../test-stack.ts'

const skip = await requires({ tools: ['nats-server'] })
const AS_READER = { metadata: READER, timeoutMs: 20_000 }

let stack: TestStack
let admin: GrpcClient<typeof AdminService>

before(async () => {
  if (skip !== false) return
  stack = await startTestStack()
  admin = grpcClient(AdminService, stack.address, credentials.createInsecure())
})
after(async () => {
  admin?.[Symbol.dispose]()
  await stack?.[Symbol.asyncDispose]()
})

const report = async (node: string, state: MessageInitShape<typeof SensorStateSchema>) => {
  const bucket = stack.bus.bucket(bucketContract(SensorStateSchema))
  const value = create(SensorStateSchema, { format: 1, node, reportedAt: timestampNow(), ...state })
  await bucket.put(Buffer.from(node).toString('base64url'), value, { expiresAtMs: Date.now() + 60_000 })
}
const list = async (node = '') => (await admin.listSensors({ node }, AS_READER)).sensors

test('sensors are listed by node with their faults, and one of them is shown whole', { skip }, async () => {
  const programs = [{ name: 'xdp_guard', type: 'xdp', runs: 5n, runNanos: 500n }]
  const rules = [{ name: 'no-telnet', packets: 7n, dropped: 6n }]
  const interfaces = [{ name: 'eth0', index: 2, ingress: 'native', egress: 'tcx' }]
  await report('node.two', { mode: 'audit', programs, rules, interfaces })
  await report('node.one', { mode: 'enforce', faults: ['xdp on eth0: there is no such interface'], programs })
  const all = await list()
  assert.deepEqual(
    all.map(({ node, mode, faults, interfaces }) => [node, mode, faults, interfaces.map(({ name }) => name)]),
    [
      ['node.one', 'enforce', ['xdp on eth0: there is no such interface'], []],
      ['node.two', 'audit', [], ['eth0']],
    ],
  )
  assert.deepEqual(
    all.flatMap(({ programs, rules }) => [...programs, ...rules]),
    [],
  )
  const [whole] = await list('node.two')
  assert.deepEqual(
    whole?.programs.map(({ name, runNanos }) => [name, runNanos]),
    [['xdp_guard', 500n]],
  )
  assert.deepEqual(
    whole?.rules.map(({ name, packets, dropped }) => [name, packets, dropped]),
    [['no-telnet', 7n, 6n]],
  )
  await assert.rejects(list('node.three'), { code: status.NOT_FOUND, details: /No sensor of a node node\.three/ })
  for (const name of ['a b', 'x'.repeat(64), '*'])
    await assert.rejects(list(name), { code: status.INVALID_ARGUMENT }, name)
})

test('a sensor speaks for its own node only, and one of another version is shown as such', { skip }, async () => {
  await report('node.four', { node: 'node.one', format: 2, mode: 'enforce' })
  const [state] = await list('node.four')
  assert.equal(state?.node, 'node.four')
  assert.deepEqual(state.faults, ['its sensor reports in format 2; this version reads 1'])
  assert.equal(state.mode, '')
})
