import assert from 'node:assert/strict'
import { test } from 'node:test'
import { create } from '@bufbuild/protobuf'
import { connect } from '@nats-io/transport-node'
import { connectBus, provision } from '@tollward/bus'
import { type CallerName, writeCaller } from '@tollward/contracts'
import { AddBlockRequestSchema, ListBlocksRequestSchema } from '@tollward/contracts/admin'
import { requires, startNatsServer } from '@tollward/testkit'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import { blockMethods } from './blocks.ts'

const skip = await requires({ tools: ['nats-server'] })

test('no more callers are blocked than every decision point holds, and the operator is told; nor listed than fit', {
  skip,
}, async () => {
  await using nats = await startNatsServer()
  const provisioner = await connect({ servers: nats.url })
  await provision(provisioner)
  await provisioner.close()
  const log = pino({ level: 'silent' })
  await using bus = await connectBus({ servers: nats.url, name: 'admin-api', log, registry: new Registry() })
  const methods = blockMethods(bus, [], { callerBlocksMax: 2, blocksListedMax: 2 })
  const by = { clientId: 'operator', subject: 'operator', tokenHash: '', grantHash: '' }
  const add = (target: { caller: CallerName } | { cidr: string }) => {
    const blocked = 'caller' in target ? { caller: writeCaller(target.caller) } : target
    return methods.addBlock(create(AddBlockRequestSchema, { ...blocked, ttlSeconds: 60 }), { caller: by, target: '' })
  }
  await add({ caller: { kind: 'client', value: 'a' } })
  await add({ caller: { kind: 'subject', value: 'b' } })
  await assert.rejects(add({ caller: { kind: 'client', value: 'c' } }), { code: 'resource_exhausted' })
  await add({ caller: { kind: 'client', value: 'a' } })
  await add({ cidr: '192.0.2.1' })
  const action = { caller: by, target: '' }
  const { blocks, leftOut } = await methods.listBlocks(create(ListBlocksRequestSchema, {}), action)
  assert.deepEqual([blocks?.map(({ caller }) => caller?.by?.value), leftOut], [['a', undefined], 1])
})
