import { type Timestamp, timestampDate } from '@bufbuild/protobuf/wkt'
import { formatAddress, formatRange } from '@tollward/contracts'
import {
  type AppliedDocument,
  Change,
  type PublishedFinding,
  ServiceState,
  type ServiceStatus,
} from '@tollward/contracts/admin'
import { Severity } from '@tollward/contracts/detection'
import type { StoredDocument } from '@tollward/contracts/document'
import type { Block } from '@tollward/contracts/enforcement'
import { type Invoice, type Pass, PassState } from '@tollward/contracts/payment'
import { type CallObserved, Direction, type Flow, Outcome } from '@tollward/contracts/sensor'
import { z } from 'zod'

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

export function documentRow({ kind, name, yaml, appliedBy, appliedAt }: StoredDocument) {
  return { kind, name, appliedBy, appliedAt: time(appliedAt), yaml }
}

export function blockRow(block: Block) {
  const { reason, decidedBy, decidedAt, expiresAt } = block
  return { cidr: formatRange(block), expiresAt: time(expiresAt), decidedBy, decidedAt: time(decidedAt), reason }
}

export function invoiceRow(invoice: Invoice) {
  const { invoiceId, clientId, plan, state, address, confirmations, confirmationsNeeded } = invoice
  return {
    ...{ invoiceId, clientId, plan, state, amountSats: Number(invoice.amountSats) },
    ...{ receivedSats: Number(invoice.receivedSats), confirmations, confirmationsNeeded, address },
    openedAt: time(invoice.openedAt),
    payBy: time(invoice.payBy),
    confirmBy: time(invoice.confirmBy),
  }
}

export function passRow(pass: Pass) {
  const { passId, clientId, plan, state, invoiceId } = pass
  return {
    ...{ passId, clientId, plan, state: word(PassState, state), quotaRequests: Number(pass.quotaRequests) },
    ...{ leasedRequests: Number(pass.leasedRequests), invoiceId },
    activatedAt: time(pass.activatedAt),
    expiresAt: time(pass.expiresAt),
  }
}

/** What of an OCSF finding the table shows; a field that is missing or odd is left out, not guessed. */
const Shown = z.object({
  message: z.string().optional().catch(undefined),
  finding_info: z.object({ title: z.string() }).optional().catch(undefined),
  disposition: z.string().optional().catch(undefined),
})

export function alertRow({ publishedAt, severity, ocsfJson }: PublishedFinding) {
  const finding = parsed(ocsfJson)
  const shown = Shown.safeParse(finding).data
  return {
    ...{ publishedAt: time(publishedAt), severity: word(Severity, severity), title: shown?.finding_info?.title },
    ...{ disposition: shown?.disposition, message: shown?.message, finding },
  }
}

export function flowRow(flow: Flow, node: string) {
  return {
    ...{
      node,
      lastSeenAt: time(flow.lastSeenAt),
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
      decidedAt: time(call.decidedAt),
      source,
      outcome: word(Outcome, call.outcome),
      status,
      reason,
      detail,
    },
    ...{ rule, method, host, path, clientId, tokenHash: call.tokenHash, txidHash: call.txidHash, passId },
    ...{ address: address(call.address), durationMicros: call.durationMicros, count },
  }
}

function time(timestamp: Timestamp | undefined): string | undefined {
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

function parsed(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return text
  }
}
