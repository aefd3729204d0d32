// A process of enforcement.bench.ts: asks authorizers steadily, and says how it went.
import process from 'node:process'
import { Authorization } from '@tollward/contracts/envoy'
import { goFirst } from './cores.ts'
import { type GrpcLoad, grpcLoad } from './grpc-load.ts'
import { percentile } from './latencies.ts'

/** What to ask whom, for how long; without an end until somebody says stop. */
export type LoadOrder = {
  readonly ports: readonly number[]
  /** Base64. */
  readonly message: string
} & ({ readonly inFlight: number; readonly durationMs: number } | { readonly perSecond: number })

/** All servers together. */
export interface LoadReport {
  readonly perSecond: number
  readonly p50Ms: number
  readonly p99Ms: number
  readonly stoodStillMs: number
}

/** Load that has no end goes on in parts, so that it can be told to stop. */
const PART_MS = 500

/** Whether the parts that begin now are told of: those before are warming up. */
let isCounted = false
let isStopped = false
process.on('message', (order: LoadOrder | 'count' | 'stop') => {
  if (order === 'count') isCounted = true
  else if (order === 'stop') isStopped = true
  else
    loadAll(order).then(
      (report) => process.send?.(report),
      (error: unknown) => process.send?.({ failure: String(error) }),
    )
})
goFirst()
process.once('disconnect', () => process.exit())

async function loadAll(order: LoadOrder): Promise<LoadReport> {
  const loads = (await Promise.all(order.ports.map((port) => loadOne(order, port)))).flat()
  const durationMs = loads.reduce((sum, part) => sum + part.durationMs, 0) / order.ports.length
  const latenciesMs = loads.flatMap((part) => part.latenciesMs)
  return {
    perSecond: (latenciesMs.length / durationMs) * 1000,
    p50Ms: percentile(latenciesMs, 0.5),
    p99Ms: percentile(latenciesMs, 0.99),
    stoodStillMs: Math.round(loads.reduce((sum, part) => sum + part.stoodStillMs, 0)),
  }
}

async function loadOne(order: LoadOrder, port: number): Promise<GrpcLoad[]> {
  const message = Buffer.from(order.message, 'base64')
  const target = {
    port,
    path: `/${Authorization.typeName}/Check`,
    next: () => message,
    accepts: (answer: Buffer) => answer[0] === 0x0a && answer[1] === 0,
  }
  if ('durationMs' in order) return [await grpcLoad(target, order)]
  const parts: GrpcLoad[] = []
  while (!isStopped) {
    const counts = isCounted
    const part = await grpcLoad(target, { perSecond: order.perSecond, durationMs: PART_MS })
    if (counts) parts.push(part)
  }
  return parts
}
