import { Block, Transaction } from 'bitcoinjs-lib'

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

/** The outputs of a raw block that pay watched scripts. Throws if the bytes are no block. */
export function outputsOfBlock(raw: Uint8Array, isWatched: IsWatched): WatchedOutput[] {
  return (Block.fromBuffer(raw).transactions ?? []).flatMap((transaction) => outputsOf(transaction, isWatched))
}

/** The outputs of a raw transaction that pay watched scripts. Throws if the bytes are no transaction. */
export function outputsOfTransaction(raw: Uint8Array, isWatched: IsWatched): WatchedOutput[] {
  return outputsOf(Transaction.fromBuffer(raw), isWatched)
}

function outputsOf(transaction: Transaction, isWatched: IsWatched): WatchedOutput[] {
  const found: WatchedOutput[] = []
  for (const [vout, output] of transaction.outs.entries()) {
    const script = Buffer.from(output.script).toString('hex')
    // The id costs two hashes over the transaction, so it is computed only where it is needed.
    if (isWatched(script)) found.push({ txid: transaction.getId(), vout, amountSats: output.value, script })
  }
  return found
}

/** A transaction's or block's hash in the byte order of the protocol, from the hexadecimal that nodes show. */
export function hashBytes(shown: string): Uint8Array {
  return Buffer.from(shown, 'hex').reverse()
}

/** The hexadecimal that nodes show, from a hash in the byte order of the protocol. */
export function showHash(bytes: Uint8Array): string {
  return Buffer.from(bytes).reverse().toString('hex')
}
