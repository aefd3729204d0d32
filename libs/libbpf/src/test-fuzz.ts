/** Mutated frames against the real programs, which must judge and count each as the oracle says. */
import assert from 'node:assert/strict'
import { tableSizes } from './exact-blocks.ts'
import { FLOW, FLOW_KEY } from './flow-layout.ts'
import { COUNTER, type CounterName } from './layout.ts'
import { addressOf, check, libbpf } from './native.ts'
import { type BpfProgram, loadObject } from './object.ts'
import { type Expected, type Lists, oracle } from './test-oracle.ts'
import {
  authentication,
  ETHERTYPE,
  ethernet,
  extension,
  fragment,
  frameFrom,
  ipv4,
  ipv6,
  PROTOCOL,
  TCP_FLAG,
  tcp,
  udp,
} from './test-packets.ts'
import { compileSensor, TestSensor } from './test-sensor.ts'

/** What came of it. */
export interface FuzzCounts {
  readonly packets: number
  /** Whose addresses could be read. */
  readonly readable: number
  readonly dropped: number
}

const XDP_DROP = 1
const XDP_PASS = 2
const TC_ACT_UNSPEC = 0xffff_ffff
const FRAME_BYTES_MIN = 14
const FRAME_BYTES_MAX = 512
/** Flows and counters are compared after so many: fewer than the map of flows has room for. */
const BATCH_PACKETS = 8192
/** One of so many is also sent out. */
const LEAVING_SHARE = 16
/** The kernel refuses to run a classifier on less than the IP header that the frame says it has. */
const LEAVING_BYTES_MIN = 54
const TEST_RUN_OPTS_BYTES = 80
const INGRESS = 0

const LISTS: Lists = {
  blocked: ['10.128.0.0/9', '172.16.0.0/12', '10.1.2.3', '2001:db8:8000::/33', '2001:db8::3', '::/120'],
  guarded: ['10.200.0.9', '2001:db8:8000::9'],
  managementPorts: [22, 4222, 9090],
}
const SOURCES = ['10.129.0.1', '10.1.2.3', '10.1.2.4', '10.200.0.9', '127.0.0.1', '172.20.1.1']
const SOURCES_6 = ['2001:db8:8000::1', '2001:db8::3', '2001:db8::4', '2001:db8:8000::9', '::1', '::2']
const PORTS = [22, 4222, 9090, 8080, 0]

/** Mutates frames and holds the programs against the oracle. Throws with the seed and the frame where they differ. */
export async function fuzzGuard(packets: number, seed: number): Promise<FuzzCounts> {
  using sensor = await load()
  const judge = oracle(LISTS)
  const random = randomNumbers(seed)
  const seeds = seedFrames()
  const arriving = new Runner(sensor.object.program('xdp_guard'))
  const leaving = new Runner(sensor.object.program('guard_egress'))
  const totals = { packets: 0, readable: 0, dropped: 0 }
  while (totals.packets < packets) {
    const before = sensor.counters()
    const expected = { packets: 0, bytes: 0, dropped: 0 }
    const count = Math.min(BATCH_PACKETS, packets - totals.packets)
    for (let index = 0; index < count; index++) {
      const length = mutate(arriving.frame, seeds, random)
      const what = judge(arriving.frame, length)
      const result = arriving.run(length)
      if (result !== (what.drop ? XDP_DROP : XDP_PASS)) throw different(arriving.frame, length, seed, result, what)
      if (what.readable) {
        expected.packets += 1
        expected.bytes += what.ipBytes
        expected.dropped += Number(what.drop)
      }
      if (index % LEAVING_SHARE !== 0 || length < LEAVING_BYTES_MIN) continue
      arriving.frame.copy(leaving.frame, 0, 0, length)
      const left = leaving.run(length)
      if (left !== TC_ACT_UNSPEC) throw different(leaving.frame, length, seed, left, what)
    }
    const counted = sensor.counters(before)
    compareFlows(arrivingFlows(sensor), expected, counted.droppedBeyondFlows ?? 0, seed)
    assert.equal(verdicts(counted), count, `verdicts of a batch, seed ${seed}`)
    totals.packets += count
    totals.readable += expected.packets
    totals.dropped += expected.dropped
  }
  return totals
}

