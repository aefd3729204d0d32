import { type AddressRange, parseAddress } from '@tollward/contracts'
import { type Admission, clientAddress, isTrusted, type RequestFacts } from '@tollward/decision'

type Headers = Readonly<Record<string, string | string[] | undefined>>

/** A request as Node's HTTP server read it. */
export interface ReceivedRequest {
  readonly method: string
  /** Path and query as they came. */
  readonly target: string
  readonly peer: string
  /** Of the connection. */
  readonly scheme: 'http' | 'https'
  /** Name, value, name, value. */
  readonly rawHeaders: readonly string[]
  /** The DER of the certificate whose key the connection's TLS handshake proved. */
  readonly certificate: () => Uint8Array | undefined
}

/**
 * Fields that end here: those of RFC 9110, 7.6.1, and `expect`, which the server has answered. Those that Connection names are
 * dropped by the proxy library.
 */
const HOP_BY_HOP = [
  'connection',
  'keep-alive',
  'proxy-connection',
  'te',
  'trailer',
  'upgrade',
  'expect',
  'transfer-encoding',
]

/** A request without a body that says how long its body is would be read as two by the next server. */
const BODILESS = new Set(['GET', 'HEAD'])

/** What a decision needs; undefined where the peer's address can't be told, since its connection is gone. */
export function requestFacts(
  request: ReceivedRequest,
  trustedProxies: readonly AddressRange[],
): RequestFacts | undefined {
  const { method, target, peer, rawHeaders, certificate } = request
  const address = parseAddress(peer)
  if (!address) return undefined
  const hosts = valuesOf(rawHeaders, 'host')
  const forwardedFor = trustedProxies.length === 0 ? [] : valuesOf(rawHeaders, 'x-forwarded-for')
  return {
    method,
    scheme: isTrusted(address, trustedProxies) ? forwardedScheme(rawHeaders) : request.scheme,
    host: hosts.length === 1 ? (hosts[0] ?? '') : '',
    target,
    address: clientAddress(address, forwardedFor, trustedProxies),
    headers: rawHeaders,
    certificate,
  }
}

/** Under which the client asked a proxy in front; undefined where the proxy doesn't say, once. */
function forwardedScheme(rawHeaders: readonly string[]): 'http' | 'https' | undefined {
  const [scheme, ...others] = valuesOf(rawHeaders, 'x-forwarded-proto')
  return others.length === 0 && (scheme === 'http' || scheme === 'https') ? scheme : undefined
}

/** The header fields with which an admitted request goes to the API. */
export function upstreamHeaders(
  received: Headers,
  method: string,
  { upstream, id }: Admission,
  forwarded: { readonly peer: string; readonly scheme: string; readonly host: string; readonly keepFor: boolean },
): Record<string, string | string[] | undefined> {
  const headers: Record<string, string | string[] | undefined> = { ...received }
  for (const name of HOP_BY_HOP) delete headers[name]
  if (BODILESS.has(method)) delete headers['content-length']
  for (const name of upstream.remove) delete headers[name]
  for (const [name, value] of upstream.set) headers[name] = value
  const before = forwarded.keepFor && headers['x-forwarded-for'] ? `${headers['x-forwarded-for']}, ` : ''
  headers.host = forwarded.host
  headers['x-forwarded-for'] = before + forwarded.peer
  headers['x-forwarded-proto'] = forwarded.scheme
  headers['x-forwarded-host'] = forwarded.host
  headers['x-tollward-decision'] = id
  delete headers.forwarded
  return headers
}

/** The header fields of the API's answer that go to the client, and ours. */
export function downstreamHeaders(
  answered: Headers,
  { headers: ours }: Admission,
): Record<string, string | string[] | undefined> {
  const headers: Record<string, string | string[] | undefined> = { ...answered }
  const nominated = String(answered.connection ?? '').toLowerCase()
  for (const name of [...HOP_BY_HOP, ...nominated.split(',')]) delete headers[name.trim()]
  for (const [name, value] of ours) headers[name] = value
  return headers
}

function valuesOf(headers: readonly string[], name: string): string[] {
  return headers.flatMap((value, index) => (index % 2 === 1 && headers[index - 1]?.toLowerCase() === name ? value : []))
}
