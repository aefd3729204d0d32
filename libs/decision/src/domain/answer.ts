import { UNAVAILABLE_RETRY_SECONDS } from '../edges.ts'
import { type Fields, type HeaderList, IDENTITY_PREFIX, PROOF_HEADER, TXID_HEADER } from './fields.ts'
import type { KnownToken, Refusal, Verdict } from './judge.ts'
import { problemType, REASONS, type Reason } from './reasons.ts'
import { rewrittenParts, rewrittenTarget, variantsOf } from './rewriting.ts'
import type { Target } from './target.ts'

export type HeaderField = readonly [name: string, value: string]

/** The request goes on to the API. */
export interface Admission {
  readonly admitted: true
  readonly id: string
  /** The API is asked for this path and query, and no other spelling of it: the canonical ones, or what a rule made of them. */
  readonly target: Target
  /** What a rule made different in it. */
  readonly rewritten: Rewritten
  readonly upstream: {
    /** Overwrites whatever the client sent under these names. */
    readonly set: readonly HeaderField[]
    /** Removed from what the client sent; none of them is in `set`. */
    readonly remove: readonly string[]
  }
  /** For the client, beside what the API answers; they overwrite what the API says under these names. */
  readonly headers: readonly HeaderField[]
  /** What is known of the caller and the decision, for access logs and Envoy's dynamic metadata. */
  readonly metadata: Metadata
}

/** Where a target differs from the canonical form of what the client asked for. */
export interface Rewritten {
  readonly path: boolean
  /** Parameters, decoded; undefined where the query is the client's own. */
  readonly query: { readonly set: readonly HeaderField[]; readonly remove: readonly string[] } | undefined
}

/** Under `decision`, `rule`, `client`, `subject`, `scopes`, `pass` and, of a policy that only observes, `would-refuse`: the reason. */
export type Metadata = Readonly<Record<string, string>>

/** The request is refused with this answer. */
export interface Rejection {
  readonly admitted: false
  readonly id: string
  readonly reason: Reason
  readonly status: number
  readonly headers: readonly HeaderField[]
  /** RFC 9457, application/problem+json. */
  readonly body: string
  /** Its sentence alone, for clients that can't read it. */
  readonly detail: string
}

export type Decision = Admission | Rejection

export const DECISION_HEADER = 'x-tollward-decision'

const CLIENT = `${IDENTITY_PREFIX}client`
const SUBJECT = `${IDENTITY_PREFIX}subject`
const SCOPES = `${IDENTITY_PREFIX}scopes`
const PASS = `${IDENTITY_PREFIX}pass`

/** What only we may say of a caller; whatever of it isn't set is removed. */
export const IDENTITY_HEADERS: readonly string[] = [CLIENT, SUBJECT, SCOPES, PASS]

const REMOVED_WITH_PASS = [TXID_HEADER, PROOF_HEADER]
const REMOVED_WITH_TOKEN = [PASS, TXID_HEADER, PROOF_HEADER]
const REMOVED_WITHOUT_TOKEN = [...IDENTITY_HEADERS, TXID_HEADER]
const REMOVED_FROM_ANONYMOUS = ['authorization', ...REMOVED_WITHOUT_TOKEN, PROOF_HEADER]

/** The header fields that tell upstream who calls: the internal token in the place of the caller's own, and its claims. */
export function identityHeaders(token: {
  readonly clientId: string
  readonly subject: string
  readonly scope: string
  /** The internal token, with its scheme. */
  readonly authorization: string
}): HeaderField[] {
  return [
    ['authorization', token.authorization],
    [CLIENT, headerValue(token.clientId)],
    [SUBJECT, headerValue(token.subject)],
    [SCOPES, headerValue(token.scope)],
  ]
}

/**
 * The answer to a request that may go on: judged so, or refused by a policy that only observes. `target`: its canonical form, `sent`: its headers.
 * What is admitted goes on as its rule says; a policy that only observes rewrites nothing.
 */
export function admission(id: string, verdict: Verdict, target: Target, sent: HeaderList): Admission {
  const { token, fields, passId, observes } = verdict
  const rewriting = observes ? undefined : verdict.rule?.rewriting
  const set = identity(token, passId)
  const remove = removals(set, verdict, fields)
  if (!rewriting) {
    return {
      admitted: true,
      id,
      target,
      rewritten: NOT_REWRITTEN,
      upstream: { set, remove },
      headers: [[DECISION_HEADER, id]],
      metadata: metadata(id, verdict),
    }
  }
  const rewritten = rewrittenTarget(target, rewriting)
  // What only we may say of a caller wins over whatever a rule says.
  const ours = new Set([...set.map(([name]) => name), ...remove])
  const others = rewriting.headers.set.filter(([name]) => !ours.has(name))
  const gone = [...rewriting.headers.remove, ...variantsOf(rewriting, sent)].filter((name) => !ours.has(name))
  return {
    admitted: true,
    id,
    target: rewritten,
    rewritten: rewrittenParts(target, rewritten, rewriting),
    upstream: { set: [...set, ...others], remove: [...remove, ...gone] },
    headers: [[DECISION_HEADER, id], ...rewriting.responseHeaders],
    metadata: metadata(id, verdict),
  }
}

const NOT_REWRITTEN: Rewritten = { path: false, query: undefined }

type Known = { decision: string } & Partial<
  Record<'rule' | 'client' | 'subject' | 'scopes' | 'pass' | 'would-refuse', string>
>

