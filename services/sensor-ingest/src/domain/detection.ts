import { timestampMs } from '@bufbuild/protobuf/wkt'
import type { AddressRange } from '@tollward/contracts'
import type { Alert } from '@tollward/contracts/detection'
import type { Block } from '@tollward/contracts/enforcement'
import type { FlowObserved } from '@tollward/contracts/sensor'
import { CONNECTION_FLOOD, PORT_SCAN, scanAlert } from './alert.ts'
import { type Arrival, BatchSequences } from './batch-sequence.ts'
import { BlockLedger } from './block-ledger.ts'
import { ConnectionFloodDetector } from './connection-flood.ts'
import { type Attempt, bySource, ConnectionTracker } from './connections.ts'
import { decideFlood, exemption } from './flood-decision.ts'
import { PortScanDetector } from './port-scan.ts'
import { DEFAULT_SETTINGS, type Settings } from './settings.ts'
import { alertWindowStartMs, Suppression } from './suppression.ts'

/** What is to be done because of a batch. `seenAtMs` is when the last flow that decided was seen. */
export type Action =
  | {
      readonly kind: 'block'
      readonly key: string
      readonly block: Block
      readonly expiresAtMs: number
      readonly seenAtMs: number
    }
  | { readonly kind: 'alert'; readonly alert: Alert }

/** What became of something detected. */
export type Result =
  | 'block'
  | 'alert'
  | 'observed'
  | 'share_exceeded'
  | 'already_blocked'
  | 'suppressed'
  | 'guarded'
  | 'allowed'

export interface Observation {
  readonly arrival: Arrival
  readonly connections: number
  readonly malformed: number
  readonly actions: readonly Action[]
  readonly detections: readonly { readonly detector: string; readonly result: Result }[]
}

export interface DetectionOptions {
  /** The nodes' own addresses, which nobody blocks. */
  readonly guarded: readonly AddressRange[]
  readonly machineBlocksMax: number
  readonly scanSeed: number
}

/**
 * All detectors and what they remember. Memory is bounded by the tables' limits. It holds seconds of flows only: a process
 * that starts anew finds what goes on within one window.
 */
export class Detection {
  settings: Settings = DEFAULT_SETTINGS
  readonly ledger = new BlockLedger()
  readonly #options: DetectionOptions
  readonly #sequences = new BatchSequences()
  readonly #connections = new ConnectionTracker()
  readonly #flood = new ConnectionFloodDetector()
  readonly #scan: PortScanDetector
  readonly #suppression = new Suppression()

  constructor(options: DetectionOptions) {
    this.#options = options
    this.#scan = new PortScanDetector(options.scanSeed)
  }

  /** Entries that tables had to let go, by table. */
  get evictions(): Readonly<Record<string, number>> {
    return {
      sessions: this.#sequences.evictions,
      half_open: this.#connections.evictions,
      flood_sources: this.#flood.evictions,
      scan_sources: this.#scan.evictions,
      priors: this.ledger.evictions,
      suppression: this.#suppression.evictions,
    }
  }

  /** Counts a batch in, unless it was already, and decides at once. */
  observe(batch: FlowObserved, nowMs: number): Observation {
    const arrival = this.#sequences.note(batch.node, batch.session, batch.sequence)
    const nothing = { arrival, connections: 0, malformed: 0, actions: [], detections: [] }
    if (arrival.kind === 'repeated') return nothing
    // A clock that runs ahead must not put its source's bucket into the future, where nothing leaks.
    const drainedAtMs = Math.min(batch.drainedAt === undefined ? nowMs : timestampMs(batch.drainedAt), nowMs)
    const { connections, unanswered, malformed } = this.#connections.observe(batch.flows, drainedAtMs)
    const actions: Action[] = []
    const detections: { detector: string; result: Result }[] = []
    const occasion = { node: batch.node, nowMs }
    for (const attempts of bySource(connections).values()) {
      const result = this.#observeFlood(attempts, occasion, actions)
      if (result) detections.push({ detector: CONNECTION_FLOOD, result })
    }
    for (const attempts of bySource(unanswered).values()) {
      const result = this.#observeScan(attempts, occasion, actions)
      if (result) detections.push({ detector: PORT_SCAN, result })
    }
    return { arrival, connections: connections.length, malformed, actions, detections }
  }

  #observeFlood(attempts: readonly Attempt[], { node, nowMs }: Where, actions: Action[]): Result | undefined {
    const settings = this.settings.flood
    const flood = settings && this.#flood.observe(attempts, settings)
    if (!flood) return undefined
    const exempt = exemption(flood.source, { guarded: this.#options.guarded, allow: this.settings.allow })
    if (exempt) return exempt
    const { machineBlocksMax } = this.#options
    const decision = decideFlood(flood, attempts, { ledger: this.ledger, settings, machineBlocksMax, node, nowMs })
    if (decision.kind === 'already_blocked') return 'already_blocked'
    if (decision.kind === 'block') {
      const { key, block, expiresAtMs } = decision
      // Counts at once, so that the share holds also for sources that are found together.
      this.ledger.set(key, block)
      actions.push({ kind: 'block', key, block, expiresAtMs, seenAtMs: flood.untilMs })
      return 'block'
    }
    if (!this.#suppression.lets(`${CONNECTION_FLOOD} ${flood.sourceKey}`, flood.untilMs)) return 'suppressed'
    actions.push({ kind: 'alert', alert: decision.alert })
    return decision.kind
  }

  #observeScan(attempts: readonly Attempt[], { node, nowMs }: Where, actions: Action[]): Result | undefined {
    const settings = this.settings.scan
    const scan = settings && this.#scan.observe(attempts, settings)
    if (!scan) return undefined
    const exempt = exemption(scan.source, { guarded: this.#options.guarded, allow: this.settings.allow })
    if (exempt) return exempt
    if (!this.#suppression.lets(`${PORT_SCAN} ${scan.sourceKey}`, scan.untilMs)) return 'suppressed'
    const occasion = { windowStartMs: alertWindowStartMs(scan.untilMs), node, nowMs }
    actions.push({ kind: 'alert', alert: scanAlert(scan, attempts, settings, occasion) })
    return 'alert'
  }
}

interface Where {
  readonly node: string
  readonly nowMs: number
}
