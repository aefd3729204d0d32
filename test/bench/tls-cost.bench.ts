import { requires } from '@tollward/testkit'
import { inOwnNetwork } from './own-network.ts'

/** One line of the table. */
export interface Row {
  readonly [column: string]: string | number
}

export const name = 'tls-cost: HTTPS of nginx, with its calls of OpenSSL read and without'

/** See tls-cost.ts. */
export async function run(): Promise<{ rows: Row[] }> {
  const tools = ['nats-server', 'nginx', 'ip', 'taskset', 'mount', 'clang', 'make']
  const missing = await requires({ root: true, tools })
  if (missing !== false) return { rows: [{ what: `not run: ${missing}` }] }
  return { rows: await inOwnNetwork<Row[]>('tls-cost.ts') }
}