function metadata(id: string, { rule, token, passId, refusal }: Verdict): Metadata {
  const known: Known = { decision: id }
  if (rule) known.rule = rule.id
  if (token) {
    known.client = token.clientId
    known.subject = token.subject
    known.scopes = token.scope
  }
  if (passId !== undefined) known.pass = passId
  if (refusal) known['would-refuse'] = refusal.reason
  return known
}

/** The answer to a request that is refused. `paymentUrl`: where clients reach payment-verifier, without trailing slash. */
export function rejection(id: string, refusal: Refusal, paymentUrl: string): Rejection {
  const { status, title, detail } = REASONS[refusal.reason]
  const sentence = refusal.detail ?? detail
  const body = {
    type: problemType(refusal.reason),
    title,
    status,
    detail: sentence,
    decision: id,
    ...(status === 402 ? payment(refusal, paymentUrl) : {}),
  }
  return {
    admitted: false,
    id,
    reason: refusal.reason,
    status,
    headers: [
      ['content-type', 'application/problem+json'],
      ['cache-control', 'no-store'],
      [DECISION_HEADER, id],
      ...challenges(refusal),
      ...waiting(refusal),
    ],
    body: JSON.stringify(body),
    detail: sentence,
  }
}

function identity(token: KnownToken | undefined, passId: string | undefined): readonly HeaderField[] {
  if (!token) return []
  return passId === undefined ? token.identity : [...token.identity, [PASS, headerValue(passId)]]
}

function removals(
  set: readonly HeaderField[],
  { token, unproven, passId, observed, refusal }: Verdict,
  fields: Fields | undefined,
): readonly string[] {
  // A policy that only observes leaves an Authorization alone that isn't ours: the API may have its own yet.
  const unknown = observed && refusal && !unproven ? REMOVED_WITHOUT_TOKEN : REMOVED_FROM_ANONYMOUS
  const known = passId === undefined ? REMOVED_WITH_TOKEN : REMOVED_WITH_PASS
  const always = token ? known : unknown
  const strays = fields?.strays ?? []
  if (strays.length === 0) return always
  const kept = new Set([...always, ...set.map(([name]) => name)])
  return [...always, ...strays.filter((name) => !kept.has(name))]
}

function challenges(refusal: Refusal): HeaderField[] {
  const value = challenge(refusal)
  return value === undefined ? [] : [['www-authenticate', value]]
}

/** Amounts are strings of sats, as payment-verifier has them. */
function payment({ plan, quote, confirmationsMissing }: Refusal, paymentUrl: string) {
  return {
    plan,
    ...(quote && {
      priceSats: String(quote.priceSats),
      listPriceSats: String(quote.listPriceSats),
      discounts: quote.discounts.map(({ kind, basisPoints, amountSats }) => ({
        kind,
        basisPoints,
        amountSats: String(amountSats),
      })),
      creditSats: String(quote.creditSats),
    }),
    invoices: quote?.invoicesUrl ?? `${paymentUrl}/invoices`,
    confirmationsMissing,
  }
}

/** What signs a DPoP proof here. */
export const PROOF_ALGORITHMS = ['ES256', 'EdDSA'] as const

/**
 * The challenge (WWW-Authenticate) that goes with a refusal: RFC 6750, 3, and RFC 9449, 7.1. Undefined where none goes with its
 * reason.
 */
export function challenge({ reason, detail, scopes = [], binding }: Refusal): string | undefined {
  const bearer = 'Bearer realm="tollward"'
  const dpop = 'DPoP realm="tollward"'
  const algs = `algs="${PROOF_ALGORITHMS.join(' ')}"`
  const error = (code: string) => `error="${code}", error_description="${quotable(detail ?? REASONS[reason].detail)}"`
  switch (reason) {
    case 'token-missing':
      return `${bearer}, ${dpop}, ${algs}`
    case 'token-invalid':
      return `${bearer}, ${error('invalid_token')}`
    case 'proof-missing':
    case 'proof-invalid': {
      if (binding === 'certificate') return `${bearer}, ${error('invalid_token')}`
      return `${dpop}, ${error(reason === 'proof-missing' ? 'invalid_token' : 'invalid_dpop_proof')}, ${algs}`
    }
    case 'scope-missing':
      return `${bearer}, error="insufficient_scope", scope="${quotable(scopes.join(' '))}"`
    default:
      return undefined
  }
}

/** Retry-After (RFC 9110, 10.2.3), and the RateLimit fields of draft-ietf-httpapi-ratelimit-headers. */
function waiting({ reason, retryAfterSeconds, limited }: Refusal): HeaderField[] {
  const waitSeconds = retryAfterSeconds ?? (REASONS[reason].status === 503 ? UNAVAILABLE_RETRY_SECONDS : undefined)
  if (waitSeconds === undefined) return []
  const seconds = Math.max(1, waitSeconds)
  const fields: HeaderField[] = [['retry-after', String(seconds)]]
  if (limited) {
    const { name, limit } = limited
    fields.push(['ratelimit-policy', `"${name}";q=${limit.requests};w=${limit.perSeconds}`])
    fields.push(['ratelimit', `"${name}";r=0;t=${seconds}`])
  }
  return fields
}

/** Header values are visible ASCII; what isn't is percent-encoded, so that no name can end a field or begin another. */
function headerValue(text: string): string {
  return /^[\x20-\x7e]*$/.test(text) ? text : encodeURIComponent(text)
}

function quotable(text: string): string {
  return headerValue(text).replace(/["\\]/g, '')
}
