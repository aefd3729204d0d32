import { isUtf8 } from 'node:buffer'
import { formatAddress, parseAddress } from '@tollward/contracts'

/** What a request asks for, in the one form that rules are compared with and that goes upstream. */
export interface Target {
  /** Lower case, without port and without the root's dot. */
  readonly host: string
  /** Starts with "/"; what needs no percent-encoding (RFC 3986, 2.3) is decoded, once. */
  readonly path: string
  /** With its "?", as it came; empty where there was none. */
  readonly query: string
  /**
   * The path's segments as rules compare them: also what a path may hold as it is (RFC 3986, 3.3) is decoded, as servers do. A
   * trailing slash makes the last one empty.
   */
  readonly segments: readonly string[]
}

/** Ways in which a request can mean two things to two readers, each with the sentence that its sender gets. */
export const FAULTS = {
  'method-case': 'Methods are written in capital letters.',
  'host-missing': 'Send exactly one Host.',
  'host-invalid': 'The host is not a name or address with an optional port.',
  'target-too-long': 'The request target is too long.',
  'target-form': 'The request target must start with a slash.',
  'target-characters':
    'The request target has characters that must be percent-encoded, or a semicolon, backslash or fragment.',
  'path-encoding': 'The path has a percent-encoding that is malformed, or of a slash, backslash or control character.',
  'path-utf8': 'The percent-encoded bytes of the path are not UTF-8.',
  'path-double-encoding': 'The path is percent-encoded twice.',
  'path-lookalike': 'The path has a character that some servers take for a slash, a backslash or a dot.',
  'path-empty-segment': 'The path has two slashes in a row.',
  'path-dot-segment': 'The path has a segment of one or two dots.',
  'header-duplicated': 'A header that decides about this request was sent more than once.',
  'header-connection': 'Connection names a header that Tollward or a rule sets or reads.',
  'query-ambiguous':
    'A query parameter that decides about this request was sent more than once, or its percent-encoding is malformed.',
  'value-too-long': 'A header or query parameter that a rule compares with a pattern is too long.',
  'body-missing': 'A rule looks into the body of this request, which did not come whole: send a shorter one.',
  'body-unreadable':
    'A rule looks into the body of this request: send JSON in UTF-8 as application/json, no name twice in an object.',
  'batch-mixed': 'A rule means some calls of this batch and not the others: send them apart.',
  'graphql-unclear':
    'Which GraphQL operation this would execute cannot be told: send its query once, and operationName if it has several.',
  'authorization-ambiguous': 'Send exactly one credential in exactly one Authorization header.',
  'txid-malformed': 'X-Bitcoin-Txid is one transaction id of 64 hexadecimal digits.',
} as const

export type Fault = keyof typeof FAULTS

/** Bytes of path and query together; what browsers and servers commonly take. */
export const TARGET_BYTES_MAX = 8192
/** Rules with several ** look at each of them. */
export const PATH_SEGMENTS_MAX = 256
/** RFC 1035, 2.3.4. */
const HOST_BYTES_MAX = 253

const NOT_ALLOWED = 0
const PLAIN = 1
const SLASH = 2
const PERCENT = 3
const QUESTION_MARK = 4
const ENCODED = 5

const UNRESERVED = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~'

/** Class of each ASCII character in a path: RFC 3986 pchar is plain, but for ";", whose meaning differs between servers. */
const PATH_CLASS = new Uint8Array(128)
for (const character of `${UNRESERVED}!$&'()*+,=:@`) PATH_CLASS[character.charCodeAt(0)] = PLAIN
/** Browsers send these as they are (WHATWG URL, path percent-encode set), RFC 3986 wants them encoded: both are one path. */
for (const character of '[]|^') PATH_CLASS[character.charCodeAt(0)] = ENCODED
PATH_CLASS['/'.charCodeAt(0)] = SLASH
PATH_CLASS['%'.charCodeAt(0)] = PERCENT
PATH_CLASS['?'.charCodeAt(0)] = QUESTION_MARK

/** Methods differ by case (RFC 9110, 9.1), and some servers take them for the same. */
export function methodFault(method: string): Fault | undefined {
  return /[a-z]/.test(method) && METHODS.has(method.toUpperCase()) ? 'method-case' : undefined
}

const METHODS: ReadonlySet<string> = new Set(['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'])

/**
 * Brings host and request target into canonical form, or says what is ambiguous about them. Nothing is repaired: what two
 * readers could take for two things is refused (RFC 3986 without dot-segment removal, paths compared byte by byte).
 */
export function canonicalTarget(host: string, target: string): Target | Fault {
  const name = canonicalHost(host)
  if (name === undefined) return host === '' ? 'host-missing' : 'host-invalid'
  if (target.length > TARGET_BYTES_MAX) return 'target-too-long'
  if (!target.startsWith('/')) return 'target-form'
  const end = pathEnd(target)
  if (end < 0) return 'target-characters'
  const query = target.slice(end)
  if (query !== '' && !isQuery(query)) return 'target-characters'
  const decoded = decodeUnreserved(target.slice(0, end).replace(/[[\]|^]/g, encodeURIComponent))
  if ('fault' in decoded) return decoded.fault
  const segments = comparedSegments(decoded.path)
  if (segments.length > PATH_SEGMENTS_MAX) return 'target-too-long'
  const fault = segmentFault(segments)
  return fault ?? { host: name, path: decoded.path, query, segments }
}

