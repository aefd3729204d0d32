import { type AddressRange, parseAddress } from '@tollward/contracts'
import { type Admission, clientAddress, type Decision, type Rejection, type RequestFacts } from '@tollward/decision'
import type { CheckQuestion } from './check-request.ts'
import type { CheckAnswer } from './check-response.ts'

/** google.rpc.Code by our status. No code is 0: Envoy admits on 0. Every status is one that Envoy's StatusCode has. */
const CODES: Readonly<Record<number, number>> = {
  400: 3,
  401: 16,
  402: 9,
  403: 7,
  408: 4,
  413: 8,
  429: 8,
  431: 3,
  501: 12,
  502: 14,
  503: 14,
  504: 14,
}
const FORBIDDEN = { code: 7, status: 403 }

/** How Envoy says whether the body that it sends along is cut off; what a client sends under this name it removes. */
const PARTIAL_BODY_HEADER = 'x-envoy-auth-partial-body'

/**
 * The request that Envoy asks about; undefined if the question lacks what a decision needs. Neither context_extensions nor
 * source.service nor tls_session.sni decide anything: the second says what the client likes, and the third may differ from the host.
 */
export function checkFacts(question: CheckQuestion, trustedProxies: readonly AddressRange[]): RequestFacts | undefined {
  const { method, path, host, scheme, headers, peer, principal, certificate } = question
  const address = peer === undefined ? undefined : parseAddress(peer)
  if (!address || method === '' || path === '' || host === '') return undefined
  const forwardedFor = trustedProxies.length === 0 ? [] : valuesOf(headers, 'x-forwarded-for')
  return {
    method,
    scheme: scheme === 'http' || scheme === 'https' ? scheme : undefined,
    host,
    target: path,
    address: clientAddress(address, forwardedFor, trustedProxies),
    headers,
    headersAreJoined: question.headersAreJoined,
    certificate: () => certificateOf(certificate),
    principal: principal === '' ? undefined : principal,
    body: bodyOf(question),
  }
}

/** Whether it is gRPC that the client speaks: as Envoy tells it, by the content type. */
export function isGrpcQuestion({ headers }: CheckQuestion): boolean {
  const [contentType] = valuesOf(headers, 'content-type')
  return contentType !== undefined && /^application\/grpc(?:$|\+)/.test(contentType)
}

/** Envoy says of every body that it sends whether it is a part. One of which it doesn't say so may be cut off. */
function bodyOf({ body, headers }: CheckQuestion): RequestFacts['body'] {
  const partial = valuesOf(headers, PARTIAL_BODY_HEADER)
  if (body.length === 0 && partial.length === 0) return undefined
  return { bytes: body, isWhole: partial.length > 0 && partial.every((value) => value === 'false') }
}

/** The DER in a URL-encoded PEM, as Envoy sends the client's certificate (include_peer_certificate); undefined if there is none. */
function certificateOf(pem: string): Uint8Array | undefined {
  const [, body] =
    /^-----BEGIN%20CERTIFICATE-----((?:[A-Za-z0-9]|%0A|%2B|%2F|%3D)+)-----END%20CERTIFICATE-----/.exec(pem) ?? []
  return body === undefined ? undefined : Buffer.from(decodeURIComponent(body), 'base64')
}

/** The decision as Envoy understands it; `isGrpc`: it is a gRPC client that waits for the answer. */
export function checkAnswer(decision: Decision, isGrpc: boolean): CheckAnswer {
  return decision.admitted ? allowance(decision) : denial(decision, isGrpc)
}

/**
 * A rewritten target goes whole into :path. Envoy's query_parameters_to_set and _to_remove would do less and worse: they miss other
 * spellings of a name, they sort the whole query, and with validate_mutations Envoy answers 500 to one that is percent-encoded.
 */
function allowance({ upstream, headers, target, rewritten: { path, query }, metadata }: Admission): CheckAnswer {
  const rewrites = path || query !== undefined
  return {
    set: rewrites ? [...upstream.set, [':path', `${target.path}${target.query}`]] : upstream.set,
    remove: upstream.remove,
    responseHeaders: headers,
    metadata,
  }
}

/**
 * Envoy makes a gRPC answer of a refusal for a gRPC client: the body becomes grpc-message, and grpc-status follows from the HTTP status
 * unless a header names it; 402 would become UNKNOWN. A content type would make it no gRPC answer at all.
 */
function denial({ id, reason, status, headers, body, detail }: Rejection, isGrpc: boolean): CheckAnswer {
  const known = CODES[status]
  const code = known ?? FORBIDDEN.code
  return {
    code,
    message: reason,
    status: known === undefined ? FORBIDDEN.status : status,
    headers: isGrpc ? [...headers.filter(([name]) => name !== 'content-type'), ['grpc-status', String(code)]] : headers,
    body: isGrpc ? detail : body,
    metadata: { decision: id, reason },
  }
}

function valuesOf(headers: readonly string[], name: string): string[] {
  const values: string[] = []
  for (let index = 0; index < headers.length; index += 2) {
    const sent = headers[index] ?? ''
    if (sent.length === name.length && sent.toLowerCase() === name) values.push(headers[index + 1] ?? '')
  }
  return values
}
