import { join } from 'node:path'
import { create, toBinary } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { Direction, FlowObservedSchema, FlowSchema, OwnerSchema } from '@tollward/contracts/sensor'
import {
  type Batch,
  type BpfObject,
  CONNECTION,
  compile,
  FLOW,
  FLOW_FLAG,
  FLOW_KEY,
  FlowDrain,
  type FlowRecord,
  loadObject,
} from '@tollward/libbpf'
import { requires } from '@tollward/testkit'
import { ROOT } from '../checks/copy.ts'
import { median, rounded } from './latencies.ts'

/** One line of the table. */
export interface Row {
  readonly [column: string]: string | number
}

/** Of services/node-sensor, which exports nothing. */
interface FlowBatch {
  bootedAtMs: number
  readonly flows: number
  add(keys: Buffer, keyAt: number, values: Buffer, valueAt: number): void
  take(): Uint8Array
}
type FlowBatchOf = new (context: {
  interfaceName: (ifindex: number) => string
  owner: (values: Buffer, at: number) => Uint8Array
}) => FlowBatch

export const name = 'flow-drain: 1,000,000 flows out of the kernel, as bytes for the bus'

const FLOWS = 1_000_000
const ROUNDS = 3
const BATCH_FLOWS = 1000
const PROCESSES = 500
/** What is promised of the whole way. */
const SECONDS_MAX = 1
const CONTAINER = '0123456789abcdef'.repeat(4)

/** One way to read them; gives how many it read, and the bytes it made of them. */
interface Way {
  readonly what: string
  readonly read: (drain: FlowDrain) => Promise<{ flows: number; bytes: number }>
}

/** The same full generation is read in each of the ways, in turns; every second flow has an owner in a container. */
export async function run(): Promise<{ rows: Row[] }> {
  const missing = await requires({ root: true, tools: ['clang', 'make'] })
  if (missing !== false) return { rows: [{ what: `not run: ${missing}` }] }
  const { FlowBatch } = (await import(join(ROOT, 'services/node-sensor/src/domain/flow-encoder.ts'))) as {
    FlowBatch: FlowBatchOf
  }
  const path = await compile(join(ROOT, 'bpf'), 'build/sensor.bpf.o')
  const maxEntries = FLOWS
  using object = loadObject(path, { maps: { flows_a: { maxEntries }, flows_b: { maxEntries } } })
  const full = fullGeneration()
  const maps = [object.map('flows_a'), object.map('flows_b')] as const
  const drain = new FlowDrain(object.map('active_flows'), ...maps)
  const ways: Way[] = [
    { what: 'read only', read: readOnly },
    { what: 'as the sensor does: encoded from the bytes', read: (from) => encoded(from, FlowBatch) },
    { what: 'an object each, encoded by the library', read: byLibrary },
  ]
  const seconds = new Map(ways.map(({ what }) => [what, [] as number[]]))
  const cpuSeconds = new Map(ways.map(({ what }) => [what, [] as number[]]))
  const bytesEach = new Map<string, number>()
  let turn = 0
  for (let round = 0; round < ROUNDS; round++) {
    for (const { what, read } of ways) {
      fill(object, turn++ % 2 === 0 ? 'flows_a' : 'flows_b', full)
      const cpuBegan = process.cpuUsage()
      const beganMs = performance.now()
      const { flows, bytes } = await read(drain)
      seconds.get(what)?.push((performance.now() - beganMs) / 1000)
      const cpu = process.cpuUsage(cpuBegan)
      cpuSeconds.get(what)?.push((cpu.user + cpu.system) / 1e6)
      bytesEach.set(what, bytes / flows)
      if (flows !== FLOWS) throw new Error(`${what}: ${flows} of ${FLOWS} flows`)
    }
  }
  const rows = [...seconds].map(([what, took]) => ({
    what,
    seconds: rounded(median(took)),
    // Beside other load only this says something.
    cpuSeconds: rounded(median(cpuSeconds.get(what) ?? [])),
    millionsPerSecond: rounded(FLOWS / 1e6 / median(took)),
    bytesEach: Math.round(bytesEach.get(what) ?? 0),
  }))
  const sensor = rows[1]
  const verdict = sensor && sensor.seconds <= SECONDS_MAX ? 'kept' : 'MISSED'
  return { rows: [...rows, { what: `promised: at most ${SECONDS_MAX} s for the sensor's way: ${verdict}` }] }
}