async function load(): Promise<TestSensor> {
  const sizes = { flows_a: 2 * BATCH_PACKETS, flows_b: 512 }
  const others = Object.fromEntries(Object.entries(sizes).map(([name, maxEntries]) => [name, { maxEntries }]))
  const maps = { ...others, ...tableSizes(512) }
  const sensor = new TestSensor(loadObject(await compileSensor(), { maps }))
  sensor.configure({ managementPorts: LISTS.managementPorts })
  for (const range of LISTS.blocked) sensor.block(range)
  sensor.guard(...LISTS.guarded)
  return sensor
}

function different(frame: Buffer, length: number, seed: number, result: number, expected: Expected): Error {
  const bytes = frame.toString('hex', 0, length)
  return new Error(`seed ${seed}: ${result}, expected ${JSON.stringify(expected)}, of the frame ${bytes}`)
}

interface Sums {
  readonly packets: number
  readonly bytes: number
  readonly dropped: number
}

/** Of a flood that is dropped, only a part is in the flows; the rest is counted, without its bytes. */
function compareFlows(found: Sums, expected: Sums, beyond: number, seed: number): void {
  const whole = { ...found, packets: found.packets + beyond, dropped: found.dropped + beyond }
  const bytes = beyond === 0 ? expected.bytes : found.bytes
  assert.deepEqual(whole, { ...expected, bytes }, `flows of a batch, seed ${seed}`)
}

/** Of what arrived, taken out of the map. */
function arrivingFlows(sensor: TestSensor): Sums {
  const sums = { packets: 0, bytes: 0, dropped: 0 }
  for (const { count, keys, values } of sensor.object.map('flows_a').drain()) {
    for (let index = 0; index < count; index++) {
      if (keys[index * FLOW_KEY.bytes + FLOW_KEY.direction] !== INGRESS) continue
      const at = index * FLOW.bytes
      sums.packets += Number(values.readBigUInt64LE(at + FLOW.packets))
      sums.bytes += Number(values.readBigUInt64LE(at + FLOW.bytesTotal))
      sums.dropped += Number(values.readBigUInt64LE(at + FLOW.droppedPackets))
    }
  }
  return sums
}

/** Each packet that arrives counts under one verdict. */
function verdicts(counters: Partial<Record<CounterName, number>>): number {
  const names = Object.keys(counters) as CounterName[]
  return names.reduce((sum, name) => (COUNTER[name] < COUNTER.expiredSeen ? sum + (counters[name] ?? 0) : sum), 0)
}

/** One program, run again and again on the same memory: a call costs about a microsecond. */
class Runner {
  readonly frame = Buffer.alloc(FRAME_BYTES_MAX)
  readonly #opts = Buffer.alloc(TEST_RUN_OPTS_BYTES)
  readonly #program: BpfProgram

  constructor(program: BpfProgram) {
    this.#program = program
    this.#opts.writeBigUInt64LE(BigInt(TEST_RUN_OPTS_BYTES), 0)
    this.#opts.writeBigUInt64LE(addressOf(this.frame), 8)
    this.#opts.writeInt32LE(1, 60)
  }