/**
 * An http or https URI in the form in which a DPoP proof's htu is compared (RFC 9449, 4.3): scheme, host and port, path;
 * without query and fragment. Undefined if it is none, or ambiguous.
 */
export function canonicalUri(uri: string): string | undefined {
  const [, scheme, authority = '', path] = /^(https?):\/\/([^/?#]*)([^?#]*)/i.exec(uri) ?? []
  if (scheme === undefined) return undefined
  const target = canonicalTarget(authority, path || '/')
  if (typeof target === 'string') return undefined
  const secure = scheme.toLowerCase() === 'https'
  const port = Number(/:(\d+)$/.exec(authority)?.[1] ?? (secure ? 443 : 80))
  return `${secure ? 'https' : 'http'}://${target.host}:${port}${target.path}`
}

/**
 * A host as names are compared: lower case, port and one trailing dot removed, IPv6 in RFC 5952 form in brackets. Undefined
 * if it is no host.
 */
export function canonicalHost(host: string): string | undefined {
  if (host.length <= HOST_BYTES_MAX && CANONICAL_NAME.test(host)) return host
  const match = /^(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::\d{0,5})?$/.exec(host)
  if (!match) return undefined
  if (match[1] !== undefined) {
    const address = match[1].includes(':') ? parseAddress(match[1]) : undefined
    return address && `[${formatAddress(address)}]`
  }
  const name = (match[2] ?? '').toLowerCase()
  if (name.startsWith('.') || name.includes('..')) return undefined
  const withoutRoot = name.endsWith('.') ? name.slice(0, -1) : name
  return withoutRoot.length > HOST_BYTES_MAX ? undefined : withoutRoot
}

/** What most clients send. */
const CANONICAL_NAME = /^[a-z0-9_-]+(?:\.[a-z0-9_-]+)*$/

/** Where the path ends: at "?" or at the end. -1 if a character before that does not belong there. */
function pathEnd(target: string): number {
  for (let index = 0; index < target.length; index++) {
    const kind = PATH_CLASS[target.charCodeAt(index)] ?? NOT_ALLOWED
    if (kind === QUESTION_MARK) return index
    if (kind === NOT_ALLOWED) return -1
  }
  return target.length
}

/** Visible ASCII without "#": rules do not look at queries, but no reader may cut them elsewhere. */
function isQuery(query: string): boolean {
  return /^[\x21\x22\x24-\x7e]*$/.test(query)
}

function decodeUnreserved(path: string): { path: string } | { fault: Fault } {
  if (!path.includes('%')) return { path }
  let decoded = ''
  let isAscii = true
  const high: number[] = []
  for (let index = 0; index < path.length; index++) {
    if (path[index] !== '%') {
      if (!endsUtf8(high)) return { fault: 'path-utf8' }
      decoded += path[index]
      continue
    }
    const hex = path.slice(index + 1, index + 3)
    if (!/^[0-9A-Fa-f]{2}$/.test(hex)) return { fault: 'path-encoding' }
    index += 2
    const byte = Number.parseInt(hex, 16)
    if (byte >= 0x80) {
      high.push(byte)
      isAscii = false
    } else if (!endsUtf8(high)) return { fault: 'path-utf8' }
    else if (byte < 0x20 || byte === 0x7f || byte === 0x2f || byte === 0x5c) return { fault: 'path-encoding' }
    const character = String.fromCharCode(byte)
    decoded += UNRESERVED.includes(character) ? character : `%${hex.toUpperCase()}`
  }
  if (!endsUtf8(high)) return { fault: 'path-utf8' }
  // Whoever decodes once more would read another path.
  if (/%25[0-9A-Fa-f]{2}/.test(decoded)) return { fault: 'path-double-encoding' }
  return isAscii || !hasLookalike(decoded) ? { path: decoded } : { fault: 'path-lookalike' }
}

/** The segments of a canonical path as rules compare them: RFC 3986 tells ":" and "%3A" apart, hardly any server does. */
export function comparedSegments(path: string): string[] {
  const decoded = path.includes('%') ? path.replace(PLAIN_ENCODED, decodeURIComponent) : path
  return decoded.slice(1).split('/')
}

/** The characters of PATH_CLASS that are plain and not unreserved. */
const PLAIN_ENCODED = /%(?:2[146-9A-C]|3[AD]|40)/g

/** What best fit to a smaller character set, or NFKC, makes a slash, a backslash, or segments of one or two dots. */
const LOOKALIKE = /[／⁄∕⧸＼∖⧵﹨]|\/[.．․‥]{1,2}(?=\/|$)/u

function hasLookalike(path: string): boolean {
  return LOOKALIKE.test(decodeURIComponent(path))
}

/** Whether the run of percent-encoded bytes that ends here is UTF-8 (no overlong forms); begins the next run. */
function endsUtf8(run: number[]): boolean {
  if (run.length === 0) return true
  const valid = isUtf8(Uint8Array.from(run))
  run.length = 0
  return valid
}

function segmentFault(segments: readonly string[]): Fault | undefined {
  for (let index = 0; index < segments.length; index++) {
    const segment = segments[index]
    if (segment === '' && index < segments.length - 1) return 'path-empty-segment'
    if (segment === '.' || segment === '..') return 'path-dot-segment'
  }
  return undefined
}
