import { type AddressRange, parseAddress } from '@tollward/contracts'
import {
  type Admission,
  clientAddress,
  DECISION_HEADER,
  type Decision,
  type HeaderField,
  type HeaderList,
  IDENTITY_HEADERS,
  isTrusted,
  OVERRIDE_HEADERS,
  type RequestFacts,
  TXID_HEADER,
} from '@tollward/decision'
import { certificateFrom } from './certificate-header.ts'
import { packRefusal, REFUSAL_HEADER, type WholeRefusal } from './refusal-header.ts'

/** A question of a proxy as it came over HTTP. */
export interface ForwardAuthQuestion {
  readonly peer: string
  /** Name, value, name, value, as Node's rawHeaders. */
  readonly headers: HeaderList
}

export interface ProxyTrust {
  /** Who may ask at all. */
  readonly askers: readonly AddressRange[]
  /** Whose X-Forwarded-For counts besides. */
  readonly inFront: readonly AddressRange[]
  /** In which header, in lower case, they send the certificate of the client's TLS connection; undefined: in none. */
  readonly certificateHeader?: string | undefined
}

/** What a proxy does with an admission, as its question says: a rule that wants more than that must not seem to be kept. */
export type Applied = 'path' | 'query' | 'headers'

/** How a proxy wants its answer. */
export interface Wishes {
  /** nginx makes a 500 of every refusal but 401 and 403, and drops what they say. */
  readonly for: 'nginx' | undefined
  readonly applies: readonly Applied[]
}

/** What is sent back over HTTP. */
export interface ForwardAuthAnswer {
  readonly status: number
  readonly headers: readonly HeaderField[]
  readonly body: string
}

const METHOD = 'x-forwarded-method'
const HOST = 'x-forwarded-host'
const TARGET = 'x-forwarded-uri'
const SCHEME = 'x-forwarded-proto'
const CLIENT = 'x-forwarded-for'

/** Path and query that the API is to be asked for. */
const URI_HEADER = 'x-tollward-uri'
/** The path alone, for proxies that keep the query as it came. */
const PATH_HEADER = 'x-tollward-path'
/** The status of a refusal, where the answer's own is another. */
const STATUS_HEADER = 'x-tollward-status'
/** Names of headers that the API must not get. */
const REMOVE_HEADER = 'x-tollward-remove'
/** Before the name of a header that a rule sets for the API. */
const UPSTREAM_PREFIX = 'x-tollward-upstream-'
/** Before the name of a header that a rule sets for the client. */
const ANSWER_PREFIX = 'x-tollward-answer-'

/** What a proxy can be told in its configuration to overwrite. */
const COPIED = ['authorization', 'dpop', ...IDENTITY_HEADERS]
const OVERWRITTEN = new Set([...IDENTITY_HEADERS, DECISION_HEADER])

/**
 * The request that a proxy asks about, from X-Forwarded-Method, -Host and -Uri, each of which must come exactly once, -Proto (at most
 * once), which DPoP proofs are compared with, and -For (at least once). 'untrusted': the peer is no configured proxy, and its headers
 * mean nothing. 'incomplete': one of them is missing or there twice, or there is a header that no configuration of a proxy removes and
 * that the API might take for ours.
 */
export function forwardAuthFacts(
  { peer, headers }: ForwardAuthQuestion,
  { askers, inFront, certificateHeader }: ProxyTrust,
): RequestFacts | 'untrusted' | 'incomplete' {
  const proxy = parseAddress(peer)
  if (!proxy || !isTrusted(proxy, askers)) return 'untrusted'
  const [method, host, target] = [only(headers, METHOD), only(headers, HOST), only(headers, TARGET)]
  if (!method || !host || !target) return 'incomplete'
  const scheme = only(headers, SCHEME)
  const certificate = certificateHeader === undefined ? undefined : only(headers, certificateHeader)
  if (scheme === false || certificate === false) return 'incomplete'
  const forwardedFor = valuesOf(headers, CLIENT)
  // Without it every client would be the proxy, whose own address may be guarded from blocks.
  if (forwardedFor.length === 0 || hasStray(headers)) return 'incomplete'
  return {
    method,
    scheme: scheme === 'http' || scheme === 'https' ? scheme : undefined,
    host,
    target,
    address: clientAddress(proxy, forwardedFor, [...askers, ...inFront]),
    headers: ['host', host, ...without(headers, ['host', METHOD, TARGET, certificateHeader])],
    ...(certificate && { certificate: () => certificateFrom(certificate) }),
  }
}

/**
 * The decision as 200 with what goes upstream in headers, or the refusal itself. A proxy copies the headers it is told to;
 * each of them is there, empty where there is nothing to say, so that it overwrites what the client sent. `asked` are the headers
 * of the question.
 */
