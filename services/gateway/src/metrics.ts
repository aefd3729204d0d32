import { Counter, Histogram, type Registry } from 'prom-client'

const SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]

/** Metrics of the gateway beside those of @tollward/decision. */
export interface GatewayMetrics {
  /** Of every request that was read, by the class of its answer: 2xx, 4xx, and so on. */
  readonly seconds: Histogram<'status'>
  readonly unreadable: Counter<'reason'>
}

/** Registers them all. */
export function gatewayMetrics(registry: Registry): GatewayMetrics {
  const registers = [registry]
  return {
    seconds: new Histogram({
      name: 'tollward_gateway_request_seconds',
      help: 'From the headers of a request to the end of its answer, by class of status.',
      labelNames: ['status'],
      buckets: SECONDS,
      registers,
    }),
    unreadable: new Counter({
      name: 'tollward_gateway_unreadable_total',
      help: 'Connections whose bytes were no HTTP request, or came too slowly.',
      labelNames: ['reason'],
      registers,
    }),
  }
}
