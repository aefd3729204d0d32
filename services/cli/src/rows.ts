import { type Timestamp, timestampDate, timestampMs } from '@bufbuild/protobuf/wkt'
import { formatAddress, formatCaller, formatRange, readCaller } from '@tollward/contracts'
import {
  type AppliedDocument,
  Change,
  type PolicyConflict,
  type PublishedFinding,
  ServiceState,
  type ServiceStatus,
} from '@tollward/contracts/admin'
import { Severity } from '@tollward/contracts/detection'
import type { StoredDocument } from '@tollward/contracts/document'
import type { Block } from '@tollward/contracts/enforcement'
import type { Discount } from '@tollward/contracts/ledger'
import { type Invoice, type Pass, PassState } from '@tollward/contracts/payment'
import { type CallObserved, Direction, type Flow, Outcome } from '@tollward/contracts/sensor'
import type { Grant, RegisteredClient, Session, SigningKey, User } from '@tollward/contracts/token'
import { z } from 'zod'
import { jsonOrText } from './output.ts'

/*
 * Answers of admin-api as rows: addresses and times as text, amounts as numbers (no amount of bitcoin exceeds 2^53 sats), enum
 * values in lower case. The names of the fields are what `-o json` promises.
 */

export function statusRow({ name, state, detail }: ServiceStatus) {
  return { name, state: word(ServiceState, state), detail }
}

export function appliedRow({ kind, name, change, clientSecret }: AppliedDocument) {
  return { kind, name, change: word(Change, change), ...(clientSecret === '' ? {} : { clientSecret }) }
}

/** Stands after the rows of what was applied. */
export function conflictRow({ winner, loser, detail }: PolicyConflict) {
  return { kind: 'PolicyConflict', winner, loser, detail }
}

export function documentRow({ kind, name, yaml, appliedBy, appliedAt }: StoredDocument) {
  return { kind, name, appliedBy, appliedAt: timeText(appliedAt), yaml }
}

export function registeredClientRow(client: RegisteredClient) {
  const { clientId: name, clientName: displayName, grants, scopes, audience, selfRegistered } = client
  const origin = selfRegistered ? 'self-registered' : 'registered'
  return { name, origin, displayName, grants, scopes, audience, registeredAt: timeText(client.registeredAt) }
}

export function userRow({ subject, name, enabled, createdAt, passwordChangedAt }: User) {
  const times = { createdAt: timeText(createdAt), passwordChangedAt: timeText(passwordChangedAt) }
  return { name, subject, enabled, ...times }
}

/** `names` are those of people by subject; of whom nobody knows any more the subject itself is shown. */
export function sessionRow(session: Session, names: ReadonlyMap<string, string>) {
  const { sessionHash, subject, signedInAt, expiresAt, clientIds: clients } = session
  const user = names.get(subject) ?? subject
  return { sessionHash, user, subject, signedInAt: timeText(signedInAt), expiresAt: timeText(expiresAt), clients }
}

export function grantRow(grant: Grant, names: ReadonlyMap<string, string>) {
  const { grantHash, subject, clientId: client, scopes, audience, grantedAt, expiresAt } = grant
  const user = names.get(subject) ?? subject
  const times = { grantedAt: timeText(grantedAt), expiresAt: timeText(expiresAt) }
  return { grantHash, user, subject, client, scopes, audience, ...times }
}

export function keyRow({ kid, algorithm, createdAt, signsFrom, signsUntil, removedAt }: SigningKey, nowMs: number) {
  const passed = (time: Timestamp | undefined) => time !== undefined && timestampMs(time) <= nowMs
  return {
    ...{ kid, algorithm, state: passed(signsUntil) ? 'retired' : passed(signsFrom) ? 'signs' : 'published' },
    ...{ createdAt: timeText(createdAt), signsFrom: timeText(signsFrom) },
    ...{ signsUntil: timeText(signsUntil), removedAt: timeText(removedAt) },
  }
}

export function blockRow(block: Block) {
  const { reason, decidedBy, decidedAt, expiresAt } = block
  const caller = readCaller(block.caller)
  const blocked = caller ? { caller: formatCaller(caller) } : { cidr: formatRange(block) }
  return { ...blocked, expiresAt: timeText(expiresAt), decidedBy, decidedAt: timeText(decidedAt), reason }
}

