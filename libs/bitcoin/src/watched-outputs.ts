import {
  ByteReader,
  OUTPOINT_BYTES,
  type RawTransaction,
  readTransaction,
  type TransactionVisitor,
  txidOf,
} from './raw-transaction.ts'

/** An output that pays a watched script. */
export interface WatchedOutput {
  /** 64 hexadecimal digits, as nodes and wallets show it. */
  readonly txid: string
  readonly vout: number
  readonly amountSats: bigint
  /** The whole output script in hexadecimal. */
  readonly script: string
}

/** Whether an output script, in hexadecimal, is watched. */
export type IsWatched = (script: string) => boolean

/** An input that spends a watched outpoint. */
export interface WatchedSpend {
  /** The spending transaction, as nodes show it. */
  readonly txid: string
  /** What it spends: `txid:vout`, as nodes show them. */
  readonly outpoint: string
}

/** What to look for in transactions. */
export interface Wanted {
  readonly isWatched: IsWatched
  /** Whether the spending of an outpoint, `txid:vout`, is wanted; without it inputs are passed over. */
  readonly isSpendWatched?: (outpoint: string) => boolean
}

/** What was found in transactions, in their order. */
export interface Findings {
  readonly outputs: readonly WatchedOutput[]
  readonly spends: readonly WatchedSpend[]
}

const BLOCK_HEADER_BYTES = 80
const TXID_BYTES = 32

/**
 * What of a raw block is wanted. Throws RangeError if the bytes are no block. Reads the bytes in place: scripts and ids are made
 * only where something is looked up by them.
 */
export function findInBlock(raw: Uint8Array, wanted: Wanted): Findings {
  const reader = new ByteReader(raw)
  reader.skip(BLOCK_HEADER_BYTES)
  const finder = new Finder(reader, wanted)
  for (let left = reader.compactSize(); left > 0; left -= 1) finder.next()
  reader.end()
  return finder
}

/** What of a raw transaction is wanted. Throws RangeError if the bytes are no transaction. */
export function findInTransaction(raw: Uint8Array, wanted: Wanted): Findings {
  const reader = new ByteReader(raw)
  const finder = new Finder(reader, wanted)
  finder.next()
  reader.end()
  return finder
}

/** The outputs of a raw block that pay watched scripts. Throws RangeError if the bytes are no block. */
export function outputsOfBlock(raw: Uint8Array, isWatched: IsWatched): readonly WatchedOutput[] {
  return findInBlock(raw, { isWatched }).outputs
}

/** The outputs of a raw transaction that pay watched scripts. Throws RangeError if the bytes are no transaction. */
export function outputsOfTransaction(raw: Uint8Array, isWatched: IsWatched): readonly WatchedOutput[] {
  return findInTransaction(raw, { isWatched }).outputs
}

class Finder implements Findings {
  readonly outputs: WatchedOutput[] = []
  readonly spends: WatchedSpend[] = []
  readonly #reader: ByteReader
  readonly #visitor: TransactionVisitor
  /** Of the transaction that is being read. */
  #found: { readonly vout: number; readonly amountAt: number; readonly script: string }[] = []
  #spent: string[] = []

  constructor(reader: ByteReader, { isWatched, isSpendWatched }: Wanted) {
    const { bytes } = reader
    this.#reader = reader
    this.#visitor = {
      onOutput: (vout, amountAt, scriptFrom, scriptUntil) => {
        const script = bytes.toString('hex', scriptFrom, scriptUntil)
        if (isWatched(script)) this.#found.push({ vout, amountAt, script })
      },
      ...(isSpendWatched !== undefined && {
        onInput: (outpointAt) => {
          const outpoint = outpointIn(bytes, outpointAt)
          if (isSpendWatched(outpoint)) this.#spent.push(outpoint)
        },
      }),
    }
  }

  next(): void {
    const transaction = readTransaction(this.#reader, this.#visitor)
    if (this.#found.length > 0 || this.#spent.length > 0) this.#keep(transaction)
  }

  #keep(transaction: RawTransaction): void {
    const { bytes } = this.#reader
    const txid = showHash(txidOf(bytes, transaction))
    for (const { vout, amountAt, script } of this.#found) {
      this.outputs.push({ txid, vout, amountSats: bytes.readBigUInt64LE(amountAt), script })
    }
    for (const outpoint of this.#spent) this.spends.push({ txid, outpoint })
    this.#found = []
    this.#spent = []
  }
}

function outpointIn(bytes: Buffer, at: number): string {
  const txid = showHash(bytes.subarray(at, at + TXID_BYTES))
  return `${txid}:${bytes.readUInt32LE(at + OUTPOINT_BYTES - 4)}`
}

/** A transaction's or block's hash in the byte order of the protocol, from the hexadecimal that nodes show. */
export function hashBytes(shown: string): Uint8Array {
  return Buffer.from(shown, 'hex').reverse()
}

/** The hexadecimal that nodes show, from a hash in the byte order of the protocol. */
export function showHash(bytes: Uint8Array): string {
  return Buffer.from(bytes).reverse().toString('hex')
}
