import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Block, Transaction } from 'bitcoinjs-lib'
import fc from 'fast-check'
import { ScriptMap } from './script-map.ts'
import { findInBlock, findInTransaction, outputsOfBlock, outputsOfTransaction } from './watched-outputs.ts'

const bytes = (minLength: number, maxLength = minLength) => fc.uint8Array({ minLength, maxLength })
const input = fc.record({
  hash: bytes(32),
  index: fc.nat(),
  script: bytes(0, 300),
  witness: fc.array(bytes(0, 300), { maxLength: 3 }),
})
const output = fc.record({ script: bytes(0, 40), value: fc.bigInt({ min: 0n, max: 2_100_000_000_000_000n }) })
const transaction = fc
  .record({
    inputs: fc.array(input, { minLength: 1, maxLength: 4 }),
    outputs: fc.array(output, { minLength: 1, maxLength: 4 }),
  })
  .map(({ inputs, outputs }) => {
    const built = new Transaction()
    for (const { hash, index, script, witness } of inputs) {
      built.setWitness(built.addInput(hash, index, undefined, script), witness)
    }
    for (const { script, value } of outputs) built.addOutput(script, value)
    return built
  })
const block = fc.array(transaction, { minLength: 1, maxLength: 5 }).map((transactions) => {
  const built = new Block()
  built.prevHash = Buffer.alloc(32)
  built.merkleRoot = Buffer.alloc(32)
  built.transactions = transactions
  return built
})
const hex = (raw: Uint8Array) => Buffer.from(raw).toString('hex')
const everything = { scripts: { has: () => true }, spendings: { has: () => true, size: 1 } }

test('what is found in a block is what bitcoinjs-lib reads in it, with its ids', () => {
  fc.assert(
    fc.property(block, (built) => {
      const { outputs, spendings } = findInBlock(built.toBuffer(), everything)
      const transactions = built.transactions ?? []
      const outputsThere = transactions.flatMap((one) =>
        one.outs.map(({ script, value }, vout) => ({
          ...{ txid: one.getId(), vout, amountSats: value, script: hex(script) },
        })),
      )
      const spendingsThere = transactions.flatMap((one) =>
        one.ins.map(({ hash, index }) => ({ outpoint: `${hex(hash.toReversed())}:${index}`, spentBy: one.getId() })),
      )
      assert.deepEqual(outputs, outputsThere)
      assert.deepEqual(spendings, spendingsThere)
    }),
  )
})

test('a watched script is found byte for byte, and no other', () => {
  fc.assert(
    fc.property(block, (built) => {
      const script = hex(built.transactions?.at(-1)?.outs.at(-1)?.script ?? new Uint8Array())
      const found = outputsOfBlock(built.toBuffer(), (candidate) => candidate === script)
      const there = (built.transactions ?? []).flatMap(({ outs }) => outs.filter((out) => hex(out.script) === script))
      assert.ok(found.length >= 1)
      assert.deepEqual(
        found.map(({ amountSats }) => amountSats),
        there.map(({ value }) => value),
      )
    }),
  )
})

test('a block or transaction that is cut short, or goes on, is refused', () => {
  fc.assert(
    fc.property(block, fc.nat(), (built, cut) => {
      const raw = built.toBuffer()
      assert.throws(() => findInBlock(raw.subarray(0, cut % raw.length), everything), RangeError)
      assert.throws(() => findInBlock(Buffer.concat([raw, Buffer.alloc(1)]), everything), RangeError)
      const one = built.transactions?.[0]?.toBuffer() ?? new Uint8Array()
      assert.throws(() => findInTransaction(one.subarray(0, cut % one.length), everything), RangeError)
      assert.throws(() => outputsOfTransaction(Buffer.concat([one, Buffer.alloc(1)]), () => true), RangeError)
    }),
  )
})

test('bytes of anybody are read or refused, and end', () => {
  fc.assert(
    fc.property(bytes(0, 400), (raw) => {
      try {
        findInTransaction(raw, everything)
      } catch (error) {
        assert.ok(error instanceof RangeError)
      }
    }),
  )
})

test('a map of scripts is a map, whatever the scripts begin with and however short they are', () => {
  const script = fc.oneof(
    bytes(0, 12).map(hex),
    bytes(20).map((key) => `0014${hex(key)}`),
    // Neighbours in the bitmap.
    fc.nat(7).map((digit) => `0014${'0'.repeat(9)}${digit}${'ff'.repeat(15)}`),
    fc.constantFrom('', '00', '0014', '51', `0014${'00'.repeat(20)}`),
  )
  fc.assert(
    fc.property(fc.array(fc.tuple(script, fc.nat())), fc.array(script), (entries, others) => {
      const map = new ScriptMap<number>()
      const model = new Map(entries)
      for (const [key, value] of entries) map.set(key, value)
      assert.equal(map.size, model.size)
      assert.deepEqual([...map.keys()], [...model.keys()])
      for (const key of [...others, ...model.keys()]) {
        assert.equal(map.get(key), model.get(key))
        assert.equal(map.has(key), model.has(key))
      }
    }),
  )
})
