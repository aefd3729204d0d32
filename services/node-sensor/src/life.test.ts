import assert from 'node:assert/strict'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { existsSync, mkdirSync } from 'node:fs'
import { cp, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { parseAddress } from '@tollward/contracts'
import {
  attachEgress,
  attachXdp,
  blockMaps,
  blockTarget,
  bootTimeNs,
  compile,
  ExactBlocks,
  encodeConfig,
  interfaceIndex,
  isSlots,
  LAYOUT_VERSION,
  loadObject,
  openPinnedMap,
} from '@tollward/libbpf'
import {
  eventually,
  freePort,
  type NetworkNamespace,
  networkNamespace,
  startNatsServer,
  startProcess,
  startService,
  temporaryDirectory,
} from '@tollward/testkit'
import type { Capability } from './adapters/capabilities.ts'
import { networkNamespaceInum } from './adapters/pins.ts'
import { blocksOf, decidingBus, MAIN, pinDirectory, skip } from './test-node.ts'

const BPF_DIRECTORY = join(import.meta.dirname, '../../../bpf')
const OLD_VERSION = 1
/** Datagrams as fast as one thread sends them; the sender breathes between two rounds. */
const FLOOD = `const [, host, port] = process.argv
const socket = require('dgram').createSocket('udp4')
const round = () => {
  for (let left = 200; left > 0; left--) socket.send('x', port, host, left === 1 ? () => setImmediate(round) : undefined)
}
socket.bind(0, () => { console.log('sending'); round() })`
/** A set without rules, but in the other half of the maps. */
const RULE_SET_BEFORE = Buffer.from([1, ...new Array<number>(15).fill(0)])
/** 203.0.113.0/24, and where it is said that there is such a length. */
const OLD_RANGE = {
  key: blockTarget({ address: Buffer.from('00000000000000000000ffffcb007100', 'hex'), prefixLength: 120 }).key,
  place: Buffer.from([0x00, 0xcb, 0, 0]),
}
/** Enough that one unguarded millisecond would show. */
const DROPS_BETWEEN = 5000n

/** Counts the datagrams that reach this side. */
async function receiver(address: string) {
  const socket = createSocket('udp4')
  let received = 0
  socket.on('message', () => {
    received += 1
  })
  socket.bind(0, address)
  await once(socket, 'listening')
  return {
    port: socket.address().port,
    received: () => received,
    [Symbol.dispose]: () => void socket.close(),
  }
}

async function flood(from: NetworkNamespace, port: number) {
  const sender = await from.start(process.execPath, ['-e', FLOOD, from.hostAddress, String(port)])
  await sender.line(/^sending/)
  return sender
}

/** How sensors looked for exact addresses before there was a table of slots. */
const IN_A_HASH = `/* The block of an address */
static __always_inline struct block *find_exact(const struct address *address, struct block_terms *terms)
{
	struct block *block = bpf_map_lookup_elem(&block_exact, address);

	if (block)
		read_terms(terms, block);
	return block;
}
#endif
`
const HASH_OF_BLOCKS = `struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct address);
	__type(value, struct block);
} block_exact`

/**
 * The kernel programs as they might have been in another version: other numbers, another layout of a block, ranges in a trie, and
 * exact addresses in a table like today's or in a hash.
 */
async function otherLayout(directory: string, exact: 'table' | 'hash'): Promise<string> {
  await cp(BPF_DIRECTORY, directory, { recursive: true, filter: (path) => !path.endsWith('/build') })
  const header = join(directory, 'include/layout.h')
  const changed = (await readFile(header, 'utf8'))
    .replace(/(#define LAYOUT_VERSION\s+)\d+/, `$1${OLD_VERSION}`)
    .replace(/struct block \{/, 'struct block {\n\t__u64 of_before;')
    .replaceAll(/^CHECK_\w+\(struct block(_slot)?,.*\n/gm, '')
  assert.match(changed, /of_before/)
  await writeFile(header, changed)
  const maps = join(directory, 'include/maps.h')
  const withTrie = (await readFile(maps, 'utf8')).replace(
    /_HASH(\);\n[^}]*NO_PREALLOC[^}]*\} block_cidr4)/,
    '_LPM_TRIE$1',
  )
  assert.match(withTrie, /_LPM_TRIE\);\n[^}]*\} block_cidr4/)
  await writeFile(maps, withTrie)
  if (exact === 'hash') {
    const blocks = join(directory, 'include/blocks.h')
    const withHash = (await readFile(blocks, 'utf8'))
      .replace(/\/\* The block of an address.*/s, IN_A_HASH)
      .replace(/struct \{[^}]*MMAPABLE[^}]*\} block_exact/, HASH_OF_BLOCKS)
    assert(withHash.includes(IN_A_HASH) && withHash.includes(HASH_OF_BLOCKS))
    await writeFile(blocks, withHash)
  }
  return compile(directory, 'build/sensor.bpf.o')
}

