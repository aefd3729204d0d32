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
  PaymentSeenSchema,
} from '@tollward/contracts/payment'
import type { LedgerBook } from './ledger.ts'

const issued = contract(InvoiceIssuedSchema)
const seen = contract(PaymentSeenSchema)
const confirmed = contract(PaymentConfirmedSchema)
const reorged = contract(PaymentReorgedSchema)
const activated = contract(PassActivatedSchema)
const exhausted = contract(PassExhaustedSchema)
const suspended = contract(PassSuspendedSchema)

/** Tells the other services what the ledger says and what became of passes: each thing once over all replicas. */
export async function announce(bus: Bus, book: LedgerBook): Promise<AsyncDisposable[]> {
  const patient = { waitsForOutages: true }
  return [
    await bus.consume(
      'ledger-announcer',
      contract(EntryAppendedSchema),
      (entry, delivery) => announceEntry(bus, book, entry, delivery),
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
  bus: Bus,
  book: LedgerBook,
  { entry }: EntryAppended,
  { sequence }: Delivery,
): Promise<Outcome> {
  const id = `ledger:${sequence}`
  switch (entry.case) {
    case 'invoiceOpened': {
      const { invoiceId, clientId, plan, amountSats, payBy } = entry.value
      const message = create(InvoiceIssuedSchema, { invoiceId, clientId, plan, amountSats, ...(payBy && { payBy }) })
      await bus.publish(issued, message, { id })
      return 'done'
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
    case 'invoiceRedeemed': {
      await book.reaches(sequence)
      const invoice = book.ledger.invoice(entry.value.invoiceId)
      if (invoice === undefined) return 'discard'
      const { clientId, plan, quotaRequests } = invoice
      const message = create(PassActivatedSchema, { passId: entry.value.passId, clientId, plan, quotaRequests })
      await bus.publish(activated, message, { id })
      return 'done'
    }
    default:
      return 'discard'
  }
}

/** SHA-256 of the txid as its 64 lower-case hexadecimal digits: events never hold the txid itself. */
function hashOf(txid: Uint8Array = new Uint8Array()): string {
  return createHash('sha256').update(showHash(txid)).digest('hex')
}
