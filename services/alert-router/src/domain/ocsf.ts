import { type Timestamp, timestampMs } from '@bufbuild/protobuf/wkt'
import { ADDRESS_BYTES, formatAddress } from '@tollward/contracts'
import { type Alert, Confidence, Disposition, type Evidence, Severity } from '@tollward/contracts/detection'
import { AppError } from '@tollward/errors'

/** The version of the Open Cybersecurity Schema Framework that findings follow. */
const OCSF_VERSION = '1.8.0'

/** Detection Finding, and its activity Create. */
const CATEGORY_UID = 2
const CLASS_UID = 2004
const ACTIVITY_CREATE = 1

const STATUS_NEW = 1
const ANALYTIC_RULE = 1
const INBOUND = { direction_id: 1, direction: 'Inbound' } as const
const OUTBOUND = { direction_id: 2, direction: 'Outbound' } as const
const OBSERVABLE_IP_ADDRESS = 2

const PRODUCT = { name: 'Tollward', vendor_name: 'Tollward', version: '0.1.0' }

/** Ids go into headers and subjects of SIEMs. */
const ALERT_ID = /^[\x21-\x7e]{1,128}$/

/** Our severities and confidences are OCSF's; what is unspecified is its Unknown. */
const SEVERITIES: Readonly<Record<Severity, { id: number; name: string }>> = {
  [Severity.UNSPECIFIED]: { id: 0, name: 'Unknown' },
  [Severity.INFORMATIONAL]: { id: 1, name: 'Informational' },
  [Severity.LOW]: { id: 2, name: 'Low' },
  [Severity.MEDIUM]: { id: 3, name: 'Medium' },
  [Severity.HIGH]: { id: 4, name: 'High' },
  [Severity.CRITICAL]: { id: 5, name: 'Critical' },
}

const CONFIDENCES: Readonly<Record<Confidence, { id: number; name: string }>> = {
  [Confidence.UNSPECIFIED]: { id: 0, name: 'Unknown' },
  [Confidence.LOW]: { id: 1, name: 'Low' },
  [Confidence.MEDIUM]: { id: 2, name: 'Medium' },
  [Confidence.HIGH]: { id: 3, name: 'High' },
}

/** What was done, in the words of OCSF's profile security_control. */
const CONTROLS: Readonly<Record<Disposition, ReturnType<typeof control>>> = {
  [Disposition.UNSPECIFIED]: control(3, 'Observed', 19, 'Alert'),
  [Disposition.DETECTED]: control(3, 'Observed', 19, 'Alert'),
  [Disposition.BLOCKED]: control(2, 'Denied', 2, 'Blocked'),
  [Disposition.WOULD_BLOCK]: control(3, 'Observed', 15, 'Detected'),
}

function control(action_id: number, action: string, disposition_id: number, disposition: string) {
  return { action_id, action, disposition_id, disposition }
}

/** MITRE ATT&CK techniques that detectors name, with the tactic that each serves here. */
const ATTACKS: Readonly<Record<string, { technique: string; tacticUid: string; tactic: string }>> = {
  T1046: { technique: 'Network Service Discovery', tacticUid: 'TA0007', tactic: 'Discovery' },
  T1499: { technique: 'Endpoint Denial of Service', tacticUid: 'TA0040', tactic: 'Impact' },
}

const PROTOCOLS: Readonly<Record<number, string>> = { 1: 'icmp', 6: 'tcp', 17: 'udp', 58: 'ipv6-icmp' }

/** An OCSF Detection Finding as far as we write it; field names are the standard's. */
export type DetectionFinding = ReturnType<typeof detectionFinding>

/**
 * Maps an alert to an OCSF Detection Finding (class 2004, profile security_control). The finding's uid is the alert's id.
 * AppError `invalid_argument` for an alert that has no usable id: nobody could tell it from another.
 */
