import type { Decision } from '@tollward/decision'
import { hostOf, type ReceivedRequest, valuesOf } from './forwarding.ts'

/** One request and its answer, as an access log tells them. Times are milliseconds. */
export interface Access {
  readonly atMs: number
  readonly address: string
  readonly method: string
  /** Path and query as they came. */
  readonly target: string
  readonly version: string
  readonly host: string
  readonly referer: string
  readonly userAgent: string
  /** 0: the client went away before there was one. */
  readonly status: number
  /** Of the answer's body. */
  readonly bytesSent: number
  /** Of the request's body. */
  readonly bytesReceived: number
  /** From the request's headers to the end of the answer. */
  readonly durationMs: number
  readonly decisionMs: number
  /** From the request to the API until its headers; undefined: it was not asked, or did not answer. */
  readonly upstreamMs: number | undefined
  readonly decision: string
  /** Of a refusal, ours or one that a policy only observed; empty otherwise. */
  readonly reason: string
  readonly rule: string
  readonly client: string
  readonly subject: string
  /** The client saw the whole answer. */
  readonly complete: boolean
}

/** What was measured of a request. */
type Measures = Pick<Access, 'atMs' | 'status' | 'bytesSent' | 'bytesReceived' | 'durationMs' | 'complete'> &
  Partial<Pick<Access, 'decisionMs' | 'upstreamMs'>>

/** Gathers what an access log tells of a request. */
export function accessOf(
  {
    method,
    target,
    authority,
    peer,
    fields,
    version,
  }: Pick<ReceivedRequest, 'method' | 'target' | 'authority' | 'peer' | 'fields'> & { readonly version: string },
  decision: Decision | undefined,
  measures: Measures,
): Access {
  const metadata = decision?.admitted ? decision.metadata : {}
  const { rule = '', client = '', subject = '', 'would-refuse': observed = '' } = metadata
  return {
    address: peer,
    method,
    target,
    version,
    host: hostOf({ authority, fields }) ?? '',
    referer: valuesOf(fields, 'referer')[0] ?? '',
    userAgent: valuesOf(fields, 'user-agent')[0] ?? '',
    decisionMs: 0,
    upstreamMs: undefined,
    decision: decision?.id ?? '',
    reason: decision && !decision.admitted ? decision.reason : observed,
    rule,
    client,
    subject,
    ...measures,
  }
}

export type AccessFormat = 'common' | 'combined' | 'json'

const MONTHS = ['Jan', 'Feb', 'Mar', 'Apr', 'May', 'Jun', 'Jul', 'Aug', 'Sep', 'Oct', 'Nov', 'Dec']

/** A longer value of a field is cut: a line is read by people. */
const VALUE_LENGTH_MAX = 2048

/** A request as one line of a log, without its end. No query is in it: queries hold secrets. */
export function accessLine(access: Access, format: AccessFormat): string {
  if (format === 'json') return jsonLine(access)
  const { address, subject, atMs, method, target, version, status, bytesSent, referer, userAgent } = access
  const asked = `${escaped(method)} ${escaped(withoutQuery(target))} HTTP/${version}`
  const user = subject === '' ? '-' : escaped(subject).replaceAll(' ', '\\x20')
  const line = `${address} - ${user} [${clfTime(atMs)}] "${asked}" ${status} ${bytesSent === 0 ? '-' : bytesSent}`
  return format === 'common' ? line : `${line} "${orDash(withoutQuery(referer))}" "${orDash(userAgent)}"`
}

function jsonLine({ atMs, target, referer, ...access }: Access): string {
  const { durationMs, decisionMs, upstreamMs, method, version, host, userAgent } = access
  return JSON.stringify({
    at: new Date(atMs).toISOString(),
    ...access,
    method: cut(method),
    path: cut(withoutQuery(target)),
    version,
    host: cut(host),
    referer: cut(withoutQuery(referer)),
    userAgent: cut(userAgent),
    durationMs: rounded(durationMs),
    decisionMs: rounded(decisionMs),
    upstreamMs: upstreamMs === undefined ? undefined : rounded(upstreamMs),
    // What is a line break to some reader must not be one in a log that is read by lines.
  }).replace(/[\x7f-\uffff]/g, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`)
}

/** Day, month, year and time of day in UTC, as the Common Log Format has them. */
function clfTime(atMs: number): string {
  const at = new Date(atMs)
  const two = (value: number) => String(value).padStart(2, '0')
  const day = `${two(at.getUTCDate())}/${MONTHS[at.getUTCMonth()]}/${at.getUTCFullYear()}`
  return `${day}:${two(at.getUTCHours())}:${two(at.getUTCMinutes())}:${two(at.getUTCSeconds())} +0000`
}

function orDash(text: string): string {
  return text === '' ? '-' : escaped(text)
}

/** Quotes, backslashes and whatever isn't visible ASCII as \xhh of its bytes, as Apache does: no value ends its field or its line. */
function escaped(text: string): string {
  return cut(text).replace(/[^\x20\x21\x23-\x5b\x5d-\x7e]/gu, (character) =>
    [...Buffer.from(character)].map((byte) => `\\x${byte.toString(16).padStart(2, '0')}`).join(''),
  )
}

function cut(text: string): string {
  return text.length > VALUE_LENGTH_MAX ? text.slice(0, VALUE_LENGTH_MAX) : text
}

function withoutQuery(target: string): string {
  const end = target.search(/[?#]/)
  return end < 0 ? target : target.slice(0, end)
}

function rounded(ms: number): number {
  return Math.round(ms * 1000) / 1000
}
