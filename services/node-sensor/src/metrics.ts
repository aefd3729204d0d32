import { Counter, Gauge, Histogram, type Registry } from 'prom-client'

/** Metrics of node-sensor. What the kernel counts is read at each scrape: see KernelReadings. */
export type Metrics = ReturnType<typeof sensorMetrics>

/** What the kernel knows, asked when somebody scrapes. */
export interface KernelReadings {
  /** Packets by verdict; each arriving packet counts once. */
  readonly verdicts: () => Record<string, number>
  /** What else the kernel programs counted. */
  readonly events: () => Record<string, number>
  /** Packets that the kernel threw away by its own reasons, by reason. */
  readonly drops?: () => Record<string, number>
  readonly blocks: () => Record<string, { readonly entries: number; readonly capacity: number }>
  /** Reads and writes of connections whose calls are read, by what became of them. */
  readonly calls?: () => Record<string, number>
  /** Files with TLS in them, by what became of them. */
  readonly callTargets?: () => Record<string, number>
}

const APPLY_BUCKETS_SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 10]
const DRAIN_BUCKETS_SECONDS = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5]

export function sensorMetrics(registry: Registry, kernel: KernelReadings) {
  const registers = [registry]
  return {
    packets: new Counter({
      name: 'tollward_node_sensor_packets_total',
      help: 'Arriving packets by the verdict on them, counted by the kernel also while no sensor runs.',
      labelNames: ['verdict'],
      registers,
      collect() {
        for (const [verdict, count] of Object.entries(kernel.verdicts())) setTo(this, { verdict }, count)
      },
    }),
    kernelEvents: new Counter({
      name: 'tollward_node_sensor_kernel_events_total',
      help: 'What the kernel programs met beside verdicts: packets that cannot be read to the end, flow maps without room.',
      labelNames: ['event'],
      registers,
      collect() {
        for (const [event, count] of Object.entries(kernel.events())) setTo(this, { event }, count)
      },
    }),
    blocks: new Gauge({
      name: 'tollward_node_sensor_blocks',
      help: 'Blocks in the kernel, by map.',
      labelNames: ['map'],
      registers,
      collect() {
        for (const [map, { entries }] of Object.entries(kernel.blocks())) this.set({ map }, entries)
      },
    }),
    blockCapacity: new Gauge({
      name: 'tollward_node_sensor_blocks_capacity',
      help: 'Blocks that each map of the kernel has room for.',
      labelNames: ['map'],
      registers,
      collect() {
        for (const [map, { capacity }] of Object.entries(kernel.blocks())) this.set({ map }, capacity)
      },
    }),
    blocksWaiting: new Gauge({
      name: 'tollward_node_sensor_blocks_waiting',
      help: 'Blocks that are NOT enforced on this node because the kernel did not take them. Alert when it is not 0.',
      registers,
    }),
    blocksRefused: new Counter({
      name: 'tollward_node_sensor_blocks_refused_total',
      help: 'Times that the kernel did not take a block: its map was full, or another failure.',
      labelNames: ['reason'],
      registers,
    }),
    blocksIgnored: new Counter({
      name: 'tollward_node_sensor_blocks_ignored_total',
      help: 'Blocks that were not applied because they name only guarded addresses, or because they are unreadable.',
      labelNames: ['reason'],
      registers,
    }),
    apply: new Histogram({
      name: 'tollward_node_sensor_block_apply_seconds',
      help: 'From the decision to block (clock of who decided) until the kernel has the block.',
      buckets: APPLY_BUCKETS_SECONDS,
      registers,
    }),
    firstDrops: new Counter({
      name: 'tollward_node_sensor_first_drops_total',
      help: 'Blocks that dropped their first packet.',
      registers,
    }),
    hooks: new Gauge({
      name: 'tollward_node_sensor_attached',
      help: '1: the program is on its hook; 0: it is not, and the log says why.',
      labelNames: ['interface', 'hook'],
      registers,
    }),
    flows: new Counter({
      name: 'tollward_node_sensor_flows_total',
      help: 'Flow records: published, or left out as the sensor own ones.',
      labelNames: ['result'],
      registers,
    }),
    flowsLost: new Counter({
      name: 'tollward_node_sensor_flows_lost_total',
      help: 'Flow records that nobody will see: no room in the kernel, in the buffer while the bus is away, or refused by it.',
      labelNames: ['reason'],
      registers,
    }),
    flowsBuffered: new Gauge({
      name: 'tollward_node_sensor_flows_buffered',
      help: 'Flow records that wait for the bus.',
      registers,
    }),
    rules: new Gauge({
      name: 'tollward_node_sensor_rules',
      help: 'Kernel rules: in_force, or left_out because the kernel programs have no room. Alert when any is left out.',
      labelNames: ['state'],
      registers,
    }),
    ruleApply: new Histogram({
      name: 'tollward_node_sensor_rule_apply_seconds',
      help: 'From the time a kernel rule was applied (clock of admin-api) until it is in force.',
      buckets: APPLY_BUCKETS_SECONDS,
      registers,
    }),
    ruleRefusals: new Counter({
      name: 'tollward_node_sensor_rule_refusals_total',
      help: 'Times that the kernel did not take the rules; those before stay in force, and it is tried again.',
      registers,
    }),
    rulesUnreadable: new Counter({
      name: 'tollward_node_sensor_rules_unreadable_total',
      help: 'Kernel rules in the bucket that this version cannot read; what was in force under their names stays.',
      registers,
    }),
    alerts: new Counter({
      name: 'tollward_node_sensor_alerts_total',
      help: 'Alerts about kernel rules that were published.',
      labelNames: ['result'],
      registers,
    }),
    alertsLost: new Counter({
      name: 'tollward_node_sensor_alerts_lost_total',
      help: 'Alerts that nobody will see: no room in the buffer while the bus is away, or refused by it.',
      labelNames: ['reason'],
      registers,
    }),
    alertsBuffered: new Gauge({
      name: 'tollward_node_sensor_alerts_buffered',
      help: 'Alerts that wait for the bus.',
      registers,
    }),
    stateReports: new Counter({
      name: 'tollward_node_sensor_state_reports_total',
      help: 'Times that the sensor said how it is, by whether the bus took it.',
      labelNames: ['result'],
      registers,
    }),
    calls: new Counter({
      name: 'tollward_node_sensor_calls_total',
      help: 'API calls that were read and published.',
      labelNames: ['result'],
      registers,
    }),
    callsLost: new Counter({
      name: 'tollward_node_sensor_calls_lost_total',
      help: 'API calls, or parts of them, that nobody will see: bytes were missing, nobody could read them, or there was no room.',
      labelNames: ['reason'],
      registers,
    }),
    callsElsewhere: new Counter({
      name: 'tollward_node_sensor_call_reads_elsewhere_total',
      help: 'Reads and writes of connections outside the configured ranges, or of none that is known; nobody looked at them.',
      registers,
    }),
    callsBuffered: new Gauge({
      name: 'tollward_node_sensor_calls_buffered',
      help: 'API calls that wait for the bus.',
      registers,
    }),
    callConnections: new Gauge({
      name: 'tollward_node_sensor_call_connections',
      help: 'Connections whose calls are being read.',
      registers,
    }),
    callEvents: new Counter({
      name: 'tollward_node_sensor_call_events_total',
      help: 'What the kernel counts of reads and writes of connections: captured, cut, and left out by why.',
      labelNames: ['event'],
      registers,
      collect() {
        for (const [event, count] of Object.entries(kernel.calls?.() ?? {})) setTo(this, { event }, count)
      },
    }),
    callTargets: new Gauge({
      name: 'tollward_node_sensor_call_targets',
      help: 'Programs and libraries with TLS: probed; unsupported, of which nothing is read; refused, each time that a probe failed.',
      labelNames: ['state'],
      registers,
      collect() {
        for (const [state, count] of Object.entries(kernel.callTargets?.() ?? {})) this.set({ state }, count)
      },
    }),
    kernelDrops: new Counter({
      name: 'tollward_node_sensor_kernel_drops_total',
      help: 'Packets that the kernel itself threw away, by its own reasons; without those that the guard drops.',
      labelNames: ['reason'],
      registers,
      collect() {
        for (const [reason, count] of Object.entries(kernel.drops?.() ?? {})) setTo(this, { reason }, count)
      },
    }),
    drain: new Histogram({
      name: 'tollward_node_sensor_drain_seconds',
      help: 'Time to read the flows of one interval out of the kernel.',
      buckets: DRAIN_BUCKETS_SECONDS,
      registers,
    }),
  }
}

/** Metrics of tollward-archsec beside those of the sensor. */
export type HostMetrics = ReturnType<typeof hostMetrics>

export function hostMetrics(registry: Registry) {
  const registers = [registry]
  return {
    rulesFiles: new Counter({
      name: 'tollward_archsec_rules_files_total',
      help: 'Times that the rules file was read: taken, or refused, in which case what was in force stays. Alert on refused.',
      labelNames: ['result'],
      registers,
    }),
    packetLinesLeftOut: new Counter({
      name: 'tollward_archsec_packet_lines_left_out_total',
      help: 'Samples of packets that the journal was not told of, because there were too many in one second.',
      registers,
    }),
  }
}

/** The kernel counts; a counter of the library can only be added to. */
function setTo<Label extends string>(counter: Counter<Label>, labels: Record<Label, string>, count: number): void {
  counter.remove(labels)
  counter.inc(labels, count)
}