export function detectionFinding(alert: Alert, nowMs: number) {
  if (!ALERT_ID.test(alert.alertId)) {
    throw new AppError('invalid_argument', 'An alert needs an alert_id of 1 to 128 visible ASCII characters.')
  }
  const severity = SEVERITIES[alert.severity] ?? SEVERITIES[Severity.UNSPECIFIED]
  const confidence = CONFIDENCES[alert.confidence] ?? CONFIDENCES[Confidence.UNSPECIFIED]
  const source = ipOf(alert.source)
  const evidences = evidencesOf(alert, source)
  return {
    category_uid: CATEGORY_UID,
    category_name: 'Findings',
    class_uid: CLASS_UID,
    class_name: 'Detection Finding',
    activity_id: ACTIVITY_CREATE,
    activity_name: 'Create',
    type_uid: CLASS_UID * 100 + ACTIVITY_CREATE,
    type_name: 'Detection Finding: Create',
    severity_id: severity.id,
    severity: severity.name,
    confidence_id: confidence.id,
    confidence: confidence.name,
    status_id: STATUS_NEW,
    status: 'New',
    is_alert: true,
    ...(CONTROLS[alert.disposition] ?? CONTROLS[Disposition.UNSPECIFIED]),
    time: msOf(alert.raisedAt) ?? nowMs,
    message: alert.reason,
    metadata: {
      version: OCSF_VERSION,
      product: PRODUCT,
      profiles: ['security_control'],
      uid: alert.alertId,
      log_name: 'alerts',
    },
    finding_info: findingInfo(alert),
    ...(alert.node !== '' && { resources: [{ name: alert.node, type: 'node' }] }),
    ...(evidences.length > 0 && { evidences }),
    ...(source !== undefined && {
      observables: [
        { name: 'evidences.src_endpoint.ip', type_id: OBSERVABLE_IP_ADDRESS, type: 'IP Address', value: source },
      ],
    }),
    ...(alert.blockedUntil && { unmapped: { blocked_until_time: timestampMs(alert.blockedUntil) } }),
  }
}

/** The severity as the last token of the finding's subject. */
export function severityToken({ severity }: DetectionFinding): string {
  return severity.toLowerCase()
}

function findingInfo(alert: Alert) {
  const attack = attackOf(alert.attackTechnique)
  return {
    uid: alert.alertId,
    title: alert.title,
    desc: alert.reason,
    analytic: {
      type_id: ANALYTIC_RULE,
      type: 'Rule',
      uid: alert.detector === '' ? 'unknown' : alert.detector,
      name: alert.detector === '' ? 'unknown' : alert.detector,
      version: alert.detectorVersion,
    },
    ...timesOf({
      first_seen_time: alert.firstSeenAt,
      last_seen_time: alert.lastSeenAt,
      created_time: alert.raisedAt,
    }),
    related_events_count: Number(alert.count),
    ...(attack && { attacks: [attack] }),
  }
}

function attackOf(uid: string) {
  if (uid === '') return undefined
  const known = ATTACKS[uid]
  if (known === undefined) return { technique: { uid } }
  return { technique: { uid, name: known.technique }, tactic: { uid: known.tacticUid, name: known.tactic } }
}

/** One for each sample; without samples the source alone is the evidence. */
function evidencesOf(alert: Alert, source: string | undefined) {
  const src_endpoint = source === undefined ? {} : { src_endpoint: { ip: source } }
  const samples = alert.evidence.map((sample) => ({ ...src_endpoint, ...destinationOf(sample) }))
  if (samples.length === 0 && source !== undefined) return [src_endpoint]
  return samples.filter((sample) => 'src_endpoint' in sample || 'dst_endpoint' in sample)
}

function destinationOf({ destination, destinationPort, protocol, seenAt, note, outbound }: Evidence) {
  const ip = ipOf(destination)
  const seenMs = msOf(seenAt)
  return {
    ...(ip !== undefined && { dst_endpoint: { ip, port: destinationPort } }),
    connection_info: {
      ...(outbound ? OUTBOUND : INBOUND),
      protocol_num: protocol,
      ...(PROTOCOLS[protocol] !== undefined && { protocol_name: PROTOCOLS[protocol] }),
    },
    ...((seenMs !== undefined || note !== '') && {
      data: { ...(seenMs !== undefined && { seen_time: seenMs }), ...(note !== '' && { note }) },
    }),
  }
}

function ipOf(address: Uint8Array): string | undefined {
  return address.length === ADDRESS_BYTES ? formatAddress(address) : undefined
}

function msOf(timestamp: Timestamp | undefined): number | undefined {
  return timestamp === undefined ? undefined : Math.trunc(timestampMs(timestamp))
}

function timesOf<Name extends string>(times: Record<Name, Timestamp | undefined>): Partial<Record<Name, number>> {
  const known = Object.entries<Timestamp | undefined>(times).filter(([, timestamp]) => timestamp !== undefined)
  return Object.fromEntries(known.map(([name, timestamp]) => [name, msOf(timestamp)])) as Partial<Record<Name, number>>
}