async function readOnly(drain: FlowDrain): Promise<{ flows: number; bytes: number }> {
  let flows = 0
  for await (const { count } of drain.batches()) flows += count
  return { flows, bytes: 0 }
}

async function encoded(drain: FlowDrain, Batch: FlowBatchOf): Promise<{ flows: number; bytes: number }> {
  const owners = new Map<number, Uint8Array>()
  const batch = new Batch({
    interfaceName: () => 'eth0',
    owner: (values, at) => {
      const processId = values.readUInt32LE(at + CONNECTION.processId)
      let owner = owners.get(processId)
      if (!owner) {
        owner = toBinary(OwnerSchema, ownerOf(processId))
        owners.set(processId, owner)
      }
      return owner
    },
  })
  batch.bootedAtMs = Date.now()
  let [flows, bytes] = [0, 0]
  const take = () => {
    flows += batch.flows
    bytes += batch.take().length
  }
  for await (const { count, keys, values } of drain.batches()) {
    for (let index = 0; index < count; index++) {
      batch.add(keys, index * FLOW_KEY.bytes, values, index * FLOW.bytes)
      if (batch.flows === BATCH_FLOWS) take()
    }
  }
  take()
  return { flows, bytes }
}

async function byLibrary(drain: FlowDrain): Promise<{ flows: number; bytes: number }> {
  let [flows, bytes] = [0, 0]
  for await (const records of drain.drain()) {
    for (let from = 0; from < records.length; from += BATCH_FLOWS) {
      const batch = records.slice(from, from + BATCH_FLOWS)
      flows += batch.length
      bytes += toBinary(FlowObservedSchema, create(FlowObservedSchema, { flows: batch.map(toFlow) })).length
    }
  }
  return { flows, bytes }
}

function toFlow({ direction, ifindex: _ifindex, pureSyns, owner, firstSeenNs, lastSeenNs, ...record }: FlowRecord) {
  return create(FlowSchema, {
    ...record,
    direction: direction === 'ingress' ? Direction.INGRESS : Direction.EGRESS,
    interface: 'eth0',
    syns: pureSyns,
    firstSeenAt: timestampFromMs(Number(firstSeenNs / 1_000_000n)),
    lastSeenAt: timestampFromMs(Number(lastSeenNs / 1_000_000n)),
    ...(owner ? { owner: ownerOf(owner.processId) } : {}),
  })
}

function ownerOf(processId: number) {
  const [cgroup, processName] = [`/system.slice/docker-${CONTAINER}.scope`, 'nginx']
  return create(OwnerSchema, { processId, processName, cgroup, containerId: CONTAINER })
}

function fullGeneration(): Batch {
  const keys = Buffer.alloc(FLOWS * FLOW_KEY.bytes)
  const values = Buffer.alloc(FLOWS * FLOW.bytes)
  for (let index = 0; index < FLOWS; index++) {
    const [key, value] = [index * FLOW_KEY.bytes, index * FLOW.bytes]
    keys.writeUInt16BE(0xffff, key + 10)
    keys.writeUInt32BE(0x0a00_0000 + index, key + 12)
    keys.writeUInt16BE(0xffff, key + 26)
    keys.writeUInt32BE(0xc633_6401, key + 28)
    keys.writeUInt16LE(1024 + (index % 60_000), key + FLOW_KEY.sourcePort)
    keys.writeUInt16LE(443, key + FLOW_KEY.destinationPort)
    keys.writeUInt8(6, key + FLOW_KEY.protocol)
    values.writeBigUInt64LE(BigInt(1 + (index % 500)), value + FLOW.packets)
    values.writeBigUInt64LE(BigInt(60 + index), value + FLOW.bytesTotal)
    values.writeBigUInt64LE(50_000_000_000_000n, value + FLOW.firstSeenNs)
    values.writeBigUInt64LE(50_000_100_000_000n, value + FLOW.lastSeenNs)
    values.writeUInt32LE(1, value + FLOW.pureSyns)
    values.writeUInt32LE(0x1b | FLOW_FLAG.established, value + FLOW.flags)
    values.writeUInt32LE(2, value + FLOW.ifindex)
    if (index % 2 === 1) continue
    values.writeUInt32LE(1 + (index % PROCESSES), value + FLOW.connection + CONNECTION.processId)
    values.writeUInt32LE(350, value + FLOW.connection + CONNECTION.rttUs)
  }
  return { count: FLOWS, keys, values }
}

function fill(object: BpfObject, map: string, { keys, values }: Batch): void {
  object.map(map).updateBatch(keys, values)
}
