// A thread of enforcement.bench.ts: asks authorizers steadily, and says how it went.
import { parentPort, workerData } from 'node:worker_threads'
import { Authorization } from '@tollward/contracts/envoy'
import { type GrpcEffort, type GrpcLoad, grpcLoad } from './grpc-load.ts'
import { percentile } from './latencies.ts'

/** What to ask whom, for how long; without an end until somebody says stop. */
export type LoadOrder = {
  readonly ports: readonly number[]
  readonly message: Uint8Array
} & ({ readonly inFlight: number; readonly durationMs: number } | { readonly perSecond: number })

/** All servers together. */
export interface LoadReport {
  readonly perSecond: number
  readonly p50Ms: number
  readonly p99Ms: number
}

/** Load that has no end goes on in parts, so that it can be told to stop. */
const PART_MS = 500

const order = workerData as LoadOrder
let isStopped = 'durationMs' in order
parentPort?.once('message', () => {
  isStopped = true
})
const loads = (await Promise.all(order.ports.map(loadOne))).flat()
const durationMs = loads.reduce((sum, part) => sum + part.durationMs, 0) / order.ports.length
const latenciesMs = loads.flatMap((part) => part.latenciesMs)
const report: LoadReport = {
  perSecond: (latenciesMs.length / durationMs) * 1000,
  p50Ms: percentile(latenciesMs, 0.5),
  p99Ms: percentile(latenciesMs, 0.99),
}
parentPort?.postMessage(report)
parentPort?.close()

async function loadOne(port: number): Promise<GrpcLoad[]> {
  const target = {
    port,
    path: `/${Authorization.typeName}/Check`,
    next: () => order.message,
    accepts: (message: Buffer) => message[0] === 0x0a && message[1] === 0,
  }
  const effort: GrpcEffort = 'durationMs' in order ? order : { perSecond: order.perSecond, durationMs: PART_MS }
  const parts = [await grpcLoad(target, effort)]
  while (!isStopped) parts.push(await grpcLoad(target, effort))
  return parts
}
