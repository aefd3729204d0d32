import type { Bus } from '@tollward/bus'
import { bucketContract } from '@tollward/contracts'
import { PassSchema, VerifierService } from '@tollward/contracts/payment'
import type { AdminMethods } from './calls.ts'

const INVOICES_DEFAULT = 100
const INVOICES_MAX = 1000

/** Invoices and passes, as payment-verifier has them. */
export function paymentMethods(bus: Bus): Pick<AdminMethods, 'listInvoices' | 'listPasses'> {
  const verifier = bus.client(VerifierService)
  const passes = bus.bucket(bucketContract(PassSchema))
  return {
    listInvoices: async ({ clientId, limit }) => {
      const { invoices } = await verifier.listInvoices({
        clientId,
        limit: Math.min(limit || INVOICES_DEFAULT, INVOICES_MAX),
      })
      return { invoices }
    },
    listPasses: async ({ clientId }) => {
      const all = (await passes.entries()).map(({ value }) => value)
      return { passes: all.filter((pass) => clientId === '' || pass.clientId === clientId) }
    },
  }
}
