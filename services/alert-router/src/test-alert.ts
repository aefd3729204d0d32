import { create, type MessageInitShape } from '@bufbuild/protobuf'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import { parseAddress } from '@tollward/contracts'
import { type Alert, AlertSchema, Confidence, Disposition, Severity } from '@tollward/contracts/detection'

export const NOW_MS = Date.UTC(2026, 0, 1)

export function address(text: string): Uint8Array {
  const parsed = parseAddress(text)
  if (parsed === undefined) throw new RangeError(`not an address: ${text}`)
  return parsed
}

/** The alert of a blocked flood, with changes. */
export function alert(changes: MessageInitShape<typeof AlertSchema> = {}): Alert {
  return create(AlertSchema, {
    alertId: 'f00d',
    detector: 'connection-flood',
    detectorVersion: '1',
    severity: Severity.HIGH,
    confidence: Confidence.HIGH,
    title: 'Connection flood from 203.0.113.66',
    reason: '1200 new connections within 0.4 s; the setting is 400 within 2 s.',
    firstSeenAt: timestampFromMs(NOW_MS - 400),
    lastSeenAt: timestampFromMs(NOW_MS),
    raisedAt: timestampFromMs(NOW_MS),
    source: address('203.0.113.66'),
    node: 'node-a',
    evidence: [
      {
        destination: address('127.0.0.1'),
        destinationPort: 8080,
        protocol: 6,
        seenAt: timestampFromMs(NOW_MS),
        note: 'first',
      },
    ],
    disposition: Disposition.BLOCKED,
    blockedUntil: timestampFromMs(NOW_MS + 300_000),
    attackTechnique: 'T1499',
    count: 1200n,
    ...changes,
  })
}
