import { create } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { type ChainChange, type ConnectedBlock, hashBytes, type WatchedOutput } from '@tollward/bitcoin'
import {
  type EntryAppended,
  EntryAppendedSchema,
  PaymentConfirmedSchema,
  PaymentSeenSchema,
  PaymentUnconfirmedSchema,
} from '@tollward/contracts/ledger'
import { type Ledger, outpointKey } from './ledger.ts'

/** What an entry says, without the time of appending. */
export type Fact = EntryAppended['entry']

/** A ledger entry of a fact. */
export function entryOf(fact: Fact, nowMs: number): EntryAppended {
  return create(EntryAppendedSchema, { appendedAt: timestampFromMs(nowMs), entry: fact })
}

/** The first fact of unconfirmed outputs that the ledger does not have; undefined: it has them all. */
export function nextSeenFact(outputs: readonly WatchedOutput[], ledger: Ledger, nowMs: number): Fact | undefined {
  for (const output of outputs) {
    const fact = seenFact(output, ledger, nowMs)
    if (fact !== undefined) return fact
  }
  return undefined
}

/**
 * The first fact of a change of the best chain that the ledger does not have; undefined: it has them all. A payment that only
 * moved from one block to another was never away.
 */
export function nextChainFact(change: ChainChange, ledger: Ledger, nowMs: number): Fact | undefined {
  return nextUnconfirmedFact(change, ledger) ?? nextConfirmedFact(change.connected, ledger, nowMs)
}

function nextUnconfirmedFact({ disconnected, connected }: ChainChange, ledger: Ledger): Fact | undefined {
  if (disconnected.length === 0) return undefined
  const staying = new Set(connected.flatMap(({ outputs }) => outputs.map(outpointKey)))
  for (const { hash, height } of disconnected) {
    const gone = ledger.paymentsIn(hash).find(({ payment }) => !staying.has(outpointKey(payment)))
    if (gone === undefined) continue
    const { txid, vout } = gone.payment
    return {
      case: 'paymentUnconfirmed',
      value: create(PaymentUnconfirmedSchema, {
        invoiceId: gone.invoice.id,
        outpoint: { txid: hashBytes(txid), vout },
        blockHeight: height,
        blockHash: hashBytes(hash),
      }),
    }
  }
  return undefined
}

function nextConfirmedFact(blocks: readonly ConnectedBlock[], ledger: Ledger, nowMs: number): Fact | undefined {
  for (const block of blocks) {
    for (const output of block.outputs) {
      // A payment that nobody saw before its block came at the latest with it; in doubt, in the payer's favour.
      const seen = seenFact(output, ledger, Math.min(nowMs, block.medianTimePastMs))
      if (seen !== undefined) return seen
      const fact = confirmedFact(output, block, ledger)
      if (fact !== undefined) return fact
    }
  }
  return undefined
}

function seenFact(output: WatchedOutput, ledger: Ledger, seenAtMs: number): Fact | undefined {
  const invoice = ledger.invoiceOfScript(output.script)
  if (invoice === undefined || invoice.payments.has(outpointKey(output))) return undefined
  const value = create(PaymentSeenSchema, {
    invoiceId: invoice.id,
    outpoint: { txid: hashBytes(output.txid), vout: output.vout },
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
    outpoint: { txid: hashBytes(output.txid), vout: output.vout },
    amountSats: output.amountSats,
    blockHeight: block.height,
    blockHash: hashBytes(block.hash),
    medianTimePast: timestampFromMs(block.medianTimePastMs),
  })
  return { case: 'paymentConfirmed', value }
}
