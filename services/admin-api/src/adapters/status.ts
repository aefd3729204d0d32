import type { MessageInitShape } from '@bufbuild/protobuf'
import { ServiceState, type ServiceStatusSchema } from '@tollward/contracts/admin'
import { z } from 'zod'
import type { Config } from '../config.ts'
import type { AdminMethods } from './calls.ts'

/** A service that says nothing for so long is not ready, whatever the cause. */
const PROBE_TIMEOUT_MS = 1500
const DETAIL_LENGTH_MAX = 300

const Readiness = z.object({ reasons: z.array(z.string()) })

type Status = MessageInitShape<typeof ServiceStatusSchema>

/** How the services of the stack are: all asked at once. */
export function statusMethods(services: Config['services']): Pick<AdminMethods, 'getStatus'> {
  return {
    getStatus: async () => ({
      services: await Promise.all(
        services.map(async (service): Promise<Status> => {
          if ('off' in service) return { name: service.name, state: ServiceState.OFF, detail: service.off }
          const detail = await whyNotReady(service.readyUrl)
          if (detail === undefined) return { name: service.name, state: ServiceState.READY }
          return { name: service.name, state: ServiceState.NOT_READY, detail: detail.slice(0, DETAIL_LENGTH_MAX) }
        }),
      ),
    }),
  }
}

async function whyNotReady(readyUrl: string): Promise<string | undefined> {
  try {
    const response = await fetch(readyUrl, { signal: AbortSignal.timeout(PROBE_TIMEOUT_MS), redirect: 'error' })
    const body = await response.text()
    return response.ok ? undefined : reasonsOf(body, response.status)
  } catch (error) {
    return error instanceof DOMException && error.name === 'TimeoutError'
      ? 'does not answer in time'
      : 'does not answer'
  }
}

function reasonsOf(body: string, status: number): string {
  try {
    return Readiness.parse(JSON.parse(body)).reasons.join('; ')
  } catch {
    return `answers with status ${status}`
  }
}
