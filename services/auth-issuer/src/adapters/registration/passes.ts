import type { Bus, Outcome } from '@tollward/bus'
import { contract } from '@tollward/contracts'
import { PassActivatedSchema } from '@tollward/contracts/payment'
import type { Registrations } from './registrations.ts'

/** Notes which clients bought passes: what self-registered ones paid for is not forgotten. */
export function consumePasses(bus: Bus, registrations: Registrations): Promise<AsyncDisposable> {
  return bus.consume(
    'issuer-passes',
    contract(PassActivatedSchema),
    async ({ clientId }): Promise<Outcome> => {
      await registrations.noteUse(clientId, 'pass')
      return 'done'
    },
    { waitsForOutages: true },
  )
}
