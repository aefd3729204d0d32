import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { timestampMs } from '@bufbuild/protobuf/wkt'
import type { Bus } from '@tollward/bus'
import { bucketContract } from '@tollward/contracts'
import { type SensorState, SensorStateSchema } from '@tollward/contracts/sensor'
import {
  eventually,
  freePort,
  type NatsServer,
  type NetworkNamespace,
  networkNamespace,
  type Service,
  startNatsServer,
  startService,
} from '@tollward/testkit'
import { blocksOf, decidingBus, greeter, pinDirectory, provisionBus, skip, tryFrom } from './test-node.ts'

const NODE = 'node.one'
/** Datagrams for half a second. */
const DATAGRAMS = `const [, host] = process.argv
const socket = require('dgram').createSocket('udp4')
setInterval(() => socket.send('x', 9, host), 2)
setTimeout(() => process.exit(), 500)`

/** A node with two interfaces, of which one goes away. */
describe('a sensor that says how it is', { skip }, () => {
  const resources = new AsyncDisposableStack()
  let nats: NatsServer
  let bus: Bus
  let neighbour: NetworkNamespace
  let leaving: NetworkNamespace
  let port: number
  let sensor: Service

  const entry = () => bus.bucket(bucketContract(SensorStateSchema)).get(Buffer.from(NODE).toString('base64url'))
  const stateWhere = (what: string, isSo: (state: SensorState) => boolean, timeoutMs = 20_000) =>
    eventually(
      async () => {
        const state = (await entry())?.value
        return state && isSo(state) ? state : undefined
      },
      { what, timeoutMs },
    )

  before(async () => {
    nats = resources.use(await startNatsServer())
    bus = resources.use(await decidingBus(nats.url))
    neighbour = resources.use(await networkNamespace())
    leaving = resources.use(await networkNamespace())
    port = resources.use(await greeter()).port
    sensor = resources.use(
      await startService('node-sensor', {
        PATH: process.env.PATH ?? '',
        TOLLWARD_NATS_URL: nats.url,
        TOLLWARD_HEALTH_PORT: String(await freePort()),
        TOLLWARD_INTERFACES: `${neighbour.hostDevice},${leaving.hostDevice}`,
        TOLLWARD_NODE: NODE,
        TOLLWARD_CALLS: 'on',
        TOLLWARD_PIN_DIRECTORY: resources.use(pinDirectory()).path,
      }),
    )
  })
  after(() => resources.disposeAsync())

  test('the state names what hangs where, what is counted, and what takes how much memory', async () => {
    await blocksOf(bus).add(neighbour.address)
    await eventually(async () => (await tryFrom(neighbour, port)) === 'silence', { what: 'the neighbour is dropped' })
    const dropped = ({ counters }: SensorState) =>
      counters.some(({ name, value }) => name === 'dropped_exact' && value > 0n)
    const state = await stateWhere('drops are told', dropped)
    assert.deepEqual([state.format, state.node, state.mode, state.version], [1, NODE, 'enforce', '0.1.0'])
    assert.ok(state.startedAt && state.reportedAt && timestampMs(state.startedAt) <= timestampMs(state.reportedAt))
    assert.deepEqual(
      state.interfaces.map(({ name, index, ingress, egress }) => [name, index > 0, ingress, egress !== '']),
      [
        [neighbour.hostDevice, true, 'native', true],
        [leaving.hostDevice, true, 'native', true],
      ],
    )
    assert.deepEqual(state.faults, [])
    const exact = state.maps.find(({ name }) => name === 'block_exact')
    assert.ok(exact && exact.bytes >= exact.capacity * BigInt(16 + 40), `${exact?.bytes} bytes`)
    assert.equal(exact.entries, 1n)
    assert.equal(state.maps.find(({ name }) => name === 'flows_a')?.entries, undefined)
    assert.ok(state.capabilities.some(({ name, on }) => name === `egress on ${neighbour.hostDevice}` && on))
    await blocksOf(bus).liftAll()
  })

  test('what a packet costs is measured now and then, while packets come', async () => {
    const guard = ({ programs }: SensorState) => programs.find(({ name }) => name === 'xdp_guard')
    const costs = async () => {
      await neighbour.exec(process.execPath, ['-e', DATAGRAMS, neighbour.hostAddress])
      const program = guard((await entry())?.value ?? assert.fail('no state'))
      return program && program.runs > 0n && program
    }
    const { runs, runNanos, type, bytes } = await eventually(costs, { what: 'runs are counted', timeoutMs: 30_000 })
    assert.ok(runNanos / runs > 5n && runNanos / runs < 1_000_000n, `${runNanos} ns in ${runs} runs`)
    assert.ok(type === 'xdp' && bytes >= 4096n)
    // Nobody listens at the port of these datagrams.
    await stateWhere('what the kernel itself drops', ({ kernelDrops }) =>
      kernelDrops.some(({ name, value }) => name === 'NO_SOCKET' && value > 100n),
    )
    await stateWhere('whose calls are read', ({ captureTargets }) => captureTargets.some(({ kind }) => kind === 'node'))
  })

  test('what is not as it should be is told', async () => {
    await leaving[Symbol.asyncDispose]()
    const state = await stateWhere('the fault', ({ faults }) => faults.length > 0)
    assert.match(state.faults.join(), new RegExp(`^kernel: xdp on ${leaving.hostDevice}: there is no such interface`))
    const gone = state.interfaces.find(({ name }) => name === leaving.hostDevice)
    assert.deepEqual([gone?.index, gone?.ingress, gone?.egress], [0, '', ''])
    assert.match(gone?.fault ?? '', /^xdp: there is no such interface; egress: there is no such interface$/)
  })

  test('the state goes on by itself after the bus was away, and is kept for an hour after the sensor ended', async () => {
    await nats.stop()
    await nats.start()
    await provisionBus(nats.url)
    const back = Date.now()
    const state = await stateWhere(
      'the state is told again',
      ({ reportedAt }) => timestampMs(reportedAt ?? assert.fail()) > back,
    )
    assert.ok(state)
    assert.equal(await sensor.stop(), 0)
    const last = await entry()
    assert.ok(last?.expiresAtMs && last.expiresAtMs > Date.now() + 3_500_000)
  })
})
