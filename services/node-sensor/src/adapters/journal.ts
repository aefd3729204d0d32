import { rename, writeFile } from 'node:fs/promises'
import { fromBinary, toJson } from '@bufbuild/protobuf'
import { contract } from '@tollward/contracts'
import { type Alert, AlertRaisedSchema } from '@tollward/contracts/detection'
import { type SensorState, SensorStateSchema } from '@tollward/contracts/sensor'
import { AppError } from '@tollward/errors'
import { bootNsToWallTimeMs, type GuardEvent } from '@tollward/libbpf'
import type { Logger } from 'pino'
import { alertFields, LinesPerSecond, packetFields } from '../domain/journal.ts'
import type { HostMetrics } from '../metrics.ts'
import type { Destination } from './batch-publisher.ts'
import type { RulesFile } from './rules-file.ts'
import type { StateDestination } from './state-report.ts'

/** A journal keeps some ten thousand lines of a service in half a minute; samples must not push out everything else. */
const PACKETS_PER_SECOND_MAX = 20
const STATE_INTERVAL_MS = 300_000

interface JournalOptions {
  readonly file: RulesFile
  readonly metrics: HostMetrics
  readonly log: Logger
}

/** Where a host without a bus tells what it sees: lines of JSON on standard output, whatever the log's level is. */
export class Journal implements Destination {
  readonly connected = true
  readonly #options: JournalOptions
  readonly #lines: Logger
  readonly #packets = new LinesPerSecond(PACKETS_PER_SECOND_MAX)

  constructor(options: JournalOptions) {
    this.#options = options
    this.#lines = options.log.child({}, { level: 'info' })
  }

  publishBytes(subject: string, bytes: Uint8Array): Promise<void> {
    if (subject !== contract(AlertRaisedSchema).subject)
      return Promise.reject(new AppError('invalid_argument', `the journal does not take ${subject}`))
    const { alert } = fromBinary(AlertRaisedSchema, bytes)
    if (alert) this.alert(alert)
    return Promise.resolve()
  }

  alert(alert: Alert): void {
    this.#lines.warn({ event: 'alert', alert: alertFields(alert) }, alert.title)
  }

  /** Tells of a packet that the kernel shows as a sample. */
  packet(event: GuardEvent, rule: string | undefined): void {
    const { file, metrics } = this.#options
    if (!this.#packets.take(Date.now())) {
      metrics.packetLinesLeftOut.inc()
      return
    }
    const list = event.origin === 'block' ? file.listName(event.id) : undefined
    this.#lines.info(packetFields(event, { rule, list }, bootNsToWallTimeMs(event.atNs)), 'packet')
  }

  /** Takes states: the last is in the file, and a line tells of it when its faults change, and now and then. */
  states(stateFile: string): StateDestination {
    let toldAtMs = 0
    let faults = ''
    return {
      connected: true,
      put: async (state) => {
        const now = state.faults.join()
        const nowMs = Date.now()
        if (now !== faults || nowMs - toldAtMs >= STATE_INTERVAL_MS) {
          this.#lines.info({ event: 'state', state: this.#summary(state) }, now === '' ? 'guarding' : 'faulty')
          toldAtMs = nowMs
          faults = now
        }
        const text = JSON.stringify({ ...this.#json(state), rulesFile: this.#options.file.reading() })
        await writeFile(`${stateFile}.new`, `${text}\n`, { mode: 0o644 })
        await rename(`${stateFile}.new`, stateFile)
      },
    }
  }

  #json(state: SensorState): object {
    return toJson(SensorStateSchema, state) as object
  }

  #summary({ mode, counters, losses, rules, faults }: SensorState) {
    const numbers = (counts: SensorState['counters']) =>
      Object.fromEntries(counts.filter(({ value }) => value > 0n).map(({ name, value }) => [name, Number(value)]))
    const seen = rules.filter(({ packets }) => packets > 0n)
    return {
      ...{ mode, faults, rulesFile: this.#options.file.reading(), packetLinesLeftOut: this.#packets.takeLeftOut() },
      ...{ packets: numbers(counters), losses: numbers(losses) },
      rules: Object.fromEntries(
        seen.map(({ name, packets, dropped }) => [name, { packets: Number(packets), dropped: Number(dropped) }]),
      ),
    }
  }
}
