import { type Timestamp, timestampMs } from '@bufbuild/protobuf/wkt'
import type { Count, RuleState, SensorMap, SensorProgram, SensorState } from '@tollward/contracts/sensor'
import { fields, printable, type Row, table } from './output.ts'
import { timeText } from './rows.ts'

/** A sensor says how it is every two seconds. */
const SILENT_AFTER_MS = 10_000

/** What a list shows of a sensor. `state`: up; faulty, with faults; silent, if it has said nothing for some seconds. */
export function sensorRow(sensor: SensorState, nowMs: number) {
  const { node, mode, version, kernel, faults } = sensor
  return {
    ...{ node, state: stateOf(sensor, nowMs), mode, kernel, version },
    ...{ reportedAt: timeText(sensor.reportedAt), startedAt: timeText(sensor.startedAt), faults },
    interfaces: sensor.interfaces.map(({ name, index, ingress, egress, fault }) => {
      return { name, index, ingress, egress, fault }
    }),
  }
}

/** Everything that a sensor says. */
export function sensorDetail(sensor: SensorState, nowMs: number) {
  return {
    ...sensorRow(sensor, nowMs),
    capabilities: sensor.capabilities.map(({ name, on, why }) => ({ name, on, why })),
    programs: sensor.programs.map(programRow),
    maps: sensor.maps.map(mapRow),
    rules: sensor.rules.map(ruleRow),
    counters: countsOf(sensor.counters),
    losses: countsOf(sensor.losses),
    kernelDrops: countsOf(sensor.kernelDrops),
    captureTargets: sensor.captureTargets.map(({ path, kind, fault }) => ({ path, kind, fault })),
  }
}

/** One line of the list. */
export function sensorLine(row: ReturnType<typeof sensorRow>): Row {
  const interfaces = row.interfaces.map(({ name, ingress, egress }) => {
    return `${name} (${ingress || 'no'} in, ${egress || 'no'} out)`
  })
  return { ...row, interfaces: interfaces.join(', '), detail: row.faults.join('; ') }
}

/** A sensor for people: what it is, then a table for each of its parts. */
export function sensorText(detail: ReturnType<typeof sensorDetail>): string {
  const { node, state, mode, kernel, version, reportedAt, startedAt, faults } = detail
  const counted = (counts: Readonly<Record<string, number>>) =>
    Object.entries(counts).flatMap(([name, value]) => (value === 0 ? [] : [{ name, value }]))
  const parts: [title: string, rows: readonly Row[], columns: readonly string[]][] = [
    ['interfaces', detail.interfaces, ['name', 'index', 'ingress', 'egress', 'fault']],
    ['capabilities', detail.capabilities.map(({ on, ...rest }) => ({ ...rest, is: on ? 'on' : 'off' })), CAPABILITY],
    ['programs', detail.programs, ['name', 'type', 'averageNanos', 'runsMeasured', 'bytes']],
    ['maps', detail.maps, ['name', 'entries', 'capacity', 'bytes']],
    ['rules', detail.rules, ['name', 'action', 'mode', 'packets', 'dropped', 'audited', 'lastPacketAt', 'fault']],
    ['calls are read from', detail.captureTargets, ['path', 'kind', 'fault']],
    ['packets and events', counted(detail.counters), ['name', 'value']],
    ['dropped by the kernel itself', counted(detail.kernelDrops), ['name', 'value']],
    ['losses', counted(detail.losses), ['name', 'value']],
  ]
  return [
    fields({ node, state, mode, kernel, version, reportedAt, startedAt }),
    ...faults.map((fault) => `fault: ${printable(fault)}\n`),
    ...parts.map(([title, rows, columns]) => `\n${title}\n${table(rows, columns, 'none')}`),
  ].join('')
}

const CAPABILITY = ['name', 'is', 'why']

function stateOf({ reportedAt, faults }: SensorState, nowMs: number): 'up' | 'faulty' | 'silent' {
  if (nowMs - msOf(reportedAt) > SILENT_AFTER_MS) return 'silent'
  return faults.length > 0 ? 'faulty' : 'up'
}

function msOf(time: Timestamp | undefined): number {
  return time ? timestampMs(time) : 0
}

function programRow({ name, type, runs, runNanos, bytes }: SensorProgram) {
  const averageNanos = runs === 0n ? undefined : Number(runNanos / runs)
  return { name, type, averageNanos, runsMeasured: Number(runs), bytes: Number(bytes) }
}

function ruleRow({ name, action, mode, packets, dropped, audited, lastPacketAt, fault }: RuleState) {
  const counts = { packets: Number(packets), dropped: Number(dropped), audited: Number(audited) }
  return { name, action, mode, ...counts, lastPacketAt: timeText(lastPacketAt), fault }
}

function mapRow({ name, entries, capacity, bytes }: SensorMap) {
  return {
    name,
    ...(entries === undefined ? {} : { entries: Number(entries) }),
    capacity: Number(capacity),
    bytes: Number(bytes),
  }
}

function countsOf(counts: readonly Count[]): Record<string, number> {
  return Object.fromEntries(counts.map(({ name, value }) => [name, Number(value)]))
}
