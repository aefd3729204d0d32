import { kernelMembers } from './btf.ts'
import { ExactBlocks } from './exact-blocks.ts'
import { BLOCK, HITS_TOLD } from './layout.ts'
import { type Batch, type BpfMap, MAP_TYPE } from './map.ts'
import { type Migration, migrateBlocks } from './migrate.ts'

const KEY_BYTES = 16
/** Of what has the layout of today. */
const NO_TYPES = { btf: 0, key: 0, value: 0 }
/** In a table of lines: an address, a word of which this bit says that there is a block, and the block. */
const [LINE_HEAD, LINE_LIVE, LINE_BLOCK] = [16, 1, 24]

/** In a table of buckets of two slots for either family, with what was counted beside it: fields of a slot, and bits of its terms. */
const PAIR = { bytes: 32, head: 16, ruleId: 20, terms: 24, rateShift: 8n, timeShift: 24n, expiryShift: 20n } as const
const PAIR_HITS = { bytes: 32, hits: 0, firstHitNs: 8 } as const
const EXACT_PREFIX = 128

/** The maps of one sensor. */
interface Maps {
  readonly map: (name: string) => BpfMap
}

/**
 * Copies the blocks of exact addresses, but for those that are over, whatever held them: a hash, a table of lines with a block each,
 * one of buckets with hits beside it, or a table like today's, of which the overflow may be laid out otherwise.
 */
export function migrateExact({ map }: Maps, to: ExactBlocks): Migration {
  const from = map('block_exact')
  if (from.type === MAP_TYPE.hash) return migrateBlocks(from, to)
  const overflow = map('block_overflow')
  const members = kernelMembers(from.types.btf, from.types.value) ?? {}
  const blocks = { valueBytes: BLOCK.bytes, types: NO_TYPES }
  const source =
    'head' in members
      ? { valueBytes: overflow.valueBytes, types: overflow.types, entries: () => blocksOfLines(from) }
      : 'slots' in members
        ? { ...blocks, entries: () => blocksOfPairs(from, map('block_hits')) }
        : { ...blocks, entries: () => new ExactBlocks({ map }).slots() }
  const table = { name: from.name, type: MAP_TYPE.hash, keyBytes: KEY_BYTES, ...source }
  const [slots, others] = [migrateBlocks(table, to), migrateBlocks(overflow, to)]
  return { copied: slots.copied + others.copied, over: slots.over + others.over, left: slots.left + others.left }
}

function* blocksOfLines(table: BpfMap): Generator<Batch> {
  const blockBytes = table.valueBytes - LINE_BLOCK
  for (const { count, values } of table.entries()) {
    const lines = Array.from({ length: count }, (_, index) =>
      values.subarray(index * table.valueBytes, (index + 1) * table.valueBytes),
    ).filter((line) => (line.readUInt32LE(LINE_HEAD) & LINE_LIVE) !== 0)
    const keys = Buffer.concat(lines.map((line) => line.subarray(0, KEY_BYTES)))
    const blocks = Buffer.concat(lines.map((line) => line.subarray(LINE_BLOCK, LINE_BLOCK + blockBytes)))
    yield { count: lines.length, keys, values: blocks }
  }
}

function* blocksOfPairs(table: BpfMap, counted: BpfMap): Generator<Batch> {
  const counts = counted.entries()
  for (const { count, values } of table.entries()) {
    // Both are arrays, and are read in steps of the same size.
    const hits: Batch | undefined = counts.next().value
    if (hits?.count !== count) throw new TypeError(`${counted.name} is not as long as ${table.name}`)
    const slots = Array.from({ length: (count * table.valueBytes) / PAIR.bytes }, (_, index) => index)
    const live = slots.filter((slot) => (values.readUInt32LE(slot * PAIR.bytes + PAIR.head) & LINE_LIVE) !== 0)
    const keys = live.map((slot) => values.subarray(slot * PAIR.bytes, slot * PAIR.bytes + KEY_BYTES))
    const blocks = live.map((slot) =>
      blockOfPair(
        values.subarray(slot * PAIR.bytes, (slot + 1) * PAIR.bytes),
        hits.values.subarray(slot * PAIR_HITS.bytes, (slot + 1) * PAIR_HITS.bytes),
      ),
    )
    yield { count: live.length, keys: Buffer.concat(keys), values: Buffer.concat(blocks) }
  }
}

function blockOfPair(slot: Buffer, hits: Buffer): Buffer {
  const block = Buffer.alloc(BLOCK.bytes)
  const terms = slot.readBigUInt64LE(PAIR.terms)
  const told = hits.readBigUInt64LE(PAIR_HITS.firstHitNs) === 0n ? 0n : HITS_TOLD
  block.writeBigUInt64LE((terms >> PAIR.timeShift) << PAIR.expiryShift, BLOCK.expiresNs)
  block.writeBigUInt64LE(hits.readBigUInt64LE(PAIR_HITS.hits) | told, BLOCK.hits)
  block.writeUInt32LE(slot.readUInt32LE(PAIR.ruleId), BLOCK.ruleId)
  block.writeUInt8(Number(terms & 0xffn), BLOCK.mode)
  block.writeUInt8(EXACT_PREFIX, BLOCK.prefixLength)
  block.writeUInt16LE(Number((terms >> PAIR.rateShift) & 0xffffn), BLOCK.packetsPerSecond)
  return block
}
