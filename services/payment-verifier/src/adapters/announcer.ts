import { createHash } from 'node:crypto'
import { create } from '@bufbuild/protobuf'
import { showHash } from '@tollward/bitcoin'
import type { Bus, Delivery, Outcome } from '@tollward/bus'
import { bucketContract, contract } from '@tollward/contracts'
import { type EntryAppended, EntryAppendedSchema } from '@tollward/contracts/ledger'
import {
  InvoiceIssuedSchema,
  PassActivatedSchema,
  PassExhaustedSchema,
  PassSchema,
  PassState,
  PassSuspendedSchema,
  PaymentConfirmedSchema,
  PaymentReorgedSchema,
  PaymentReplacedSchema,
  PaymentSeenSchema,
} from '@tollward/contracts/payment'
import { passEndsAtMs } from '../domain/invoice.ts'
import type { LedgerBook } from './ledger.ts'
import type { Passes } from './passes.ts'

const issued = contract(InvoiceIssuedSchema)
const seen = contract(PaymentSeenSchema)
const confirmed = contract(PaymentConfirmedSchema)
const reorged = contract(PaymentReorgedSchema)
const replaced = contract(PaymentReplacedSchema)
const activated = contract(PassActivatedSchema)
const exhausted = contract(PassExhaustedSchema)
const suspended = contract(PassSuspendedSchema)

/**
 * Tells the other services what the ledger says and what became of passes: each thing once over all replicas. A pass that a crash
 * left unmade is made before it is announced.
 */
export async function announce(bus: Bus, book: LedgerBook, passes: Passes): Promise<AsyncDisposable[]> {
  const patient = { waitsForOutages: true }
  return [
    await bus.consume(
      'ledger-announcer',
      contract(EntryAppendedSchema),
      (entry, delivery) => announceEntry({ bus, book, passes }, entry, delivery),
      patient,
    ),
    await bus.consumeBucket(
      'pass-announcer',
      bucketContract(PassSchema),
      async ({ value }): Promise<Outcome> => {
        if (value === undefined) return 'done'
        const { passId, clientId, plan, state, stateChanges } = value
        const id = `${passId}:${stateChanges}`
        const message = { passId, clientId, plan }
        if (state === PassState.EXHAUSTED) {
          await bus.publish(exhausted, create(PassExhaustedSchema, message), { id: `pass.exhausted:${id}` })
        }
        if (state === PassState.SUSPENDED) {
          await bus.publish(suspended, create(PassSuspendedSchema, message), { id: `pass.suspended:${id}` })
        }
        return 'done'
      },
      patient,
    ),
  ]
}

async function announceEntry(
  parts: { readonly bus: Bus; readonly book: LedgerBook; readonly passes: Passes },
  { entry }: EntryAppended,
  { sequence }: Delivery,
): Promise<Outcome> {
  const { bus } = parts
  const id = `ledger:${sequence}`
  switch (entry.case) {
    case 'invoiceOpened': {
      const { invoiceId, clientId, plan, amountSats, payBy } = entry.value
      const message = create(InvoiceIssuedSchema, { invoiceId, clientId, plan, amountSats, ...(payBy && { payBy }) })
      await bus.publish(issued, message, { id })
      return entry.value.passId === '' ? 'done' : await announcePass(parts, invoiceId, sequence)
    }
    case 'paymentSeen': {
      const { invoiceId, outpoint, amountSats } = entry.value
      await bus.publish(seen, create(PaymentSeenSchema, { invoiceId, txidHash: hashOf(outpoint?.txid), amountSats }), {
        id,
      })
      return 'done'
    }
    case 'paymentConfirmed': {
      const { invoiceId, outpoint, amountSats, blockHeight } = entry.value
      const message = { invoiceId, txidHash: hashOf(outpoint?.txid), amountSats, blockHeight }
      await bus.publish(confirmed, create(PaymentConfirmedSchema, message), { id })
      return 'done'
    }
    case 'paymentUnconfirmed': {
      const { invoiceId, outpoint, blockHeight } = entry.value
      const message = { invoiceId, txidHash: hashOf(outpoint?.txid), blockHeight }
      await bus.publish(reorged, create(PaymentReorgedSchema, message), { id })
      return 'done'
    }
    case 'invoiceRedeemed':
      return await announcePass(parts, entry.value.invoiceId, sequence)
    case 'paymentReplaced': {
      const { invoiceId, outpoint, replacedBy } = entry.value
      if (invoiceId === '') return 'done'
      const by = replacedBy.length === 0 ? {} : { replacedByHash: hashOf(replacedBy) }
      const message = { invoiceId, txidHash: hashOf(outpoint?.txid), ...by }
      await bus.publish(replaced, create(PaymentReplacedSchema, message), { id })
      return 'done'
    }
    case 'moneyFound':
    case 'addressesSkipped':
    case 'creditAdjusted':
    case 'passDrawn':
      return 'done'
    default:
      return 'discard'
  }
}

async function announcePass(
  { bus, book, passes }: { readonly bus: Bus; readonly book: LedgerBook; readonly passes: Passes },
  invoiceId: string,
  sequence: number,
): Promise<Outcome> {
  await book.reaches(sequence)
  const invoice = book.ledger.invoice(invoiceId)
  if (invoice?.redeemed === undefined) return 'discard'
  // After a back-up came back, all passes that ever were are announced again.
  if ((passEndsAtMs(invoice) ?? Number.POSITIVE_INFINITY) > Date.now()) await passes.ensure(invoice)
  const { clientId, plan, quotaRequests, redeemed } = invoice
  const message = create(PassActivatedSchema, { passId: redeemed.passId, clientId, plan, quotaRequests })
  await bus.publish(activated, message, { id: `pass.activated:${redeemed.passId}` })
  return 'done'
}

/** SHA-256 of the txid as its 64 lower-case hexadecimal digits: events never hold the txid itself. */
function hashOf(txid: Uint8Array = new Uint8Array()): string {
  return createHash('sha256').update(showHash(txid)).digest('hex')
}
