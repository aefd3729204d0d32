import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import process from 'node:process'
import { ensureSystemPackages } from '@tollward/acquire'
import { type BpfObject, ExactBlocks, loadObject, tableSizes, testRun } from '@tollward/libbpf'
import { networkNamespace, requires, temporaryDirectory } from '@tollward/testkit'
import { median, rounded } from './latencies.ts'
import { compilePackets, ORDER } from './packets.ts'

/** One line of the table. */
export interface Row {
  readonly [column: string]: string | number
}

export const name = 'lists: a million addresses put into the kernel, and looked up there'

const SIZES = [1000, 100_000, 1_000_000]
const MILLION = 1_000_000
/** First of 10.0.0.0/8. */
const FIRST = 0x0a00_0000
const VALUE_BYTES = 40
const KEY_BYTES = 16
/** Of one run of the kernel's program. */
const LOOK_UPS = 64
const REPEAT = 5000
const ROUNDS = 7
const FRAME = Buffer.alloc(64)

/** The table is the sensor's; what the sensor does beside filling it is measured by million.bench.ts. */
export async function run(): Promise<{ rows: Row[] }> {
  if (process.getuid?.() === 0) await ensureSystemPackages(['nftables', 'ipset'])
  const missing = await requires({ root: true, tools: ['ip', 'nft', 'ipset', 'clang', 'make'] })
  if (missing !== false) return { rows: [{ what: `not run: ${missing}` }] }
  const object = await compilePackets()
  const lookUps = SIZES.map((size) => lookUpRow(object, size))
  return { rows: [...(await loadRows(object)), ...lookUps] }
}

async function loadRows(object: string): Promise<Row[]> {
  await using namespace = await networkNamespace()
  await using directory = await temporaryDirectory('lists')
  const file = join(directory.path, 'list')
  const all = Array.from({ length: MILLION }, (_, index) => dotted(FIRST + index))
  const rows: Row[] = []
  const timed = async (what: string, load: () => unknown) => {
    const beganMs = performance.now()
    await load()
    rows.push({ what: `load a million: ${what}`, ms: Math.round(performance.now() - beganMs) })
  }
  const { keys, values } = entriesOf(MILLION)
  using loaded = loadLists(object, MILLION)
  const table = tableOf(loaded)
  await timed("Tollward's table", () => table.updateBatch(keys, values))
  writeFileSync(file, `table ip bench {\n set addresses { type ipv4_addr\n elements = { ${all.join(', ')} }\n}\n}\n`)
  await timed('nftables set', () => namespace.exec('nft', ['-f', file]))
  const lines = all.map((address) => `add addresses ${address}`).join('\n')
  writeFileSync(file, `create addresses hash:ip maxelem ${MILLION} hashsize 524288\n${lines}\n`)
  await timed('ipset hash:ip', () => namespace.exec('ipset', ['-file', file, 'restore']))
  return rows
}

/**
 * Of entries at random, each a hit: of a million, hardly any is in the processor's caches. Beside it, what one read at random from the
 * memory of the table takes, each where the last one says.
 */
function lookUpRow(object: string, size: number): Row {
  using loaded = loadLists(object, size)
  const { keys, values } = entriesOf(size)
  tableOf(loaded).updateBatch(keys, values)
  const order = Buffer.alloc(ORDER.bytes)
  order.writeUInt32LE(size, ORDER.senders)
  loaded.map('orders').update(Buffer.alloc(4), order)
  if (testRun(loaded.program('look_up'), FRAME).result !== LOOK_UPS) throw new Error('not every entry was found')
  const each = (program: string) => testRun(loaded.program(program), FRAME, REPEAT).durationNs / LOOK_UPS
  const beyondPicking = (program: string) =>
    rounded(median(Array.from({ length: ROUNDS }, () => each(program) - each('pick_only'))))
  return {
    what: `look up one of ${size.toLocaleString('en')}, at random`,
    ns: beyondPicking('look_up'),
    nsOfOneRead: beyondPicking('read_only'),
  }
}

function loadLists(object: string, size: number): BpfObject {
  const maps = {
    ...tableSizes(size),
    senders: { maxEntries: 1 },
    records: { maxEntries: 4096 },
  }
  return loadObject(object, { maps })
}

function tableOf(object: BpfObject): ExactBlocks {
  const table = new ExactBlocks({ map: (map) => object.map(map) })
  table.takeOver()
  return table
}

function entriesOf(size: number): { keys: Buffer; values: Buffer } {
  const keys = Buffer.alloc(size * KEY_BYTES)
  for (let index = 0; index < size; index++) {
    keys.writeUInt16BE(0xffff, index * KEY_BYTES + 10)
    keys.writeUInt32BE(FIRST + index, index * KEY_BYTES + 12)
  }
  return { keys, values: Buffer.alloc(size * VALUE_BYTES) }
}

function dotted(address: number): string {
  return [24, 16, 8, 0].map((shift) => (address >>> shift) & 0xff).join('.')
}
