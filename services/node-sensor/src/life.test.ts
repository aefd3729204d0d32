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
  type BpfObject,
  blockMaps,
  blockTarget,
  bootTimeNs,
  compile,
  ExactBlocks,
  encodeConfig,
  HITS_TOLD,
  interfaceIndex,
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

/** How sensors held exact addresses before there was a table of buckets, and how they looked for them. */
const BEFORE = {
  hash: {
    map: `struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct address);
	__type(value, struct block);
} block_exact`,
    find: `	struct block *block = bpf_map_lookup_elem(&block_exact, address);

	return block ? read_block(block, terms) : 0;`,
  },
  'table of lines': {
    map: `struct line {
	struct address address;
	__u32 head;
	__u32 zero;
	struct block block;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct line);
} block_exact`,
    find: `	for (__u32 i = 0; i < 2; i++) {
		__u32 index = i;
		struct line *line = bpf_map_lookup_elem(&block_exact, &index);
		const __u64 *held = (void *)line, *wanted = (void *)address->bytes;

		if (line && line->head && held[0] == wanted[0] && held[1] == wanted[1])
			return read_block(&line->block, terms);
	}
	return 0;`,
  },
  'table of pairs': {
    map: `struct pair {
	struct {
		struct address address;
		__u32 head;
		__u32 rule_id;
		__u64 terms;
	} slots[2];
};

struct pair_hits {
	__u64 slots[2][4];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 10000);
	__type(key, __u32);
	__type(value, struct pair_hits);
} block_hits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 10000);
	__type(key, __u32);
	__type(value, struct pair);
} block_exact`,
    find: `	__u32 last = 9999;
	struct pair *pair = bpf_map_lookup_elem(&block_exact, &last);
	struct pair_hits *counted = bpf_map_lookup_elem(&block_hits, &last);

	for (__u32 i = 0; pair && counted && i < 2; i++) {
		const __u64 *held = (void *)&pair->slots[i], *wanted = (void *)address->bytes;
		__u64 word = pair->slots[i].terms;

		if (!pair->slots[i].head || held[0] != wanted[0] || held[1] != wanted[1])
			continue;
		terms->expires_ns = word >> 24 << 20;
		terms->rule_id = pair->slots[i].rule_id;
		terms->mode = word & 0xff;
		return &counted->slots[i][0];
	}
	return 0;`,
  },
} as const
type Held = 'table' | keyof typeof BEFORE
/** The last bucket, so that all of both maps must be read, in several batches. */
const LAST_PAIR = Buffer.from(new Uint32Array([9999]).buffer)
/** An address whose block dropped a packet long ago, in a table of pairs. */
const HIT_LONG_AGO = Buffer.alloc(16, 9)

/**
 * The kernel programs as they might have been in another version: other numbers, another layout of a block, ranges in a trie, and
 * exact addresses in a table like today's or as before.
 */
