import assert from 'node:assert/strict'
import { randomInt } from 'node:crypto'
import { describe, test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { bootTimeNs } from './clock.ts'
import { ExactBlocks, tableSizes } from './exact-blocks.ts'
import { BLOCK_SLOT, type Block, blockTarget, decodeBlock, encodeBlock, SLOT } from './layout.ts'
import { isErrno } from './native.ts'
import { loadObject, testRunAside } from './object.ts'
import { RingReader } from './ring.ts'
import { address, frameFrom } from './test-packets.ts'
import { compileSensor, needsKernel, TestSensor } from './test-sensor.ts'

const ROOM = 256
/** Judged in another thread while blocks change. */
const PACKETS = 3_000_000
const CHANGES_AT_ONCE = 2000
const MANY = 2000
/** In random order: of nine addresses, each pair is met in each order many times. */
const CHANGES = 500
const AN_HOUR_NS = 3_600_000_000_000n
const PLACES = 65_536

type Family = 4 | 6

describe('the table of exact addresses', { skip: needsKernel }, () => {
  test('the kernel finds what user space wrote, of both families, and nothing else', async () => {
    using sensor = await sensorFor(MANY)
    const those = Array.from({ length: MANY }, (_, index) =>
      index % 2 ? `10.1.${index >> 8}.${index & 255}` : v6(index),
    )
    const blocks = exactOf(sensor)
    blocks.updateBatch(Buffer.concat(those.map(keyOf)), Buffer.concat(those.map(() => blockValue({}))))
    const outcomes = those.map((source) => sensor.judge(frameFrom(source)))
    assert.deepEqual(new Set(outcomes), new Set(['drop']))
    for (let index = MANY; index < 2 * MANY; index++) assert.equal(sensor.judge(frameFrom(v6(index))), 'pass')
    assert.throws(() => blocks.update(keyOf('10.2.0.0'), blockValue({})), { code: 'resource_exhausted' })
    assert.equal(blocks.deleteBatch(Buffer.concat([...those, '10.2.0.0'].map(keyOf))), MANY)
    assert.deepEqual(headsOf(sensor), [], 'nothing is looked for any more')
    assert.equal(sensor.judge(frameFrom(v6(0))), 'pass')
  })

  test('what finds no slot near its home is blocked all the same, counts its hits, and can be lifted', async () => {
    using sensor = await sensorFor(ROOM)
    const blocks = exactOf(sensor)
    // Those of IPv4 fill the second slots that those of IPv6 leave, and the buckets that these cannot have.
    const those = [...sharingHome(blocks, SLOT.reachMax / 2, 4), ...sharingHome(blocks, (3 * SLOT.reachMax) / 4 + 3, 6)]
    for (const source of those) blocks.update(keyOf(source), blockValue({}))
    assert.equal([...sensor.object.map('block_overflow').keys()].length, 3)
    for (const source of those) {
      assert.equal(sensor.judge(frameFrom(source)), 'drop', source)
      assert.equal(hitsOf(blocks, source), 1n, source)
    }
    const held = new Set<string>()
    for (const { count, keys } of blocks.entries())
      for (let index = 0; index < count; index++) held.add(keys.toString('hex', index * 16, index * 16 + 16))
    assert.deepEqual(held, new Set(those.map((source) => keyOf(source).toString('hex'))))
    const [gone, next, last] = [those[0] ?? '', ...those.slice(-2)]
    assert(blocks.delete(keyOf(gone)) && next && blocks.delete(keyOf(next)))
    assert.deepEqual(
      [gone, next].map((source) => sensor.judge(frameFrom(source))),
      ['pass', 'pass'],
    )
    assert.equal(sensor.judge(frameFrom(last ?? '')), 'drop')
    assert.equal(blocks.deleteBatch(Buffer.concat(those.map(keyOf))), those.length - 2)
    assert.deepEqual(headsOf(sensor), [])
  })

  test('a block ends within a millisecond after its expiry, and not before', async () => {
    using sensor = await sensorFor(ROOM)
    const blocks = exactOf(sensor)
    const unitNs = 1n << SLOT.expiryShift
    for (const expiresNs of [1n, unitNs - 1n, unitNs, unitNs + 1n, 86_400_000_000_001n, 2n ** 59n]) {
      blocks.update(keyOf(v6(1)), blockValue({ expiresNs }))
      const lateNs = sensor.blockOf(v6(1)).expiresNs - expiresNs
      assert(lateNs >= 0n && lateNs < unitNs, `${expiresNs}: ${lateNs}`)
    }
    blocks.update(keyOf(v6(1)), blockValue({ expiresNs: 0n }))
    assert.equal(sensor.blockOf(v6(1)).expiresNs, 0n, 'never')
  })

  test('no two tables have one hash, so nobody can choose addresses that share a home', async () => {
    using one = await sensorFor(ROOM)
    using other = await sensorFor(ROOM)
    const homes = (sensor: TestSensor) => {
      const blocks = exactOf(sensor)
      return Array.from({ length: 64 }, (_, index) => blocks.homeOf(keyOf(v6(index))))
    }
    assert.deepEqual(homes(one), homes(one))
    assert.notDeepEqual(homes(one), homes(other))
  })

  test('whatever an earlier writer left undone, the next one sets right', async () => {
    using sensor = await sensorFor(ROOM)
    const blocks = exactOf(sensor)
    const those = sharingHome(blocks, 3, 6)
    for (const source of those) blocks.update(keyOf(source), blockValue({}))
    const home = blocks.homeOf(keyOf(those[0] ?? ''))
    const slots = sensor.object.map('block_exact')
    const setHead = (bucket: number, change: (head: number) => number) => {
      const key = Buffer.alloc(4)
      key.writeUInt32LE(bucket)
      const value = slots.lookup(key) ?? Buffer.alloc(2 * BLOCK_SLOT.bytes)
      value.writeUInt32LE(change(value.readUInt32LE(BLOCK_SLOT.head)), BLOCK_SLOT.head)
      slots.update(key, value)
    }
    const reach = SLOT.reachMask << SLOT.reachShift
    setHead(home, (head) => (head & ~reach) | (1 << SLOT.reachShift))
    setHead(home + 9, (head) => head | (7 << SLOT.reachShift) | SLOT.overflow)
    assert.equal(sensor.judge(frameFrom(those[2] ?? '')), 'pass')
    const next = exactOf(sensor)
    for (const source of those) assert.equal(sensor.judge(frameFrom(source)), 'drop', source)
    assert.equal(next.deleteBatch(Buffer.concat(those.map(keyOf))), 3)
    assert.deepEqual(headsOf(sensor), [])
  })

  test('hits of a block that is extended go on, whatever came meanwhile; those of one that begins anew do not', async () => {
    using sensor = await sensorFor(ROOM)
    const blocks = exactOf(sensor)
    blocks.update(keyOf(v6(1)), blockValue({}))
    sensor.judge(frameFrom(v6(1)))
    const read = blocks.lookup(keyOf(v6(1)))
    sensor.judge(frameFrom(v6(1)))
    blocks.update(keyOf(v6(1)), blockValue({ ruleId: 9 }, read))
    const { hits, ruleId } = sensor.blockOf(v6(1))
    assert.deepEqual([hits, ruleId], [2n, 9])
    assert.equal(firstHits(sensor), 1)
    blocks.update(keyOf(v6(1)), blockValue({}))
    assert.equal(sensor.blockOf(v6(1)).hits, 0n)
    for (let packet = 0; packet < 2; packet++) sensor.judge(frameFrom(v6(1)))
    assert.equal(firstHits(sensor), 1, 'of the new one, and once')
  })

  test('a block of either family takes no slot that another has, in whichever order they come and go', async () => {
    using sensor = await sensorFor(ROOM)
    const blocks = exactOf(sensor)
    const those = [...sharingHome(blocks, 5, 4), ...sharingHome(blocks, 4, 6)]
    const held = new Set<string>()
    const changed: string[] = []
    for (let change = 0; change < CHANGES; change++) {
      const source = those[randomInt(those.length)] ?? ''
      changed.push(source)
      if (held.delete(source)) assert(blocks.delete(keyOf(source)))
      else {
        blocks.update(keyOf(source), blockValue({}))
        held.add(source)
      }
      const found = those.filter((each) => blocks.lookup(keyOf(each)))
      const dropped = those.filter((each) => sensor.judge(frameFrom(each)) === 'drop')
      const wanted = those.filter((each) => held.has(each))
      assert.deepEqual({ found, dropped }, { found: wanted, dropped: wanted }, changed.join(', '))
    }
  })

  for (const [where, family, heldBefore] of [
    ['its home', 4, 0],
    ['a bucket behind', 4, 2],
    ['a bucket behind', 6, 2],
  ] as const)
    test(`no packet of a blocked address in ${where} passes while blocks around it come and go, and it is extended: IPv${family}`, async () => {
      using sensor = await sensorFor(ROOM)
      const blocks = exactOf(sensor)
      const those = sharingHome(blocks, heldBefore + 4, family)
      const [before, blocked, after, further] = those.slice(heldBefore).map(keyOf)
      assert(before && blocked && after && further)
      const value = blockValue({})
      const extended = blockValue({ expiresNs: bootTimeNs() + AN_HOUR_NS, ruleId: 2 })
      // In the second slot of its bucket, with a hole in the first or not.
      for (const source of those.slice(0, heldBefore + 2)) blocks.update(keyOf(source), value)
      const judged = await judgeWhile(sensor, those[heldBefore + 1] ?? '', () => {
        blocks.update(after, value)
        blocks.delete(before)
        blocks.update(further, value)
        blocks.update(blocked, extended)
        blocks.delete(after)
        blocks.update(before, value)
        blocks.update(blocked, value)
        blocks.delete(further)
      })
      assert.equal(judged.passed, 0)
      assert(judged.dropped >= PACKETS)
    })

  for (const [one, other] of [
    [4, 4],
    [6, 6],
    [4, 6],
    [6, 4],
  ] as const)
    test(`no packet is dropped by half of one entry and half of the next: of IPv${one} and IPv${other}`, () =>
      halves(one, other))
})

async function halves(one: Family, other: Family): Promise<void> {
  using sensor = await sensorFor(ROOM)
  const blocks = exactOf(sensor)
  const those = [...sharingHome(blocks, 1, one), ...sharingHome(blocks, 2, other).slice(-1)]
  const [lapsed, live] = those.map(keyOf)
  assert(lapsed && live)
  const inForce = { expiresNs: bootTimeNs() + AN_HOUR_NS }
  const [over, drops, audits] = [{ expiresNs: 1n }, inForce, { ...inForce, mode: 'audit' } as const].map((block) =>
    blockValue(block),
  )
  assert(over && drops && audits)
  // In turns in the same slot: another address, with other terms.
  const inTurns = await judgeWhile(sensor, those[0] ?? '', () => {
    blocks.update(live, drops)
    blocks.delete(live)
    blocks.update(lapsed, over)
    blocks.delete(lapsed)
  })
  assert.equal(inTurns.dropped, 0)
  assert(inTurns.passed >= PACKETS)
  // The same address: either lapsed or only counted.
  const changed = await judgeWhile(sensor, those[0] ?? '', () => {
    blocks.update(lapsed, over)
    blocks.update(lapsed, audits)
  })
  assert.equal(changed.dropped, 0)
}

/** How packets of a source were judged while another thread made changes. */
async function judgeWhile(sensor: TestSensor, source: string, change: () => void) {
  const before = sensor.counters()
  let isOver = false
  const runs = runWhole(sensor, source).finally(() => {
    isOver = true
  })
  while (!isOver) {
    for (let count = 0; count < CHANGES_AT_ONCE; count++) change()
    await turn()
  }
  await runs
  const { passed = 0, droppedExact = 0 } = sensor.counters(before)
  return { passed, dropped: droppedExact }
}

/** A signal to this process, also one that stops it, ends a run before its time; then there is another. */
async function runWhole(sensor: TestSensor, source: string): Promise<void> {
  try {
    await testRunAside(sensor.object.program('xdp_guard'), frameFrom(source), PACKETS)
  } catch (error) {
    if (!isErrno(error, 'EINTR')) throw error
    await runWhole(sensor, source)
  }
}

async function sensorFor(addresses: number): Promise<TestSensor> {
  const maps = {
    ...tableSizes(addresses),
    flows_a: { maxEntries: 64 },
    flows_b: { maxEntries: 64 },
  }
  return new TestSensor(loadObject(await compileSensor(), { maps }))
}

/** The table, of which the kernel was told that there may be exact addresses of IPv4 everywhere. */
function exactOf({ object }: TestSensor): ExactBlocks {
  const places = Buffer.alloc(4 * PLACES)
  for (let place = 0; place < PLACES; place++) places.writeUInt32LE(place, 4 * place)
  object.map('block_lengths4').updateBatch(places, Buffer.from(new BigUint64Array(PLACES).fill(1n).buffer))
  const blocks = new ExactBlocks({ map: (name) => object.map(name) })
  blocks.takeOver()
  return blocks
}

/** Addresses of a family with one home, which is the same for both. */
function sharingHome(blocks: ExactBlocks, count: number, family: Family): string[] {
  const home = blocks.homeOf(keyOf(v6(0)))
  const found: string[] = []
  for (let index = 0; found.length < count; index++) {
    const source = family === 6 ? v6(index) : `10.${index >>> 16}.${(index >>> 8) & 255}.${index & 255}`
    if (blocks.homeOf(keyOf(source)) === home) found.push(source)
  }
  return found
}

function hitsOf(blocks: ExactBlocks, source: string): bigint | undefined {
  const value = blocks.lookup(keyOf(source))
  return value && decodeBlock(value).hits
}

/** Records of the first packet that a block dropped, since they were last asked for. */
function firstHits({ object }: TestSensor): number {
  using ring = new RingReader(object.map('first_hits'))
  let count = 0
  ring.read(() => (count += 1))
  return count
}

/** Heads that say that something is there or is to be looked for. */
function headsOf({ object }: TestSensor): number[] {
  const heads: number[] = []
  for (const { count, values } of object.map('block_exact').entries())
    for (let index = 0; index < 2 * count; index++) {
      const head = values.readUInt32LE(index * BLOCK_SLOT.bytes + BLOCK_SLOT.head) % (1 << SLOT.versionShift)
      if (head !== 0) heads.push(head)
    }
  return heads
}

function v6(index: number): string {
  return `2001:db8::${(index >>> 16).toString(16)}:${(index & 0xffff).toString(16)}`
}

function targetOf(source: string) {
  return blockTarget({ address: address(source), prefixLength: 128 })
}

function keyOf(source: string): Buffer {
  return targetOf(source).key
}

function blockValue(block: Partial<Block>, previous?: Buffer): Buffer {
  return encodeBlock(targetOf('::'), { expiresNs: 0n, ruleId: 1, mode: 'drop', ...block }, previous)
}
