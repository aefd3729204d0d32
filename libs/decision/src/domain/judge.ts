import type { BlockList } from './block-list.ts'
import { maskedKey } from './block-list.ts'
import type { CallerBlocks } from './caller-blocks.ts'
import { type Fields, type HeaderList, readFields } from './fields.ts'
import { type HostPolicies, matchRule, type PolicyIndex, policiesFor, type Rule } from './policy.ts'
import type { Binding, PossessionFault, Presented } from './possession.ts'
import type { Limit, RateTable } from './rate.ts'
import { REASONS, type Reason } from './reasons.ts'
import { canonicalTarget, canonicalUri, FAULTS, type Fault, type Target } from './target.ts'

/** A request as an enforcement point saw it. */
export interface RequestFacts {
  readonly method: string
  /** Under which the client asked; undefined where the enforcement point can't tell. */
  readonly scheme: 'http' | 'https' | undefined
  /** Host or :authority as it came; empty where there was none. */
  readonly host: string
  /** Path and query as they came. */
  readonly target: string
  /** The client's address, 16 bytes. */
  readonly address: Uint8Array
  readonly headers: HeaderList
  /** The DER of the certificate whose key the client's TLS connection proved; absent where the enforcement point can't tell. */
  readonly certificate?: () => Uint8Array | undefined
  /** Who the client is in the mesh (SPIFFE id, DNS name or subject of its certificate), as far as the enforcement point verified it. */
  readonly principal?: string | undefined
  /** Where the enforcement point sends it along. */
  readonly body?: RequestBody | undefined
}

/** A request's body as far as it came. */
export interface RequestBody {
  readonly bytes: Uint8Array
  /** False: there is more of it. Nothing may be concluded then. */
  readonly isWhole: boolean
}

/** An access token that is active. */
export interface KnownToken {
  /** SHA-256, lower-case hexadecimal. */
  readonly hash: string
  readonly clientId: string
  readonly subject: string
  /** SHA-256 of the OAuth grant's id; empty where it has none. */
  readonly grantHash: string
  /** What the internal token says, as its payload has it. */
  readonly claims: () => Readonly<Record<string, unknown>>
  readonly scopes: ReadonlySet<string>
  readonly audience: readonly string[]
  /** Its client registered without anybody's leave: it may use what it paid for, and nothing else. */
  readonly selfRegistered: boolean
  /** The key that whoever presents it must prove to have; undefined: none. */
  readonly binding: Binding | undefined
  /** What upstream is told of the caller, the internal token with it. */
  readonly identity: readonly (readonly [name: string, value: string])[]
}

/** What is left to say about a payment once the caller's passes and transaction were looked at. */
export type PaymentStanding =
  | { readonly paid: true; readonly passId: string }
  | { readonly paid: false; readonly refusal: Refusal }

/** What a plan costs a client now. Promises nothing: the invoice freezes the price. */
export interface Quote {
  readonly listPriceSats: bigint
  /** Less the discounts. */
  readonly priceSats: bigint
  readonly discounts: readonly { readonly kind: string; readonly basisPoints: number; readonly amountSats: bigint }[]
  /** What the client has in credit. */
  readonly creditSats: bigint
  /** Where it gets an invoice. */
  readonly invoicesUrl: string
}

/** Why a request is refused, and what its sender needs to know. */
export interface Refusal {
  readonly reason: Reason
  /** In the place of the reason's own sentence. */
  readonly detail?: string
  readonly retryAfterSeconds?: number
  /** With 401 of a token that is bound to a key: to which kind. */
  readonly binding?: Binding['to']
  /** With 429: whose limit, and which. */
  readonly limited?: { readonly name: string; readonly limit: Limit }
  readonly scopes?: readonly string[]
  readonly plan?: string
  /** With 402, where it is known. */
  readonly quote?: Quote
  readonly confirmationsMissing?: number
}

/** What a judgement asks; each answer comes from memory, or as a promise where somebody else has to be asked. */
export interface World {
  readonly policies: PolicyIndex
  readonly blocks: BlockList
  readonly callerBlocks: CallerBlocks
  readonly sourceRates: RateTable
  readonly callerRates: RateTable
  readonly hashToken: (token: string) => string
  /** Undefined: the token is worth nothing. Rejects or throws where that can't be known now. */
  readonly findToken: (token: string, hash: string, nowMs: number) => MaybePromise<KnownToken | undefined>
  /** Whether whoever presents a token has the key that it is bound to; undefined: yes, or it is bound to none. */
  readonly prove: (binding: Binding | undefined, presented: Presented) => MaybePromise<PossessionFault | undefined>
  /** Whether the client's pass for the plan is there, or its transaction opens one. Takes nothing from the quota. */
  readonly standing: (call: PaymentCall, nowMs: number) => MaybePromise<PaymentStanding>
  /** Takes one request from the client's pass for the plan. */
  readonly spend: (call: PaymentCall, nowMs: number) => MaybePromise<PaymentStanding>
  /** What the plan costs the client; undefined: not known now. Never rejects. */
  readonly quote: (call: PaymentCall, nowMs: number) => MaybePromise<Quote | undefined>
  /** Turns what findToken, standing or spend threw into a refusal. */
  readonly failed: (thrown: unknown) => Refusal
}

