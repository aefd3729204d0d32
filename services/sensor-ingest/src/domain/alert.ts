import { createHash } from 'node:crypto'
import { create } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { formatAddress } from '@tollward/contracts'
import {
  type Alert,
  AlertSchema,
  Confidence,
  Disposition,
  EvidenceSchema,
  Severity,
} from '@tollward/contracts/detection'
import type { Flood } from './connection-flood.ts'
import type { Attempt } from './connections.ts'
import type { Scan } from './port-scan.ts'
import type { FloodSettings, ScanSettings } from './settings.ts'

export const CONNECTION_FLOOD = 'connection-flood'
export const PORT_SCAN = 'port-scan'

/** Goes up when a detector comes to other results on the same flows. */
const DETECTOR_VERSION = '1'

/** Samples an alert carries: enough to look the rest up by, little enough to read. */
const EVIDENCE_MAX = 5

const TCP = 6

/** When and where an alert is raised. */
export interface Occasion {
  /** Its window: a repeated detection within it is the same alert. */
  readonly windowStartMs: number
  readonly node: string
  readonly nowMs: number
}

/** Derived from detector, source and window, so that a repeated detection is the same alert. */
function alertId(detector: string, sourceKey: string, windowStartMs: number): string {
  return createHash('sha256').update(`${detector}\n${sourceKey}\n${windowStartMs}`).digest('hex').slice(0, 32)
}

/** The alert for a flood; the handshakes were completed, so the source is sure. */
export function floodAlert(
  flood: Flood,
  samples: readonly Attempt[],
  settings: FloodSettings,
  occasion: Occasion,
  outcome: { disposition: Disposition; note?: string; blockedUntilMs?: number },
): Alert {
  const seconds = Math.max((flood.untilMs - flood.sinceMs) / 1000, 0.1).toFixed(1)
  const { connections, withinSeconds } = settings
  const numbers = `${flood.count} new connections within ${seconds} s; the setting is ${connections} within ${withinSeconds} s.`
  return create(AlertSchema, {
    ...commonOf(CONNECTION_FLOOD, flood, samples, occasion),
    severity: Severity.HIGH,
    confidence: Confidence.HIGH,
    title: `Connection flood from ${formatAddress(flood.source)}`,
    reason: outcome.note === undefined ? numbers : `${numbers} ${outcome.note}`,
    disposition: outcome.disposition,
    attackTechnique: 'T1499',
    count: BigInt(flood.count),
    ...(outcome.blockedUntilMs !== undefined && { blockedUntil: timestampFromMs(outcome.blockedUntilMs) }),
  })
}

/** The alert for a scan; nothing proves that its source is not forged, so it is never more than an alert. */
export function scanAlert(scan: Scan, samples: readonly Attempt[], settings: ScanSettings, occasion: Occasion): Alert {
  const { ports, withinSeconds } = settings
  return create(AlertSchema, {
    ...commonOf(PORT_SCAN, scan, samples, occasion),
    severity: Severity.MEDIUM,
    confidence: Confidence.LOW,
    title: `Port scan from ${formatAddress(scan.source)}`,
    reason: `About ${scan.ports} different ports tried without a connection; the setting is ${ports} within ${withinSeconds} s.`,
    disposition: Disposition.DETECTED,
    attackTechnique: 'T1046',
    count: BigInt(scan.ports),
  })
}

function commonOf(detector: string, found: Flood | Scan, samples: readonly Attempt[], occasion: Occasion) {
  return {
    alertId: alertId(detector, found.sourceKey, occasion.windowStartMs),
    detector,
    detectorVersion: DETECTOR_VERSION,
    firstSeenAt: timestampFromMs(found.sinceMs),
    lastSeenAt: timestampFromMs(found.untilMs),
    raisedAt: timestampFromMs(occasion.nowMs),
    source: found.source,
    node: occasion.node,
    evidence: samples
      .slice(0, EVIDENCE_MAX)
      .map(({ destination, destinationPort, atMs }) =>
        create(EvidenceSchema, { destination, destinationPort, protocol: TCP, seenAt: timestampFromMs(atMs) }),
      ),
  }
}
