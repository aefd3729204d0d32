import assert from 'node:assert/strict'
import { test } from 'node:test'
import { create, fromBinary, toBinary } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { Direction, type Flow, FlowObservedSchema, FlowSchema, OwnerSchema } from '@tollward/contracts/sensor'
import { CONNECTION, decodeFlow, FLOW, FLOW_FLAG, FLOW_KEY } from '@tollward/libbpf'
import fc from 'fast-check'
import { FlowBatch } from './flow-encoder.ts'

const BOOTED_AT_MS = 1_700_000_000_123
const INTERFACES = new Map([
  [1, 'lo'],
  [7, 'a-long-device-0'],
])
const NS_MAX = 2n ** 53n - 1n

interface Entry {
  readonly key: Buffer
  readonly value: Buffer
}

const uint = (bits: number) => fc.integer({ min: 0, max: 2 ** bits - 1 })
const count = fc.oneof(fc.bigInt(0n, 300n), fc.bigInt(0n, 2n ** 53n - 1n))
/** As the kernel would write it: any 5-tuple, any numbers. */
const entry: fc.Arbitrary<Entry> = fc
  .record({
    addresses: fc.uint8Array({ minLength: 32, maxLength: 32 }),
    ports: fc.tuple(uint(16), uint(16)),
    protocol: uint(8),
    egress: fc.boolean(),
    counts: fc.tuple(count, count, count),
    times: fc.tuple(fc.bigInt(0n, NS_MAX), fc.bigInt(0n, NS_MAX)),
    syns: fc.oneof(uint(4), uint(32)),
    flags: fc.tuple(
      uint(8),
      fc.subarray([FLOW_FLAG.established, FLOW_FLAG.fragment, FLOW_FLAG.audited, FLOW_FLAG.closed]),
    ),
    ifindex: fc.constantFrom(0, 1, 7),
    vlan: uint(12),
    rtt: fc.oneof(fc.constant(0), uint(32)),
    owner: fc.record({ processId: fc.oneof(fc.constant(0), uint(22)), name: fc.stringMatching(/^[a-z:/-]{0,15}$/) }),
  })
  .map((of) => {
    const key = Buffer.alloc(FLOW_KEY.bytes)
    key.set(of.addresses, FLOW_KEY.source)
    key.writeUInt16LE(of.ports[0], FLOW_KEY.sourcePort)
    key.writeUInt16LE(of.ports[1], FLOW_KEY.destinationPort)
    key.writeUInt8(of.protocol, FLOW_KEY.protocol)
    key.writeUInt8(of.egress ? 1 : 0, FLOW_KEY.direction)
    const value = Buffer.alloc(FLOW.bytes)
    const sums = [FLOW.packets, FLOW.bytesTotal, FLOW.droppedPackets] as const
    for (const [index, at] of sums.entries()) value.writeBigUInt64LE(of.counts[index] ?? 0n, at)
    value.writeBigUInt64LE(of.times[0], FLOW.firstSeenNs)
    value.writeBigUInt64LE(of.times[1], FLOW.lastSeenNs)
    value.writeUInt32LE(of.syns, FLOW.pureSyns)
    value.writeUInt32LE(
      of.flags[1].reduce((all, flag) => all | flag, of.flags[0]),
      FLOW.flags,
    )
    value.writeUInt32LE(of.ifindex, FLOW.ifindex)
    value.writeUInt32LE(of.vlan, FLOW.vlan)
    value.writeUInt32LE(of.owner.processId, FLOW.connection + CONNECTION.processId)
    value.writeUInt32LE(of.rtt, FLOW.connection + CONNECTION.rttUs)
    value.write(of.owner.name, FLOW.connection + CONNECTION.processName)
    return { key, value }
  })

/** The same flow by the library's encoder, from the decoded record. */
function expected({ key, value }: Entry): Flow {
  const { firstSeenNs, lastSeenNs, direction, ifindex, pureSyns, owner, ...record } = decodeFlow(key, 0, value, 0)
  const at = (ns: bigint) => timestampFromMs(BOOTED_AT_MS + Number(ns / 1_000_000n))
  return create(FlowSchema, {
    ...record,
    direction: direction === 'ingress' ? Direction.INGRESS : Direction.EGRESS,
    interface: INTERFACES.get(ifindex) ?? '',
    syns: pureSyns,
    firstSeenAt: at(firstSeenNs),
    lastSeenAt: at(lastSeenNs),
    ...(owner ? { owner: create(OwnerSchema, ownerOf(owner.processId)) } : {}),
  })
}

/** From none to longer than what a length of one byte says. */
function ownerOf(processId: number) {
  return { processId, cgroup: '/x'.repeat(processId % 200) }
}

function batchOf(entries: readonly Entry[]): FlowBatch {
  const batch = new FlowBatch({
    interfaceName: (ifindex) => INTERFACES.get(ifindex) ?? '',
    owner: (values, at) =>
      toBinary(OwnerSchema, create(OwnerSchema, ownerOf(values.readUInt32LE(at + CONNECTION.processId)))),
  })
  batch.bootedAtMs = BOOTED_AT_MS
  const keys = Buffer.concat(entries.map(({ key }) => key))
  const values = Buffer.concat(entries.map(({ value }) => value))
  for (const index of entries.keys()) batch.add(keys, index * FLOW_KEY.bytes, values, index * FLOW.bytes)
  return batch
}

test('flows encoded from the bytes of the kernel are those that the library encodes, field by field', () => {
  fc.assert(
    fc.property(fc.array(entry, { minLength: 1, maxLength: 20 }), (entries) => {
      const batch = batchOf(entries)
      assert.equal(batch.flows, entries.length)
      const { flows } = fromBinary(FlowObservedSchema, batch.take())
      assert.deepEqual(flows, entries.map(expected))
    }),
    { numRuns: 300 },
  )
})

test('a batch grows with what is added, and begins anew when taken', () => {
  const [one] = fc.sample(entry, { numRuns: 1, seed: 7 })
  assert(one)
  const batch = batchOf(Array.from({ length: 3000 }, () => one))
  const bytes = batch.take()
  assert(bytes.length > 128 * 1024, 'more than it began with')
  assert.equal(fromBinary(FlowObservedSchema, bytes).flows.length, 3000)
  assert.equal(batch.flows, 0)
  assert.equal(batch.take().length, 0)
})
