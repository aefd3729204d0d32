import { Counter, Gauge, Histogram, type Registry } from 'prom-client'

const SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]

/** Metrics of the gateway beside those of @tollward/decision. */
export interface GatewayMetrics {
  /** Of every request that was read, by the class of its answer: 2xx, 4xx, and so on. */
  readonly seconds: Histogram<'status'>
  readonly unreadable: Counter<'reason'>
  readonly connections: Gauge
  readonly connectionsRefused: Counter<'reason'>
  readonly floods: Counter<'kind'>
  readonly brokenAnswers: Counter<'by'>
  readonly webSockets: Gauge
  readonly webSocketEnds: Counter<'reason'>
  readonly accessLines: Counter<'result'>
  readonly tlsReloads: Counter<'result'>
}

/** Registers them all. */
export function gatewayMetrics(registry: Registry): GatewayMetrics {
  const registers = [registry]
  const counter = <Label extends string>(name: string, help: string, label: Label) =>
    new Counter({ name: `tollward_gateway_${name}_total`, help, labelNames: [label], registers })
  return {
    seconds: new Histogram({
      name: 'tollward_gateway_request_seconds',
      help: 'From the headers of a request to the end of its answer, by class of status.',
      labelNames: ['status'],
      buckets: SECONDS,
      registers,
    }),
    unreadable: counter('unreadable', 'Connections whose bytes were no HTTP request, or came too slowly.', 'reason'),
    connections: new Gauge({ name: 'tollward_gateway_connections', help: 'Connections of clients.', registers }),
    connectionsRefused: counter('connections_refused', 'Connections closed at once: one too many.', 'reason'),
    floods: counter('floods', 'HTTP/2 connections ended for what they sent too much of.', 'kind'),
    brokenAnswers: counter('broken_answers', 'Answers that did not end as they should, by who broke off.', 'by'),
    webSockets: new Gauge({ name: 'tollward_gateway_websockets', help: 'WebSockets that are open.', registers }),
    webSocketEnds: counter('websocket_ends', 'WebSockets that ended, by why.', 'reason'),
    accessLines: counter('access_lines', 'Lines for the access log, written, or dropped because it is slow.', 'result'),
    tlsReloads: counter('tls_reloads', 'Times that changed TLS files were taken, or not.', 'result'),
  }
}
