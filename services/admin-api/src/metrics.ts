import { Counter, Gauge, Histogram, type Registry } from 'prom-client'

/** Metrics of admin-api. Labels come from closed sets. */
export type Metrics = ReturnType<typeof adminMetrics>

const DURATION_BUCKETS_SECONDS = [0.005, 0.02, 0.1, 0.5, 2, 10, 30]

export function adminMetrics(registry: Registry) {
  const registers = [registry]
  return {
    calls: new Histogram({
      name: 'tollward_admin_call_duration_seconds',
      help: 'Answered calls by gRPC method and status.',
      labelNames: ['method', 'status'],
      buckets: DURATION_BUCKETS_SECONDS,
      registers,
    }),
    auditFailures: new Counter({
      name: 'tollward_admin_audit_failures_total',
      help: 'Actions that could not be published as action.performed; they are in the log.',
      registers,
    }),
    documentFaults: new Counter({
      name: 'tollward_admin_document_faults_total',
      help: 'Stored documents that cannot be read, each time that one is met.',
      registers,
    }),
    flowWatchers: new Gauge({
      name: 'tollward_admin_flow_watchers',
      help: 'Calls that flow batches are streamed to.',
      registers,
    }),
    flowBatchesDropped: new Counter({
      name: 'tollward_admin_flow_batches_dropped_total',
      help: 'Flow batches left out for a watcher that reads too slowly.',
      registers,
    }),
  }
}
