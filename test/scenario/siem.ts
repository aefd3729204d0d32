import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { connect, nkeyAuthenticator } from '@nats-io/transport-node'
import { FINDING_SUBJECT } from '@tollward/contracts'
import { ROOT } from '../checks/copy.ts'

const ARRIVES_WITHIN_MS = 15_000

/** What the scenarios read of an OCSF Detection Finding. */
export interface Finding {
  readonly class_uid: number
  readonly severity: string
  readonly disposition: string
  readonly disposition_id: number
  readonly message?: string
  readonly finding_info: {
    readonly uid: string
    readonly title: string
    readonly analytic: { readonly name?: string; readonly uid?: string }
  }
  readonly evidences: readonly { readonly src_endpoint?: { readonly ip?: string } }[]
}

/** A SIEM that subscribes with its own credential, which can read findings and nothing else. */
export interface Siem extends AsyncDisposable {
  readonly findings: readonly Finding[]
  /** The first finding of a detector about a source, past or to come. */
  next(detector: string, source: string): Promise<Finding>
}

/** Connects as the local stack's SIEM. */
export async function openSiem(state = process.env.TOLLWARD_STATE ?? join(ROOT, '.tollward')): Promise<Siem> {
  const { servers, nkeySeedFile, inboxPrefix } = JSON.parse(readFileSync(join(state, 'siem.json'), 'utf8')) as Record<
    string,
    string
  >
  assert.ok(servers && nkeySeedFile && inboxPrefix)
  const connection = await connect({
    servers,
    inboxPrefix,
    maxReconnectAttempts: -1,
    authenticator: nkeyAuthenticator(new TextEncoder().encode(readFileSync(nkeySeedFile, 'utf8').trim())),
  })
  const findings: Finding[] = []
  const waiting = new Set<() => void>()
  connection.subscribe(`${FINDING_SUBJECT}.*`, {
    callback: (error, message) => {
      if (error) throw error
      findings.push(message.json<Finding>())
      for (const look of waiting) look()
    },
  })
  await connection.flush()
  return {
    findings,
    next: (detector, source) =>
      new Promise((resolve, reject) => {
        const timer = setTimeout(
          () => reject(new Error(`no finding of ${detector} about ${source} arrived`)),
          ARRIVES_WITHIN_MS,
        )
        const look = () => {
          const found = findings.find((finding) => isFindingOf(finding, detector, source))
          if (!found) return
          clearTimeout(timer)
          waiting.delete(look)
          resolve(found)
        }
        waiting.add(look)
        look()
      }),
    [Symbol.asyncDispose]: () => connection.drain(),
  }
}

/** Whether a finding is a detector's about a source. */
export function isFindingOf(
  { finding_info: { analytic }, evidences }: Finding,
  detector: string,
  source: string,
): boolean {
  return (
    [analytic.uid, analytic.name].includes(detector) &&
    evidences.some(({ src_endpoint }) => src_endpoint?.ip === source)
  )
}
