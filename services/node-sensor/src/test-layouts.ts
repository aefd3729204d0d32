// What sensors of other versions leave: for tests of upgrades.
import assert from 'node:assert/strict'
import { mkdirSync } from 'node:fs'
import { cp, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
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
  interfaceIndex,
  loadObject,
  openPinnedMap,
} from '@tollward/libbpf'
import { networkNamespaceInum } from './adapters/pins.ts'

/** Sources of the kernel programs. */
export const BPF_DIRECTORY = join(import.meta.dirname, '../../../bpf')
/** The layout that they say they have. */
export const OLD_VERSION = 1
/** A set without rules, but in the other half of the maps. */
export const RULE_SET_BEFORE = Buffer.from([1, ...new Array<number>(15).fill(0)])
/** 203.0.113.0/24, and where it is said that there is such a length. */
export const OLD_RANGE = {
  key: blockTarget({ address: Buffer.from('00000000000000000000ffffcb007100', 'hex'), prefixLength: 120 }).key,
  place: Buffer.from([0x00, 0xcb, 0, 0]),
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
/** What held exact addresses. */
export type Held = 'table' | keyof typeof BEFORE
/** The last bucket, so that all of both maps must be read, in several batches. */
const LAST_PAIR = Buffer.from(new Uint32Array([9999]).buffer)
/** An address whose block dropped a packet long ago, in a table of pairs. */
export const HIT_LONG_AGO = Buffer.alloc(16, 9)

/**
 * The kernel programs as they might have been in another version: other numbers, another layout of a block, ranges in a trie, and
 * exact addresses in a table like today's or as before.
 */
export async function otherLayout(directory: string, exact: Held): Promise<string> {
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
export function leaveOldSensor(object: string, exact: Held, pins: string, hostDevice: string, blocked: string): void {
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
export function hits(directory: string, address: string, held: Held | 'today'): bigint {
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