  /** What the program returns for the first `length` bytes of the frame. */
  run(length: number): number {
    this.#opts.writeUInt32LE(length, 24)
    // Room for what the program leaves, of which the last run said how much it was.
    this.#opts.writeUInt32LE(0, 28)
    check(`running ${this.#program.name}`, libbpf().bpf_prog_test_run_opts(this.#program.fd, this.#opts))
    return this.#opts.readUInt32LE(56)
  }
}

/** One frame of each kind that the programs tell apart, from sources of each kind. */
function seedFrames(): Buffer[] {
  const frames: Buffer[] = []
  for (const [index, source] of [...SOURCES, ...SOURCES_6].entries()) {
    const destinationPort = PORTS[index % PORTS.length] ?? 0
    for (const port of [22, destinationPort]) {
      frames.push(frameFrom(source, { destinationPort: port, flags: TCP_FLAG.ack }))
      frames.push(frameFrom(source, { destinationPort: port, tags: [{ ethertype: ETHERTYPE.vlan, vlan: 7 }] }))
    }
  }
  for (const source of SOURCES) {
    const payload = udp({ destinationPort: 22 })
    frames.push(
      ethernet(ETHERTYPE.ipv4, ipv4({ source, protocol: PROTOCOL.udp, payload })),
      ethernet(ETHERTYPE.ipv4, ipv4({ source, options: Buffer.alloc(8, 1), payload: tcp({ destinationPort: 22 }) })),
      ethernet(ETHERTYPE.ipv4, ipv4({ source, fragmentOffset: 0x2000, payload: tcp({ destinationPort: 4222 }) })),
      ethernet(ETHERTYPE.ipv4, ipv4({ source, fragmentOffset: 0x2005, payload: tcp({ destinationPort: 22 }) })),
      ethernet(ETHERTYPE.ipv4, ipv4({ source, protocol: PROTOCOL.icmp, payload: Buffer.from([8, 0, 0, 0]) })),
    )
  }
  const [hop, options, routing] = [PROTOCOL.hopByHop, PROTOCOL.destination, PROTOCOL.routing].map((kind) =>
    extension(kind),
  )
  for (const source of SOURCES_6) {
    const payload = tcp({ destinationPort: 22 })
    const tags = [ETHERTYPE.qinq, ETHERTYPE.vlan].map((ethertype, vlan) => ({ ethertype, vlan }))
    for (const extensions of [
      [hop, options],
      [hop, routing, authentication()],
      [fragment(0)],
      [fragment(0), fragment(0)],
      [fragment(3)],
    ]) {
      const known = extensions.filter((one) => one !== undefined)
      frames.push(ethernet(ETHERTYPE.ipv6, ipv6({ source, payload, extensions: known }), tags))
      frames.push(
        ethernet(
          ETHERTYPE.ipv6,
          ipv6({ source, payload: udp({ destinationPort: 9090 }), protocol: PROTOCOL.udp, extensions: known }),
        ),
      )
    }
  }
  return frames
}

type RandomNumber = (below: number) => number

/** Where headers have their types and lengths, for an untagged frame. */
const FIELDS = [12, 14, 15, 16, 17, 20, 21, 23, 26, 30, 34, 36, 37, 54, 55, 56, 57, 62, 63]
const BYTES = [
  0, 1, 4, 5, 6, 8, 17, 22, 41, 43, 44, 45, 51, 58, 60, 64, 69, 96, 127, 128, 129, 134, 135, 136, 168, 221, 255,
]

/** Writes a seed with a few changes into the frame; gives its length. */
function mutate(frame: Buffer, seeds: readonly Buffer[], random: RandomNumber): number {
  const seed = seeds[random(seeds.length)] ?? Buffer.alloc(FRAME_BYTES_MIN)
  let length = seed.copy(frame)
  for (let changes = random(5); changes > 0; changes--) length = change(frame, length, seeds, random)
  return Math.max(length, FRAME_BYTES_MIN)
}

function change(frame: Buffer, length: number, seeds: readonly Buffer[], random: RandomNumber): number {
  const at = random(length)
  switch (random(8)) {
    case 0:
      frame[at] = (frame[at] ?? 0) ^ (1 << random(8))
      return length
    case 1:
      frame[at] = random(256)
      return length
    case 2:
    case 3:
      frame[FIELDS[random(FIELDS.length)] ?? 0] = BYTES[random(BYTES.length)] ?? 0
      return length
    case 4:
      return random(length) + 1
    case 5:
      // What a frame had behind its end before is as good as random bytes.
      return Math.min(FRAME_BYTES_MAX, length + random(64))
    case 6: {
      // A piece once more: headers repeat, chains and tags grow.
      const piece = Math.min(random(24) + 1, length - at, FRAME_BYTES_MAX - length)
      frame.copyWithin(at + piece, at, length)
      return length + piece
    }
    default: {
      const other = seeds[random(seeds.length)] ?? frame
      return at + other.copy(frame, at, Math.min(at, other.length))
    }
  }
}

/** The same numbers for the same seed (xorshift32). */
function randomNumbers(seed: number): RandomNumber {
  let state = seed | 0 || 1
  return (below) => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return (state >>> 0) % below
  }
}
