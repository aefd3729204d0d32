import { create } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { type ChainChange, type ConnectedBlock, hashBytes, type WatchedOutput } from '@tollward/bitcoin'
import {
  type EntryAppended,
  EntryAppendedSchema,
  MoneyFoundSchema,
  PaymentConfirmedSchema,
  PaymentReplacedSchema,
  PaymentSeenSchema,
  PaymentUnconfirmedSchema,
} from '@tollward/contracts/ledger'
import type { Place } from './invoice.ts'
import { type Ledger, outpointKey } from './ledger.ts'

/**
 * A payment that was replaced comes back from the mempool at most this often; then only a block brings it back. Nodes that hold
 * conflicting transactions would have it come and go for ever, and each time is a line of the ledger.
 */
const RETURNS_MAX = 8

/** The index of the account's address with an output script; undefined: it is not one that is watched. */
export type AddressIndexOf = (script: string) => number | undefined

/** A transaction that cannot confirm any more, as far as is known. Hashes are in hexadecimal as nodes show them. */
export interface ReplacedTransaction {
  readonly txid: string
  /** The one that spends the same coins; undefined: it only vanished. */
  readonly replacedBy?: string
}

/** What an entry says, without the time of appending. */
export type Fact = EntryAppended['entry']

/** A ledger entry of a fact. */
export function entryOf(fact: Fact, nowMs: number): EntryAppended {
  return create(EntryAppendedSchema, { appendedAt: timestampFromMs(nowMs), entry: fact })
}

/** The first fact of unconfirmed outputs that the ledger does not have; undefined: it has them all. */
export function nextSeenFact(
  outputs: readonly WatchedOutput[],
  ledger: Ledger,
  indexOf: AddressIndexOf,
  nowMs: number,
): Fact | undefined {
  for (const output of outputs) {
    const fact = seenFact(output, ledger, nowMs) ?? foundFact(output, undefined, ledger, indexOf)
    if (fact !== undefined) return fact
  }
  return undefined
}

/** The first fact of replaced transactions that the ledger does not have. What is in a block was not replaced. */
export function nextReplacedFact(replaced: readonly ReplacedTransaction[], ledger: Ledger): Fact | undefined {
  for (const { txid, replacedBy } of replaced) {
    for (const { invoiceId, payment } of ledger.paymentsOf(txid)) {
      if (payment.block !== undefined || payment.replacedBy !== undefined) continue
      const value = create(PaymentReplacedSchema, {
        invoiceId,
        outpoint: outpointOf(payment),
        ...(replacedBy === undefined ? {} : { replacedBy: hashBytes(replacedBy) }),
      })
      return { case: 'paymentReplaced', value }
    }
  }
  return undefined
}

/**
 * The first fact of a change of the best chain that the ledger does not have; undefined: it has them all. A payment that only
 * moved from one block to another was never away.
 */
export function nextChainFact(
  change: ChainChange,
  ledger: Ledger,
  indexOf: AddressIndexOf,
  nowMs: number,
): Fact | undefined {
  return nextUnconfirmedFact(change, ledger) ?? nextConfirmedFact(change.connected, ledger, indexOf, nowMs)
}

function nextUnconfirmedFact({ disconnected, connected }: ChainChange, ledger: Ledger): Fact | undefined {
  if (disconnected.length === 0) return undefined
  const staying = new Set(connected.flatMap(({ outputs }) => outputs.map(outpointKey)))
  for (const { hash, height } of disconnected) {
    const gone = ledger.paymentsIn(hash).find(({ payment }) => !staying.has(outpointKey(payment)))
    if (gone === undefined) continue
    const value = create(PaymentUnconfirmedSchema, {
      invoiceId: gone.invoice?.id ?? '',
      outpoint: outpointOf(gone.payment),
      blockHeight: height,
      blockHash: hashBytes(hash),
    })
    return { case: 'paymentUnconfirmed', value }
  }
  return undefined
}

function nextConfirmedFact(
  blocks: readonly ConnectedBlock[],
  ledger: Ledger,
  indexOf: AddressIndexOf,
  nowMs: number,
): Fact | undefined {
  for (const block of blocks) {
    for (const output of block.outputs) {
      // A payment that nobody saw before its block came at the latest with it; in doubt, in the payer's favour.
      const fact =
        seenFact(output, ledger, Math.min(nowMs, block.medianTimePastMs)) ??
        confirmedFact(output, block, ledger) ??
        foundFact(output, block, ledger, indexOf)
      if (fact !== undefined) return fact
    }
  }
  return undefined
}

function seenFact(output: WatchedOutput, ledger: Ledger, seenAtMs: number): Fact | undefined {
  const invoice = ledger.invoiceOfScript(output.script)
  if (invoice === undefined) return undefined
  const known = invoice.payments.get(outpointKey(output))
  const isBack = known?.replacedBy !== undefined && known.returns < RETURNS_MAX
  if (known !== undefined && !isBack) return undefined
  const value = create(PaymentSeenSchema, {
    invoiceId: invoice.id,
    outpoint: outpointOf(output),
    amountSats: output.amountSats,
    seenAt: timestampFromMs(seenAtMs),
  })
  return { case: 'paymentSeen', value }
}

function confirmedFact(output: WatchedOutput, block: ConnectedBlock, ledger: Ledger): Fact | undefined {
  const invoice = ledger.invoiceOfScript(output.script)
  if (invoice === undefined || invoice.payments.get(outpointKey(output))?.block?.hash === block.hash) return undefined
  const value = create(PaymentConfirmedSchema, {
    invoiceId: invoice.id,
    outpoint: outpointOf(output),
    amountSats: output.amountSats,
    blockHeight: block.height,
    blockHash: hashBytes(block.hash),
    medianTimePast: timestampFromMs(block.medianTimePastMs),
  })
  return { case: 'paymentConfirmed', value }
}

/** Money at an address of the account that no invoice has; without a block, the address is taken all the same. */
function foundFact(
  output: WatchedOutput,
  block: Place | undefined,
  ledger: Ledger,
  indexOf: AddressIndexOf,
): Fact | undefined {
  if (ledger.invoiceOfScript(output.script) !== undefined) return undefined
  const addressIndex = indexOf(output.script)
  if (addressIndex === undefined) return undefined
  const known = ledger.found(outpointKey(output))
  if (known !== undefined && (block === undefined || known.payment.block?.hash === block.hash)) return undefined
  const value = create(MoneyFoundSchema, {
    addressIndex,
    outpoint: outpointOf(output),
    amountSats: output.amountSats,
    ...(block === undefined ? {} : { blockHeight: block.height, blockHash: hashBytes(block.hash) }),
  })
  return { case: 'moneyFound', value }
}

function outpointOf({ txid, vout }: { readonly txid: string; readonly vout: number }) {
  return { txid: hashBytes(txid), vout }
}
