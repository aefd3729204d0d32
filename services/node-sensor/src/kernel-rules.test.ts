import assert from 'node:assert/strict'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, beforeEach, describe, test } from 'node:test'
import { create } from '@bufbuild/protobuf'
import { timestampNow } from '@bufbuild/protobuf/wkt'
import { createUser } from '@nats-io/nkeys'
import { type Bus, permissionsOf } from '@tollward/bus'
import { bucketContract, contract, formatAddress } from '@tollward/contracts'
import { type Alert, AlertRaisedSchema, Disposition } from '@tollward/contracts/detection'
import { StoredDocumentSchema } from '@tollward/contracts/document'
import { type SensorState, SensorStateSchema } from '@tollward/contracts/sensor'
import { API_VERSION, documentKey, KERNEL_RULES_MAX, STORED_FORMAT } from '@tollward/documents'
import {
  eventually,
  freePort,
  type NatsServer,
  type NetworkNamespace,
  networkNamespace,
  type Service,
  startNatsServer,
  startService,
  temporaryDirectory,
} from '@tollward/testkit'
import { blocksOf, decidingBus, greeter, metric, pinDirectory, reasons, skip, tryFrom } from './test-node.ts'

const NODE = 'node.one'
/** So many datagrams, or without end, with so many ms in between. */
const DATAGRAMS = `const [, host, port, count, ms] = process.argv
const socket = require('dgram').createSocket('udp4')
let left = Number(count) || Infinity
const next = () => left-- > 0 ? socket.send('x', port, host, () => ms > 0 ? setTimeout(next, ms) : next()) : socket.close()
next()`

