import { type AddressRange, parseAddress } from '@tollward/contracts'
import { type Admission, clientAddress, isTrusted, type RequestFacts } from '@tollward/decision'

/** Header fields as they came: name, value, name, value. */
export type FieldList = readonly string[]

/** A request as it was received, by whichever version of HTTP. */
export interface ReceivedRequest {
  readonly method: string
  /** Path and query as they came. */
  readonly target: string
  /** HTTP/2's :authority; undefined where there was none. */
  readonly authority?: string | undefined
  readonly peer: string
  /** Of the connection. */
  readonly scheme: 'http' | 'https'
  /** Without pseudo-header fields. */
  readonly fields: FieldList
  /** The DER of the certificate whose key the connection's TLS handshake proved. */
  readonly certificate: () => Uint8Array | undefined
  /** Who the client is by that certificate, if the configured authorities vouch for it. */
  readonly principal: () => string | undefined
}

/** Fields that end here: those of RFC 9110, 7.6.1, and `expect`, which is answered here. */
const HOP_BY_HOP = [
  'connection',
  'keep-alive',
  'proxy-connection',
  'te',
  'trailer',
  'upgrade',
  'expect',
  'transfer-encoding',
  'http2-settings',
]

/** Whatever a client says under these names, the API hears what we say, or nothing. */
const OURS = ['host', 'forwarded', 'x-forwarded-for', 'x-forwarded-proto', 'x-forwarded-host', 'x-tollward-decision']

const NOT_FORWARDED = new Set([...HOP_BY_HOP, ...OURS])
const NOT_ANSWERED = new Set(HOP_BY_HOP)

/** A trailer that says how the message is framed, or who answers, comes too late to be true. */
const NOT_IN_TRAILERS = new Set([...HOP_BY_HOP, ...OURS, 'content-length', 'content-encoding', 'set-cookie'])

/** What a decision needs; undefined where it can't be told what is asked of whom. */
export function requestFacts(
  request: ReceivedRequest,
  trustedProxies: readonly AddressRange[],
): RequestFacts | undefined {
  const { method, target, peer, fields, certificate } = request
  const address = parseAddress(peer)
  const host = hostOf(request)
  if (!address || host === undefined) return undefined
  const forwardedFor = trustedProxies.length === 0 ? [] : valuesOf(fields, 'x-forwarded-for')
  return {
    method,
    scheme: isTrusted(address, trustedProxies) ? forwardedScheme(fields) : request.scheme,
    host,
    target,
    address: clientAddress(address, forwardedFor, trustedProxies),
    headers: fields,
    certificate,
    principal: request.principal(),
  }
}

/** Empty where there is none or more than one; undefined where :authority and Host name two (RFC 9113, 8.3.1). */
export function hostOf({ authority, fields }: Pick<ReceivedRequest, 'authority' | 'fields'>): string | undefined {
  const hosts = valuesOf(fields, 'host')
  const [host = ''] = hosts
  if (hosts.length > 1) return ''
  if (authority === undefined) return host
  return hosts.length === 0 || host.toLowerCase() === authority.toLowerCase() ? authority : undefined
}

/** Under which the client asked a proxy in front; undefined where the proxy doesn't say, once. */
function forwardedScheme(fields: FieldList): 'http' | 'https' | undefined {
  const [scheme, ...others] = valuesOf(fields, 'x-forwarded-proto')
  return others.length === 0 && (scheme === 'http' || scheme === 'https') ? scheme : undefined
}

/** What the API is told about the connection that a request came on. */
export interface Forwarded {
  readonly peer: string
  readonly scheme: string
  readonly host: string
  /** A trusted proxy wrote X-Forwarded-For: it is continued. */
  readonly keepFor: boolean
  /** The request has no body: one that says how long its body is would be read as two by the next server. */
  readonly bodiless: boolean
}

/** The header fields with which an admitted request goes to the API. */
export function upstreamFields(fields: FieldList, { upstream, id }: Admission, forwarded: Forwarded): string[] {
  const { peer, scheme, host, keepFor, bodiless } = forwarded
  const sent: string[] = ['host', host]
  const nominated = nominatedBy(fields)
  const cookies: string[] = []
  const isSet = (name: string) => upstream.set.some(([set]) => set === name)
  for (let index = 0; index < fields.length; index += 2) {
    const name = (fields[index] ?? '').toLowerCase()
    const value = fields[index + 1] ?? ''
    // Some servers read "_" in a name as "-" (CGI variables): nobody may say what is ours in that spelling.
    const read = name.includes('_') ? name.replaceAll('_', '-') : name
    if (NOT_FORWARDED.has(read) || nominated?.includes(name) || upstream.remove.includes(name) || isSet(read)) continue
    if (bodiless && name === 'content-length') continue
    // HTTP/2 may split a cookie into several fields, HTTP/1.1 may not (RFC 9113, 8.2.3).
    if (name === 'cookie') cookies.push(value)
    else sent.push(name, value)
  }
  if (cookies.length > 0) sent.push('cookie', cookies.join('; '))
  for (const [name, value] of upstream.set) sent.push(name, value)
  const before = keepFor ? valuesOf(fields, 'x-forwarded-for') : []
  sent.push('x-forwarded-for', [...before, peer].join(', '), 'x-forwarded-proto', scheme, 'x-forwarded-host', host)
  sent.push('x-tollward-decision', id)
  return sent
}

/** The header fields of the API's answer that go to the client, and ours, all names in lower case. */
export function downstreamFields(answered: FieldList, { headers: ours }: Pick<Admission, 'headers'>): string[] {
  const sent: string[] = []
  const nominated = nominatedBy(answered)
  for (let index = 0; index < answered.length; index += 2) {
    const name = (answered[index] ?? '').toLowerCase()
    if (NOT_ANSWERED.has(name) || nominated?.includes(name) || ours.some(([set]) => set === name)) continue
    sent.push(name, answered[index + 1] ?? '')
  }
  for (const [name, value] of ours) sent.push(name, value)
  return sent
}

/** What may follow an answer's body. */
export function downstreamTrailers(answered: FieldList): string[] {
  const sent: string[] = []
  for (let index = 0; index < answered.length; index += 2) {
    const name = (answered[index] ?? '').toLowerCase()
    if (!name.startsWith(':') && !NOT_IN_TRAILERS.has(name)) sent.push(name, answered[index + 1] ?? '')
  }
  return sent
}

function nominatedBy(fields: FieldList): string[] | undefined {
  let nominated: string[] | undefined
  for (const value of valuesOf(fields, 'connection')) {
    nominated ??= []
    for (const option of value.toLowerCase().split(',')) nominated.push(option.trim())
  }
  return nominated
}

/** All values under a name, which is given in lower case. */
export function valuesOf(fields: FieldList, name: string): string[] {
  const values: string[] = []
  for (let index = 0; index < fields.length; index += 2) {
    const field = fields[index] ?? ''
    if (field.length === name.length && field.toLowerCase() === name) values.push(fields[index + 1] ?? '')
  }
  return values
}