async function otherLayout(directory: string, exact: Held): Promise<string> {
  await cp(BPF_DIRECTORY, directory, { recursive: true, filter: (path) => !path.endsWith('/build') })
  const header = join(directory, 'include/layout.h')
  const changed = (await readFile(header, 'utf8'))
    .replace(/(#define LAYOUT_VERSION\s+)\d+/, `$1${OLD_VERSION}`)
    .replace(/struct block \{/, 'struct block {\n\t__u64 first_hit_ns;')
    .replaceAll(/^CHECK_\w+\(struct block(_slot)?,.*\n/gm, '')
  assert.match(changed, /first_hit_ns/)
  await writeFile(header, changed)
  const maps = join(directory, 'include/maps.h')
  const withTrie = (await readFile(maps, 'utf8')).replace(
    /_HASH(\);\n[^}]*NO_PREALLOC[^}]*\} block_cidr4)/,
    '_LPM_TRIE$1',
  )
  assert.match(withTrie, /_LPM_TRIE\);\n[^}]*\} block_cidr4/)
  await writeFile(maps, withTrie)
  if (exact !== 'table') {
    const blocks = join(directory, 'include/blocks.h')
    const { map, find } = BEFORE[exact]
    const before = (await readFile(blocks, 'utf8'))
      .replace(/struct \{[^}]*MMAPABLE[^}]*\} block_exact/, map)
      .replace(/(\n\w[^\n]* find_home\([^{]*\{\n).*?\n\}\n/s, '$1\t*home = 0;\n\treturn 1;\n}\n')
      .replace(/(\n\w[^\n]* \*find_exact\([^{]*\{\n).*/s, `$1${find}\n}\n\n#endif\n`)
    assert(before.includes(map) && before.includes(find))
    await writeFile(blocks, before)
  }
  return compile(directory, 'build/sensor.bpf.o')
}

/** What a sensor of that version left: its maps, pinned, with one address blocked, and its programs on the interface. */
function leaveOldSensor(object: string, exact: Held, pins: string, hostDevice: string, blocked: string): void {
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
  blockBefore(loaded, exact, [
    { key: keyOf(blocked), value: live },
    { key: Buffer.alloc(16, 7), value: oldBlock(ranges.valueBytes, 1n) },
  ])
  ranges.update(OLD_RANGE.key, live)
  loaded.map('block_lengths4').update(placeOf(blocked), Buffer.from([1, 0, 0, 0, 0, 0, 0, 0]))
  const at = (hook: string) => join(directory, `interface_${ifindex}`, hook)
  attachXdp(loaded.program('xdp_guard'), { ifindex, pinPath: at('xdp') }).close()
  attachEgress(loaded.program('guard_egress'), { ifindex, pinPath: at('egress') }).close()
}

function blockBefore(loaded: BpfObject, exact: Held, blocks: readonly { key: Buffer; value: Buffer }[]): void {
  const map = loaded.map('block_exact')
  if (exact === 'table of pairs') {
    pairsBefore(loaded, blocks)
    return
  }
  const table = exact === 'table' ? blockMaps({ map: (name) => loaded.map(name) }).block_exact : undefined
  for (const [index, { key, value }] of blocks.entries()) {
    const line = Buffer.concat([key, Buffer.from([1, 0, 0, 0, 0, 0, 0, 0]), value])
    if (exact === 'hash') map.update(key, value)
    else if (exact === 'table of lines') map.update(Buffer.from([index, 0, 0, 0]), line)
    // The slots of a table have not the layout of a block.
    else table?.update(key, value.subarray(value.length - table.valueBytes))
  }
}

/** In the last bucket two blocks, and in the one before what dropped a packet long ago. */
function pairsBefore(loaded: BpfObject, blocks: readonly { key: Buffer; value: Buffer }[]): void {
  const [pairs, hits] = [loaded.map('block_exact'), loaded.map('block_hits')]
  const slots = blocks.map(({ key, value }) => {
    const rest = Buffer.alloc(16)
    rest.writeUInt32LE(1)
    rest.writeUInt32LE(4711, 4)
    rest.writeBigUInt64LE(((value.readBigUInt64LE(8) >> 20n) + 1n) << 24n, 8)
    return Buffer.concat([key, rest])
  })
  pairs.update(LAST_PAIR, Buffer.concat(slots))
  const first = Buffer.alloc(4)
  pairs.update(first, Buffer.concat([HIT_LONG_AGO, (slots[0] ?? Buffer.alloc(0)).subarray(16), Buffer.alloc(32)]))
  hits.update(first, Buffer.from(new BigUint64Array([7n, 5n, 6n, 0n, 0n, 0n, 0n, 0n]).buffer))
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

/** What the block of an address dropped, as a sensor of that layout counted it. */
function hits(directory: string, address: string, held: Held | 'today'): bigint {
  return BigInt.asUintN(63, countedIn(directory, address, held))
}

/** The same, above it whether the first of them was told. */
function countedIn(directory: string, address: string, held: Held | 'today'): bigint {
  using opened = new DisposableStack()
  const map = (name: string) => opened.use(openPinnedMap(join(directory, name)))
  if (held === 'hash') return map('block_exact').lookup(keyOf(address))?.readBigUInt64LE(16) ?? 0n
  if (held === 'table of lines')
    return (
      map('block_exact')
        .lookup(Buffer.alloc(4))
        ?.readBigUInt64LE(24 + 16) ?? 0n
    )
  if (held === 'table of pairs') return map('block_hits').lookup(LAST_PAIR)?.readBigUInt64LE() ?? 0n
  return new ExactBlocks({ map }).lookup(keyOf(address))?.readBigUInt64LE(8) ?? 0n
}

for (const exact of ['table', 'table of pairs', 'table of lines', 'hash'] as const)
  test(
    `an upgrade to another layout lets no packet of a blocked source pass, though there is no bus; from a ${exact}`,
    {
      skip,
    },
    () => upgrade(exact),
  )

async function upgrade(exact: Held): Promise<void> {
  await using cable = await networkNamespace()
  await using sources = await temporaryDirectory()
  using pins = pinDirectory()
  using target = await receiver(cable.hostAddress)
  const old = await otherLayout(sources.path, exact)
  leaveOldSensor(old, exact, pins.path, cable.hostDevice, cable.address)
  const [before, after] = [OLD_VERSION, LAYOUT_VERSION].map((version) =>
    join(pins.path, `v${version}_net${networkNamespaceInum()}`),
  )
  assert(before && after)
  await using sender = await flood(cable, target.port)
  await eventually(() => hits(before, cable.address, exact) > DROPS_BETWEEN, { what: 'the old programs drop' })
  await using sensor = await startProcess(process.execPath, [MAIN], {
    env: await environment(pins.path, cable.hostDevice, `nats://127.0.0.1:${await freePort()}`),
  })
  await sensor.line(/"hook":"xdp","on":true,"how":"adopted"/)
  const copied = exact === 'table of pairs' ? 2 : 1
  await sensor.line(new RegExp(`"block_exact":\\{"copied":${copied},"over":1,"left":0\\},"block_cidr4":\\{"copied":1,`))
  using opened = new DisposableStack()
  const map = (name: string) => opened.use(openPinnedMap(join(after, name)))
  assert.equal(
    map('block_cidr4').lookup(OLD_RANGE.key)?.readBigUInt64LE(8),
    HITS_TOLD,
    'its first drop is not told again',
  )
  if (exact === 'table of pairs') {
    const block = new ExactBlocks({ map }).lookup(HIT_LONG_AGO)
    assert.deepEqual([block?.readBigUInt64LE(8), block?.readUInt32LE(16)], [HITS_TOLD | 7n, 4711])
  }
  using lengths = openPinnedMap(join(after, 'block_lengths4'))
  assert.deepEqual(lengths.lookup(OLD_RANGE.place)?.readBigUInt64LE(), 1n << 8n, 'the range is looked for')
  using ruleSet = openPinnedMap(join(after, 'rule_set'))
  assert.deepEqual(ruleSet.lookup(Buffer.alloc(4)), RULE_SET_BEFORE, 'rules of the same layout go on too')
  const atUpgrade = hits(after, cable.address, 'today')
  assert(atUpgrade > DROPS_BETWEEN, 'what the block dropped before is not forgotten')
  await eventually(() => hits(after, cable.address, 'today') > atUpgrade + DROPS_BETWEEN, {
    what: 'the new programs drop',
  })
  await eventually(() => !existsSync(before), { what: 'the old maps are gone' })
  assert.equal(await sensor.stop(), 0)
  const atEnd = hits(after, cable.address, 'today')
  await eventually(() => hits(after, cable.address, 'today') > atEnd + DROPS_BETWEEN, {
    what: 'they drop on their own',
  })
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
    eventually(() => hits(directory, cable.address, 'today') > dropped + DROPS_BETWEEN, { what: `drops ${what}` })
  for (const how of ['kill', 'stop', 'kill'] as const) {
    dropped = hits(directory, cable.address, 'today')
    await dropsOn(`before ${how}`)
    await sensor[how]()
    dropped = hits(directory, cable.address, 'today')
    await dropsOn(`after ${how}`)
    // Once as it was, once with maps of another size, and back.
    const changes = how === 'stop' ? { TOLLWARD_BLOCKED_ADDRESSES_MAX: '1000', TOLLWARD_FLOWS_MAX: '5000' } : {}
    await sensor.start({ ...env, ...changes })
  }
  dropped = hits(directory, cable.address, 'today')
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
  await eventually(() => hits(directory, cable.address, 'today') > 0n, { what: 'the block drops' })
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
