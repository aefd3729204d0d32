import { timestampMs } from '@bufbuild/protobuf/wkt'
import { formatAddress } from '@tollward/contracts'
import { type Alert, Confidence, Disposition, Severity } from '@tollward/contracts/detection'
import type { GuardEvent } from '@tollward/libbpf'

/** An alert as a line of the journal has it. */
export function alertFields(alert: Alert) {
  const { alertId, detector, severity, confidence, title, reason, node, disposition, count, source } = alert
  const time = (at: Alert['raisedAt']) => (at ? new Date(timestampMs(at)).toISOString() : undefined)
  return {
    ...{ id: alertId, detector, title, reason, node, count: Number(count) },
    ...{ severity: nameOf(Severity, severity), confidence: nameOf(Confidence, confidence) },
    disposition: nameOf(Disposition, disposition),
    firstSeenAt: time(alert.firstSeenAt),
    lastSeenAt: time(alert.lastSeenAt),
    ...(source.length > 0 && { source: formatAddress(source) }),
    evidence: alert.evidence.map(({ destination, destinationPort, protocol, seenAt, note, outbound }) => {
      return {
        ...{ note, destination: formatAddress(destination), destinationPort, protocol },
        ...{ direction: outbound ? 'egress' : 'ingress', seenAt: time(seenAt) },
      }
    }),
  }
}

function nameOf(names: Readonly<Record<string, number>>, value: number): string {
  const name = Object.keys(names).find((candidate) => names[candidate] === value)
  return name?.toLowerCase() ?? String(value)
}

/** Names of what decided on a packet. */
interface DecidedBy {
  readonly rule: string | undefined
  readonly list: string | undefined
}

/** A packet that the kernel showed as a sample, as a line of the journal has it. */
export function packetFields(event: GuardEvent, { rule, list }: DecidedBy, seenAtMs: number) {
  const { verdict, direction, protocol, ipBytes, sourcePort, destinationPort } = event
  return {
    event: /dropped/i.test(verdict) ? 'drop' : 'sample',
    verdict: verdict.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`),
    ...(rule !== undefined && { by: `KernelRule/${rule}` }),
    ...(event.origin === 'block' && list !== undefined && { by: `BlockList/${list}` }),
    ...{ direction, protocol, bytes: ipBytes, seenAt: new Date(seenAtMs).toISOString() },
    ...{ source: formatAddress(event.source), sourcePort },
    ...{ destination: formatAddress(event.destination), destinationPort },
  }
}

/** Lets so many through in each second, and counts the others. */
export class LinesPerSecond {
  readonly #max: number
  #second = 0
  #told = 0
  #leftOut = 0

  constructor(max: number) {
    this.#max = max
  }

  /** Whether a line may be written now. */
  take(nowMs: number): boolean {
    const second = Math.floor(nowMs / 1000)
    if (second !== this.#second) {
      this.#second = second
      this.#told = 0
    }
    this.#told += 1
    if (this.#told <= this.#max) return true
    this.#leftOut += 1
    return false
  }

  /** Those that were left out since the last call. */
  takeLeftOut(): number {
    const leftOut = this.#leftOut
    this.#leftOut = 0
    return leftOut
  }
}
