import { Counter, Gauge, Histogram, type Registry } from 'prom-client'

/** Metrics of sensor-ingest. Labels come from closed sets; what a source sends is never one. */
export type Metrics = ReturnType<typeof ingestMetrics>

/** What is read when the metrics are asked for. */
export interface MetricSources {
  readonly evictions: () => Readonly<Record<string, number>>
  readonly machineBlocks: () => number
  readonly pendingActions: () => number
}

const DELAY_BUCKETS_SECONDS = [0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 5]

export function ingestMetrics(registry: Registry, sources: MetricSources) {
  const registers = [registry]
  new Counter({
    name: 'tollward_ingest_table_evictions_total',
    help: 'Entries that a bounded table let go for others, by table.',
    labelNames: ['table'],
    registers,
    collect() {
      this.reset()
      for (const [table, count] of Object.entries(sources.evictions())) this.inc({ table }, count)
    },
  })
  new Gauge({
    name: 'tollward_ingest_machine_blocks',
    help: 'Blocks of detectors in force.',
    registers,
    collect() {
      this.set(sources.machineBlocks())
    },
  })
  new Gauge({
    name: 'tollward_ingest_pending_actions',
    help: 'Blocks and alerts that are decided and not yet stored.',
    registers,
    collect() {
      this.set(sources.pendingActions())
    },
  })
  return {
    batches: new Counter({
      name: 'tollward_ingest_batches_total',
      help: 'Batches of flows, by arrival: fresh, late (counted as missing before), repeated (not counted in again).',
      labelNames: ['arrival'],
      registers,
    }),
    batchesMissing: new Counter({
      name: 'tollward_ingest_batches_missing_total',
      help: 'Batches that a later one of the same session overtook; those that came after all are counted as late.',
      registers,
    }),
    flows: new Counter({ name: 'tollward_ingest_flows_total', help: 'Flow records counted in.', registers }),
    flowsLost: new Counter({
      name: 'tollward_ingest_flows_lost_total',
      help: 'Flow records that sensors say they had to leave out.',
      registers,
    }),
    flowsMalformed: new Counter({
      name: 'tollward_ingest_flows_malformed_total',
      help: 'Flow records left out because an address in them is none.',
      registers,
    }),
    connections: new Counter({
      name: 'tollward_ingest_connections_total',
      help: 'New connections that the kernel completed.',
      registers,
    }),
    detections: new Counter({
      name: 'tollward_ingest_detections_total',
      help: 'What detectors found, by what became of it.',
      labelNames: ['detector', 'result'],
      registers,
    }),
    actionsDropped: new Counter({
      name: 'tollward_ingest_actions_dropped_total',
      help: 'Decided blocks and alerts given up because too many could not be stored.',
      registers,
    }),
    blockDelay: new Histogram({
      name: 'tollward_ingest_block_delay_seconds',
      help: 'Time from the last flow that decided until its block was stored.',
      buckets: DELAY_BUCKETS_SECONDS,
      registers,
    }),
    settingsFaults: new Counter({
      name: 'tollward_ingest_settings_faults_total',
      help: 'DetectorSettings that cannot be used; what was in force stays.',
      registers,
    }),
    audited: new Counter({
      name: 'tollward_ingest_audited_total',
      help: 'Changes of the bucket blocks that were published, by kind.',
      labelNames: ['change'],
      registers,
    }),
  }
}
