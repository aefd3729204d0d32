import assert from 'node:assert/strict'
import { test } from 'node:test'
import { create, toBinary } from '@bufbuild/protobuf'
import { contract } from '@tollward/contracts'
import { type FlowObserved, FlowObservedSchema, FlowSchema } from '@tollward/contracts/sensor'
import { eventually, requires, startNatsServer } from '@tollward/testkit'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import { sensorMetrics } from '../metrics.ts'
import { decidingBus, provisionBus } from '../test-node.ts'
import { Outbox } from './batch-publisher.ts'
import { FlowPublisher } from './flow-publisher.ts'

const skip = await requires({ tools: ['nats-server'] })
const flowsFrom = (...ports: number[]) => {
  const flows = ports.map((sourcePort) => create(FlowSchema, { sourcePort }))
  return [flows.length, toBinary(FlowObservedSchema, create(FlowObservedSchema, { flows })), 0] as const
}

test('flows that find no room while the bus is away are counted as lost: the oldest go, the order stays', {
  skip,
}, async () => {
  await using nats = await startNatsServer()
  await using bus = await decidingBus(nats.url)
  const registry = new Registry()
  const nothing = () => ({})
  const metrics = sensorMetrics(registry, { verdicts: nothing, events: nothing, blocks: nothing })
  const log = pino({ level: 'silent' })
  // Room for two of the batches below.
  const outbox = new Outbox({ log, bufferBytesMax: 600 })
  const publisher = new FlowPublisher({ node: 'rack.1', outbox, metrics })
  const end = new AbortController()
  await nats.stop()
  await eventually(() => !bus.connected, { what: 'the bus is away' })
  const running = outbox.run(bus, end.signal)

  publisher.add(...flowsFrom(1, 2))
  await eventually(() => true, { what: 'a turn' })
  publisher.add(...flowsFrom(3, 4))
  publisher.add(...flowsFrom(5))
  publisher.add(...flowsFrom(6, 7))
  publisher.addLost(10, 'kernel_full')
  await nats.start()
  await provisionBus(nats.url)

  const seen: FlowObserved[] = []
  await using _following = await bus.follow(contract(FlowObservedSchema), 'beginning', (message, { key }) => {
    assert.equal(key, 'rack_1')
    seen.push(message)
  })
  const ports = () => seen.flatMap(({ flows }) => flows.map(({ sourcePort }) => sourcePort))
  await eventually(() => ports().includes(7), { what: 'the newest flows are on the bus' })
  // The first batch was on its way already; the second is the one that had to go.
  assert.deepEqual(ports(), [1, 2, 5, 6, 7])
  assert.deepEqual(
    seen.map(({ node, sequence, lost }) => ({ node, sequence, lost })),
    [
      { node: 'rack.1', sequence: 1n, lost: 0n },
      { node: 'rack.1', sequence: 2n, lost: 12n },
      { node: 'rack.1', sequence: 3n, lost: 0n },
    ],
  )
  assert.match(await registry.metrics(), /flows_lost_total\{reason="buffer_full"\} 2/)
  end.abort()
  await running
})
