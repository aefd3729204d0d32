import assert from 'node:assert/strict'
import { existsSync, readFileSync } from 'node:fs'
import { after, before, beforeEach, describe, test } from 'node:test'
import type { Bus, Following } from '@tollward/bus'
import { contract, parseAddress } from '@tollward/contracts'
import {
  Direction,
  type Flow,
  type FlowObserved,
  FlowObservedSchema,
  type KernelDrop,
} from '@tollward/contracts/sensor'
import {
  eventually,
  freePort,
  type NatsServer,
  type NetworkNamespace,
  networkNamespace,
  type Service,
  startNatsServer,
  startProcess,
  startService,
} from '@tollward/testkit'
import type { Capability } from './adapters/capabilities.ts'
import {
  blocksOf,
  decidingBus,
  greeter,
  isInKernel,
  MAIN,
  metric,
  pinDirectory,
  provisionBus,
  reasons,
  skip,
  tryFrom,
} from './test-node.ts'

const CONNECTIONS = `const [, host, port, count] = process.argv
const next = (left) => left === 0 || require('net').connect({ host, port }).resume().on('close', () => next(left - 1))
next(Number(count))`
const DATAGRAMS = `const [, host, port, count, bytes] = process.argv
const socket = require('dgram').createSocket('udp4')
const next = (left) => left === 0 ? socket.close() : socket.send(Buffer.alloc(Number(bytes)), port, host, () => next(left - 1))
next(Number(count))`
const IP_AND_UDP_HEADER_BYTES = 28
const UDP = 17
const observed = contract(FlowObservedSchema)

