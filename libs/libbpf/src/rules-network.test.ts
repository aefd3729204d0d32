import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { promisify } from 'node:util'
import { eventually, requires } from '@tollward/testkit'
import { removePins } from './attach.ts'
import { bootTimeNs } from './clock.ts'
import { decodeRuleCount, encodeConfig, type GuardConfig } from './layout.ts'
import { openPinnedMap } from './map.ts'
import { compileRuleTable, RuleTables } from './rule-table.ts'
import { mountBpffs } from './support.ts'
import { CLIENT_ADDRESSES, end, NODE_INTERFACE, TestNetwork } from './test-network.ts'
import { compileSensor, needsKernel, type TestRule, termsOf } from './test-sensor.ts'

const run = promisify(execFile)
const LOADER = join(import.meta.dirname, 'test-loader.ts')
const PORT = 5300
const OTHER_PORT = 5301
const MANAGEMENT_PORT = 9090
/** Three fragments on a cable of 1,500 bytes. */
const IN_PIECES = 4000
const BULK_PORT = 5302
const DOWNLOAD_BYTES = 4_000_000
/** What TCP puts into 1,500 bytes. */
const SEGMENT_BYTES_MAX = 1460
const [CALLER, NEIGHBOUR] = CLIENT_ADDRESSES
const skip = needsKernel || (await requires({ tools: ['ip', 'nsenter'] }))

/** Answers each datagram with its length, and each connection with many bytes. */
const SERVER = `for (const port of [${PORT}, ${OTHER_PORT}]) {
  const socket = require('dgram').createSocket('udp4', ({ length }, { port, address }) => socket.send(String(length), port, address))
  socket.bind(port, '198.18.0.1', () => port === ${OTHER_PORT} && bulk())
}
const bulk = () => require('net').createServer((socket) => socket.end(Buffer.alloc(${DOWNLOAD_BYTES})))
  .listen(${BULK_PORT}, '198.18.0.1', () => console.log('ready'))`
/** Sends some datagrams and prints the lengths that came back before it was silent for a while. */
const CLIENT = `const [, address, port, bytes, count] = process.argv
const answers = []
const socket = require('dgram').createSocket('udp4', (answer) => { answers.push(String(answer)); silence.refresh() })
const silence = setTimeout(() => { console.log(answers.join(' ')); socket.close() }, 250)
socket.bind(0, address, () => { for (let i = 0; i < count; i++) socket.send(Buffer.alloc(Number(bytes)), port, '198.18.0.1') })`
/** Reads to the end and prints how much there was. */
const DOWNLOAD = `let bytes = 0
require('net').connect({ host: '198.18.0.1', port: ${BULK_PORT}, localAddress: process.argv[1] })
  .on('data', ({ length }) => { bytes += length }).on('end', () => console.log(bytes))`

describe('rules on a cable', { skip }, () => {
  const directory = `/sys/fs/bpf/tollward-rules-test-${process.pid}`
  const network = new TestNetwork()
  let tables: RuleTables
  let loader: Awaited<ReturnType<TestNetwork['start']>>
  const pinned = (name: string) => openPinnedMap(join(directory, name))

  before(async () => {
    mountBpffs()
    const object = await compileSensor()
    await network.build()
    await network.serve(MANAGEMENT_PORT)
    assert.equal((await network.start('-e', SERVER)).line, 'ready')
    loader = await network.start(LOADER, object, directory, NODE_INTERFACE, 'auto')
    configure({})
    tables = new RuleTables({ rule_set: pinned('rule_set'), rule_match: pinned('rule_match'), rules: pinned('rules') })
  })
  after(async () => {
    try {
      removePins(directory)
    } finally {
      await network[Symbol.asyncDispose]()
    }
  })

  function configure(config: Partial<GuardConfig>): void {
    using map = pinned('config')
    const settings = { mode: 'enforce', managementPorts: [MANAGEMENT_PORT], netnsInum: network.nodeInum } as const
    map.update(Buffer.alloc(4), encodeConfig({ ...settings, ...config }))
  }

  async function obey(...rules: TestRule[]): Promise<void> {
    await tables.install(compileRuleTable(rules.map(termsOf)).table)
  }

  /** What came back: the lengths of the datagrams that arrived whole. */
  async function send(
    port: number,
    bytes: number,
    { from = CALLER, count = 1 }: { from?: string; count?: number } = {},
  ): Promise<string[]> {
    const command = [process.execPath, '-e', CLIENT, from, String(port), String(bytes), String(count)]
    const { stdout } = await run('nsenter', [`--net=/run/netns/${network.client}`, ...command])
    return stdout.trim().split(' ').filter(Boolean)
  }

  test('a datagram in pieces is dropped as a whole one is, and one to another port arrives whole', async () => {
    await obey({ id: 1, action: 'drop', protocol: 'udp', ports: [[PORT, PORT]] })
    for (const bytes of [100, IN_PIECES]) {
      assert.deepEqual(await send(PORT, bytes), [])
      assert.deepEqual(await send(OTHER_PORT, bytes), [String(bytes)])
    }
    using counts = pinned('rule_counts')
    const value = counts.lookup(Buffer.from([1, 0, 0, 0]))
    // One whole, and three pieces.
    assert(value && decodeRuleCount(value).over === 4n)
    configure({ mode: 'audit' })
    assert.deepEqual(await send(PORT, IN_PIECES), [String(IN_PIECES)])
    configure({})
  })

  test('what leaves is dropped by rules of its own, and management is not cut off', async () => {
    await obey({ id: 2, action: 'drop', direction: 'egress', destinations: [CALLER] })
    assert.deepEqual(await send(PORT, 100), [])
    assert.deepEqual(await send(PORT, 100, { from: NEIGHBOUR }), ['100'])
    assert.equal(await network.connect(CALLER, MANAGEMENT_PORT), 'served')
  })

  test('each source has its burst and no more', async () => {
    await obey({ id: 3, action: 'rate-limit', protocol: 'udp', rate: { packetsPerSecond: 0.001, burst: 3 } })
    assert.equal((await send(PORT, 100, { count: 10 })).length, 3)
    assert.equal((await send(PORT, 100, { from: NEIGHBOUR, count: 2 })).length, 2)
  })

  test('an offloaded packet counts as the segments that the wire will carry', async () => {
    await obey({ id: 5, action: 'alert', direction: 'egress', protocol: 'tcp', destinations: [CALLER] })
    const command = [process.execPath, '-e', DOWNLOAD, CALLER]
    const { stdout } = await run('nsenter', [`--net=/run/netns/${network.client}`, ...command])
    assert.equal(stdout.trim(), String(DOWNLOAD_BYTES))
    using counts = pinned('rule_counts')
    const value = counts.lookup(Buffer.from([5, 0, 0, 0]))
    const matched = Number(value && decodeRuleCount(value).matched)
    const segments = DOWNLOAD_BYTES / SEGMENT_BYTES_MAX
    assert(matched >= segments && matched < 2 * segments, `${matched} packets`)
  })

  test('with the loader dead a rule goes on to drop, and lapses by its end', async () => {
    await end(loader.child)
    await obey({ id: 4, action: 'drop', protocol: 'udp' })
    assert.deepEqual(await send(PORT, 100), [])
    await obey({ id: 4, action: 'drop', protocol: 'udp', expiresNs: bootTimeNs() + 300_000_000n })
    await eventually(async () => (await send(PORT, 100)).length === 1, { what: 'the rule lapses' })
  })
})
