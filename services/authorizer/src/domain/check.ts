import type { MessageInitShape } from '@bufbuild/protobuf'
import { type AddressRange, parseAddress } from '@tollward/contracts'
import {
  HeaderValueOption_HeaderAppendAction as AppendAction,
  type CheckRequest,
  type CheckResponseSchema,
  type HeaderValueOptionSchema,
  StatusCode,
} from '@tollward/contracts/envoy'
import { clientAddress, type Decision, type HeaderField, type RequestFacts } from '@tollward/decision'

export type CheckAnswer = MessageInitShape<typeof CheckResponseSchema>

/** google.rpc.Code and Envoy's status by ours. No code is 0: Envoy admits on 0. */
const DENIALS: Readonly<Record<number, { readonly code: number; readonly status: StatusCode }>> = {
  400: { code: 3, status: StatusCode.BadRequest },
  401: { code: 16, status: StatusCode.Unauthorized },
  402: { code: 9, status: StatusCode.PaymentRequired },
  403: { code: 7, status: StatusCode.Forbidden },
  429: { code: 8, status: StatusCode.TooManyRequests },
  431: { code: 3, status: StatusCode.RequestHeaderFieldsTooLarge },
  503: { code: 14, status: StatusCode.ServiceUnavailable },
}
const FORBIDDEN = { code: 7, status: StatusCode.Forbidden }

/**
 * The request that Envoy asks about; undefined if the question lacks what a decision needs. Headers are read from header_map
 * where Envoy sends it (encode_raw_headers), since there duplicates stay apart, else from the joined map.
 */
export function checkFacts(
  { attributes }: CheckRequest,
  trustedProxies: readonly AddressRange[],
): RequestFacts | undefined {
  const http = attributes?.request?.http
  const peer = attributes?.source?.address?.address
  const address = peer?.case === 'socketAddress' ? parseAddress(peer.value.address) : undefined
  if (!http || http.method === '' || !address) return undefined
  const headers = http.headerMap ? rawHeaders(http.headerMap.headers) : Object.entries(http.headers).flat()
  const forwardedFor = trustedProxies.length === 0 ? [] : valuesOf(headers, 'x-forwarded-for')
  const pem = attributes.source?.certificate ?? ''
  return {
    method: http.method,
    scheme: http.scheme === 'http' || http.scheme === 'https' ? http.scheme : undefined,
    host: http.host,
    target: http.path,
    address: clientAddress(address, forwardedFor, trustedProxies),
    headers,
    certificate: () => certificateOf(pem),
  }
}

/** The DER in a URL-encoded PEM, as Envoy sends the client's certificate (include_peer_certificate); undefined if there is none. */
function certificateOf(pem: string): Uint8Array | undefined {
  const [, body] =
    /^-----BEGIN%20CERTIFICATE-----((?:[A-Za-z0-9]|%0A|%2B|%2F|%3D)+)-----END%20CERTIFICATE-----/.exec(pem) ?? []
  return body === undefined ? undefined : Buffer.from(decodeURIComponent(body), 'base64')
}

/** The decision as Envoy understands it. */
export function checkAnswer(decision: Decision): CheckAnswer {
  if (!decision.admitted) {
    const { code, status } = DENIALS[decision.status] ?? FORBIDDEN
    return {
      status: { code, message: decision.reason },
      httpResponse: {
        case: 'deniedResponse',
        value: {
          status: { code: status },
          headers: decision.headers.map(overwriting),
          body: decision.body,
        },
      },
    }
  }
  return {
    status: { code: 0 },
    httpResponse: {
      case: 'okResponse',
      value: {
        headers: decision.upstream.set.map(overwriting),
        headersToRemove: [...decision.upstream.remove],
        responseHeadersToAdd: decision.headers.map(overwriting),
      },
    },
  }
}

/** Both ways of saying it: which one counts, and what it means when it is absent, differs between versions of Envoy. */
function overwriting([key, value]: HeaderField): MessageInitShape<typeof HeaderValueOptionSchema> {
  return { header: { key, value }, append: false, appendAction: AppendAction.OVERWRITE_IF_EXISTS_OR_ADD }
}

function rawHeaders(headers: readonly { key: string; value: string; rawValue: Uint8Array }[]): string[] {
  const list: string[] = []
  for (const { key, value, rawValue } of headers) list.push(key, rawValue.length === 0 ? value : latin1(rawValue))
  return list
}

/** Field values are bytes; each becomes the character of the same number, as in Node's own headers. */
function latin1(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('latin1')
}

function valuesOf(headers: readonly string[], name: string): string[] {
  return headers.flatMap((value, index) => (index % 2 === 1 && headers[index - 1]?.toLowerCase() === name ? value : []))
}
