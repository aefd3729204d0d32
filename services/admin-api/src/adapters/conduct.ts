import type { Bus } from '@tollward/bus'
import { ConductService } from '@tollward/contracts/payment'
import type { AdminMethods } from './calls.ts'

const STANDINGS_DEFAULT = 100
const STANDINGS_MAX = 1000

/** How clients behave, as payment-verifier counts it, and what operators say of it. */
export function conductMethods(bus: Bus): Pick<AdminMethods, 'listConduct' | 'overrideConduct'> {
  const conduct = bus.client(ConductService)
  return {
    listConduct: async ({ clientId, limit }) => {
      const request = { clientId, limit: Math.min(limit || STANDINGS_DEFAULT, STANDINGS_MAX) }
      return { standings: (await conduct.listConduct(request)).standings }
    },
    overrideConduct: async ({ clientId, score, until, reason }, { caller }) => {
      const word = { ...(score === undefined ? {} : { score }), ...(until === undefined ? {} : { until }) }
      const { standing } = await conduct.overrideConduct({ clientId, ...word, reason, operator: caller.clientId })
      return standing === undefined ? {} : { standing }
    },
  }
}