export function forwardAuthAnswer(decision: Decision, asked: HeaderList, wishes: Wishes): ForwardAuthAnswer {
  if (!decision.admitted) return wishes.for === 'nginx' ? refusalForNginx(decision) : decision
  const { target, upstream, headers } = decision
  const { set, forClient } = ofRules(decision)
  return {
    status: wishes.for === 'nginx' ? 204 : 200,
    headers: [
      ...headers.filter(([name]) => name === DECISION_HEADER),
      ...COPIED.map((name): HeaderField => [name, copiedValue(name, upstream, asked)]),
      [URI_HEADER, target.path + target.query],
      [PATH_HEADER, target.path],
      [REMOVE_HEADER, upstream.remove.join(', ')],
      ...set.map(([name, value]): HeaderField => [UPSTREAM_PREFIX + name, value]),
      ...forClient.map(([name, value]): HeaderField => [ANSWER_PREFIX + name, value]),
      ['cache-control', 'no-store'],
    ],
    body: '',
  }
}

/** What of an admission the proxy does not do, though a rule wants it; undefined: nothing. */
export function unapplied(decision: Admission, { applies }: Wishes): Applied | undefined {
  const { set, remove, forClient } = ofRules(decision)
  if (decision.rewritten.path && !applies.includes('path')) return 'path'
  if (decision.rewritten.query && !applies.includes('query')) return 'query'
  if (set.length + remove.length + forClient.length > 0 && !applies.includes('headers')) return 'headers'
  return undefined
}

/** What rules set and remove beside what is the same for all requests. */
function ofRules({ upstream, headers }: Admission) {
  const always = [...COPIED, TXID_HEADER, ...OVERRIDE_HEADERS]
  return {
    set: upstream.set.filter(([name]) => !COPIED.includes(name)),
    remove: upstream.remove.filter((name) => !always.includes(name) && !OVERWRITTEN.has(name)),
    forClient: headers.filter(([name]) => name !== DECISION_HEADER),
  }
}

/** The wishes in the query of a question, `?for=nginx&applies=path,query`; undefined where they are none of these. */
export function wishesOf(query: Readonly<Record<string, unknown>>): Wishes | undefined {
  const { for: dialect, applies = '', ...others } = query
  if (Object.keys(others).length > 0 || typeof applies !== 'string') return undefined
  if (dialect !== undefined && dialect !== 'nginx') return undefined
  const parts = applies.split(',').filter((part) => part !== '')
  return parts.every(isApplied) ? { for: dialect, applies: parts } : undefined
}

function isApplied(part: string): part is Applied {
  return part === 'path' || part === 'query' || part === 'headers'
}

/** What the API gets under this name: what we say, or the client's own where a policy that only observes leaves it alone. */
function copiedValue(name: string, { set, remove }: Admission['upstream'], asked: HeaderList): string {
  const said = set.find(([each]) => each === name)
  if (said) return said[1]
  return remove.includes(name) || IDENTITY_HEADERS.includes(name) ? '' : only(asked, name) || ''
}

/** 403 with the refusal in headers, which nginx hands back to get it as the client must. */
function refusalForNginx(refusal: WholeRefusal): ForwardAuthAnswer {
  const decision = refusal.headers.filter(([name]) => name === DECISION_HEADER)
  const headers: HeaderField[] = [
    ...decision,
    [STATUS_HEADER, String(refusal.status)],
    [REFUSAL_HEADER, packRefusal(refusal)],
    ['cache-control', 'no-store'],
  ]
  return { status: 403, headers, body: '' }
}

/** Whether there is a header of ours that is none of those which proxies overwrite; some servers read "_" in a name as "-". */
function hasStray(headers: HeaderList): boolean {
  return headers.some((sent, index) => {
    if (index % 2 === 1) return false
    const name = sent.toLowerCase()
    const dashed = name.replaceAll('_', '-')
    return (
      (dashed.startsWith('x-tollward-') && !OVERWRITTEN.has(name)) ||
      (dashed !== name && (dashed === TXID_HEADER || OVERRIDE_HEADERS.has(dashed)))
    )
  })
}

/** The one value of a header; undefined where it is absent, false where it came more than once. */
function only(headers: HeaderList, name: string): string | undefined | false {
  const values = valuesOf(headers, name)
  return values.length > 1 ? false : values[0]
}

function valuesOf(headers: HeaderList, name: string): string[] {
  return headers.flatMap((value, index) => (index % 2 === 1 && headers[index - 1]?.toLowerCase() === name ? value : []))
}

function without(headers: HeaderList, names: readonly (string | undefined)[]): string[] {
  return headers.filter((_, index) => !names.includes(headers[index - (index % 2)]?.toLowerCase()))
}