/** One node with two neighbours; every test begins with a sensor that runs, and without rules and blocks. */
describe('a node with kernel rules', { skip }, () => {
  const resources = new AsyncDisposableStack()
  const alerts: Alert[] = []
  let nats: NatsServer
  let bus: Bus
  let rules: ReturnType<typeof rulesOf>
  let blocks: ReturnType<typeof blocksOf>
  let alice: NetworkNamespace
  let bob: NetworkNamespace
  let port: number
  let environment: Record<string, string>
  let sensor: Service

  const sees = (who: NetworkNamespace, what: 'served' | 'silence', when: string) =>
    eventually(async () => (await tryFrom(who, port)) === what, { what: `${what} ${when}` })
  const state = async (): Promise<SensorState | undefined> =>
    (await bus.bucket(bucketContract(SensorStateSchema)).get(Buffer.from(NODE).toString('base64url')))?.value
  const stateWhere = (what: string, isThere: (state: SensorState) => boolean) =>
    eventually(
      async () => {
        const now = await state()
        return now && isThere(now) ? now : undefined
      },
      { what },
    )
  const ruleState = (name: string, isThere: (rule: SensorState['rules'][number]) => boolean) =>
    stateWhere(`the state of rule ${name}`, ({ rules }) => rules.some((rule) => rule.name === name && isThere(rule)))
  const inForce = (count: number) =>
    eventually(async () => (await metric(sensor.healthUrl, 'tollward_node_sensor_rules{state="in_force"}')) === count, {
      what: `${count} rules in force`,
    })
  const apply = async (name: string, spec: Record<string, unknown>, expiresAtMs?: number) => {
    await rules.apply(name, spec, expiresAtMs)
    await inForce(await rules.count())
  }
  const alertsOf = (name: string) => alerts.filter(({ title }) => title.startsWith(`KernelRule/${name} `))
  const alertOf = (name: string) => eventually(() => alertsOf(name)[0], { what: `an alert of ${name}` })

  before(async () => {
    const user = createUser()
    const seedFile = join(resources.use(await temporaryDirectory()).path, 'node-sensor.nk')
    await writeFile(seedFile, user.getSeed(), { mode: 0o600 })
    nats = resources.use(await startNatsServer({ config: onlyItsOwn(user.getPublicKey()) }))
    bus = resources.use(await decidingBus(nats.url))
    // In place of alert-router.
    resources.use(
      await bus.consume('alert-router', contract(AlertRaisedSchema), ({ alert }) => {
        if (alert) alerts.push(alert)
        return Promise.resolve('done')
      }),
    )
    rules = rulesOf(bus)
    blocks = blocksOf(bus)
    alice = resources.use(await networkNamespace())
    bob = resources.use(await networkNamespace())
    port = resources.use(await greeter()).port
    environment = {
      PATH: process.env.PATH ?? '',
      TOLLWARD_NATS_URL: nats.url,
      TOLLWARD_NATS_NKEY_FILE: seedFile,
      TOLLWARD_HEALTH_PORT: String(await freePort()),
      TOLLWARD_INTERFACES: `${alice.hostDevice},${bob.hostDevice}`,
      TOLLWARD_NODE: NODE,
      TOLLWARD_PIN_DIRECTORY: resources.use(pinDirectory()).path,
    }
    sensor = resources.use(await startService('node-sensor', environment))
  })
  beforeEach(async () => {
    await rules.deleteAll()
    await blocks.liftAll()
    await inForce(0)
    await sees(alice, 'served', 'before the test')
  })
  after(() => resources.disposeAsync())

  test('a rule drops what it names and nothing else, until it is deleted', async () => {
    await apply('no-alice', {
      direction: 'ingress',
      protocol: 'tcp',
      sources: [alice.address],
      ports: [port],
      action: 'drop',
    })
    await sees(alice, 'silence', 'by the rule')
    assert.equal(await tryFrom(bob, port), 'served')
    await using other = await greeter()
    assert.equal(await tryFrom(alice, other.port), 'served')
    await rules.delete('no-alice')
    await sees(alice, 'served', 'without the rule')
    assert.ok((await metric(sensor.healthUrl, 'tollward_node_sensor_rule_apply_seconds_count')) > 0)
  })

  test('rules are looked at by priority; allow ends it, also for who is blocked', async () => {
    await apply('a-drop', { direction: 'ingress', protocol: 'tcp', sources: [alice.address], action: 'drop' })
    await sees(alice, 'silence', 'by the rule')
    await apply('z-allow', { direction: 'ingress', sources: [alice.address], action: 'allow', priority: 10 })
    await sees(alice, 'served', 'by the rule before')
    await blocks.add(alice.address)
    await blocks.add(bob.address)
    await sees(bob, 'silence', 'by the block')
    assert.equal(await tryFrom(alice, port), 'served')
    await rules.delete('z-allow')
    await sees(alice, 'silence', 'once nothing allows it')
  })

  test('a rate limits each source by itself, and lets through what is within', async () => {
    const rate = { packetsPerSecond: 20, burst: 20 }
    await using server = await datagramServer()
    const spec = { direction: 'ingress', protocol: 'udp', ports: [server.port], action: 'rate-limit', rate }
    await apply('limit', spec)
    await alice.exec(process.execPath, ['-e', DATAGRAMS, alice.hostAddress, String(server.port), '300', '0'])
    await bob.exec(process.execPath, ['-e', DATAGRAMS, bob.hostAddress, String(server.port), '10', '0'])
    const now = await ruleState('limit', ({ packets }) => packets === 310n)
    const dropped = Number(now.rules.find(({ name }) => name === 'limit')?.dropped)
    const received = (who: NetworkNamespace) => server.received.get(who.address) ?? 0
    await eventually(() => received(alice) + received(bob) === 310 - dropped, { what: 'everything else arrives' })
    assert.ok(received(alice) >= rate.burst && received(alice) < 200, `${received(alice)}`)
    assert.equal(received(bob), 10)
  })

  test('while rules are changed again and again, not one packet passes that a rule drops all the while', async () => {
    await using server = await datagramServer()
    await apply('stays', { direction: 'ingress', sources: [alice.address], action: 'drop' })
    await sees(alice, 'silence', 'by the rule')
    const flood = await alice.start(process.execPath, [
      '-e',
      DATAGRAMS,
      alice.hostAddress,
      String(server.port),
      '0',
      '1',
    ])
    await using _flood = flood
    const before = await ruleState('stays', ({ dropped }) => dropped > 100n)
    for (let round = 0; round < 40; round++) {
      await apply(`other${round % 4}`, {
        direction: 'ingress',
        protocol: 'tcp',
        ports: [round + 1],
        action: 'drop',
        priority: round,
      })
      if (round % 4 === 3) await rules.delete(`other${round % 3}`)
    }
    const droppedOf = ({ rules }: SensorState) => rules.find(({ name }) => name === 'stays')?.dropped ?? 0n
    await stateWhere('more was dropped', (now) => droppedOf(now) > droppedOf(before) + 100n)
    assert.deepEqual([...server.received], [])
  })

  test('a rule at egress drops what leaves', async () => {
    await apply('no-answers', { direction: 'egress', protocol: 'tcp', destinations: [alice.address], action: 'drop' })
    await sees(alice, 'silence', 'as the answers are dropped')
    assert.equal(await tryFrom(bob, port), 'served')
    await ruleState('no-answers', ({ dropped }) => dropped > 0n)
  })

  test('a rule ends at its end, with the sensor dead as well', async () => {
    const endsMs = Date.now() + 4000
    await apply('short', { direction: 'ingress', sources: [alice.address], action: 'drop' }, endsMs)
    await sees(alice, 'silence', 'by the rule')
    await sensor.kill()
    assert.equal(await tryFrom(alice, port), 'silence')
    await sees(alice, 'served', 'once it is over')
    assert.ok(Date.now() >= endsMs)
    await sensor.start()
  })

  test('after a crash the rules stay; the next sensor finds what was changed meanwhile', async () => {
    await apply('a', { direction: 'ingress', sources: [alice.address], action: 'drop' })
    await sees(alice, 'silence', 'by the rule')
    await sensor.kill()
    assert.equal(await tryFrom(alice, port), 'silence')
    await rules.delete('a')
    await rules.apply('b', { direction: 'ingress', sources: [bob.address], action: 'drop' })
    await sensor.start()
    // It counts for itself, whatever the rule before it had counted.
    await ruleState('b', ({ packets, fault }) => packets === 0n && fault === '')
    await sees(bob, 'silence', 'by the rule of the meantime')
    assert.equal(await tryFrom(alice, port), 'served')
  })

  test('a rule that cannot be read leaves the one before, and is counted', async () => {
    await apply('a', { direction: 'ingress', sources: [alice.address], action: 'drop' })
    await sees(alice, 'silence', 'by the rule')
    // Of other kinds the sensor hears nothing.
    await rules.writePlan('p')
    await rules.write('a', 'nonsense')
    await sensor.line(/stored kernel rule could not be read/)
    assert.equal(await metric(sensor.healthUrl, 'tollward_node_sensor_rules_unreadable_total'), 1)
    assert.equal(await tryFrom(alice, port), 'silence')
    await rules.apply('a', { direction: 'ingress', sources: [alice.address], action: 'drop', mode: 'audit' })
    await sees(alice, 'served', 'in audit mode')
  })

  test('rules that have no room are told by name, and the others stand', async () => {
    const spec = { direction: 'ingress', sources: ['203.0.113.0/24'], action: 'drop', priority: 1 }
    await Promise.all(Array.from({ length: KERNEL_RULES_MAX }, (_, index) => rules.apply(`r${index}`, spec)))
    await inForce(KERNEL_RULES_MAX)
    await rules.apply('zz-last', { direction: 'ingress', sources: [alice.address], action: 'drop', priority: 2 })
    await eventually(
      async () =>
        (await reasons(sensor.healthUrl)).some((reason) => /^rules: 1 not in force, such as zz-last: /.test(reason)),
      {
        what: 'readiness says which rule is left out',
      },
    )
    assert.equal(await tryFrom(alice, port), 'served')
    await rules.delete('r7')
    await sees(alice, 'silence', 'once there is room')
    assert.deepEqual(await reasons(sensor.healthUrl), [])
  })

  test('an alert is raised when drops begin, with who sent what; audit mode says what would be', async () => {
    await apply('begins', {
      direction: 'ingress',
      protocol: 'tcp',
      sources: [alice.address],
      ports: [port],
      action: 'drop',
    })
    await sees(alice, 'silence', 'by the rule')
    const alert = await alertOf('begins')
    assert.deepEqual([alert.node, alert.disposition], [NODE, Disposition.BLOCKED])
    assert.equal(formatAddress(alert.source), alice.address)
    assert.deepEqual(
      alert.evidence.map(({ destinationPort, protocol }) => [destinationPort, protocol]),
      [[port, 6]],
    )
    await apply('would', { direction: 'ingress', sources: [bob.address], action: 'drop', mode: 'audit' })
    assert.equal(await tryFrom(bob, port), 'served')
    const other = await alertOf('would')
    assert.equal(other.disposition, Disposition.WOULD_BLOCK)
    assert.equal(alertsOf('begins').length, 1)
  })

  test('a rule that alerts lets through, and tells of it', async () => {
    await apply('watch', { direction: 'ingress', protocol: 'tcp', ports: [port], action: 'alert' })
    assert.equal(await tryFrom(bob, port), 'served')
    const alert = await alertOf('watch')
    assert.equal(alert.disposition, Disposition.DETECTED)
    await ruleState('watch', ({ packets, dropped, action }) => packets > 0n && dropped === 0n && action === 'alert')
  })
})

