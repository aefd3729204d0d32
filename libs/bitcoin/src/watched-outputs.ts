import { ByteReader, type RawTransaction, readTransaction, type TransactionVisitor, txidOf } from './raw-transaction.ts'

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

/** What to look for in transactions. */
export interface Wanted {
  readonly scripts: { has(script: string): boolean }
  /** Outputs, each as `txid:vout`, whose spending transaction is wanted; of an empty set inputs are passed over. */
  readonly spendings: { has(outpoint: string): boolean; readonly size: number }
}

/** What was found in transactions, in their order. */
interface Found {
  readonly outputs: readonly WatchedOutput[]
  readonly spendings: readonly { readonly outpoint: string; readonly spentBy: string }[]
}

const BLOCK_HEADER_BYTES = 80
const TXID_BYTES = 32

/**
 * What of a raw block is wanted. Throws RangeError if the bytes are no block. Reads the bytes in place: scripts and ids are made
 * only where something is looked up by them.
 */
export function findInBlock(raw: Uint8Array, wanted: Wanted): Found {
  const reader = new ByteReader(raw)
  reader.skip(BLOCK_HEADER_BYTES)
  const finder = new Finder(reader, wanted)
  for (let left = reader.compactSize(); left > 0; left -= 1) finder.next()
  reader.end()
  return finder
}

/** What of a raw transaction is wanted. Throws RangeError if the bytes are no transaction. */
export function findInTransaction(raw: Uint8Array, wanted: Wanted): Found {
  const reader = new ByteReader(raw)
  const finder = new Finder(reader, wanted)
  finder.next()
  reader.end()
  return finder
}

/** The outputs of a raw block that pay watched scripts. Throws RangeError if the bytes are no block. */
export function outputsOfBlock(raw: Uint8Array, isWatched: IsWatched): readonly WatchedOutput[] {
  return findInBlock(raw, { scripts: { has: isWatched }, spendings: new Set() }).outputs
}

/** The outputs of a raw transaction that pay watched scripts. Throws RangeError if the bytes are no transaction. */
export function outputsOfTransaction(raw: Uint8Array, isWatched: IsWatched): readonly WatchedOutput[] {
  return findInTransaction(raw, { scripts: { has: isWatched }, spendings: new Set() }).outputs
}

/** The outputs that a raw transaction spends, each as `txid:vout`. Throws RangeError if the bytes are no transaction. */
export function inputsOfTransaction(raw: Uint8Array): string[] {
  const reader = new ByteReader(raw)
  const inputs: string[] = []
  readTransaction(reader, { onInput: (outpointAt) => inputs.push(outpointIn(reader.bytes, outpointAt)) })
  reader.end()
  return inputs
}

class Finder implements Found {
  readonly outputs: WatchedOutput[] = []
  readonly spendings: { readonly outpoint: string; readonly spentBy: string }[] = []
  readonly #reader: ByteReader
  readonly #visitor: TransactionVisitor
  /** Of the transaction that is being read. */
  #found: { readonly vout: number; readonly amountAt: number; readonly script: string }[] = []
  #spent: string[] = []

  constructor(reader: ByteReader, { scripts, spendings }: Wanted) {
    const { bytes } = reader
    this.#reader = reader
    this.#visitor = {
      onOutput: (vout, amountAt, scriptFrom, scriptUntil) => {
        const script = bytes.toString('hex', scriptFrom, scriptUntil)
        if (scripts.has(script)) this.#found.push({ vout, amountAt, script })
      },
      ...(spendings.size > 0 && {
        onInput: (outpointAt) => {
          const outpoint = outpointIn(bytes, outpointAt)
          if (spendings.has(outpoint)) this.#spent.push(outpoint)
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
    for (const outpoint of this.#spent) this.spendings.push({ outpoint, spentBy: txid })
    this.#found = []
    this.#spent = []
  }
}

/** Where a txid is turned around: a block has ten thousand, and a new buffer for each would be half of what reading it costs. */
const turned = Buffer.alloc(TXID_BYTES)

function outpointIn(bytes: Buffer, at: number): string {
  for (let index = 0; index < TXID_BYTES; index += 1) turned[index] = bytes[at + TXID_BYTES - 1 - index] ?? 0
  return `${turned.toString('hex')}:${bytes.readUInt32LE(at + TXID_BYTES)}`
}

/** A transaction's or block's hash in the byte order of the protocol, from the hexadecimal that nodes show. */
export function hashBytes(shown: string): Uint8Array {
  return Buffer.from(shown, 'hex').reverse()
}

/** The hexadecimal that nodes show, from a hash in the byte order of the protocol. */
export function showHash(bytes: Uint8Array): string {
  return Buffer.from(bytes).reverse().toString('hex')
}
