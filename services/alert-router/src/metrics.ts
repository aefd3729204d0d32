import { Counter, Histogram, type Registry } from 'prom-client'

/** Metrics of alert-router. */
export type Metrics = ReturnType<typeof routerMetrics>

const DELAY_BUCKETS_SECONDS = [0.01, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 300]

export function routerMetrics(registry: Registry) {
  const registers = [registry]
  return {
    findings: new Counter({
      name: 'tollward_router_findings_total',
      help: 'Findings published, by severity.',
      labelNames: ['severity'],
      registers,
    }),
    lines: new Counter({
      name: 'tollward_router_file_lines_total',
      help: 'Findings for the file: written, or present from an earlier delivery.',
      labelNames: ['result'],
      registers,
    }),
    fileFailures: new Counter({
      name: 'tollward_router_file_failures_total',
      help: 'Attempts to write the file that failed; the alert stayed in the queue.',
      registers,
    }),
    filesRemoved: new Counter({
      name: 'tollward_router_files_removed_total',
      help: 'Files of findings that were removed because enough newer ones are kept.',
      registers,
    }),
    delay: new Histogram({
      name: 'tollward_router_delay_seconds',
      help: 'Time from raising an alert until its finding was published and in the file.',
      buckets: DELAY_BUCKETS_SECONDS,
      registers,
    }),
  }
}
