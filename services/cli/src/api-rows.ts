import type { ApiEndpoint } from '@tollward/contracts/admin'
import { Side } from '@tollward/contracts/sensor'
import { timeText } from './rows.ts'

/** An endpoint as `-o json` promises it. */
export function apiRow(endpoint: ApiEndpoint) {
  const { host, method, path, protocols, credentials, sensitive, processes, nodes, meanMicros } = endpoint
  return {
    ...{ host, method, path, side: sideOf(endpoint.side), protocols, calls: Number(endpoint.calls) },
    statuses: {
      '1xx': Number(endpoint.informational),
      '2xx': Number(endpoint.successful),
      '3xx': Number(endpoint.redirected),
      '4xx': Number(endpoint.clientErrors),
      '5xx': Number(endpoint.serverErrors),
      none: Number(endpoint.unanswered),
    },
    ...{ anonymous: Number(endpoint.anonymous), credentials, sensitive, processes, nodes, meanMicros },
    ...{ firstSeenAt: timeText(endpoint.firstSeenAt), lastSeenAt: timeText(endpoint.lastSeenAt) },
  }
}

/** The same for a line: only statuses that came, and that some calls carried no credential. */
export function apiLine(row: ReturnType<typeof apiRow>) {
  const statuses = Object.entries(row.statuses).flatMap(([name, calls]) => (calls > 0 ? [`${name} ${calls}`] : []))
  const credentials = row.anonymous > 0 ? [...row.credentials, `none ${row.anonymous}`] : row.credentials
  return {
    ...row,
    statuses: statuses.join(' '),
    credentials: credentials.join(' '),
    sensitive: row.sensitive.join(' '),
  }
}

function sideOf(side: Side): string {
  if (side === Side.SERVER) return 'served'
  return side === Side.CLIENT ? 'asked' : 'unknown'
}