/** What a sensor of that version left: its maps, pinned, with one address blocked, and its programs on the interface. */
function leaveOldSensor(object: string, pins: string, hostDevice: string, blocked: string): void {
  const directory = join(pins, `v${OLD_VERSION}_net${networkNamespaceInum()}`)
  const ifindex = interfaceIndex(hostDevice)
  assert(ifindex)
  mkdirSync(join(directory, `interface_${ifindex}`), { recursive: true })
  using loaded = loadObject(object, { pins: { directory, except: ['packets'] } })
  const settings = { mode: 'enforce', managementPorts: [], netnsInum: networkNamespaceInum() } as const
  loaded.map('config').update(Buffer.alloc(4), encodeConfig(settings))
  loaded.map('rule_set').update(Buffer.alloc(4), RULE_SET_BEFORE)
  const ranges = loaded.map('block_cidr4')
  const live = oldBlock(ranges.valueBytes, bootTimeNs() + 600_000_000_000n)
  const hash = loaded.map('block_exact')
  const exact = isSlots(hash) ? blockMaps({ map: (name) => loaded.map(name) }).block_exact : hash
  exact.update(keyOf(blocked), live)
  exact.update(Buffer.alloc(16, 7), oldBlock(ranges.valueBytes, bootTimeNs() - 1n))
  ranges.update(OLD_RANGE.key, live)
  loaded.map('block_lengths4').update(placeOf(blocked), Buffer.from([1, 0, 0, 0, 0, 0, 0, 0]))
  const at = (hook: string) => join(directory, `interface_${ifindex}`, hook)
  attachXdp(loaded.program('xdp_guard'), { ifindex, pinPath: at('xdp') }).close()
  attachEgress(loaded.program('guard_egress'), { ifindex, pinPath: at('egress') }).close()
}

/** A member more than today, before all others. */
function oldBlock(bytes: number, expiresNs: bigint): Buffer {
  const value = Buffer.alloc(bytes)
  value.writeBigUInt64LE(0xffff_ffff_ffff_ffffn, 0)
  value.writeBigUInt64LE(expiresNs, 8)
  return value
}

function keyOf(address: string): Buffer {
  const bytes = parseAddress(address)
  assert(bytes)
  return blockTarget({ address: bytes, prefixLength: 128 }).key
}

/** Key of `block_lengths4`. */
function placeOf(address: string): Buffer {
  const key = keyOf(address)
  return Buffer.from([key[13] ?? 0, key[12] ?? 0, 0, 0])
}

function hits(directory: string, address: string, at: number): bigint {
  using opened = new DisposableStack()
  const map = (name: string) => opened.use(openPinnedMap(join(directory, name)))
  const held = map('block_exact')
  const exact = isSlots(held) ? new ExactBlocks({ map }) : held
  return exact.lookup(keyOf(address))?.readBigUInt64LE(at) ?? 0n
}

for (const exact of ['table', 'hash'] as const)
  test(
    `an upgrade to another layout lets no packet of a blocked source pass, though there is no bus; from a ${exact}`,
    {
      skip,
    },
    () => upgrade(exact),
  )

