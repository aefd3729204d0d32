import { randomBytes } from 'node:crypto'
import { formatBtc } from '@tollward/bitcoin'
import type { Bitcoind } from '@tollward/testkit'
import { BIP32Factory } from 'bip32'
import * as secp256k1 from 'tiny-secp256k1'

/** An output that the payer can spend. */
export interface Coin {
  readonly txid: string
  readonly vout: number
  readonly amountSats: bigint
}

/** What a transaction pays to whom. */
export interface Output {
  readonly address: string
  readonly amountSats: bigint
}

/** Somebody who makes transactions by hand: chooses coins, outputs and fees as no wallet would. */
export class Payer {
  readonly #node: Bitcoind

  constructor(node: Bitcoind) {
    this.#node = node
  }

  /** An address of the payer's own, of the same kind (P2WPKH) as those of invoices. */
  address(): Promise<string> {
    return this.#node.rpc<string>('getnewaddress', ['', 'bech32'])
  }

  /** Addresses of the payer's own that are locked as output descriptors say, with private keys in them. */
  async addressesOf(descriptors: readonly string[]): Promise<string[]> {
    const checked = await Promise.all(
      descriptors.map(async (descriptor) => {
        const { checksum } = await this.#node.rpc<{ checksum: string }>('getdescriptorinfo', [descriptor])
        return `${descriptor}#${checksum}`
      }),
    )
    // One call for all: each makes the wallet look through the chain.
    const wanted = checked.map((desc) => ({ desc, timestamp: 'now' }))
    const imported = await this.#node.rpc<{ success: boolean; error?: { message: string } }[]>('importdescriptors', [
      wanted,
    ])
    const refused = imported.find(({ success }) => !success)
    if (refused !== undefined) throw new Error(`the wallet takes no such descriptor: ${refused.error?.message}`)
    return (await Promise.all(checked.map((desc) => this.#node.rpc<string[]>('deriveaddresses', [desc])))).flat()
  }

  /** A coin of this amount at an address of the payer's own, unconfirmed; nothing else of the wallet's spends it. */
  async coin(amountSats: bigint, address?: string): Promise<Coin> {
    const at = address ?? (await this.address())
    const txid = await this.#node.pay(at, amountSats)
    const coin = { txid, vout: await this.#outputTo(at, txid), amountSats }
    await this.#node.rpc('lockunspent', [false, [{ txid, vout: coin.vout }]])
    return coin
  }

  /**
   * A signed transaction, in hexadecimal, that spends coins: what the outputs leave over is its fee. It says that it may be
   * replaced (BIP-125) unless told otherwise.
   */
  async transaction(coins: readonly Coin[], outputs: readonly Output[], { isFinal = false } = {}): Promise<string> {
    return await this.#sign(await this.#unsigned(coins, outputs, isFinal))
  }

  /** A signed transaction that pays one address by several outputs, which the node's own calls do not make. */
  async splitTransaction(coin: Coin, address: string, amountsSats: readonly bigint[]): Promise<string> {
    const outputs = []
    for (const amountSats of amountsSats) outputs.push({ address: await this.address(), amountSats })
    const script = await this.#scriptOf(address)
    let unsigned = await this.#unsigned([coin], outputs, false)
    for (const output of outputs) unsigned = unsigned.replace(await this.#scriptOf(output.address), script)
    return await this.#sign(unsigned)
  }

  /** Sends a transaction into the mempool; returns the txid. */
  send(transaction: string): Promise<string> {
    return this.#node.rpc<string>('sendrawtransaction', [transaction])
  }

  async spend(coins: readonly Coin[], outputs: readonly Output[], options?: { isFinal: boolean }): Promise<string> {
    return await this.send(await this.transaction(coins, outputs, options))
  }

  /** Pays with the last of a chain of unconfirmed transactions, each of which leaves a fee; returns its txid. */
  async payAfter(coin: Coin, transactionsBefore: number, output: Output, feeSats: bigint): Promise<string> {
    let last = coin
    for (let count = 0; count < transactionsBefore; count += 1) {
      const next = { address: await this.address(), amountSats: last.amountSats - feeSats }
      last = { txid: await this.spend([last], [next]), vout: 0, amountSats: next.amountSats }
    }
    return await this.spend([last], [output])
  }

  /** Mines one block with exactly these transactions, in hexadecimal or by txid, whether or not the mempool would take them. */
  async mineOnly(transactions: readonly string[] = []): Promise<string> {
    const { hash } = await this.#node.rpc<{ hash: string }>('generateblock', [await this.address(), transactions])
    return hash
  }

  async txidOf(transaction: string): Promise<string> {
    return (await this.#node.rpc<{ txid: string }>('decoderawtransaction', [transaction])).txid
  }

  async #unsigned(coins: readonly Coin[], outputs: readonly Output[], isFinal: boolean): Promise<string> {
    const inputs = coins.map(({ txid, vout }) => ({ txid, vout, sequence: isFinal ? FINAL : REPLACEABLE }))
    const paid = outputs.map(({ address, amountSats }) => ({ [address]: formatBtc(amountSats) }))
    return await this.#node.rpc<string>('createrawtransaction', [inputs, paid])
  }

  async #sign(unsigned: string): Promise<string> {
    const signed = await this.#node.rpc<{ hex: string; complete: boolean }>('signrawtransactionwithwallet', [unsigned])
    if (!signed.complete) throw new Error('the wallet cannot sign for these coins')
    return signed.hex
  }

  async #scriptOf(address: string): Promise<string> {
    return (await this.#node.rpc<{ scriptPubKey: string }>('validateaddress', [address])).scriptPubKey
  }

  async #outputTo(address: string, txid: string): Promise<number> {
    const { decoded } = await this.#node.rpc<{
      decoded: { vout: { n: number; scriptPubKey: { address?: string } }[] }
    }>('gettransaction', [txid, true, true])
    const output = decoded.vout.find(({ scriptPubKey }) => scriptPubKey.address === address)
    if (output === undefined) throw new Error(`${txid} pays nothing to ${address}`)
    return output.n
  }
}

/** Sequence numbers of inputs (BIP-125): the highest that still signals replacement, and the one that signals nothing. */
const REPLACEABLE = 0xffff_fffd
const FINAL = 0xffff_ffff

/** A private key of the test networks, as descriptors take it; a new one unless it is to come from a seed. */
export function privateKey(seed: Uint8Array = randomBytes(32)): string {
  const network = { wif: 0xef, bip32: { public: 0x043587cf, private: 0x04358394 } }
  return BIP32Factory(secp256k1).fromSeed(seed, network).toWIF()
}
