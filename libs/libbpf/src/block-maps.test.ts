import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { parseRange } from '@tollward/contracts'
import { blockMaps } from './block-maps.ts'
import { tableSizes } from './exact-blocks.ts'
import { blockTarget, encodeBlock } from './layout.ts'
import { BpfError } from './native.ts'
import { loadObject } from './object.ts'
import { frameFrom } from './test-packets.ts'
import { compileSensor, loadSensor, needsKernel, TestSensor } from './test-sensor.ts'

const PLACES = 65_536
const ROOM = 4

describe('maps of blocks', { skip: needsKernel }, () => {
  test('ranges of every length are looked for from their first address to their last, and no more once they are lifted', async () => {
    using sensor = await loadSensor()
    for (let length = 0; length <= 32; length++) {
      const first = firstOf(0xcb85_a5a7, length)
      const last = first + 2 ** (32 - length) - 1
      const cidr = `${dotted(first)}/${length}`
      sensor.block(cidr)
      for (const inside of [first, last]) assert.equal(sensor.judge(frameFrom(dotted(inside))), 'drop', cidr)
      for (const outside of [first - 1, last + 1])
        if (outside >= 0 && outside < 2 ** 32) assert.equal(sensor.judge(frameFrom(dotted(outside))), 'pass', cidr)
      sensor.lift(cidr)
      assert.equal(sensor.judge(frameFrom(dotted(first))), 'pass', cidr)
      assert.deepEqual(placesOf(sensor), [], cidr)
    }
  })

  test('a range is looked for as long as one of its length and /16 is left', async () => {
    using sensor = await loadSensor()
    for (const cidr of ['10.1.1.0/24', '10.1.2.0/24', '10.1.2.0/24', '10.1.3.7', '10.1.3.8']) sensor.block(cidr)
    for (const cidr of ['10.1.1.0/24', '10.1.3.7']) sensor.lift(cidr)
    for (const source of ['10.1.2.9', '10.1.3.8']) assert.equal(sensor.judge(frameFrom(source)), 'drop', source)
    for (const cidr of ['10.1.2.0/24', '10.1.3.8']) sensor.lift(cidr)
    assert.deepEqual(placesOf(sensor), [])
  })

  test('live ranges of any depth around an address are found behind those that only audit', async () => {
    using sensor = await loadSensor()
    for (let length = 1; length <= 32; length++)
      sensor.block(`${dotted(firstOf(0x0a00_0000, length))}/${length}`, { mode: 'audit' })
    assert.equal(sensor.judge(frameFrom('10.0.0.0')), 'pass')
    sensor.block('0.0.0.0/0')
    assert.equal(sensor.judge(frameFrom('10.0.0.0')), 'drop')
    assert.equal(sensor.blockOf('10.0.0.0/17').hits, 2n)
  })

  test('what finds no room leaves no trace; of many at once, those that found some are looked for', async () => {
    const maps = { block_cidr4: { maxEntries: ROOM }, ...tableSizes(ROOM) }
    using sensor = new TestSensor(loadObject(await compileSensor(), { maps }))
    const blocks = blockMaps({ map: (name) => sensor.object.map(name) })
    for (const [map, length] of [
      ['block_cidr4', 24],
      ['block_exact', 32],
    ] as const) {
      const targets = Array.from({ length: 2 * ROOM }, (_, index) => targetOf(`10.${index}.1.0/${length}`))
      const [keys, values] = [targets.map(({ key }) => key), targets.map((target) => encodeBlock(target, FOR_EVER))]
      const isFull = (error: unknown) => error instanceof BpfError && error.code === 'resource_exhausted'
      assert.throws(() => blocks[map].updateBatch(Buffer.concat(keys), Buffer.concat(values), 'new'), isFull)
      const held = keys.filter((key) => blocks[map].lookup(key) !== undefined)
      assert(held.length > 0 && held.length < keys.length, `${held.length} found room`)
      assert.deepEqual(placesOf(sensor), held.map((key) => key.readUInt16BE(key.length - 4)).sort(), map)
      const refused = keys.findIndex((key) => !held.includes(key))
      assert.throws(
        () => blocks[map].update(keys[refused] ?? Buffer.alloc(0), values[refused] ?? Buffer.alloc(0)),
        isFull,
      )
      assert.equal(placesOf(sensor).length, held.length)
      blocks[map].deleteBatch(Buffer.concat(keys))
      assert.deepEqual(placesOf(sensor), [], 'also when some of those to be removed are not there')
    }
  })

  test('who takes over finds what is blocked, and what the kernel was told wrongly is set right', async () => {
    using sensor = await loadSensor()
    for (const cidr of ['10.4.0.0/15', '10.4.4.4', '2001:db8::/32', '2001:db8::4']) sensor.block(cidr)
    const lengths = sensor.object.map('block_lengths4')
    for (const [place, value] of [
      [0x0a04, 0n],
      [0x0a09, 1n],
    ] as const) {
      const [key, bytes] = [Buffer.alloc(4), Buffer.alloc(8)]
      key.writeUInt32LE(place)
      bytes.writeBigUInt64LE(value)
      lengths.update(key, bytes)
    }
    assert.equal(sensor.judge(frameFrom('10.4.4.4')), 'pass')
    const { block_cidr4: ranges } = blockMaps({ map: (name) => sensor.object.map(name) })
    assert.deepEqual(placesOf(sensor), [0x0a04, 0x0a05])
    for (const source of ['10.4.4.4', '10.5.4.4']) assert.equal(sensor.judge(frameFrom(source)), 'drop', source)
    ranges.delete(targetOf('10.4.0.0/15').key)
    assert.deepEqual(placesOf(sensor), [0x0a04])
  })
})

const FOR_EVER = { expiresNs: 0n, ruleId: 1, mode: 'drop' } as const

/** First 16 bits of the addresses around which the kernel looks for blocks. */
function placesOf({ object }: TestSensor): number[] {
  const places: number[] = []
  const lengths = object.map('block_lengths4')
  for (const { count, keys, values } of lengths.entries())
    for (let index = 0; index < count; index++)
      if (values.readBigUInt64LE(index * 8) !== 0n) places.push(keys.readUInt32LE(index * 4))
  assert.equal(lengths.maxEntries, PLACES)
  return places.sort((one, other) => one - other)
}

function targetOf(cidr: string) {
  const range = parseRange(cidr)
  assert(range)
  return blockTarget(range)
}

/** First address of the range of that length around an address. */
function firstOf(address: number, length: number): number {
  return address - (address % 2 ** (32 - length))
}

function dotted(address: number): string {
  return [24, 16, 8, 0].map((shift) => (address >>> shift) & 0xff).join('.')
}
