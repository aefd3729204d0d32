import { createHash } from 'node:crypto'
import { create } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { formatAddress } from '@tollward/contracts'
import { type Alert, AlertSchema, Confidence, Disposition, Severity } from '@tollward/contracts/detection'

const DETECTOR = 'kernel-rule'
const DETECTOR_VERSION = '1'
/** Of an alert that goes on, the next one comes after so long, with the count in between. */
const REPEAT_MS = 5 * 60_000
/** Drops that come again after so long without any begin anew. A rule that always drops something alerts once. */
const QUIET_MS = 10 * 60_000
/** Alerts of one look at the counters; whatever else is to be told is told by the next looks. */
const ALERTS_PER_LOOK_MAX = 20
/** An alert shows so many packets, each of another source. */
const SAMPLES_MAX = 5
/** Older samples are not what an alert is about. */
const SAMPLE_AGE_MAX_MS = 60_000

/** What the kernel counted of something that raises alerts, since it counts it. */
export interface Reading {
  /** Stays the same while it is the same thing. */
  readonly key: string
  /** As in "KernelRule/no-telnet". */
  readonly name: string
  /** alert: tell of all packets again and again; drop: tell when drops begin. */
  readonly when: 'alert' | 'drop'
  /** Those that matched, or were dropped, or in audit mode would have been. */
  readonly packets: bigint
  /** Whether the packets are dropped, or only would be. */
  readonly audited: boolean
}

/** One packet of those that a reading counts. */
export interface PacketSample {
  readonly source: Uint8Array
  readonly sourcePort: number
  readonly destination: Uint8Array
  readonly destinationPort: number
  readonly protocol: number
  readonly direction: 'ingress' | 'egress'
  readonly seenAtMs: number
}

interface Watched {
  /** Of the reading before. */
  packets: bigint
  /** Packets up to which everything was told. */
  told: bigint
  toldAtMs: number
  movedAtMs: number
  /** When the packets began that are not told yet. */
  sinceMs: number
  /** Drops have begun, and nobody was told yet. */
  begun: boolean
  samples: PacketSample[]
}

/** Makes alerts of what the kernel's rules count: the first at once, then no more than anybody can read. */
export class RuleAlerts {
  readonly #node: string
  readonly #watched = new Map<string, Watched>()

  constructor(node: string) {
    this.#node = node
  }

  /** Takes what was counted before this process as told. */
  begin(readings: readonly Reading[]): void {
    for (const { key, packets } of readings) this.#watched.set(key, newWatched(packets))
  }

  /** Keeps a few packets of different sources for the next alert. */
  sample(key: string, sample: PacketSample): void {
    const watched = this.#of(key)
    watched.samples = fresh(watched.samples, sample.seenAtMs)
    const isShown = watched.samples.some((other) => isSame(other.source, sample.source))
    if (watched.samples.length < SAMPLES_MAX && !isShown) watched.samples.push(sample)
  }

  /** The alerts that are due. What is not among the readings any more is forgotten: if it comes again it counts from 0. */
  look(readings: readonly Reading[], nowMs: number): Alert[] {
    const known = new Set(readings.map(({ key }) => key))
    for (const key of this.#watched.keys()) if (!known.has(key)) this.#watched.delete(key)
    const alerts: Alert[] = []
    for (const reading of readings) {
      const watched = this.#of(reading.key)
      observe(watched, reading, nowMs)
      if (alerts.length === ALERTS_PER_LOOK_MAX || !isDue(watched, reading, nowMs)) continue
      alerts.push(this.#alert(reading, watched, nowMs))
      watched.told = reading.packets
      watched.toldAtMs = nowMs
      watched.begun = false
      watched.samples = []
    }
    return alerts
  }

  #of(key: string): Watched {
    const watched = this.#watched.get(key) ?? newWatched(0n)
    this.#watched.set(key, watched)
    return watched
  }

  #alert({ key, name, when, packets, audited }: Reading, watched: Watched, nowMs: number): Alert {
    const count = packets - watched.told
    const samples = fresh(watched.samples, nowMs)
    const first = samples[0]
    const [verb, disposition, severity] =
      when === 'alert'
        ? (['matched', Disposition.DETECTED, Severity.MEDIUM] as const)
        : audited
          ? (['would drop', Disposition.WOULD_BLOCK, Severity.LOW] as const)
          : (['dropped', Disposition.BLOCKED, Severity.LOW] as const)
    const begins = when === 'drop' ? ', the first for a while' : ''
    const shown = first ? `, such as ${packetText(first)}` : ''
    const isOneSource = first !== undefined && samples.length === 1
    return create(AlertSchema, {
      alertId: createHash('sha256').update(`${DETECTOR} ${this.#node} ${key} ${nowMs}`).digest('hex').slice(0, 32),
      ...{ detector: DETECTOR, detectorVersion: DETECTOR_VERSION, severity, confidence: Confidence.HIGH },
      title: `${name} ${verb} packets`,
      reason: `${name} ${verb} ${count} packets${begins}${shown}.`,
      ...{ firstSeenAt: timestampFromMs(watched.sinceMs), lastSeenAt: timestampFromMs(watched.movedAtMs) },
      ...{ raisedAt: timestampFromMs(nowMs), node: this.#node, disposition, count },
      // Of many sources none is the one that somebody should be asked about.
      ...(isOneSource && { source: first.source }),
      evidence: samples.map(({ destination, destinationPort, protocol, direction, seenAtMs, ...from }) => ({
        ...{ destination, destinationPort, protocol, seenAt: timestampFromMs(seenAtMs) },
        ...{ outbound: direction === 'egress' },
        note: `from ${endpointText(from.source, from.sourcePort)}`,
      })),
    })
  }
}

function newWatched(packets: bigint): Watched {
  const never = Number.NEGATIVE_INFINITY
  return { packets, told: packets, toldAtMs: never, movedAtMs: never, sinceMs: 0, begun: false, samples: [] }
}

function observe(watched: Watched, { packets }: Reading, nowMs: number): void {
  // The same name, but another rule: it counts from 0.
  if (packets < watched.packets) Object.assign(watched, { ...newWatched(0n), samples: watched.samples })
  if (packets > watched.packets) {
    if (nowMs - watched.movedAtMs >= QUIET_MS) {
      watched.begun = true
      watched.told = watched.packets
    }
    if (watched.told === watched.packets) watched.sinceMs = nowMs
    watched.movedAtMs = nowMs
  }
  watched.packets = packets
}

function isDue(watched: Watched, { when, packets }: Reading, nowMs: number): boolean {
  if (when === 'drop') return watched.begun
  return packets > watched.told && nowMs - watched.toldAtMs >= REPEAT_MS
}

function packetText({ source, sourcePort, destination, destinationPort, protocol }: PacketSample): string {
  const to = endpointText(destination, destinationPort)
  return `${endpointText(source, sourcePort)} to ${to} (protocol ${protocol})`
}

function endpointText(address: Uint8Array, port: number): string {
  const text = formatAddress(address)
  if (port === 0) return text
  return text.includes(':') ? `[${text}]:${port}` : `${text}:${port}`
}

function fresh(samples: readonly PacketSample[], nowMs: number): PacketSample[] {
  return samples.filter(({ seenAtMs }) => nowMs - seenAtMs <= SAMPLE_AGE_MAX_MS)
}

function isSame(one: Uint8Array, other: Uint8Array): boolean {
  return Buffer.compare(one, other) === 0
}
