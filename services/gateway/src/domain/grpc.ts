import type { Rejection } from '@tollward/decision'
import { type FieldList, valuesOf } from './forwarding.ts'

/** Whether a request is one of gRPC over HTTP/2, whose client reads its status from trailers. */
export function isGrpc(fields: FieldList): boolean {
  const [type = ''] = valuesOf(fields, 'content-type')
  return /^application\/grpc(?:[+;]|$)/i.test(type)
}

const UNKNOWN = 2

/** As gRPC reads the HTTP status of an intermediary (doc/http-grpc-status-mapping.md of gRPC); 402 is a permission that one can buy. */
const STATUSES: Readonly<Record<number, number>> = {
  400: 13,
  401: 16,
  402: 7,
  403: 7,
  404: 12,
  429: 14,
  501: 12,
  502: 14,
  503: 14,
  504: 14,
}

/** A refusal as gRPC's Trailers-Only: the header fields of an answer without body, whose HTTP status is 200. */
export function grpcRefusal({ status, headers, body }: Pick<Rejection, 'status' | 'headers' | 'body'>): string[] {
  const fields = ['content-type', 'application/grpc', 'grpc-status', String(STATUSES[status] ?? UNKNOWN)]
  const { detail } = JSON.parse(body) as { detail: string }
  fields.push('grpc-message', percentEncoded(detail))
  for (const [name, value] of headers) {
    if (name !== 'content-type') fields.push(name, value)
  }
  return fields
}

/** Visible ASCII but "%" as it is, the rest as the percent-encoded bytes of its UTF-8. */
function percentEncoded(text: string): string {
  return text.replace(/[^\x20-\x24\x26-\x7e]/gu, (character) => encodeURIComponent(character))
}
