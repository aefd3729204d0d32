import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { eventually, requires } from '@tollward/testkit'
import { removePins } from './attach.ts'
import { blockMaps } from './block-maps.ts'
import { bootTimeNs } from './clock.ts'
import { ExactBlocks } from './exact-blocks.ts'
import { FlowDrain } from './flow-drain.ts'
import type { FlowRecord } from './flow-layout.ts'
import { blockTarget, decodeBlock, encodeBlock, encodeConfig } from './layout.ts'
import { openPinnedMap } from './map.ts'
import { mountBpffs } from './support.ts'
import { CLIENT_ADDRESSES, end, NODE_INTERFACE, TestNetwork } from './test-network.ts'
import { address } from './test-packets.ts'
import { compileSensor, needsKernel, PINNED_MAPS } from './test-sensor.ts'

const LOADER = join(import.meta.dirname, 'test-loader.ts')
const PORT = 8080
const MANAGEMENT_PORT = 9090
const [ATTACKER, NEIGHBOUR] = CLIENT_ADDRESSES
const skip = needsKernel || (await requires({ tools: ['ip', 'tc', 'nsenter'] }))

/** One node, and its programs through one life: attached, left alone by their loader, adopted, removed. */
describe('the guard on a cable', { skip }, () => {
  const directory = `/sys/fs/bpf/tollward-test-${process.pid}`
  const network = new TestNetwork()
  let object: string
  let loader: Awaited<ReturnType<TestNetwork['start']>>
  const load = (hook: string, name = NODE_INTERFACE) => network.start(LOADER, object, directory, name, hook)

  function enforce(netnsInum = network.nodeInum): void {
    using config = openPinnedMap(join(directory, 'config'))
    const settings = { mode: 'enforce', managementPorts: [MANAGEMENT_PORT], netnsInum } as const
    config.update(Buffer.alloc(4), encodeConfig(settings))
  }

  before(async () => {
    mountBpffs()
    object = await compileSensor()
    await network.build()
    await network.serve(PORT)
    await network.serve(MANAGEMENT_PORT)
    loader = await load('auto')
    enforce()
  })
  after(async () => {
    try {
      removePins(directory)
    } finally {
      await network[Symbol.asyncDispose]()
    }
  })

  function block(source: string, expiresNs: bigint): void {
    const target = blockTarget({ address: address(source), prefixLength: 128 })
    using opened = new DisposableStack()
    const { [target.map]: map } = blockMaps({ map: (name) => opened.use(openPinnedMap(join(directory, name))) })
    map.update(target.key, encodeBlock(target, { expiresNs, ruleId: 7, mode: 'drop' }, map.lookup(target.key)))
  }

  test('XDP runs in the driver; a connection is seen from both sides, and that the kernel completed its handshake', async () => {
    assert.match(loader.line, /^native (tcx|clsact) tracing$/)
    assert.equal(await network.connect(ATTACKER, PORT), 'served')
    const flows = (await drain(directory)).filter(({ sourcePort, destinationPort }) =>
      [sourcePort, destinationPort].includes(PORT),
    )
    assert.deepEqual(flows.map(({ direction }) => direction).sort(), ['egress', 'ingress'])
    for (const { established, pureSyns, direction, packets } of flows) {
      assert.equal(established, true, direction)
      assert.equal(pureSyns, direction === 'ingress' ? 1 : 0)
      assert(packets >= 3n)
    }
  })

  test('a handshake in another network namespace marks no flow', async () => {
    enforce(network.nodeInum + 1)
    assert.equal(await network.connect(ATTACKER, PORT), 'served')
    enforce()
    const flows = (await drain(directory)).filter(({ protocol }) => protocol === 6)
    assert(flows.length > 0)
    assert(flows.every(({ established }) => !established))
  })

  test('a blocked source gets no answer, except from a management port; its neighbour does', async () => {
    block(ATTACKER, bootTimeNs() + 600_000_000_000n)
    assert.equal(await network.connect(ATTACKER, PORT), 'silence')
    assert.equal(await network.connect(NEIGHBOUR, PORT), 'served')
    assert.equal(await network.connect(ATTACKER, MANAGEMENT_PORT), 'served')
    const dropped = (await drain(directory)).find(({ droppedPackets }) => droppedPackets > 0n)
    assert.deepEqual(dropped?.source, address(ATTACKER))
    assert.equal(dropped?.established, false)
  })

  test('enforcement goes on when the process that loaded it was killed', async () => {
    await end(loader.child)
    assert.equal(await network.connect(ATTACKER, PORT), 'silence')
    assert.equal(await network.connect(NEIGHBOUR, PORT), 'served')
  })

  test('a new process takes over the pinned links and maps, with what is blocked', async () => {
    loader = await load('auto')
    assert.match(loader.line, /^adopted (adopted|clsact) tracing$/)
    assert.equal(await network.connect(ATTACKER, PORT), 'silence')
    await end(loader.child)
    assert.equal(await network.connect(ATTACKER, PORT), 'silence')
  })

  test('a block lapses by its expiry with no loader alive', async () => {
    const expiresNs = bootTimeNs() + 400_000_000n
    block(ATTACKER, expiresNs)
    assert.equal(await network.connect(ATTACKER, PORT), 'silence')
    await eventually(async () => (await network.connect(ATTACKER, PORT)) === 'served', { what: 'the block lapses' })
    using opened = new DisposableStack()
    const blocks = new ExactBlocks({ map: (name) => opened.use(openPinnedMap(join(directory, name))) })
    const left = blocks.lookup(Buffer.from(address(ATTACKER)))
    assert(left && decodeBlock(left).hits > 0n, 'nobody removed the entry')
  })

  test('removing the pins leaves no program on the interface and no file', async () => {
    block(ATTACKER, 0n)
    assert.equal(await network.connect(ATTACKER, PORT), 'silence')
    assert.match(await network.interfaceDetails(), /xdp/)
    const { links, maps } = removePins(directory)
    assert(links >= 2 && maps === PINNED_MAPS.length)
    assert(!existsSync(directory))
    assert.doesNotMatch(await network.interfaceDetails(), /xdp/)
    assert.equal(await network.connect(ATTACKER, PORT), 'served')
  })

  test('where the kernel has no tcx, clsact counts what leaves, and goes with its qdisc', async () => {
    loader = await load('clsact')
    assert.equal(loader.line, 'native clsact tracing')
    assert.equal(await network.connect(NEIGHBOUR, PORT), 'served')
    assert((await drain(directory)).some(({ direction }) => direction === 'egress'))
    await end(loader.child)
    loader = await load('clsact')
    assert.equal(loader.line, 'adopted clsact tracing')
    await end(loader.child)
    assert.match(await network.queueingDisciplines(), /clsact/)
    assert.equal((await load('detach')).line, `{ links: 2, programs: 1, maps: ${PINNED_MAPS.length} }`)
    assert.doesNotMatch(await network.queueingDisciplines(), /clsact/)
  })

  test('on the loopback interface XDP is generic: a blocked 127.0.0.66 gets no answer, 127.0.0.1 always does', async () => {
    loader = await load('auto', 'lo')
    assert.match(loader.line, /^generic (tcx|clsact) tracing$/)
    enforce()
    block('127.0.0.66', 0n)
    block('127.0.0.1', 0n)
    assert.equal(await network.connect('127.0.0.66', PORT, 'node'), 'silence')
    assert.equal(await network.connect('127.0.0.66', MANAGEMENT_PORT, 'node'), 'served')
    assert.equal(await network.connect('127.0.0.1', PORT, 'node'), 'served')
    assert.equal(await network.connect('127.0.0.67', PORT, 'node'), 'served')
  })
})

/** Both generations. */
async function drain(directory: string): Promise<FlowRecord[]> {
  using active = openPinnedMap(join(directory, 'active_flows'))
  using flowsA = openPinnedMap(join(directory, 'flows_a'))
  using flowsB = openPinnedMap(join(directory, 'flows_b'))
  const flows = new FlowDrain(active, flowsA, flowsB)
  const found: FlowRecord[] = []
  for (let turn = 0; turn < 2; turn++) for await (const batch of flows.drain()) found.push(...batch)
  return found
}
