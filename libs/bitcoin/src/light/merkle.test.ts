import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Block, Transaction } from 'bitcoinjs-lib'
import fc from 'fast-check'
import { doubleSha256 } from '../raw-transaction.ts'
import { hashBytes, showHash } from '../watched-outputs.ts'
import { readHeader } from './header.ts'
import { type MerkleBranch, type ProvenTransaction, proveBlock, proveTransaction } from './merkle.ts'

const FORGED = { name: 'AppError', code: 'invalid_argument' }
/** The whole tree, from the leaves to the root. */
type Tree = readonly (readonly Buffer[])[]

const coinbase = transaction({ hash: Buffer.alloc(32), index: 0xffffffff })

function transaction({ hash, index }: { hash: Uint8Array; index: number }, { scriptBytes = 22, salt = 0 } = {}) {
  const built = new Transaction()
  built.setWitness(built.addInput(hash, index, salt), [Buffer.from('witness')])
  built.addOutput(Buffer.alloc(scriptBytes, 1), 1_000n)
  return built
}

const spending = (salt: number) => transaction({ hash: Buffer.alloc(32, 7), index: 1 }, { salt })
const leaf = (one: Transaction) => Buffer.from(hashBytes(one.getId()))
const pair = (left: Buffer, right: Buffer) => doubleSha256(Buffer.concat([left, right]))

function treeOf(leaves: readonly Buffer[]): Tree {
  const rows: Buffer[][] = [[...leaves]]
  for (let row = rows[0] ?? []; row.length > 1; row = rows.at(-1) ?? []) {
    rows.push(
      Array.from({ length: Math.ceil(row.length / 2) }, (_, index) => {
        const left = row[index * 2] ?? Buffer.alloc(0)
        return pair(left, row[index * 2 + 1] ?? left)
      }),
    )
  }
  return rows
}

function branchAt(tree: Tree, position: number): MerkleBranch {
  const siblings = tree.slice(0, -1).map((row, level) => {
    const at = Math.floor(position / 2 ** level)
    return showHash(row[at ^ 1] ?? row[at] ?? Buffer.alloc(0))
  })
  return { position, siblings }
}

function blockOf(transactions: readonly Transaction[]) {
  const tree = treeOf(transactions.map(leaf))
  const built = new Block()
  built.prevHash = Buffer.alloc(32)
  built.merkleRoot = tree.at(-1)?.[0] ?? Buffer.alloc(32)
  built.transactions = [...transactions]
  const raw = Buffer.from(built.toBuffer())
  const proofOf = (position: number): ProvenTransaction => ({
    raw: transactions[position]?.toBuffer() ?? Buffer.alloc(0),
    branch: branchAt(tree, position),
  })
  return { tree, raw, header: readHeader(raw.subarray(0, 80)), proofOf }
}

const block = (transactions: number) =>
  blockOf([coinbase, ...Array.from({ length: transactions - 1 }, (_, salt) => spending(salt))])

test('every transaction of a block is proven, and is what it hashes to', () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 40 }), fc.nat(), (transactions, at) => {
      const { header, raw, proofOf } = block(transactions)
      const proof = proofOf(at % transactions)
      assert.equal(proveTransaction(header, proof, proofOf(0)), Transaction.fromBuffer(proof.raw).getId())
      proveBlock(raw, header)
    }),
    { numRuns: 50 },
  )
})

test('a proof of another block, of other bytes or with another hash is refused', () => {
  const { header, proofOf } = block(9)
  const [first, proof] = [proofOf(0), proofOf(5)]
  const refused = (changed: ProvenTransaction) => assert.throws(() => proveTransaction(header, changed, first), FORGED)
  assert.throws(() => proveTransaction(block(8).header, proof, first), FORGED)
  refused({ ...proof, raw: spending(99).toBuffer() })
  refused({ ...proof, raw: proof.raw.subarray(1) })
  refused({ ...proof, raw: Buffer.concat([proof.raw, Buffer.alloc(1)]) })
  refused({ ...proof, branch: { ...proof.branch, siblings: proof.branch.siblings.toReversed() } })
  refused({ ...proof, branch: { ...proof.branch, siblings: ['00', ...proof.branch.siblings.slice(1)] } })
})

test('hashes too many or too few, and a position that is not in the tree, are refused', () => {
  const { header, proofOf } = block(8)
  const [first, proof] = [proofOf(0), proofOf(5)]
  const { siblings } = proof.branch
  for (const changed of [
    { position: 5 + 8, siblings },
    { position: -3, siblings },
    { position: 5.5, siblings },
    { position: 4, siblings },
    { position: 5, siblings: [...siblings, showHash(Buffer.alloc(32))] },
    { position: 5, siblings: siblings.slice(0, -1) },
    { position: 5, siblings: Array.from({ length: 40 }, () => siblings[0] ?? '') },
  ]) {
    assert.throws(() => proveTransaction(header, { ...proof, branch: changed }, first), FORGED)
  }
})

