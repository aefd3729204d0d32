import type { Bus, Outcome } from '@tollward/bus'
import { ADDRESS_BYTES, contract, FINDING_SUBJECT, parseAddress } from '@tollward/contracts'
import { CallObservedSchema } from '@tollward/contracts/sensor'
import { LoginFailedSchema, RefreshReusedSchema } from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
import { z } from 'zod'
import { calledFrom, type Deeds, deedsOfCall, LATELY_MS, timeOf } from '../domain/conduct.ts'
import type { Metrics } from '../metrics.ts'
import type { Conducts } from './conducts.ts'

/** Messages that wait for their conduct to be written. */
const CONCURRENCY = 64
/** Clocks of services differ by less. */
const CLOCK_SKEW_MAX_MS = 60_000

/** OCSF's numbers: a severity below is for information, and these dispositions are of what was tried out only. */
const SEVERITY_LOW = 2
const DISPOSITION_DETECTED = 15
/** With less, the source may be forged: anybody could raise alerts in the name of a client's address. */
const CONFIDENCE_HIGH = 3
const OBSERVABLE_IP_ADDRESS = 2

/** What is read of an OCSF Detection Finding. */
const Finding = z.object({
  time: z.int(),
  severity_id: z.int(),
  confidence_id: z.int().default(0),
  disposition_id: z.int(),
  observables: z.array(z.object({ type_id: z.int(), value: z.string() })).default([]),
})

type Source = 'calls' | 'findings' | 'logins' | 'reuses'

/** Counts what the bus says of clients: what they did, and what was seen where they, and nobody else, called from. */
export async function followConduct(bus: Bus, conducts: Conducts, metrics: Metrics): Promise<AsyncDisposable[]> {
  const counted = (source: Source, result: string) => metrics.conductEvents.inc({ source, result })
  const atAddress = async (source: Source, address: Uint8Array, atMs: number, deeds: Deeds): Promise<Outcome> => {
    const nowMs = Date.now()
    // Who called from there when that happened is forgotten.
    const isOld = atMs < nowMs - LATELY_MS
    const clientId = isOld ? undefined : conducts.callers.soleAt(address, nowMs)
    counted(source, clientId === undefined ? 'nobody' : 'counted')
    if (clientId !== undefined) await conducts.count(clientId, deeds)
    return 'done'
  }
  const options = { concurrency: CONCURRENCY, waitsForOutages: true }
  const calls = await bus.consume('conduct-calls', contract(CallObservedSchema), (call): Outcome => {
    const deeds = deedsOfCall(call)
    if (deeds === undefined) return 'done'
    const { clientId, address } = call
    const nowMs = Date.now()
    const atMs = Math.min(timeOf(call.decidedAt), nowMs + CLOCK_SKEW_MAX_MS)
    const isNews = address.length === ADDRESS_BYTES && conducts.callers.isNews(clientId, address, atMs)
    if (Object.keys(deeds).length === 0 && !isNews) return 'done'
    counted('calls', 'counted')
    // Not waited for: there may be many, the stream is memory, and a crash loses what half a second brought.
    conducts.note(clientId, { ...deeds, ...(isNews ? { calledFrom: [calledFrom(address, atMs)] } : {}) })
    return 'done'
  })
  const findings = await bus.consumeBytes(
    'conduct-findings',
    FINDING_SUBJECT,
    (bytes) => {
      const finding = findingOf(bytes)
      const address = sourceOf(finding)
      if (address === undefined || !isSure(finding)) {
        counted('findings', 'nobody')
        return 'done'
      }
      return atAddress('findings', address, finding.time, { alerts: 1 })
    },
    options,
  )
  const logins = await bus.consume(
    'conduct-logins',
    contract(LoginFailedSchema),
    ({ address, failedAt }) => atAddress('logins', address, timeOf(failedAt), { failedLogins: 1 }),
    options,
  )
  const reuses = await bus.consume(
    'conduct-reuses',
    contract(RefreshReusedSchema),
    async ({ clientId }): Promise<Outcome> => {
      if (clientId === '') return 'discard'
      counted('reuses', 'counted')
      await conducts.count(clientId, { failedLogins: 1 })
      return 'done'
    },
    options,
  )
  return [calls, findings, logins, reuses]
}

function findingOf(bytes: Uint8Array) {
  try {
    return Finding.parse(JSON.parse(Buffer.from(bytes).toString()))
  } catch (error) {
    throw new AppError('invalid_argument', 'The letter is no OCSF finding.', { cause: error })
  }
}

function isSure({ severity_id, confidence_id, disposition_id }: z.output<typeof Finding>): boolean {
  return severity_id >= SEVERITY_LOW && confidence_id >= CONFIDENCE_HIGH && disposition_id !== DISPOSITION_DETECTED
}

function sourceOf({ observables }: z.output<typeof Finding>): Uint8Array | undefined {
  const value = observables.find(({ type_id }) => type_id === OBSERVABLE_IP_ADDRESS)?.value
  return value === undefined ? undefined : parseAddress(value)
}
