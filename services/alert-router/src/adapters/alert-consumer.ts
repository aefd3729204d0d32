import { timestampMs } from '@bufbuild/protobuf/wkt'
import type { Bus, Delivery, Outcome } from '@tollward/bus'
import { contract, FINDING_SUBJECT } from '@tollward/contracts'
import { type AlertRaised, AlertRaisedSchema } from '@tollward/contracts/detection'
import { AppError } from '@tollward/errors'
import { detectionFinding, severityToken } from '../domain/ocsf.ts'
import type { Metrics } from '../metrics.ts'
import type { FindingsFile } from './findings-file.ts'

const DURABLE = 'alert-router'

/**
 * Hands each alert on as an OCSF finding: to the subject of its severity, then to the file. Only then is it acknowledged; while
 * either takes nothing, alerts stay in the queue.
 */
export function consumeAlerts(
  bus: Bus,
  { file, metrics }: { file: FindingsFile; metrics: Metrics },
): Promise<AsyncDisposable> {
  const onAlertRaised = async ({ alert }: AlertRaised, delivery: Delivery): Promise<Outcome> => {
    if (alert === undefined) throw new AppError('invalid_argument', 'The event AlertRaised needs an alert.')
    const finding = detectionFinding(alert, delivery.publishedAtMs)
    const severity = severityToken(finding)
    const bytes = Buffer.from(JSON.stringify(finding))
    const { duplicate } = await bus.publishBytes(`${FINDING_SUBJECT}.${severity}`, bytes, { id: alert.alertId })
    if (!duplicate) metrics.findings.inc({ severity })
    metrics.lines.inc({ result: await append(file, metrics, alert.alertId, finding) })
    if (alert.raisedAt) metrics.delay.observe(Math.max(0, Date.now() - timestampMs(alert.raisedAt)) / 1000)
    return 'done'
  }
  return bus.consume(DURABLE, contract(AlertRaisedSchema), onAlertRaised, { waitsForOutages: true })
}

async function append(file: FindingsFile, metrics: Metrics, uid: string, finding: object) {
  try {
    return await file.append(uid, finding)
  } catch (error) {
    metrics.fileFailures.inc()
    throw error
  }
}
