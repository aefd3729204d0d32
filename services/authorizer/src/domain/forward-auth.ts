import { type AddressRange, parseAddress } from '@tollward/contracts'
import {
  clientAddress,
  type Decision,
  type HeaderField,
  IDENTITY_HEADERS,
  isTrusted,
  type RequestFacts,
} from '@tollward/decision'

/** A question of a proxy as it came over HTTP. */
export interface ForwardAuthQuestion {
  readonly peer: string
  /** Name, value, name, value, as Node's rawHeaders. */
  readonly headers: readonly string[]
}

export interface ProxyTrust {
  /** Who may ask at all. */
  readonly askers: readonly AddressRange[]
  /** Whose X-Forwarded-For counts besides. */
  readonly inFront: readonly AddressRange[]
}

/** What is sent back over HTTP. */
export interface ForwardAuthAnswer {
  readonly status: number
  readonly headers: readonly HeaderField[]
  readonly body: string
}

/**
 * The request that a proxy asks about, from X-Forwarded-Method, -Host, -Uri and -For, each of which must come exactly once
 * (-For: at least once), and -Proto, which DPoP proofs are compared with. 'untrusted': the peer is no configured proxy, and its headers mean nothing.
 */
export function forwardAuthFacts(
  { peer, headers }: ForwardAuthQuestion,
  { askers, inFront }: ProxyTrust,
): RequestFacts | 'untrusted' | 'incomplete' {
  const proxy = parseAddress(peer)
  if (!proxy || !isTrusted(proxy, askers)) return 'untrusted'
  const [method, ...otherMethods] = valuesOf(headers, 'x-forwarded-method')
  const [host, ...otherHosts] = valuesOf(headers, 'x-forwarded-host')
  const [target, ...otherTargets] = valuesOf(headers, 'x-forwarded-uri')
  const forwardedFor = valuesOf(headers, 'x-forwarded-for')
  if (!method || !host || !target) return 'incomplete'
  if (otherMethods.length + otherHosts.length + otherTargets.length > 0) return 'incomplete'
  // Without it every client would be the proxy, whose own address may be guarded from blocks.
  if (forwardedFor.length === 0) return 'incomplete'
  const [scheme, ...otherSchemes] = valuesOf(headers, 'x-forwarded-proto')
  return {
    method,
    scheme: otherSchemes.length === 0 && (scheme === 'http' || scheme === 'https') ? scheme : undefined,
    host,
    target,
    address: clientAddress(proxy, forwardedFor, [...askers, ...inFront]),
    headers,
  }
}

/**
 * The decision as 200 with what goes upstream in headers, or the refusal itself. A proxy copies the headers it is told to;
 * every identity header is there, empty where there is nothing to say, so that it overwrites what the client sent.
 */
export function forwardAuthAnswer(decision: Decision): ForwardAuthAnswer {
  if (!decision.admitted) return decision
  const { set, remove } = decision.upstream
  const said = new Set(set.map(([name]) => name))
  const silent = [...IDENTITY_HEADERS, ...(remove.includes('authorization') ? ['authorization'] : [])]
  const empty = silent.filter((name) => !said.has(name)).map((name): HeaderField => [name, ''])
  return { status: 200, headers: [...decision.headers, ...set, ...empty, ['cache-control', 'no-store']], body: '' }
}

function valuesOf(headers: readonly string[], name: string): string[] {
  return headers.flatMap((value, index) => (index % 2 === 1 && headers[index - 1]?.toLowerCase() === name ? value : []))
}
