import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Bus } from '@tollward/bus'
import { eventually, requires, startNatsServer } from '@tollward/testkit'
import { pino } from 'pino'
import { Counter, Gauge, Registry } from 'prom-client'
import { decidingBus } from '../test-node.ts'
import { type BatchKind, Outbox, type Place } from './batch-publisher.ts'

const skip = await requires({ tools: ['nats-server'] })
const log = pino({ level: 'silent' })
/** With what a batch costs beside its bytes, room for three of a hundred bytes. */
const ROOM_FOR_THREE = 3 * (100 + 256) + 10

/** A kind whose head is the sequence and the losses in words, and whose batches are letters. */
function kindOf(name: string, rank: number, subject: string): BatchKind {
  const registers = [new Registry()]
  const metric = { name: `test_${name}`, help: 'test', registers }
  return {
    ...{ name, rank, subject },
    seal: ({ sequence, lost }: Place) => Buffer.from(`${sequence} -${lost} `),
    metrics: {
      items: new Counter({ ...metric, name: 'items', labelNames: ['result'] }),
      lost: new Counter({ ...metric, name: 'lost', labelNames: ['reason'] }),
      buffered: new Gauge({ ...metric, name: 'buffered' }),
    },
  }
}

const batch = (letter: string) => Buffer.alloc(100, letter)

async function stored(bus: Bus, subject: string): Promise<string[]> {
  const letters = await bus.history('OBSERVED', subject, { sinceMs: 0, limit: 100 })
  return letters.map(({ bytes }) =>
    Buffer.from(bytes)
      .toString()
      .replace(/(.)\1+$/, '$1'),
  )
}

const FLOWS = 'tollward.sensor.v1.flow.observed.here'
const CALLS = 'tollward.sensor.v1.call.captured.here'
const ALERTS = 'tollward.sensor.v1.alerts.of.this.test'

test('what finds no room before the bus takes it is shed by rank, the oldest first: calls, then flows, alerts last', {
  skip,
}, async () => {
  await using nats = await startNatsServer()
  await using bus = await decidingBus(nats.url)
  const outbox = new Outbox({ log, bufferBytesMax: ROOM_FOR_THREE })
  const alerts = outbox.publisher(kindOf('alerts', 3, ALERTS))
  const calls = outbox.publisher(kindOf('calls', 1, CALLS))
  const flows = outbox.publisher(kindOf('flows', 2, FLOWS))

  calls.add(10, batch('a'))
  flows.add(20, batch('b'))
  calls.add(30, batch('c'))
  alerts.add(1, batch('d'))
  flows.add(40, batch('e'))
  alerts.add(1, batch('f'))
  const end = new AbortController()
  const running = outbox.run(bus, end.signal)
  await eventually(async () => (await stored(bus, ALERTS)).length === 2 && (await stored(bus, FLOWS)).length === 1, {
    what: 'what was kept is on the bus',
  })
  await eventually(async () => (await stored(bus, CALLS)).length === 1, { what: 'what is left of calls is told' })
  assert.deepEqual(await stored(bus, ALERTS), ['1 -0 d', '2 -0 f'])
  assert.deepEqual(await stored(bus, FLOWS), ['1 -20 e'])
  assert.deepEqual(await stored(bus, CALLS), ['1 -40 '])
  end.abort()
  await running
})

test('a large batch takes the room of thousands of small ones of a lower rank', async () => {
  const outbox = new Outbox({ log, bufferBytesMax: 10_000_000 })
  const alerts = outbox.publisher(kindOf('alerts', 3, ALERTS))
  const kind = kindOf('flows', 2, FLOWS)
  const flows = outbox.publisher(kind)
  for (let made = 0; made < 30_000; made += 1) flows.add(1, Buffer.alloc(1))
  alerts.add(1, Buffer.alloc(9_999_000))
  const lost = await kind.metrics.lost.get()
  assert.deepEqual(
    lost.values.map(({ value, labels }) => [labels, value]),
    [[{ reason: 'buffer_full' }, 29_998]],
  )
  assert.ok(alerts.waits)
})

test('a kind that no stream takes holds up no other', { skip }, async () => {
  await using nats = await startNatsServer()
  await using bus = await decidingBus(nats.url)
  const outbox = new Outbox({ log })
  const calls = outbox.publisher(kindOf('calls', 1, 'tollward.nobody.takes.this'))
  const flows = outbox.publisher(kindOf('flows', 2, FLOWS))
  const end = new AbortController()
  using _end = { [Symbol.dispose]: () => end.abort() }
  const running = outbox.run(bus, end.signal)
  calls.add(1, batch('a'))
  await eventually(() => calls.waits === false, { what: 'the call is on its way' })
  flows.add(1, batch('b'))
  await eventually(async () => (await stored(bus, FLOWS)).length === 1, { what: 'the flow is on the bus' })
  end.abort()
  await running
})

test('an event with an id of its own is stored once, whoever else tells it', { skip }, async () => {
  await using nats = await startNatsServer()
  await using bus = await decidingBus(nats.url)
  const { seal: _, ...kind } = kindOf('alerts', 3, ALERTS)
  const outbox = new Outbox({ log })
  const alerts = outbox.publisher(kind)
  const end = new AbortController()
  const running = outbox.run(bus, end.signal)
  alerts.addLost(3, 'kernel_full')
  alerts.add(1, batch('a'), 'alert-1')
  alerts.add(1, batch('b'), 'alert-1')
  alerts.add(1, batch('c'), 'alert-2')
  await eventually(async () => (await stored(bus, ALERTS)).length === 2, { what: 'both are on the bus' })
  assert.deepEqual(await stored(bus, ALERTS), ['a', 'c'])
  end.abort()
  await running
})
