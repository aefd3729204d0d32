import { loadObject, RingReader, testRun } from '@tollward/libbpf'
import { requires } from '@tollward/testkit'
import koffi from 'koffi'
import { median, rounded } from './latencies.ts'
import { compilePackets } from './packets.ts'

/** One line of the table. */
export interface Row {
  readonly [column: string]: string | number
}

export const name = 'ring: records of 96 bytes read from a full ring of 16 MiB'

const ROUNDS = 15
const FRAME = Buffer.alloc(64)
/** Of fill_ring, in one system call; each writes 64. */
const RUNS = 512

/** One way to read what is there; gives how many records that was, and the sum of a field of each, so that each was looked at. */
interface Reader {
  readonly what: string
  readonly read: () => { records: number; sum: number }
}

/** A program of the kernel fills the ring, then one thread reads all of it; in turns. */
export async function run(): Promise<{ rows: Row[] }> {
  const missing = await requires({ root: true, tools: ['clang', 'make'] })
  if (missing !== false) return { rows: [{ what: `not run: ${missing}` }] }
  using object = loadObject(await compilePackets(), { maps: { senders: { maxEntries: 1 } } })
  const map = object.map('records')
  using ring = new RingReader(map)
  const readers = [inPlace(ring), byCallbacks(map.fd)]
  const nsEach = new Map(readers.map(({ what }) => [what, [] as number[]]))
  for (let round = 0; round < ROUNDS; round++) {
    for (const { what, read } of readers) {
      const written = fill(object)
      const beganMs = performance.now()
      const { records, sum } = read()
      const tookMs = performance.now() - beganMs
      if (records !== written.records || sum !== written.sum)
        throw new Error(`${what}: ${records} of ${written.records} records`)
      nsEach.get(what)?.push((tookMs * 1e6) / records)
    }
  }
  return {
    rows: [...nsEach].map(([what, values]) => ({
      what,
      nsEach: rounded(median(values)),
      millionsPerSecond: rounded(1000 / median(values)),
    })),
  }
}

/** Until no more fits. The first field of each record counts on from record to record. */
function fill(object: ReturnType<typeof loadObject>): { records: number; sum: number } {
  const counts = () => [0, 1].map((key) => Number(object.map('ring_counts').lookup(uint32(key))?.readBigUInt64LE(0)))
  const [from = 0, without = 0] = counts()
  while ((counts()[1] ?? 0) === without) testRun(object.program('fill_ring'), FRAME, RUNS)
  const [to = 0] = counts()
  return { records: to - from, sum: ((to - from) * (from + to - 1)) / 2 }
}

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32LE(value)
  return bytes
}

function inPlace(ring: RingReader): Reader {
  const read = () => {
    let sum = 0
    const records = ring.read((data, at) => {
      sum += data.readUInt32LE(at)
    })
    return { records, sum }
  }
  return { what: 'Tollward, in place', read }
}

/** As libbpf has it: a call from C for each record. */
function byCallbacks(fd: number): Reader {
  const libbpf = koffi.load('libbpf.so.1')
  const type = koffi.proto('BenchSample', 'int', ['void *', 'void *', 'size_t'])
  const create = libbpf.func('void *ring_buffer__new(int fd, void *sample, void *context, void *options)')
  const consume = libbpf.func('int ring_buffer__consume(void *ring)')
  let sum = 0
  const sample = koffi.register((_context: unknown, data: bigint) => {
    sum += koffi.decode(data, 'uint32_t') as number
    return 0
  }, koffi.pointer(type))
  const ring: unknown = create(fd, sample, null, null)
  const read = () => {
    sum = 0
    return { records: consume(ring) as number, sum }
  }
  return { what: "libbpf's ring_buffer__consume, by koffi", read }
}