/** One node with two neighbours on a cable each; every test begins with a sensor that runs, and nobody blocked. */
describe('a node with a sensor', { skip }, () => {
  const resources = new AsyncDisposableStack()
  const flows: FlowObserved[] = []
  let nats: NatsServer
  let bus: Bus
  let blocks: ReturnType<typeof blocksOf>
  let attacker: NetworkNamespace
  let neighbour: NetworkNamespace
  let port: number
  let pins: string
  let environment: Record<string, string>
  let sensor: Service
  let runs = true
  let following: Following

  const followFlows = () => bus.follow(observed, 'beginning', (message) => void flows.push(message))
  /** Ends the sensor; the next test gets it back. */
  const end = async (how: 'stop' | 'kill') => {
    runs = false
    return await sensor[how]()
  }
  const restart = async (changes: Record<string, string>) => {
    await end('stop')
    await sensor.start({ ...environment, ...changes })
  }
  const seen = async (namespace: NetworkNamespace) => await tryFrom(namespace, port)
  const isSilent = (what: string) =>
    eventually(async () => (await seen(attacker)) === 'silence', { what: `the attacker is dropped ${what}` })
  const isServed = (what: string) =>
    eventually(async () => (await seen(attacker)) === 'served', { what: `the attacker is served ${what}` })

  before(async () => {
    nats = resources.use(await startNatsServer())
    bus = resources.use(await decidingBus(nats.url))
    blocks = blocksOf(bus)
    attacker = resources.use(await networkNamespace())
    neighbour = resources.use(await networkNamespace())
    port = resources.use(await greeter()).port
    pins = resources.use(pinDirectory()).path
    environment = {
      PATH: process.env.PATH ?? '',
      TOLLWARD_NATS_URL: nats.url,
      TOLLWARD_HEALTH_PORT: String(await freePort()),
      TOLLWARD_INTERFACES: `${attacker.hostDevice},${neighbour.hostDevice}`,
      TOLLWARD_NODE: 'node.one',
      TOLLWARD_PIN_DIRECTORY: pins,
    }
    sensor = resources.use(await startService('node-sensor', environment))
    following = await followFlows()
  })
  beforeEach(async () => {
    if (!runs) await sensor.start()
    runs = true
    await blocks.liftAll()
    const left = () => metric(sensor.healthUrl, 'tollward_node_sensor_blocks{map="block_exact"}')
    await eventually(async () => (await left()) === 0, { what: 'nobody is blocked' })
  })
  after(() => resources.disposeAsync())

  test('says which kernel part is on, and how', async () => {
    await sensor.line(new RegExp(`"interface":"${attacker.hostDevice}","hook":"xdp","on":true,"how":"native"`))
    await sensor.line(new RegExp(`"interface":"${neighbour.hostDevice}","hook":"egress","on":true`))
    await sensor.line(/"hook":"tracepoint","program":"watch_handshake","on":true/)
    const table = JSON.parse(await sensor.line(/what this kernel offers/)) as { capabilities: Capability[] }
    const isOn = (name: string) => table.capabilities.find((capability) => capability.name === name)?.on
    for (const name of ['kernel types (BTF)', 'batches of block_cidr6', 'tracepoint watch_handshake'])
      assert.equal(isOn(name), true, name)
    for (const { hostDevice } of [attacker, neighbour]) assert.equal(isOn(`native XDP on ${hostDevice}`), true)
    assert(table.capabilities.every(({ why }) => why !== ''))
  })

  test('blocked callers are no business of the kernel, and nobody is warned of them', async () => {
    await blocks.addClient('shop')
    await end('stop')
    await sensor.start(environment)
    runs = true
    await blocks.addClient('other')
    await blocks.add(attacker.address)
    await isSilent('after the blocks of callers')
    const ignored = (reason: string) =>
      metric(sensor.healthUrl, `tollward_node_sensor_blocks_ignored_total{reason="${reason}"}`)
    assert.deepEqual([await ignored('unreadable'), await ignored('guarded')], [0, 0])
    assert.ok(!sensor.lines.some((line) => line.includes('block is ignored')))
    // Another process counts its batches anew.
    flows.length = 0
  })

  test('a block in the bucket drops its source and nobody else; lifted, the source is served again', async () => {
    assert.equal(await seen(attacker), 'served')
    await blocks.add(attacker.address)
    await isSilent('once it is blocked')
    assert.equal(await seen(neighbour), 'served')
    await blocks.lift(attacker.address)
    await isServed('once its block is lifted')
    assert(!isInKernel(pins, attacker.address))
    assert((await metric(sensor.healthUrl, 'tollward_node_sensor_packets_total{verdict="dropped_exact"}')) > 0)
    assert((await metric(sensor.healthUrl, 'tollward_node_sensor_block_apply_seconds_count')) > 0)
  })

  test('ranges of IPv4 and IPv6 are dropped whole', async () => {
    const range = `${attacker.address.replace(/\d+$/, (last) => String(Number(last) & ~3))}/30`
    await blocks.add(range)
    await isSilent('as part of a range')
    assert.equal(await seen(neighbour), 'served')
    await blocks.lift(range)
    await isServed('once the range is lifted')

    const over6 = () => tryFrom(attacker, port, attacker.hostAddress6)
    assert.equal(await over6(), 'served')
    await blocks.add(`${attacker.address6.replace(/:[^:]+$/, ':0')}/112`)
    await eventually(async () => (await over6()) === 'silence', { what: 'the IPv6 range is dropped' })
    assert.equal(await seen(attacker), 'served')
    await blocks.lift(`${attacker.address6.replace(/:[^:]+$/, ':0')}/112`)
    await eventually(async () => (await over6()) === 'served', { what: 'the IPv6 range is served again' })
  })

  test('a block lapses at its end, and leaves the kernel', async () => {
    const endsMs = Date.now() + 3000
    await blocks.add(attacker.address, 3000)
    await isSilent('until the end')
    await isServed('after the end')
    assert(Date.now() >= endsMs)
    await eventually(() => !isInKernel(pins, attacker.address), { what: 'its entry is gone' })
  })

  test('a block that names only guarded addresses is ignored, and the log says so', async () => {
    await blocks.add(attacker.hostAddress)
    await sensor.line(/names only guarded addresses/)
    assert(!isInKernel(pins, attacker.hostAddress))
    assert.equal(await metric(sensor.healthUrl, 'tollward_node_sensor_blocks_ignored_total{reason="guarded"}'), 1)
    await blocks.lift(attacker.hostAddress)
  })

  test('a block of another format is ignored, and the log says so', async () => {
    await blocks.add(attacker.address, 600_000, { format: 2 })
    await sensor.line(/of another format/)
    assert(!isInKernel(pins, attacker.address))
    await blocks.lift(attacker.address)
  })

  test('flows say what happened: each connection with its handshake, each packet and byte', async () => {
    await using counted = await greeter()
    const { port } = counted
    const [connections, datagrams, bytes] = [60, 50, 200]
    await attacker.exec(process.execPath, ['-e', CONNECTIONS, attacker.hostAddress, String(port), String(connections)])
    await attacker.exec(process.execPath, [
      ...['-e', DATAGRAMS, attacker.hostAddress, String(port)],
      ...[String(datagrams), String(bytes)],
    ])
    const arrived = (protocol: number) => arriving(flows, attacker.address, protocol, port)
    const syns = () => arrived(6).reduce((sum, flow) => sum + flow.syns, 0)
    const packets = () => arrived(UDP).reduce((sum, flow) => sum + flow.packets, 0n)
    await eventually(() => syns() >= connections && packets() >= datagrams, { what: 'the flows are on the bus' })
    assert.equal(syns(), connections)
    assert.equal(new Set(arrived(6).map(({ sourcePort }) => sourcePort)).size, connections)
    assert.equal(packets(), BigInt(datagrams))
    const udpBytes = arrived(UDP).reduce((sum, flow) => sum + flow.bytes, 0n)
    assert.equal(udpBytes, BigInt(datagrams * (bytes + IP_AND_UDP_HEADER_BYTES)))
    assert(arrived(6).some(({ established }) => established))
    assert(arrived(6).every((flow) => flow.interface === attacker.hostDevice))
    const ours = arrived(6).filter(({ owner }) => owner?.processId === process.pid)
    const names = new Set(ours.map(({ owner }) => owner?.processName))
    assert.deepEqual([...names], [readFileSync('/proc/self/comm', 'utf8').trim()])
    assert(ours.some(({ rttMicros, closed, owner }) => rttMicros > 0 && closed && owner?.cgroup.startsWith('/')))
    // Nobody listens there by UDP.
    const unheard = () => flows.flatMap(({ kernelDrops }) => kernelDrops).filter(isToPort)
    const isToPort = ({ destinationPort, protocol }: KernelDrop) => destinationPort === port && protocol === UDP
    await eventually(
      async () => {
        await attacker.exec(process.execPath, ['-e', CONNECTIONS, attacker.hostAddress, String(port), '1'])
        return unheard().reduce((sum, drop) => sum + drop.packets, 0n) === BigInt(datagrams)
      },
      { what: 'the datagrams that nobody heard are told' },
    )
    assert.deepEqual([...new Set(unheard().map(({ reason }) => reason))], ['NO_SOCKET'])
    assert((await metric(sensor.healthUrl, 'tollward_node_sensor_kernel_drops_total{reason="NO_SOCKET"}')) >= datagrams)
    const left = flows.flatMap((message) => message.flows).filter(({ direction }) => direction === Direction.EGRESS)
    assert(
      left.some(({ sourcePort, destination }) => sourcePort === port && sameAddress(destination, attacker.address)),
    )
    assert(flows.every(({ node, lost }) => node === 'node.one' && lost === 0n))
    const [first] = flows
    assert(first)
    assert.deepEqual(
      flows.map(({ sequence }) => sequence),
      flows.map((_, index) => first.sequence + BigInt(index)),
    )
  })

  test('while the bus is away the kernel enforces, readiness says so, and the flows wait', async () => {
    await using counted = await greeter()
    await blocks.add(attacker.address)
    await isSilent('before the bus is away')
    await following[Symbol.asyncDispose]()
    await nats.stop()
    assert.equal(await seen(attacker), 'silence')
    const connections = 20
    await neighbour.exec(process.execPath, [
      '-e',
      CONNECTIONS,
      neighbour.hostAddress,
      String(counted.port),
      String(connections),
    ])
    await eventually(async () => (await metric(sensor.healthUrl, 'tollward_node_sensor_flows_buffered')) > 0, {
      what: 'flows wait',
    })
    await eventually(
      async () => (await reasons(sensor.healthUrl)).some((reason) => /^bus: away for [3-9] s/.test(reason)),
      {
        what: 'not ready for three seconds',
      },
    )
    assert.equal(await seen(attacker), 'silence')
    flows.length = 0
    await nats.start()
    await provisionBus(nats.url)
    await eventually(async () => (await reasons(sensor.healthUrl)).length === 0, { what: 'ready again' })
    following = await followFlows()
    const syns = () => arriving(flows, neighbour.address, 6, counted.port).reduce((sum, flow) => sum + flow.syns, 0)
    await eventually(() => syns() >= connections, { what: 'the flows of the outage arrive' })
    assert.equal(syns(), connections)
    assert(flows.every(({ lost }) => lost === 0n))
    assert.equal(await seen(attacker), 'silence')
  })

  test('a killed sensor goes on dropping; the next one finds what was lifted and blocked meanwhile', async () => {
    await blocks.add(attacker.address)
    await isSilent('before the sensor is killed')
    await end('kill')
    assert.equal(await seen(attacker), 'silence')
    assert.equal(await seen(neighbour), 'served')
    await blocks.lift(attacker.address)
    await blocks.add(neighbour.address)
    assert(isInKernel(pins, attacker.address), 'nobody told the kernel')
    await sensor.start()
    runs = true
    assert(!isInKernel(pins, attacker.address))
    assert(isInKernel(pins, neighbour.address))
    assert.equal(await seen(attacker), 'served')
    assert.equal(await seen(neighbour), 'silence')
    await sensor.line(/"how":"adopted"/)
    await sensor.line(/"maps":"adopted"/)
  })

  test('an orderly end takes nothing off, and ends with 0; a block lapses with no sensor either', async () => {
    await blocks.add(attacker.address, 4000)
    await isSilent('before the end')
    assert.equal(await end('stop'), 0)
    assert.equal(await seen(attacker), 'silence')
    assert.equal(await seen(neighbour), 'served')
    await isServed('once the block is over')
    assert(isInKernel(pins, attacker.address), 'nobody took its entry out')
  })

  test('without a bus the sensor enforces what its predecessor did, says so, and ends at once when told', async () => {
    await blocks.add(attacker.address)
    await isSilent('before the end')
    await end('stop')
    await using held = await startProcess(process.execPath, [MAIN], {
      env: { ...environment, TOLLWARD_NATS_URL: `nats://127.0.0.1:${await freePort()}` },
    })
    await eventually(
      async () => (await reasons(sensor.healthUrl)).some((reason) => reason.startsWith('bus: not reached yet')),
      { what: 'not ready without a bus' },
    )
    assert.equal(await seen(attacker), 'silence')
    assert.equal(await held.stop(), 0)
    assert.equal(await seen(attacker), 'silence')
  })

  test('maps of another size are replaced, and have the blocks of the bucket', async () => {
    await blocks.add(attacker.address)
    await restart({ TOLLWARD_BLOCKED_ADDRESSES_MAX: '7' })
    await sensor.line(/"block_exact":\{"copied":1,.*pinned maps have another layout or other sizes/)
    assert.equal(await metric(sensor.healthUrl, 'tollward_node_sensor_blocks_capacity{map="block_exact"}'), 7)
    assert.equal(await seen(attacker), 'silence')
    await end('stop')
  })

  test('a block for which there is no room is counted and logged, and applied once there is room', async () => {
    await restart({ TOLLWARD_BLOCKED_ADDRESSES_MAX: '1' })
    await blocks.add(neighbour.address)
    await blocks.add(attacker.address)
    await sensor.line(/block is not enforced on this node/)
    assert.equal(await metric(sensor.healthUrl, 'tollward_node_sensor_blocks_waiting'), 1)
    assert.equal(await metric(sensor.healthUrl, 'tollward_node_sensor_blocks_refused_total{reason="full"}'), 1)
    assert.equal(await seen(attacker), 'served')
    await blocks.lift(neighbour.address)
    await isSilent('once there is room')
    assert.equal(await metric(sensor.healthUrl, 'tollward_node_sensor_blocks_waiting'), 0)
    assert.equal(await metric(sensor.healthUrl, 'tollward_node_sensor_blocks{map="block_exact"}'), 1)
    await end('stop')
  })

  test('in audit mode nothing is dropped, and what would be is counted', async () => {
    await blocks.add(attacker.address)
    await restart({ TOLLWARD_MODE: 'audit' })
    assert(isInKernel(pins, attacker.address))
    assert.equal(await seen(attacker), 'served')
    assert((await metric(sensor.healthUrl, 'tollward_node_sensor_packets_total{verdict="audited"}')) > 0)
    await end('stop')
  })

  test('an interface that is no longer configured is let go', async () => {
    await blocks.add(attacker.address)
    await isSilent('while its interface is configured')
    await restart({ TOLLWARD_INTERFACES: neighbour.hostDevice })
    assert.equal(await seen(attacker), 'served')
    assert.doesNotMatch(await linkDetails(attacker), /xdp/)
    assert.match(await linkDetails(neighbour), /xdp/)
    await end('stop')
  })

  test('detach is refused while a sensor runs; then it leaves nothing, and says what it removed', async () => {
    const detach = () => startProcess(process.execPath, [MAIN, 'detach'], { env: { TOLLWARD_PIN_DIRECTORY: pins } })
    await using early = await detach()
    assert.equal(await early.exited, 2)
    assert.match(early.lines.join(), /is running; stop it first/)
    await blocks.add(attacker.address)
    await isSilent('before detaching')
    await end('stop')
    await using late = await detach()
    assert.equal(await late.exited, 0)
    assert.match(late.lines.join(), /^removed \d+ links, 0 programs and \d+ maps at /)
    assert(!existsSync(pins))
    for (const namespace of [attacker, neighbour]) assert.doesNotMatch(await linkDetails(namespace), /xdp/)
    assert.equal(await seen(attacker), 'served')
    await using again = await detach()
    assert.equal(await again.exited, 0)
    assert.match(again.lines.join(), /nothing is pinned/)
  })
})

async function linkDetails({ hostDevice }: NetworkNamespace): Promise<string> {
  await using shown = await startProcess('ip', ['-details', 'link', 'show', hostDevice])
  await shown.exited
  return shown.lines.join('\n')
}

function arriving(messages: readonly FlowObserved[], source: string, protocol: number, port: number): Flow[] {
  return messages
    .flatMap(({ flows }) => flows)
    .filter(
      (flow) =>
        flow.direction === Direction.INGRESS &&
        flow.protocol === protocol &&
        flow.destinationPort === port &&
        sameAddress(flow.source, source),
    )
}

function sameAddress(bytes: Uint8Array, text: string): boolean {
  return Buffer.from(parseAddress(text) ?? []).equals(bytes)
}