export interface PaymentCall {
  readonly clientId: string
  readonly plan: string
  readonly txid: string | undefined
}

/** The outcome of a judgement, and how far it came: what was not reached is absent. */
export interface Verdict {
  refusal: Refusal | undefined
  /** The refusal is one of a policy that only observes. */
  observed: boolean
  target: Target | undefined
  fields: Fields | undefined
  rule: Rule | undefined
  token: KnownToken | undefined
  /** The token is one of ours, and its key was not proved. */
  unproven: boolean
  tokenHash: string | undefined
  passId: string | undefined
}

export type MaybePromise<T> = T | Promise<T>

/** IPv6 sources are counted by /64, which is what one subscriber has; IPv4 by address. */
const SOURCE_PREFIX_V6 = 64
const V4_MAPPED = '\0\0\0\0\0\0\0\0\0\0\xff\xff'

/** The key under which one source is counted. */
export function sourceKey(address: Uint8Array): string {
  const key = maskedKey(address, 128)
  return key.startsWith(V4_MAPPED) ? key : key.slice(0, SOURCE_PREFIX_V6 / 8)
}

/**
 * Judges a request: malformed (400, 431), blocked (403), source limit (429), unknown (401), what no payment cures (403), client
 * limit (429), payment (402). The first that applies decides, so nobody is asked to pay for what would still be refused.
 * Returns at once where memory suffices.
 */
export function judge(request: RequestFacts, world: World, nowMs: number): MaybePromise<Verdict> {
  const verdict: Verdict = {
    refusal: { reason: 'unavailable' },
    observed: false,
    target: undefined,
    fields: undefined,
    rule: undefined,
    token: undefined,
    unproven: false,
    tokenHash: undefined,
    passId: undefined,
  }
  const target = canonicalTarget(request.host, request.target)
  if (typeof target === 'string') return refuse(verdict, malformed(target))
  verdict.target = target
  const fields = readFields(request.headers)
  if (fields === 'too-large') return refuse(verdict, { reason: 'headers-too-large' })
  if (typeof fields === 'string') return refuse(verdict, malformed(fields))
  verdict.fields = fields

  if (world.blocks.isBlocked(request.address, nowMs)) return refuse(verdict, { reason: 'blocked' })
  const host = policiesFor(world.policies, target.host)
  const over = host && overSourceLimit(host, request.address, world, nowMs)
  if (over) return refuse(verdict, over, host)

  const rule = host && matchRule(host, request.method, target, request.headers)
  if (rule === 'ambiguous') return refuse(verdict, malformed('header-duplicated'))
  verdict.rule = rule
  if (rule?.anonymous) return judgeAnonymous(verdict, rule, host, request, world, nowMs)
  return judgeCaller(verdict, host, fields, request, world, nowMs)
}

function judgeAnonymous(
  verdict: Verdict,
  { id, limit }: Rule,
  host: HostPolicies | undefined,
  request: RequestFacts,
  world: World,
  nowMs: number,
): Verdict {
  const over = limit && limited(world.sourceRates, `${id} ${sourceKey(request.address)}`, limit, nowMs)
  return over ? refuse(verdict, over, host) : admit(verdict)
}

function judgeCaller(
  verdict: Verdict,
  host: HostPolicies | undefined,
  fields: Fields,
  request: RequestFacts,
  world: World,
  nowMs: number,
): MaybePromise<Verdict> {
  const { token } = fields
  if (token === undefined) return refuse(verdict, { reason: 'token-missing' }, host)
  if (token === '') return refuse(verdict, { reason: 'token-invalid' }, host)
  const hash = world.hashToken(token)
  verdict.tokenHash = hash
  const failed = (thrown: unknown) => refuse(verdict, world.failed(thrown), host)
  return ask(
    () => world.findToken(token, hash, nowMs),
    (known) => {
      if (!known) return refuse(verdict, { reason: 'token-invalid' }, host)
      const presented = presentedBy(request, fields, hash)
      return ask(
        () => world.prove(known.binding, presented),
        (fault) => {
          if (!fault) return judgeKnown(verdict, known, host, request, world, nowMs)
          verdict.unproven = true
          return refuse(verdict, fault, host)
        },
        failed,
      )
    },
    failed,
  )
}

function presentedBy(request: RequestFacts, { scheme, proof }: Fields, tokenHash: string): Presented {
  const { method, host, target, certificate } = request
  return {
    tokenHash,
    scheme,
    proof,
    method,
    uri: () => request.scheme && canonicalUri(`${request.scheme}://${host}${target}`),
    certificate,
  }
}

function judgeKnown(
  verdict: Verdict,
  known: KnownToken,
  host: HostPolicies | undefined,
  request: RequestFacts,
  world: World,
  nowMs: number,
): MaybePromise<Verdict> {
  verdict.token = known
  const { rule } = verdict
  if (world.callerBlocks.covering(known, nowMs)) return refuse(verdict, { reason: 'caller-blocked' })
  if (!host || !rule) return refuse(verdict, { reason: 'no-rule' }, host)
  const hopeless = incurable(rule, known)
  if (hopeless) return refuse(verdict, hopeless, host)
  return judgePayment(verdict, rule, known, host, request, world, nowMs)
}