/** A server on which the sensor may do what it is granted, and whoever shows no credential everything. */
function onlyItsOwn(nkey: string): string {
  const { publish, subscribe } = permissionsOf('node-sensor')
  const sensor = { nkey, permissions: { publish: { allow: publish }, subscribe: { allow: subscribe } } }
  const users = [sensor, { user: 'tester', password: 'tester' }]
  return `no_auth_user: tester\nauthorization: ${JSON.stringify({ users })}`
}

/** Counts datagrams by their source. */
async function datagramServer(): Promise<
  { readonly port: number; readonly received: Map<string, number> } & AsyncDisposable
> {
  const received = new Map<string, number>()
  const socket = createSocket('udp4', (_, { address }) => received.set(address, (received.get(address) ?? 0) + 1))
  socket.bind(0)
  await once(socket, 'listening')
  const { port } = socket.address()
  return { port, received, [Symbol.asyncDispose]: () => socket[Symbol.asyncDispose]() }
}

/** Documents as admin-api writes them. */
function rulesOf(bus: Bus) {
  const bucket = bus.bucket(bucketContract(StoredDocumentSchema))
  const rules = {
    write: async (name: string, yaml: string, expiresAtMs?: number) => {
      const value = create(StoredDocumentSchema, {
        ...{ format: STORED_FORMAT, kind: 'KernelRule', name, yaml, appliedBy: 'test', appliedAt: timestampNow() },
      })
      await bucket.put(documentKey('KernelRule', name), value, expiresAtMs === undefined ? {} : { expiresAtMs })
    },
    apply: (name: string, spec: Record<string, unknown>, expiresAtMs?: number) => {
      const document = { apiVersion: API_VERSION, kind: 'KernelRule', metadata: { name }, spec }
      return rules.write(name, JSON.stringify(document), expiresAtMs)
    },
    writePlan: async (name: string) => {
      const value = create(StoredDocumentSchema, { format: STORED_FORMAT, kind: 'Plan', name, yaml: 'nonsense' })
      await bucket.put(documentKey('Plan', name), value)
    },
    delete: (name: string) => bucket.remove(documentKey('KernelRule', name)),
    deleteAll: async () => {
      for (const { key } of await bucket.entries()) await bucket.remove(key)
    },
    count: async () => (await bucket.entries()).length,
  }
  return rules
}
