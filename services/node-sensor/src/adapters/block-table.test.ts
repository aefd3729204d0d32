import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import { parseRange, rangeKey } from '@tollward/contracts'
import {
  type BpfObject,
  blockTarget,
  decodeBlock,
  ExactBlocks,
  isBlockOf,
  loadObject,
  tableSizes,
} from '@tollward/libbpf'
import { pino } from 'pino'
import { Registry } from 'prom-client'
import type { WantedBlock } from '../domain/block.ts'
import { WantedBlocks } from '../domain/wanted-blocks.ts'
import { sensorMetrics } from '../metrics.ts'
import { skip } from '../test-node.ts'
import { BlockTable, wantedOf } from './block-table.ts'
import { objectFile } from './object-file.ts'

const ROOM = 10_000
const AN_HOUR_MS = 3_600_000

describe('the table of blocks, in maps of the kernel that nothing is attached to', { skip }, () => {
  let object: BpfObject
  let table: BlockTable
  let readings: { blocks: () => ReturnType<BlockTable['sizes']> }

  before(async () => {
    const maps = {
      ...tableSizes(ROOM),
      flows_a: { maxEntries: 16 },
      flows_b: { maxEntries: 16 },
    }
    object = loadObject(await objectFile(undefined), { maps })
  })
  after(() => object?.close())

  function newTable(guarded: readonly string[] = []): BlockTable {
    const metrics = sensorMetrics(new Registry(), {
      verdicts: () => ({}),
      events: () => ({}),
      blocks: () => readings.blocks(),
    })
    const made = new BlockTable({
      kernel: object,
      guarded: guarded.map((text) => block(text).range.address),
      metrics,
      log: pino({ level: 'silent' }),
    })
    readings = { blocks: () => made.sizes() }
    return made
  }
  /** Of the table that was made before: it reads what that one's writer wrote. */
  let read: ExactBlocks | undefined
  const exact = () => {
    read ??= new ExactBlocks({ map: (name) => object.map(name) })
    return read
  }
  const held = (cidr: string) => {
    const target = blockTarget(block(cidr).range)
    const value = (target.map === 'block_exact' ? exact() : object.map(target.map)).lookup(target.key)
    return value && isBlockOf(target, value) ? decodeBlock(value) : undefined
  }
  const sizes = () => Object.values(table.sizes()).map(({ entries }) => entries)

  test('a snapshot makes all three maps as it is: nothing stale, nothing missing, and hits of what stays are kept', () => {
    table = newTable()
    table.replace(wanted([block('10.0.0.1'), block('10.1.0.0/16'), block('fd00::/8'), block('fd00::1')]))
    assert.deepEqual(sizes(), [2, 1, 1])
    const stays = blockTarget(block('10.0.0.1').range)
    const map = exact()
    const value = map.lookup(stays.key)
    assert(value)
    value.writeBigUInt64LE(77n, 8)
    map.update(stays.key, value)

    // Another process finds what the first left.
    table = newTable()
    const later = Date.now() + 2 * AN_HOUR_MS
    table.replace(wanted([block('10.0.0.1', later, 9), block('10.0.0.2'), block('10.2.0.0/16'), block('::/0')]))
    assert.deepEqual(sizes(), [2, 1, 1])
    assert.deepEqual([held('10.1.0.0/16'), held('fd00::/8'), held('fd00::1')], [undefined, undefined, undefined])
    assert(held('10.2.0.0/16') && held('::/0') && held('10.0.0.2'))
    assert.equal(held('10.0.0.1')?.hits, 77n)
    assert.equal(held('10.0.0.1')?.ruleId, 9)
  })

  for (const { wide, narrow, before, after } of [
    { wide: '10.7.0.0/16', narrow: '10.7.1.0/24', before: [0, 2, 0], after: [0, 1, 0] },
    { wide: '2001:db8:7::/48', narrow: '2001:db8:7:1::/64', before: [0, 0, 2], after: [0, 0, 1] },
  ]) {
    test(`a range within a blocked range is a block of its own: written, counted, with its own hits (${wide})`, () => {
      table = newTable()
      table.replace(new WantedBlocks())
      const end = Date.now() + AN_HOUR_MS
      table.set(block(wide, end))
      const wider = blockTarget(block(wide).range)
      const value = object.map(wider.map).lookup(wider.key)
      assert(value)
      value.writeBigUInt64LE(77n, 8)
      object.map(wider.map).update(wider.key, value)
      assert.equal(table.set(block(narrow, end)), true)
      assert.deepEqual(sizes(), before)
      assert.equal(held(narrow)?.hits, 0n)
      table.remove(block(narrow).key)
      assert.equal(held(narrow), undefined)
      assert.equal(held(wide)?.hits, 77n)
      assert.deepEqual(sizes(), after)
    })
  }

  test('more than a batch is written, compared and removed whole', () => {
    table = newTable()
    const many = Array.from({ length: ROOM }, (_, index) => block(`10.3.${index >> 8}.${index & 255}`))
    table.replace(wanted(many))
    assert.deepEqual(sizes(), [ROOM, 0, 0])
    table.replace(wanted(many))
    assert.deepEqual(sizes(), [ROOM, 0, 0])
    table.replace(wanted(many.slice(ROOM / 2)))
    assert.deepEqual(sizes(), [ROOM / 2, 0, 0])
    let counted = 0
    for (const { count } of exact().entries()) counted += count
    assert.equal(counted, ROOM / 2)
    table.replace(new WantedBlocks())
    assert.deepEqual(sizes(), [0, 0, 0])
  })

  test('what finds no room waits, and each gets the room that another leaves', () => {
    table = newTable()
    const many = Array.from({ length: ROOM + 3 }, (_, index) => block(`10.4.${index >> 8}.${index & 255}`))
    table.replace(wanted(many))
    assert.deepEqual(sizes(), [ROOM, 0, 0])
    const missing = many.filter(({ range }) => exact().lookup(range.address) === undefined)
    assert.equal(missing.length, 3)
    const gone = many.find((candidate) => !missing.includes(candidate))
    assert(gone)
    table.remove(gone.key)
    assert.deepEqual(sizes(), [ROOM, 0, 0])
    const others = many.filter((candidate) => !missing.includes(candidate) && candidate !== gone)
    for (const { key } of others.slice(0, 2)) table.remove(key)
    for (const { range } of missing) assert(exact().lookup(range.address))
    table.replace(new WantedBlocks())
  })

  test('what is over is swept, a guarded address is left out, and comes when it is guarded no more', () => {
    table = newTable(['10.5.0.1'])
    const nowMs = Date.now()
    table.replace(wanted([block('10.5.0.1'), block('10.5.0.2', nowMs + 1000), block('10.5.0.0/24', nowMs + 1000)]))
    assert.deepEqual([sizes(), held('10.5.0.1')], [[1, 1, 0], undefined])
    table.guard([])
    assert(held('10.5.0.1'))
    table.guard([block('10.5.0.2').range.address])
    assert.deepEqual([held('10.5.0.2'), sizes()], [undefined, [1, 1, 0]])
    table.sweep(nowMs + 1000)
    assert.deepEqual(sizes(), [1, 0, 0])
    assert(held('10.5.0.1'))
  })

  test('while everything is read again, what is new is applied without waiting for the end', () => {
    table = newTable()
    table.setIfOther(block('10.8.0.1'))
    assert.equal(held('10.8.0.1'), undefined)
    const end = Date.now() + AN_HOUR_MS
    table.replace(wanted([block('10.8.0.1', end)]))
    table.setIfOther(block('10.8.0.2', end))
    table.setIfOther(block('10.8.0.1', end, 5))
    assert.deepEqual([held('10.8.0.2')?.ruleId, held('10.8.0.1')?.ruleId], [1, 5])
  })

  test('before the bucket was read nothing that an earlier sensor left is touched', () => {
    newTable().set(block('10.6.0.1'))
    table = newTable()
    table.guard([])
    table.convertExpiries()
    table.sweep(Date.now())
    assert(held('10.6.0.1'))
  })
})

function block(cidr: string, expiresAtMs = Date.now() + AN_HOUR_MS, revision = 1): WantedBlock {
  const range = parseRange(cidr)
  assert(range, cidr)
  return { key: rangeKey(range), range, expiresAtMs, decidedAtMs: 0, revision }
}

function wanted(blocks: readonly WantedBlock[]): WantedBlocks {
  const made = new WantedBlocks()
  for (const one of blocks) made.set(one.range, wantedOf(one))
  return made
}
