import { kernelMembers } from './btf.ts'
import { ExactBlocks } from './exact-blocks.ts'
import { BLOCK } from './layout.ts'
import { type Batch, type BpfMap, MAP_TYPE } from './map.ts'
import { type Migration, migrateBlocks } from './migrate.ts'

const KEY_BYTES = 16
/** Of what has the layout of today. */
const NO_TYPES = { btf: 0, key: 0, value: 0 }
/** In a table of lines: an address, a word of which this bit says that there is a block, and the block. */
const [LINE_HEAD, LINE_LIVE, LINE_BLOCK] = [16, 1, 24]

/** The maps of one sensor. */
interface Maps {
  readonly map: (name: string) => BpfMap
}

/**
 * Copies the blocks of exact addresses, but for those that are over, whatever held them: a hash, a table of lines with a block each, or a
 * table like today's, of which the overflow may be laid out otherwise.
 */
export function migrateExact({ map }: Maps, to: ExactBlocks): Migration {
  const from = map('block_exact')
  if (from.type === MAP_TYPE.hash) return migrateBlocks(from, to)
  const overflow = map('block_overflow')
  const table = { name: from.name, type: MAP_TYPE.hash, keyBytes: KEY_BYTES }
  const isOfLines = 'head' in (kernelMembers(from.types.btf, from.types.value) ?? {})
  const source = isOfLines
    ? { valueBytes: overflow.valueBytes, types: overflow.types, entries: () => blocksOfLines(from) }
    : { valueBytes: BLOCK.bytes, types: NO_TYPES, entries: () => new ExactBlocks({ map }).slots() }
  const [slots, others] = [migrateBlocks({ ...table, ...source }, to), migrateBlocks(overflow, to)]
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
