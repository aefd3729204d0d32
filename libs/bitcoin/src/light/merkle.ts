import {
  ByteReader,
  doubleSha256,
  OUTPOINT_BYTES,
  type RawTransaction,
  readTransaction,
  strippedLength,
  txidOf,
} from '../raw-transaction.ts'
import { hashBytes, showHash } from '../watched-outputs.ts'
import { forged, HEADER_BYTES, type Header, readHeader } from './header.ts'

/** A transaction's way to the root of its block's Merkle tree. Hashes are as nodes show them. */
export interface MerkleBranch {
  /** Among the block's transactions; the coinbase is at 0. */
  readonly position: number
  /** The hashes beside the way, from the leaf to the root. */
  readonly siblings: readonly string[]
}

/** A transaction, and how a server proves that a block holds it. */
export interface ProvenTransaction {
  readonly raw: Uint8Array
  readonly branch: MerkleBranch
}

/** A block of 4 MB has fewer than 2^17 transactions. */
const TREE_DEPTH_MAX = 17
/** Two hashes, hashed to the node above them; a transaction of this length could be taken for such, and such for a transaction. */
const INNER_NODE_BYTES = 64
const TXID_BYTES = 32
/** Of an input that spends nothing. */
const NO_OUTPOINT = 'f'.repeat(8).padStart(72, '0')

/**
 * Proves that a block holds a transaction, by its branch and that of the block's coinbase, and returns the txid. Throws AppError
 * `invalid_argument` for every proof that does not hold: another root, a position outside of the tree, a repeated leaf
 * (CVE-2012-2459), a transaction that is an inner node or has one for its leaf (CVE-2017-12842): all leaves of a tree are at one
 * depth, and the coinbase shows at which.
 */
export function proveTransaction(
  { merkleRoot }: Header,
  proven: ProvenTransaction,
  coinbase: ProvenTransaction,
): string {
  if (!isCoinbase(coinbase.raw)) throw forged('The first transaction of the block is no coinbase.')
  if (coinbase.branch.position !== 0) throw forged('The coinbase is not the first transaction of the block.')
  if (coinbase.branch.siblings.length !== proven.branch.siblings.length) {
    throw forged('The transaction is not as deep in the tree as the coinbase.')
  }
  for (const { raw, branch } of [coinbase, proven]) {
    if (rootOf(leafOf(raw), branch) !== merkleRoot) throw forged('The transaction is not in the block.')
  }
  return showHash(leafOf(proven.raw))
}

/**
 * Proves that these bytes are the whole block of a header: nothing of it is left out, nothing repeated, nothing added. Throws
 * AppError `invalid_argument` otherwise.
 */
export function proveBlock(raw: Uint8Array, { hash, merkleRoot }: Header): void {
  if (readHeader(raw.subarray(0, HEADER_BYTES)).hash !== hash) throw forged('The block is another one.')
  const [coinbase, ...others] = transactionsIn(raw)
  // Inner nodes cannot be taken for the transactions of a block: the first of them had to be a coinbase too.
  if (coinbase === undefined || !isCoinbase(coinbase.raw)) throw forged('The block does not begin with a coinbase.')
  let row = [coinbase, ...others].map(({ txid }) => txid)
  while (row.length > 1) row = rowAbove(row)
  if (row[0] === undefined || showHash(row[0]) !== merkleRoot)
    throw forged('The transactions are not those of the block.')
}

function rowAbove(row: readonly Buffer[]): Buffer[] {
  const above: Buffer[] = []
  for (let index = 0; index < row.length; index += 2) {
    const left = row[index] ?? Buffer.alloc(0)
    const right = row[index + 1]
    if (right?.equals(left)) throw forged('Transactions of the block are repeated.')
    above.push(doubleSha256(Buffer.concat([left, right ?? left])))
  }
  return above
}

function rootOf(leaf: Buffer, { position, siblings }: MerkleBranch): string {
  if (siblings.length > TREE_DEPTH_MAX) throw forged('The tree is deeper than that of any block.')
  if (!Number.isInteger(position) || position < 0 || position >= 2 ** siblings.length) {
    throw forged('The position is outside of the tree.')
  }
  let node = leaf
  let place = position
  for (const shown of siblings) {
    const sibling = Buffer.from(hashBytes(shown))
    if (sibling.length !== TXID_BYTES) throw forged('A hash has 32 bytes.')
    const isRight = place % 2 === 1
    // The last node of a row with an odd number is its own right sibling; a right node that is its left one is a copy.
    if (isRight && sibling.equals(node)) throw forged('The transaction is repeated.')
    node = doubleSha256(Buffer.concat(isRight ? [sibling, node] : [node, sibling]))
    place = Math.floor(place / 2)
  }
  return showHash(node)
}

function leafOf(raw: Uint8Array): Buffer {
  const { transaction, bytes } = oneTransaction(raw)
  if (strippedLength(transaction) === INNER_NODE_BYTES) throw forged('A transaction of 64 bytes proves nothing.')
  return txidOf(bytes, transaction)
}

function oneTransaction(raw: Uint8Array): { transaction: RawTransaction; bytes: Buffer } {
  return readable(() => {
    const reader = new ByteReader(raw)
    const transaction = readTransaction(reader, {})
    reader.end()
    return { transaction, bytes: reader.bytes }
  })
}

function transactionsIn(raw: Uint8Array): { readonly raw: Uint8Array; readonly txid: Buffer }[] {
  return readable(() => {
    const reader = new ByteReader(raw, HEADER_BYTES)
    const transactions: { raw: Uint8Array; txid: Buffer }[] = []
    for (let left = reader.compactSize(); left > 0; left -= 1) {
      const transaction = readTransaction(reader, {})
      transactions.push({
        raw: raw.subarray(transaction.from, transaction.until),
        txid: txidOf(reader.bytes, transaction),
      })
    }
    reader.end()
    return transactions
  })
}

function isCoinbase(raw: Uint8Array): boolean {
  const outpoints: string[] = []
  readable(() => {
    const reader = new ByteReader(raw)
    readTransaction(reader, { onInput: (at) => outpoints.push(reader.bytes.toString('hex', at, at + OUTPOINT_BYTES)) })
  })
  return outpoints.length === 1 && outpoints[0] === NO_OUTPOINT
}

function readable<T>(read: () => T): T {
  try {
    return read()
  } catch (error) {
    if (error instanceof RangeError) throw forged('These bytes are no transaction.')
    throw error
  }
}
