import { requires } from '@tollward/testkit'
import { inOwnNetwork } from './own-network.ts'

/** One line of the table. */
export interface Row {
  readonly [column: string]: string | number
}

export const name = "sensor-cpu: CPU and memory of the sensor's process at 100,000 new flows a second"

/** See sensor-cpu.ts. */
export async function run(): Promise<{ rows: Row[] }> {
  const tools = ['nats-server', 'ip', 'ethtool', 'nsenter', 'taskset', 'mount', 'clang', 'make']
  const missing = await requires({ root: true, tools })
  if (missing !== false) return { rows: [{ what: `not run: ${missing}` }] }
  return { rows: await inOwnNetwork<Row[]>('sensor-cpu.ts') }
}