export function invoiceRow(invoice: Invoice) {
  const { invoiceId, clientId, plan, state, address, confirmations, confirmationsNeeded } = invoice
  return {
    ...{ invoiceId, clientId, plan, state, amountSats: Number(invoice.amountSats) },
    ...{ receivedSats: Number(invoice.receivedSats), confirmations, confirmationsNeeded, address },
    ...{ listPriceSats: Number(invoice.listPriceSats), discounts: invoice.discounts.map(discountRow) },
    ...{ creditUsedSats: Number(invoice.creditUsedSats), creditedSats: Number(invoice.creditedSats) },
    openedAt: timeText(invoice.openedAt),
    payBy: timeText(invoice.payBy),
    confirmBy: timeText(invoice.confirmBy),
    redeemBy: timeText(invoice.redeemBy),
    passId: invoice.passId,
  }
}

export function passRow(pass: Pass) {
  const { passId, clientId, plan, state, invoiceId } = pass
  return {
    ...{ passId, clientId, plan, state: word(PassState, state), quotaRequests: Number(pass.quotaRequests) },
    ...{ leasedRequests: Number(pass.leasedRequests), drawnRequests: Number(pass.drawnRequests) },
    ...{ leases: pass.leases.length, lossBound: pass.unrecordedRequestsMax, invoiceId },
    activatedAt: timeText(pass.activatedAt),
    expiresAt: timeText(pass.expiresAt),
  }
}

function discountRow({ kind, basisPoints, amountSats, score }: Discount) {
  return { kind, basisPoints, amountSats: Number(amountSats), score }
}

/** What of an OCSF finding the table shows; a field that is missing or odd is left out, not guessed. */
const Shown = z.object({
  message: z.string().optional().catch(undefined),
  finding_info: z.object({ title: z.string() }).optional().catch(undefined),
  disposition: z.string().optional().catch(undefined),
})

export function alertRow({ publishedAt, severity, ocsfJson }: PublishedFinding) {
  const finding = jsonOrText(ocsfJson)
  const shown = Shown.safeParse(finding).data
  return {
    ...{ publishedAt: timeText(publishedAt), severity: word(Severity, severity), title: shown?.finding_info?.title },
    ...{ disposition: shown?.disposition, message: shown?.message, finding },
  }
}

export function flowRow(flow: Flow, node: string) {
  return {
    ...{
      node,
      lastSeenAt: timeText(flow.lastSeenAt),
      direction: word(Direction, flow.direction),
      interface: flow.interface,
    },
    ...{
      source: endpoint(flow.source, flow.sourcePort),
      destination: endpoint(flow.destination, flow.destinationPort),
    },
    ...{ protocol: flow.protocol, packets: Number(flow.packets), bytes: Number(flow.bytes) },
    ...{ droppedPackets: Number(flow.droppedPackets), syns: flow.syns, established: flow.established },
  }
}

export function decisionRow(call: CallObserved) {
  const { decisionId, source, method, host, path, status, reason, detail, rule, clientId, passId, count } = call
  return {
    ...{
      decisionId,
      decidedAt: timeText(call.decidedAt),
      source,
      outcome: word(Outcome, call.outcome),
      status,
      reason,
      detail,
    },
    ...{ rule, limit: call.limit, method, host, path, clientId, principal: call.principal },
    ...{ tokenHash: call.tokenHash, txidHash: call.txidHash, passId },
    ...{ address: address(call.address), durationMicros: call.durationMicros, count },
    stages: call.stages.map(({ name, micros, asked }) => ({ name, micros, asked })),
  }
}

export type DecisionRow = ReturnType<typeof decisionRow>

/** RFC 3339. */
export function timeText(timestamp: Timestamp | undefined): string | undefined {
  return timestamp && timestampDate(timestamp).toISOString()
}

/** The name of an enum's value in lower case; its number where this version knows no name. */
function word(names: object, value: number): string {
  const found = Object.entries(names).find(([, number]) => number === value)
  return found ? found[0].toLowerCase().replaceAll('_', '-') : String(value)
}

function endpoint(bytes: Uint8Array, port: number): string {
  const text = address(bytes)
  return `${text.includes(':') ? `[${text}]` : text}:${port}`
}

function address(bytes: Uint8Array): string {
  return bytes.length === 16 ? formatAddress(bytes) : ''
}
