import { timestampMs } from '@bufbuild/protobuf/wkt'
import { ADDRESS_BYTES } from '@tollward/contracts'
import { Direction, type Flow } from '@tollward/contracts/sensor'
import { BoundedTable } from './bounded-table.ts'

const TCP = 6

/**
 * Handshakes that a batch shows begun and not yet completed. One takes a round trip, so at any time about rate × 0.3 s are
 * under way: enough for 100,000 connections a second. About 200 bytes each.
 */
const HALF_OPEN_MAX = 32_768

/** Times of a flow further back than this from its batch are a clock's mistake: the sensor drains several times a second. */
const BATCH_SPAN_MAX_MS = 5000

/** A TCP segment's sender that tried to open, or opened, a connection to this node. */
export interface Attempt {
  /** 32 hexadecimal digits. */
  readonly sourceKey: string
  readonly source: Uint8Array
  readonly destination: Uint8Array
  readonly destinationPort: number
  readonly atMs: number
}

/** What a batch says of connections: those that the kernel completed, and tries without an answer to the answer. */
export interface Attempts {
  readonly connections: readonly Attempt[]
  readonly unanswered: readonly Attempt[]
  /** Flows left out because an address in them is none. */
  readonly malformed: number
}

/**
 * Finds new connections in flows. A connection is new where its SYN was seen; that its source is real is known once the
 * kernel has completed the handshake, which may be one batch later.
 */
export class ConnectionTracker {
  readonly #halfOpen = new BoundedTable<true>(HALF_OPEN_MAX)

  get evictions(): number {
    return this.#halfOpen.evictions
  }

  observe(flows: readonly Flow[], drainedAtMs: number): Attempts {
    const connections: Attempt[] = []
    const unanswered: Attempt[] = []
    let malformed = 0
    for (const flow of flows) {
      if (flow.source.length !== ADDRESS_BYTES || flow.destination.length !== ADDRESS_BYTES) {
        malformed += 1
        continue
      }
      if (flow.direction !== Direction.INGRESS || flow.protocol !== TCP) continue
      const hasSyn = flow.syns > 0
      if (!hasSyn && !flow.established) continue
      // One connection a flow and batch, however many SYNs: those after the first may be forged, the handshake is not.
      const wasHalfOpen = this.#halfOpen.delete(tupleOf(flow))
      if (flow.established && (hasSyn || wasHalfOpen)) connections.push(attempt(flow, drainedAtMs))
      if (flow.established) continue
      this.#halfOpen.set(tupleOf(flow), true)
      unanswered.push(attempt(flow, drainedAtMs))
    }
    return { connections, unanswered, malformed }
  }
}

function tupleOf(flow: Flow): string {
  return `${binary(flow.source)}${binary(flow.destination)}${flow.sourcePort}:${flow.destinationPort}`
}

function binary(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('latin1')
}

function attempt(flow: Flow, drainedAtMs: number): Attempt {
  const seenMs = flow.firstSeenAt === undefined ? drainedAtMs : timestampMs(flow.firstSeenAt)
  return {
    sourceKey: Buffer.from(flow.source).toString('hex'),
    source: flow.source,
    destination: flow.destination,
    destinationPort: flow.destinationPort,
    atMs: Math.min(drainedAtMs, Math.max(seenMs, drainedAtMs - BATCH_SPAN_MAX_MS)),
  }
}

/** Attempts by source, each source's in order of time. */
export function bySource(attempts: readonly Attempt[]): Map<string, Attempt[]> {
  const groups = new Map<string, Attempt[]>()
  for (const one of attempts) {
    const group = groups.get(one.sourceKey)
    if (group === undefined) groups.set(one.sourceKey, [one])
    else group.push(one)
  }
  for (const group of groups.values()) group.sort((a, b) => a.atMs - b.atMs)
  return groups
}