async function upgrade(exact: 'table' | 'hash'): Promise<void> {
  await using cable = await networkNamespace()
  await using sources = await temporaryDirectory()
  using pins = pinDirectory()
  using target = await receiver(cable.hostAddress)
  const old = await otherLayout(sources.path, exact)
  leaveOldSensor(old, pins.path, cable.hostDevice, cable.address)
  const [before, after] = [OLD_VERSION, LAYOUT_VERSION].map((version) =>
    join(pins.path, `v${version}_net${networkNamespaceInum()}`),
  )
  assert(before && after)
  await using sender = await flood(cable, target.port)
  await eventually(() => hits(before, cable.address, 16) > DROPS_BETWEEN, { what: 'the old programs drop' })
  await using sensor = await startProcess(process.execPath, [MAIN], {
    env: await environment(pins.path, cable.hostDevice, `nats://127.0.0.1:${await freePort()}`),
  })
  await sensor.line(/"hook":"xdp","on":true,"how":"adopted"/)
  await sensor.line(/"block_exact":\{"copied":1,"over":1,"left":0\},"block_cidr4":\{"copied":1,/)
  using lengths = openPinnedMap(join(after, 'block_lengths4'))
  assert.deepEqual(lengths.lookup(OLD_RANGE.place)?.readBigUInt64LE(), 1n << 8n, 'the range is looked for')
  using ruleSet = openPinnedMap(join(after, 'rule_set'))
  assert.deepEqual(ruleSet.lookup(Buffer.alloc(4)), RULE_SET_BEFORE, 'rules of the same layout go on too')
  const atUpgrade = hits(after, cable.address, 8)
  assert(atUpgrade > DROPS_BETWEEN, 'what the block dropped before is not forgotten')
  await eventually(() => hits(after, cable.address, 8) > atUpgrade + DROPS_BETWEEN, { what: 'the new programs drop' })
  await eventually(() => !existsSync(before), { what: 'the old maps are gone' })
  assert.equal(await sensor.stop(), 0)
  const atEnd = hits(after, cable.address, 8)
  await eventually(() => hits(after, cable.address, 8) > atEnd + DROPS_BETWEEN, { what: 'they drop on their own' })
  await sender.stop()
  assert.equal(target.received(), 0)
}

test('crashes, restarts and other sizes under load let no packet of a blocked source pass', { skip }, async () => {
  await using cable = await networkNamespace()
  await using nats = await startNatsServer()
  await using bus = await decidingBus(nats.url)
  using pins = pinDirectory()
  using target = await receiver(cable.hostAddress)
  await blocksOf(bus).add(cable.address)
  const env = await environment(pins.path, cable.hostDevice, nats.url)
  await using sensor = await startService('node-sensor', env)
  const directory = join(pins.path, `v${LAYOUT_VERSION}_net${networkNamespaceInum()}`)
  await using sender = await flood(cable, target.port)
  let dropped = 0n
  const dropsOn = (what: string) =>
    eventually(() => hits(directory, cable.address, 8) > dropped + DROPS_BETWEEN, { what: `drops ${what}` })
  for (const how of ['kill', 'stop', 'kill'] as const) {
    dropped = hits(directory, cable.address, 8)
    await dropsOn(`before ${how}`)
    await sensor[how]()
    dropped = hits(directory, cable.address, 8)
    await dropsOn(`after ${how}`)
    // Once as it was, once with maps of another size, and back.
    const changes = how === 'stop' ? { TOLLWARD_BLOCKED_ADDRESSES_MAX: '1000', TOLLWARD_FLOWS_MAX: '5000' } : {}
    await sensor.start({ ...env, ...changes })
  }
  dropped = hits(directory, cable.address, 8)
  await dropsOn('at the end')
  await sender.stop()
  assert.equal(target.received(), 0)
})

/** Programs that no kernel runs, beside those of the sensor: one by its tracepoint, one by the verifier. */
const REFUSED = `
SEC("tp_btf/no_such_tracepoint") int watch_nothing(void *context) { return 0; }
SEC("raw_tp/sys_enter") int watch_wrongly(void *context) { return *(volatile int *)8; }
`

test('what this kernel refuses is left out alone, with the reason, and the rest guards and counts', {
  skip,
}, async () => {
  await using cable = await networkNamespace()
  await using nats = await startNatsServer()
  await using bus = await decidingBus(nats.url)
  await using sources = await temporaryDirectory()
  using pins = pinDirectory()
  await cp(BPF_DIRECTORY, sources.path, { recursive: true, filter: (path) => !path.endsWith('/build') })
  const source = join(sources.path, 'sensor.bpf.c')
  await writeFile(source, `${await readFile(source, 'utf8')}${REFUSED}`)
  const object = await compile(sources.path, 'build/sensor.bpf.o')
  await using sensor = await startService('node-sensor', {
    ...(await environment(pins.path, cable.hostDevice, nats.url)),
    TOLLWARD_BPF_OBJECT: object,
  })
  const { capabilities } = JSON.parse(await sensor.line(/what this kernel offers/)) as { capabilities: Capability[] }
  const named = (name: string) => capabilities.find((capability) => capability.name === `tracepoint ${name}`)
  assert.match(named('watch_nothing')?.why ?? '', /^ESRCH: .*no_such_tracepoint.*left out$/)
  assert.match(named('watch_wrongly')?.why ?? '', /^EACCES: .*invalid mem access.*left out$/)
  assert.deepEqual([named('watch_nothing')?.on, named('watch_wrongly')?.on], [false, false])
  assert.equal(named('watch_handshake')?.on, true)
  using target = await receiver(cable.hostAddress)
  await blocksOf(bus).add(cable.address)
  const directory = join(pins.path, `v${LAYOUT_VERSION}_net${networkNamespaceInum()}`)
  await using _sender = await flood(cable, target.port)
  await eventually(() => hits(directory, cable.address, 8) > 0n, { what: 'the block drops' })
})

test('detach takes off what another bpffs hides, and a sensor that starts takes it over', { skip }, async () => {
  await using node = await networkNamespace()
  using pins = pinDirectory()
  const env = { ...(await environment(pins.path, 'lo', 'nats://127.0.0.1:1')), TOLLWARD_HEALTH_PORT: '9406' }
  await using directory = await temporaryDirectory()
  const run = join(directory.path, 'run.sh')
  const sensor = `${process.execPath} ${MAIN}`
  const isOn = `ip -details link show lo | grep -q xdp && echo on || echo off`
  // Mount and network namespaces of its own: nobody else sees its mounts.
  await writeFile(
    run,
    `mount -t bpf none /sys/fs/bpf
start() { : > ${directory.path}/log; ${sensor} >> ${directory.path}/log & pid=$!; tail -n +1 --pid=$pid -F ${directory.path}/log 2>/dev/null | grep -qm1 '"hook":"egress","on":'; }
start; kill -9 $pid; wait $pid 2>/dev/null; ${isOn}
mount -t bpf none /sys/fs/bpf
ls /sys/fs/bpf | grep -c tollward
start; grep -c '"hook":"xdp","on":true,"how":"adopted"' ${directory.path}/log; kill -9 $pid; wait $pid 2>/dev/null; ${isOn}
mount -t bpf none /sys/fs/bpf
${sensor} detach; ${isOn}
${sensor} detach
`,
  )
  const command = [`--net=/run/netns/${node.name}`, 'unshare', '--mount', 'sh', run]
  await using steps = await startProcess('nsenter', command, { env })
  await steps.exited
  const [first, visible, adopted, second, said, after, again] = steps.lines
  assert.deepEqual([first, visible, adopted, second], ['on', '0', '1', 'on'], steps.lines.join('\n'))
  assert.match(said ?? '', /^nothing is pinned at .*; took off 2 programs whose pins could not be found/)
  assert.equal(after, 'off')
  assert.match(again ?? '', /^nothing is pinned at [^;]*$/)
})

test('detach leaves what is pinned in another mount namespace, though no sensor runs there', { skip }, async () => {
  await using cable = await networkNamespace()
  using pins = pinDirectory()
  const env = await environment(pins.path, cable.hostDevice, 'nats://127.0.0.1:1')
  await using sensor = await startProcess(process.execPath, [MAIN], { env })
  await sensor.line(/"hook":"egress","on":true/)
  await sensor.kill()
  const steps = `mount -t bpf none /sys/fs/bpf && ${process.execPath} ${MAIN} detach`
  await using elsewhere = await startProcess('unshare', ['--mount', 'sh', '-c', steps], { env })
  assert.equal(await elsewhere.exited, 0)
  assert.match(elsewhere.lines.join(), /^nothing is pinned at [^;]*$/)
  await using shown = await startProcess('ip', ['-details', 'link', 'show', cable.hostDevice])
  await shown.exited
  assert.match(shown.lines.join(), /xdp/)
})

async function environment(pins: string, interfaces: string, natsUrl: string) {
  return {
    PATH: process.env.PATH ?? '',
    TOLLWARD_NATS_URL: natsUrl,
    TOLLWARD_HEALTH_PORT: String(await freePort()),
    TOLLWARD_INTERFACES: interfaces,
    TOLLWARD_PIN_DIRECTORY: pins,
  }
}