test('a repeated leaf is refused (CVE-2012-2459)', () => {
  // With three transactions the last one is paired with itself; who repeats it gets the same root with four.
  const { header, proofOf, tree } = block(3)
  const last = proofOf(2)
  assert.ok(proveTransaction(header, last, proofOf(0)))
  const copy = { raw: last.raw, branch: { position: 3, siblings: last.branch.siblings } }
  assert.throws(() => proveTransaction(header, copy, proofOf(0)), /repeated/)

  const repeated = blockOf([coinbase, spending(0), spending(1), spending(1)])
  assert.equal(showHash(repeated.tree.at(-1)?.[0] ?? Buffer.alloc(0)), showHash(tree.at(-1)?.[0] ?? Buffer.alloc(1)))
  assert.throws(() => proveBlock(repeated.raw, repeated.header), /repeated/)
})

/** A transaction of 64 bytes without witness: its halves can be taken for two hashes. */
function innerNode(outpoint: Uint8Array): Buffer {
  // Version 4, one input of 36 + 1 + 4, one output of 8 + 1 + 4 bytes of script, lock time 4, two counts.
  const raw = Buffer.alloc(64)
  raw.writeUInt8(2, 0)
  raw.writeUInt8(1, 4)
  raw.set(outpoint, 5)
  raw.writeUInt8(1, 46)
  raw.writeUInt8(4, 55)
  return raw
}

test('a transaction of 64 bytes is no leaf (CVE-2017-12842)', () => {
  const raw = innerNode(Buffer.alloc(36, 9))
  const built = Transaction.fromBuffer(raw)
  const { header, proofOf } = blockOf([coinbase, built])
  assert.equal(built.toBuffer().length, 64)
  assert.throws(() => proveTransaction(header, proofOf(1), proofOf(0)), /64 bytes/)
})

test('below a transaction of 64 bytes that is in the block there is none (CVE-2017-12842)', () => {
  // The second half of a genuine transaction is ground to be the hash of a payment that never was: here the payment is chosen first.
  const payment = spending(4242)
  const forgery = innerNode(Buffer.alloc(36, 9))
  forgery.set(leaf(payment), 32)
  const inner = doubleSha256(forgery)
  const leaves = [leaf(coinbase), inner]
  const tree = treeOf(leaves)
  const built = new Block()
  built.prevHash = Buffer.alloc(32)
  built.merkleRoot = tree.at(-1)?.[0] ?? Buffer.alloc(32)
  const header = readHeader(Buffer.from(built.toBuffer()).subarray(0, 80))
  const siblings = [showHash(forgery.subarray(0, 32)), showHash(leaf(coinbase))]
  const forged = { raw: payment.toBuffer(), branch: { position: 3, siblings } }
  const first = { raw: coinbase.toBuffer(), branch: branchAt(tree, 0) }
  assert.throws(() => proveTransaction(header, forged, first), /as deep/)
  // Nor can an inner node stand in for the coinbase, to make the depths equal.
  const noCoinbase = { raw: spending(1).toBuffer(), branch: { position: 0, siblings } }
  assert.throws(() => proveTransaction(header, forged, noCoinbase), /no coinbase/)
})

test('the proof of depth is the coinbase at position 0, and nothing else', () => {
  const { header, proofOf } = block(8)
  assert.throws(() => proveTransaction(header, proofOf(5), proofOf(4)), /no coinbase/)
  const elsewhere = { ...proofOf(0), branch: { ...proofOf(0).branch, position: 1 } }
  assert.throws(() => proveTransaction(header, proofOf(5), elsewhere), FORGED)
  const other = block(7)
  assert.throws(() => proveTransaction(header, proofOf(5), other.proofOf(0)), /not in the block/)
})

test('a block with a transaction more, less, changed or moved is refused', () => {
  const whole = [coinbase, spending(1), spending(2), spending(3)]
  const { raw, header } = blockOf(whole)
  proveBlock(raw, header)
  const withHeader = (transactions: Transaction[]) =>
    Buffer.concat([raw.subarray(0, 80), blockOf(transactions).raw.subarray(80)])
  assert.throws(() => proveBlock(withHeader(whole.slice(0, -1)), header), FORGED)
  assert.throws(() => proveBlock(withHeader([...whole, spending(4)]), header), FORGED)
  assert.throws(() => proveBlock(withHeader([coinbase, spending(2), spending(1), spending(3)]), header), FORGED)
  assert.throws(() => proveBlock(withHeader(whole.slice(1)), header), FORGED)
  assert.throws(() => proveBlock(raw.subarray(0, -1), header), FORGED)
  assert.throws(() => proveBlock(Buffer.alloc(10), header), FORGED)
  assert.throws(() => proveBlock(blockOf([coinbase]).raw, header), /another one/)
})