/** What no payment cures. */
function incurable(rule: Rule, token: KnownToken): Refusal | undefined {
  if (rule.denyReason !== undefined) return { reason: 'rule-denied', detail: rule.denyReason }
  if (token.selfRegistered && rule.plan === undefined) return { reason: 'self-registered' }
  for (const scope of rule.scopes) {
    if (!token.scopes.has(scope)) return { reason: 'scope-missing', scopes: rule.scopes }
  }
  if (rule.audience !== undefined && !token.audience.includes(rule.audience)) return { reason: 'audience-mismatch' }
  return undefined
}

function judgePayment(
  verdict: Verdict,
  rule: Rule,
  token: KnownToken,
  host: HostPolicies,
  request: RequestFacts,
  world: World,
  nowMs: number,
): MaybePromise<Verdict> {
  const overLimit = () => callerLimit(rule, token, request, world, nowMs)
  const failed = (thrown: unknown) => refuse(verdict, world.failed(thrown), host)
  if (rule.plan === undefined) {
    const over = overLimit()
    return over ? refuse(verdict, over, host) : admit(verdict)
  }
  // Policies that observe neither redeem nor spend: trying them out must cost nobody anything.
  const txid = host.observes ? undefined : verdict.fields?.txid
  const call = { clientId: token.clientId, plan: rule.plan, txid }
  const settle = (standing: PaymentStanding): MaybePromise<Verdict> => {
    if (!standing.paid) return priced(verdict, standing.refusal, host, () => world.quote(call, nowMs))
    verdict.passId = standing.passId
    return admit(verdict)
  }
  return ask(
    () => world.standing(call, nowMs),
    (standing) => {
      if (!standing.paid && standing.refusal.reason === 'nothing-to-redeem') return settle(standing)
      const over = overLimit()
      if (over) return refuse(verdict, over, host)
      return standing.paid && !host.observes ? ask(() => world.spend(call, nowMs), settle, failed) : settle(standing)
    },
    failed,
  )
}

/** Refuses, and where paying would help, with the price. */
function priced(
  verdict: Verdict,
  refusal: Refusal,
  host: HostPolicies,
  quote: () => MaybePromise<Quote | undefined>,
): MaybePromise<Verdict> {
  // Of a policy that only observes nobody reads the refusal.
  if (host.observes || REASONS[refusal.reason].status !== 402) return refuse(verdict, refusal, host)
  return ask(
    quote,
    (known) => refuse(verdict, known ? { ...refusal, quote: known } : refusal, host),
    () => refuse(verdict, refusal, host),
  )
}

function overSourceLimit(host: HostPolicies, address: Uint8Array, world: World, nowMs: number): Refusal | undefined {
  for (const { name, sourceLimit } of host.policies) {
    const over = sourceLimit && limited(world.sourceRates, `${name} ${sourceKey(address)}`, sourceLimit, nowMs)
    if (over) return over
  }
  return undefined
}

function callerLimit({ id, limit }: Rule, token: KnownToken, request: RequestFacts, world: World, nowMs: number) {
  if (!limit) return undefined
  return limit.by === 'client'
    ? limited(world.callerRates, `${id} ${token.clientId}`, limit, nowMs, 'client-limit')
    : limited(world.sourceRates, `${id} ${sourceKey(request.address)}`, limit, nowMs, 'client-limit')
}

function limited(
  rates: RateTable,
  key: string,
  limit: Limit,
  nowMs: number,
  reason: Reason = 'source-limit',
): Refusal | undefined {
  const rate = rates.take(key, limit, nowMs)
  if (rate.conforms) return undefined
  const name = reason === 'client-limit' ? 'client' : 'source'
  return { reason, retryAfterSeconds: rate.retryAfterSeconds, limited: { name, limit } }
}

function malformed(fault: Fault): Refusal {
  return { reason: 'malformed-request', detail: FAULTS[fault] }
}

/** `host`: whose policies refuse; absent where no policy is asked, as for a block. */
function refuse(verdict: Verdict, refusal: Refusal, host?: HostPolicies): Verdict {
  verdict.refusal = refusal
  verdict.observed = host?.observes === true
  return verdict
}

function admit(verdict: Verdict): Verdict {
  verdict.refusal = undefined
  return verdict
}

/** Goes on with an answer, at once or when it comes; what was thrown on the way to the answer goes to `failed`. */
function ask<A>(
  question: () => MaybePromise<A>,
  next: (answer: A) => MaybePromise<Verdict>,
  failed: (thrown: unknown) => Verdict,
): MaybePromise<Verdict> {
  let answer: MaybePromise<A>
  try {
    answer = question()
  } catch (thrown) {
    return failed(thrown)
  }
  return answer instanceof Promise ? answer.then(next, failed) : next(answer)
}
