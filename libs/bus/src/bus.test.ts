import assert from 'node:assert/strict'
import { test } from 'node:test'
import { create, toBinary } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { jetstream, jetstreamManager } from '@nats-io/jetstream'
import { connect } from '@nats-io/transport-node'
import { broadcastContract, bucketContract, contract, DEAD_LETTER_SUBJECT } from '@tollward/contracts'
import { RateUsedSchema } from '@tollward/contracts/decision'
import { AlertRaisedSchema } from '@tollward/contracts/detection'
import { StoredDocumentSchema } from '@tollward/contracts/document'
import { EntryAppendedSchema } from '@tollward/contracts/ledger'
import { FlowObservedSchema } from '@tollward/contracts/sensor'
import { IntrospectorService, TokenRevokedSchema } from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
import { eventually, requires, startNatsServer } from '@tollward/testkit'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import { type Bus, type BusOptions, connectBus } from './bus.ts'
import { provision } from './provision.ts'

const skip = await requires({ tools: ['nats-server'] })
const log = pino({ level: 'silent' })
const documents = bucketContract(StoredDocumentSchema)
const alerts = contract(AlertRaisedSchema)
const rates = broadcastContract(RateUsedSchema)
const revocations = contract(TokenRevokedSchema)

async function startBus() {
  await using resources = new AsyncDisposableStack()
  const nats = resources.use(await startNatsServer({}))
  const provisioner = resources.adopt(await connect({ servers: nats.url }), (connection) => connection.close())
  await provision(provisioner)
  const owned = resources.move()
  return {
    nats,
    provisioner,
    bus: async (name: string, options: Partial<BusOptions> = {}) =>
      owned.use(await connectBus({ servers: nats.url, name, log, registry: new Registry(), ...options })),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

const alert = (id: string) => create(AlertRaisedSchema, { alert: { alertId: id } })
const revocation = (hash: string) => create(TokenRevokedSchema, { tokenHash: hash })
const stored = (name: string) => create(StoredDocumentSchema, { format: 1, kind: 'Plan', name })

const isCode = (code: string) => (error: unknown) => error instanceof AppError && error.code === code

test('an event published twice under one id is delivered once', { skip }, async () => {
  await using setup = await startBus()
  const bus = await setup.bus('alert-router')
  const seen: string[] = []
  await using _consumer = await bus.consume('alert-router', alerts, (message) => {
    seen.push(message.alert?.alertId ?? '')
    return 'done'
  })
  assert.equal((await bus.publish(alerts, alert('a'), { id: 'same' })).duplicate, false)
  assert.equal((await bus.publish(alerts, alert('a'), { id: 'same' })).duplicate, true)
  await bus.publish(alerts, alert('b'))
  await eventually(() => seen.includes('b'), { what: 'the second alert' })
  assert.deepEqual(seen, ['a', 'b'])
})

test('a failing message comes again with its delivery count, and a handled one does not', { skip }, async () => {
  await using setup = await startBus()
  const bus = await setup.bus('alert-router')
  const deliveries: number[] = []
  await using _consumer = await bus.consume('alert-router', alerts, (_message, delivery) => {
    deliveries.push(delivery.deliveries)
    if (delivery.deliveries === 1) throw new Error('not now')
    return delivery.deliveries === 2 ? 'retry' : 'done'
  })
  await bus.publish(alerts, alert('a'))
  await eventually(() => deliveries.length === 3, { what: 'three deliveries' })
  assert.deepEqual(deliveries, [1, 2, 3])
  const manager = await jetstreamManager(setup.provisioner)
  await eventually(async () => (await manager.streams.info('ALERTS')).state.messages === 0, {
    what: 'the acknowledgement',
  })
})

test('undecodable bytes and hopeless messages become dead letters with their reason, and the consumer goes on', {
  skip,
}, async () => {
  await using setup = await startBus()
  const bus = await setup.bus('alert-router')
  const seen: string[] = []
  await using _consumer = await bus.consume('alert-router', alerts, (message) => {
    if (message.alert?.alertId === 'hopeless') throw new AppError('invalid_argument', 'No.')
    seen.push(message.alert?.alertId ?? '')
    return 'done'
  })
  await jetstream(setup.provisioner).publish(alerts.subject, new Uint8Array([0xff, 0xff, 0xff]))
  await bus.publish(alerts, alert('hopeless'))
  await bus.publish(alerts, alert('fine'))
  await eventually(() => seen.includes('fine'), { what: 'the message after the bad ones' })
  const manager = await jetstreamManager(setup.provisioner)
  const dead = await eventually(
    async () => {
      const { messages } = (await manager.streams.info('DEAD')).state
      return (
        messages === 2 && [
          await manager.streams.getMessage('DEAD', { seq: 1 }),
          await manager.streams.getMessage('DEAD', { seq: 2 }),
        ]
      )
    },
    { what: 'two dead letters' },
  )
  assert.deepEqual(
    dead.map((letter) => letter?.subject),
    [`${DEAD_LETTER_SUBJECT}.alert-router`, `${DEAD_LETTER_SUBJECT}.alert-router`],
  )
  assert.deepEqual(dead.map((letter) => letter?.header.get('Tollward-Reason')).sort(), [
    'invalid_argument',
    'undecodable',
  ])
  assert.equal(dead[0]?.header.get('Tollward-Subject'), alerts.subject)
})

test('of several appends to one place of a stream exactly one wins', { skip }, async () => {
  await using setup = await startBus()
  const bus = await setup.bus('payment-verifier')
  const ledger = contract(EntryAppendedSchema)
  const entry = create(EntryAppendedSchema, { appendedAt: timestampFromMs(1) })
  const first = await Promise.allSettled(Array.from({ length: 16 }, () => bus.append(ledger, entry, 0)))
  assert.equal(first.filter((result) => result.status === 'fulfilled').length, 1)
  for (const result of first) if (result.status === 'rejected') assert.ok(isCode('conflict')(result.reason))
  assert.equal(await bus.append(ledger, entry, 1), 2)
})

test('a bucket creates once, updates by compare-and-set, and can create again after a removal', { skip }, async () => {
  await using setup = await startBus()
  const bucket = (await setup.bus('admin-api')).bucket(documents)
  const created = await Promise.allSettled(
    Array.from({ length: 16 }, (_, index) => bucket.create('k', stored(String(index)))),
  )
  assert.equal(created.filter((result) => result.status === 'fulfilled').length, 1)
  for (const result of created) if (result.status === 'rejected') assert.ok(isCode('already_exists')(result.reason))
  const entry = await bucket.get('k')
  assert.ok(entry)
  await bucket.update('k', stored('new'), entry.revision)
  await assert.rejects(bucket.update('k', stored('late'), entry.revision), isCode('conflict'))
  assert.equal((await bucket.get('k'))?.value.name, 'new')
  await bucket.remove('k')
  assert.equal(await bucket.get('k'), undefined)
  await bucket.create('k', stored('again'))
  assert.equal((await bucket.get('k'))?.value.name, 'again')
  await assert.rejects(bucket.get('not a key'), isCode('invalid_argument'))
})

test('a filter finds entries by parts of their keys, and nothing else', { skip }, async () => {
  await using setup = await startBus()
  const bucket = (await setup.bus('admin-api')).bucket(documents)
  for (const key of ['a.x.1', 'a.y.2', 'b.x.3']) await bucket.create(key, stored(key))
  const keys = async (filter?: string) => (await bucket.entries(filter)).map(({ key }) => key).sort()
  assert.deepEqual(await keys('a.*.*'), ['a.x.1', 'a.y.2'])
  assert.deepEqual(await keys('*.x.*'), ['a.x.1', 'b.x.3'])
  assert.deepEqual(await keys('c.*.*'), [])
  assert.deepEqual(await keys(), ['a.x.1', 'a.y.2', 'b.x.3'])
  assert.equal((await bucket.match('*.*.2'))?.key, 'a.y.2')
  assert.equal(await bucket.match('*.*.4'), undefined)
  await bucket.remove('a.y.2')
  assert.equal(await bucket.match('*.*.2'), undefined)
  for (const filter of ['a.>', 'a..x', 'a b', '', '$KV']) {
    await assert.rejects(bucket.match(filter), isCode('invalid_argument'), filter)
  }
})

test('of many requests at once each gets its own answer', { skip }, async () => {
  await using setup = await startBus()
  const bucket = (await setup.bus('admin-api')).bucket(documents)
  const keys = Array.from({ length: 200 }, (_, index) => `k${index}`)
  const revisions = await Promise.all(keys.map((key) => bucket.create(key, stored(key))))
  assert.equal(new Set(revisions).size, keys.length)
  const entries = await Promise.all(keys.map((key) => bucket.get(key)))
  assert.deepEqual(
    entries.map((entry) => entry?.value.name),
    keys,
  )
  assert.deepEqual(
    entries.map((entry) => entry?.revision),
    revisions,
  )
})

test('a publication that no stream takes is refused at once', { skip }, async () => {
  await using setup = await startBus()
  const bus = await setup.bus('admin-api')
  const startedMs = performance.now()
  await assert.rejects(bus.publishBytes('tollward.nowhere.v1.x.happened', new Uint8Array()), isCode('unavailable'))
  assert(performance.now() - startedMs < 1000)
})

test('an extended value lapses at its new end and not at its old one, on reading and for watchers', {
  skip,
}, async () => {
  await using setup = await startBus()
  const bucket = (await setup.bus('admin-api')).bucket(documents)
  const changes: (string | undefined)[] = []
  await using _following = await bucket.follow({
    snapshot: () => {},
    change: (_key, entry) => changes.push(entry?.value.name),
  })
  const startMs = Date.now()
  const revision = await bucket.create('k', stored('short'), { expiresAtMs: startMs + 1000 })
  // A value that is replaced before it was sent is not sent any more.
  await eventually(() => changes.includes('short'), { what: 'the watcher seeing the value' })
  await bucket.update('k', stored('long'), revision, { expiresAtMs: startMs + 3000 })
  await eventually(async () => (await bucket.get('k')) === undefined, { what: 'the end of the value' })
  assert.ok(Date.now() - startMs >= 3000, 'it ended before its new end')
  await eventually(() => changes.includes(undefined), { what: 'the watcher being told' })
  assert.deepEqual(changes, ['short', 'long', undefined])
})

test('a value whose end has come is absent, even while the server still has it', { skip }, async () => {
  await using setup = await startBus()
  const bucket = (await setup.bus('admin-api')).bucket(documents)
  const expiresAtMs = Date.now() + 150
  await bucket.create('k', stored('short'), { expiresAtMs })
  await eventually(() => Date.now() >= expiresAtMs, { what: 'its end', intervalMs: 5 })
  const manager = await jetstreamManager(setup.provisioner)
  const raw = await manager.streams.getMessage('KV_documents', { last_by_subj: '$KV.documents.k' })
  assert.equal(raw?.header.get('Nats-Marker-Reason'), '', 'the server was faster: this shows nothing')
  assert.equal(await bucket.get('k'), undefined)
})

test('a watcher gets a whole snapshot, then changes, and after a loss of the server the whole again', {
  skip,
}, async () => {
  await using setup = await startBus()
  const writer = (await setup.bus('admin-api')).bucket(documents)
  const reader = await setup.bus('gateway')
  await writer.put('a', stored('a1'))
  await writer.put('b', stored('b1'))
  const snapshots: string[][] = []
  const changes: string[] = []
  await using following = await reader.bucket(documents).follow({
    snapshot: (entries) => snapshots.push([...entries.values()].map((entry) => entry.value.name).sort()),
    change: (key, entry) => changes.push(`${key}=${entry?.value.name}`),
  })
  assert.deepEqual(snapshots, [['a1', 'b1']])
  await writer.put('a', stored('a2'))
  await writer.remove('b')
  await eventually(() => changes.length === 2, { what: 'two changes' })
  assert.deepEqual(changes, ['a=a2', 'b=undefined'])
  await setup.nats.stop()
  await eventually(() => !reader.connected, { what: 'the loss being noticed' })
  await eventually(() => following.silentForMs > 1500, { what: 'the silence being told' })
  await setup.nats.start()
  await eventually(() => snapshots.length > 1, { what: 'the second snapshot' })
  assert.deepEqual(snapshots.at(-1), ['a2'])
  await writer.put('c', stored('c1'))
  await eventually(() => changes.includes('c=c1'), { what: 'a change after the restart' })
  assert.ok(following.silentForMs < 1500)
})

test('what is made of a large bucket is told how far it is, and made anew after a loss of the server', {
  skip,
}, async () => {
  await using setup = await startBus()
  const writer = (await setup.bus('admin-api')).bucket(documents)
  const reader = await setup.bus('gateway')
  await Promise.all(Array.from({ length: 2100 }, (_, index) => writer.put(`k${index}`, stored(`${index}`))))
  await writer.remove('k7')
  const finished: number[] = []
  const told: [read: number, total: number][] = []
  const changes: string[] = []
  await using _following = await reader.bucket(documents).follow({
    begin: () => {
      const keys = new Set<string>()
      return {
        set: (key, entry) => void (entry ? keys.add(key) : keys.delete(key)),
        finish: () => finished.push(keys.size),
      }
    },
    change: (key) => changes.push(key),
    progress: (...how) => told.push(how),
  })
  assert.deepEqual(finished, [2099])
  assert.deepEqual(told, [
    [1000, 2100],
    [2000, 2100],
  ])
  await writer.put('k7', stored('again'))
  await eventually(() => changes.length === 1, { what: 'a change' })
  await setup.nats.stop()
  await eventually(() => !reader.connected, { what: 'the loss being noticed' })
  await setup.nats.start()
  await eventually(() => finished.length === 2, { what: 'the second time' })
  assert.deepEqual([finished[1], changes], [2100, ['k7']])
  assert.deepEqual(told.slice(2), told.slice(0, 2))
})

test('a follower reads the past in order and misses nothing over a restart of the server', { skip }, async () => {
  await using setup = await startBus()
  const bus = await setup.bus('auth-issuer')
  for (let index = 0; index < 50; index++) await bus.publish(revocations, revocation(`p${index}`))
  const seen: string[] = []
  await using _following = await (await setup.bus('authorizer')).follow(revocations, 'beginning', (message) => {
    seen.push(message.tokenHash)
  })
  assert.equal(seen.length, 50)
  await bus.publish(revocations, revocation('before'))
  await setup.nats.stop()
  await setup.nats.start()
  await eventually(() => bus.connected, { what: 'the reconnection' })
  await eventually(() => bus.publish(revocations, revocation('after'), { id: 'after' }), { what: 'a publication' })
  await eventually(() => seen.includes('after'), { what: 'the event after the restart' })
  assert.deepEqual(seen, [...Array.from({ length: 50 }, (_, index) => `p${index}`), 'before', 'after'])
})

test('a durable consumer goes on by itself after a restart of the server', { skip }, async () => {
  await using setup = await startBus()
  const bus = await setup.bus('alert-router')
  const seen: string[] = []
  await using _consumer = await bus.consume('alert-router', alerts, (message) => {
    seen.push(message.alert?.alertId ?? '')
    return 'done'
  })
  await bus.publish(alerts, alert('before'))
  await eventually(() => seen.includes('before'), { what: 'the first alert' })
  await setup.nats.stop()
  await setup.nats.start()
  await eventually(() => bus.publish(alerts, alert('after'), { id: 'after' }), { what: 'a publication' })
  await eventually(() => seen.includes('after'), { what: 'the alert after the restart', timeoutMs: 20_000 })
})

test('a method answers, its error travels with code and message, and nobody there is said at once', {
  skip,
}, async () => {
  await using setup = await startBus()
  const introspector = (await setup.bus('gateway')).client(IntrospectorService)
  await assert.rejects(introspector.introspect({ token: 't' }), isCode('unavailable'))
  const server = await setup.bus('token-introspector')
  await using _serving = server.serve(IntrospectorService, {
    introspect: async ({ token }, { traceparent }) => {
      if (token === 'foreign') throw new AppError('permission_denied', 'Not yours.')
      if (token === 'broken') throw new Error('a secret detail')
      return { info: { active: true, clientId: `${token} ${traceparent}` } }
    },
  })
  await server.follow(revocations, 'now', () => {})
  const answer = await introspector.introspect({ token: 't' }, { traceparent: 'tp' })
  assert.equal(answer.info?.clientId, 't tp')
  await assert.rejects(
    introspector.introspect({ token: 'foreign' }),
    (error) => isCode('permission_denied')(error) && (error as Error).message === 'Not yours.',
  )
  await assert.rejects(
    introspector.introspect({ token: 'broken' }),
    (error) => isCode('internal')(error) && !(error as Error).message.includes('secret'),
  )
})

test('history gives the newest of a stream under a limit, oldest first', { skip }, async () => {
  await using setup = await startBus()
  const bus = await setup.bus('admin-api')
  for (let index = 0; index < 5; index++) {
    await bus.publishBytes('tollward.siem.v1.finding.published.high', new TextEncoder().encode(String(index)))
  }
  const letters = await bus.history('FINDINGS', 'tollward.siem.v1.finding.published.*', {
    sinceMs: Date.now() - 60_000,
    limit: 3,
  })
  assert.deepEqual(
    letters.map((letter) => new TextDecoder().decode(letter.bytes)),
    ['2', '3', '4'],
  )
  assert.deepEqual(
    await bus.history('FINDINGS', 'tollward.siem.v1.finding.published.low', { sinceMs: 0, limit: 3 }),
    [],
  )
})

test('a batch with a key is heard live under its key only', { skip }, async () => {
  await using setup = await startBus()
  const flows = contract(FlowObservedSchema)
  const listener = await setup.bus('admin-api')
  const heard: string[] = []
  await using _listening = listener.listen(flows, (message) => heard.push(message.node), { key: 'n1' })
  await listener.history('FINDINGS', 'tollward.siem.v1.finding.published.*', { sinceMs: 0, limit: 1 })
  const bus = await setup.bus('node-sensor')
  await bus.publish(flows, create(FlowObservedSchema, { node: 'n2' }), { key: 'n2' })
  await bus.publish(flows, create(FlowObservedSchema, { node: 'n1' }), { key: 'n1' })
  await eventually(() => heard.length > 0, { what: 'the batch' })
  assert.deepEqual(heard, ['n1'])
})

test('a broadcast reaches everybody who listens now, and nobody keeps it', { skip }, async () => {
  await using setup = await startBus()
  const heard: string[] = []
  const note = (who: string) => (message: { sequence: bigint }) => void heard.push(`${who} ${message.sequence}`)
  const [teller, one, other] = [await setup.bus('gateway'), await setup.bus('authorizer'), await setup.bus('gateway')]
  const tell = (sequence: bigint) => teller.broadcast(rates, create(RateUsedSchema, { decider: 'd', sequence }))
  assert.ok(tell(1n), 'before anybody listens')
  await settled(teller)
  await using _one = one.listen(rates, note('one'))
  await using _other = other.listen(rates, note('other'))
  for (const bus of [teller, one, other]) await settled(bus)
  assert.ok(tell(2n))
  await eventually(() => heard.length === 2, { what: 'both to hear' })
  assert.deepEqual(heard.toSorted(), ['one 2', 'other 2'])
  const streams = await (await jetstreamManager(setup.provisioner)).streams.names(rates.subject).next()
  assert.deepEqual(streams, [])
})

test('while the server is gone nothing is told, which is counted, nor kept to be told later', { skip }, async () => {
  await using setup = await startBus()
  const registry = new Registry()
  const teller = await setup.bus('gateway', { registry })
  const listener = await setup.bus('authorizer')
  const heard: bigint[] = []
  await using _listening = listener.listen(rates, ({ sequence }) => void heard.push(sequence))
  await settled(listener)
  const tell = (sequence: bigint) => teller.broadcast(rates, create(RateUsedSchema, { sequence }))
  await setup.nats.stop()
  await eventually(() => !teller.connected, { what: 'the loss to be noticed' })
  assert.equal(tell(1n), false)
  await setup.nats.start()
  await eventually(() => teller.connected && listener.connected, { what: 'both to be back' })
  await settled(listener)
  assert.ok(tell(2n))
  await eventually(() => heard.length > 0, { what: 'the next' })
  assert.deepEqual(heard, [2n])
  const published = await registry.getSingleMetric('tollward_bus_published_total')?.get()
  const counts = Object.fromEntries(published?.values.map(({ labels, value }) => [labels.result, value]) ?? [])
  assert.deepEqual(counts, { failed: 1, sent: 1 })
})

test('a broadcast that has not the declared type is counted and passed over', { skip }, async () => {
  await using setup = await startBus()
  const registry = new Registry()
  const listener = await setup.bus('authorizer', { registry })
  const heard: bigint[] = []
  await using _listening = listener.listen(rates, ({ sequence }) => void heard.push(sequence))
  await settled(listener)
  setup.provisioner.publish(rates.subject, new Uint8Array([0xff, 0xff]))
  setup.provisioner.publish(rates.subject, toBinary(RateUsedSchema, create(RateUsedSchema, { sequence: 3n })))
  await eventually(() => heard.length > 0, { what: 'the good one' })
  assert.deepEqual(heard, [3n])
  const undecodable = await registry.getSingleMetric('tollward_bus_undecodable_total')?.get()
  assert.deepEqual(undecodable?.values, [{ labels: { feed: rates.subject }, value: 1 }])
})

/** The server answers in order: what was subscribed before this is heard after it. */
async function settled(bus: Bus): Promise<void> {
  await bus.history('FINDINGS', 'tollward.siem.v1.finding.published.none', { sinceMs: Date.now(), limit: 1 })
}
