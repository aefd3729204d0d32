import type { BlockList } from './block-list.ts'
import { maskedKey } from './block-list.ts'
import type { CallerBlocks } from './caller-blocks.ts'
import { RequestView } from './conditions.ts'
import { type Fields, type HeaderList, readFields } from './fields.ts'
import {
  type HostPolicies,
  type LimitedBy,
  matchRule,
  type PolicyIndex,
  policiesFor,
  type Rule,
  type RuleLimit,
  TOKEN_NEEDED,
} from './policy.ts'
import type { Binding, PossessionFault, Presented } from './possession.ts'
import type { Charge, Limit, Rate, RateTable } from './rate.ts'
import { REASONS, type Reason } from './reasons.ts'
import { type StageTime, StageTimes } from './stages.ts'
import { canonicalTarget, canonicalUri, FAULTS, type Fault, methodFault, type Target } from './target.ts'

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
  /** True where whoever asks had to join headers of one name by commas, and can't tell any more. */
  readonly headersAreJoined?: boolean | undefined
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
  /** The scopes as OAuth writes them (RFC 6749, 3.3). */
  readonly scope: string
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
  /** With 429: which limit, by whom it counts, and how much it is. */
  readonly limited?: { readonly name: string; readonly by?: LimitedBy; readonly limit: Limit }
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
  /** The policies of this host only observe. */
  observes: boolean
  target: Target | undefined
  fields: Fields | undefined
  rule: Rule | undefined
  token: KnownToken | undefined
  /** The token is one of ours, and its key was not proved. */
  unproven: boolean
  tokenHash: string | undefined
  passId: string | undefined
  /** In the order in which they ran. */
  stages: readonly StageTime[]
}

export type MaybePromise<T> = T | Promise<T>

const CONFORMS: Rate = { conforms: true }

/** IPv6 sources are counted by /64, which is what one subscriber has; IPv4 by address. */
const SOURCE_PREFIX_V6 = 64
const V4_MAPPED = '\0\0\0\0\0\0\0\0\0\0\xff\xff'

/** The key under which one source is counted. */
export function sourceKey(address: Uint8Array): string {
  for (let byte = 0; byte < V4_MAPPED.length; byte++) {
    if (address[byte] !== V4_MAPPED.charCodeAt(byte)) return maskedKey(address, SOURCE_PREFIX_V6)
  }
  return V4_MAPPED + String.fromCharCode(address[12] ?? 0, address[13] ?? 0, address[14] ?? 0, address[15] ?? 0)
}

/**
 * Judges a request: malformed (400, 431), blocked (403), source limit (429), unknown (401), what no payment cures (403), client
 * limit (429), payment (402). The first that applies decides, so nobody is asked to pay for what would still be refused.
 * Returns at once where memory suffices. `clock`, in milliseconds since whenever, is for what the stages took.
 */
export function judge(
  request: RequestFacts,
  world: World,
  nowMs: number,
  clock: () => number = () => nowMs,
): MaybePromise<Verdict> {
  const stages = new StageTimes(clock)
  const verdict: Verdict = {
    refusal: { reason: 'unavailable' },
    observed: false,
    observes: false,
    target: undefined,
    fields: undefined,
    rule: undefined,
    token: undefined,
    unproven: false,
    tokenHash: undefined,
    passId: undefined,
    stages: stages.ended,
  }
  const target = methodFault(request.method) ?? canonicalTarget(request.host, request.target)
  if (typeof target === 'string') return refuse(verdict, malformed(target))
  verdict.target = target
  const fields = readFields(request.headers)
  stages.end('canonical')
  if (fields === 'too-large') return refuse(verdict, { reason: 'headers-too-large' })
  if (typeof fields === 'string') return refuse(verdict, malformed(fields))
  verdict.fields = fields

  const isBlocked = world.blocks.isBlocked(request.address, nowMs)
  stages.end('blocks')
  if (isBlocked) return refuse(verdict, { reason: 'blocked' })
  const host = policiesFor(world.policies, target.host)
  verdict.observes = host?.observes === true
  const over = host && overSourceLimit(host, request.address, world, nowMs)
  stages.end('source-limits')
  if (over) return refuse(verdict, over, host)
  const view = new RequestView(request, target)
  return chooseRule({ verdict, stages, request, target, fields, host, view, world, nowMs, caller: undefined })
}

/** A judgement that is past blocks and source limits. */
interface Hearing {
  readonly verdict: Verdict
  readonly stages: StageTimes
  readonly request: RequestFacts
  readonly target: Target
  readonly fields: Fields
  readonly host: HostPolicies | undefined
  readonly view: RequestView
  readonly world: World
  readonly nowMs: number
  /** Who calls, once somebody asked. */
  caller: Caller | undefined
}

/** Who presents the request: a token that is worth something in their hands, or why there is none. */
type Caller = { readonly known: KnownToken } | { readonly known: undefined; readonly refusal: Refusal }

/** Goes back to the rules once claims are known, if it depends on them which rule decides. */
function chooseRule(hearing: Hearing): MaybePromise<Verdict> {
  const { verdict, stages, target, host, view } = hearing
  const rule = host && matchRule(host, target.segments, view)
  stages.end('policy')
  if (rule === TOKEN_NEEDED) {
    return identified(hearing, ({ known }) => {
      view.claims = known ? known.claims() : false
      return chooseRule(hearing)
    })
  }
  if (typeof rule === 'string') return refuse(verdict, malformed(rule), host)
  verdict.rule = rule
  const isLost = rule?.rewriting?.headers.set.some(([name]) => view.isDropped(name)) === true
  if (isLost) return refuse(verdict, malformed('header-connection'), host)
  if (rule?.anonymous) return judgeAnonymous(hearing, rule)
  return identified(hearing, (caller) =>
    caller.known ? judgeKnown(hearing, caller.known) : refuse(verdict, caller.refusal, host),
  )
}

function judgeAnonymous(hearing: Hearing, rule: Rule): Verdict {
  // Claims may have been asked for to find this rule; it lets anybody through, and tells the API of nobody.
  hearing.verdict.token = undefined
  return judgeUnpaid(hearing, rule, undefined, hearing.host)
}

/** Finds out who calls, once, and goes on unless that cannot be told now or a block covers them. */
function identified(hearing: Hearing, next: (caller: Caller) => MaybePromise<Verdict>): MaybePromise<Verdict> {
  const { verdict, stages, fields, host, world, request, nowMs, caller } = hearing
  if (caller) return next(caller)
  const { token } = fields
  const conclude = (found: Caller): MaybePromise<Verdict> => {
    hearing.caller = found
    if (!found.known) return next(found)
    verdict.token = found.known
    if (world.callerBlocks.covering(found.known, nowMs)) return refuse(verdict, { reason: 'caller-blocked' })
    return next(found)
  }
  if (token === undefined) return conclude({ known: undefined, refusal: { reason: 'token-missing' } })
  if (token === '') return conclude({ known: undefined, refusal: { reason: 'token-invalid' } })
  const hash = world.hashToken(token)
  verdict.tokenHash = hash
  const failed = (thrown: unknown) => refuse(verdict, world.failed(thrown), host)
  return ask(
    () => world.findToken(token, hash, nowMs),
    (known, isAsked) => {
      stages.end('token', isAsked)
      if (!known) return conclude({ known: undefined, refusal: { reason: 'token-invalid' } })
      return ask(
        () => world.prove(known.binding, presentedBy(request, fields, hash)),
        (fault, isAsked) => {
          stages.end('proof', isAsked)
          verdict.unproven = fault !== undefined
          return conclude(fault ? { known: undefined, refusal: fault } : { known })
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

function judgeKnown(hearing: Hearing, known: KnownToken): MaybePromise<Verdict> {
  const { verdict, stages, host } = hearing
  const { rule } = verdict
  if (!host || !rule) return refuse(verdict, { reason: 'no-rule' }, host)
  const hopeless = incurable(rule, known)
  stages.end('rights')
  if (hopeless) return refuse(verdict, hopeless, host)
  return judgePayment(hearing, rule, known, host)
}

/** What no payment cures. */
function incurable(rule: Rule, token: KnownToken): Refusal | undefined {
  if (rule.denyReason !== undefined) return { reason: 'rule-denied', detail: rule.denyReason }
  if (token.selfRegistered && rule.plan === undefined) return { reason: 'self-registered' }
  for (const scope of rule.scopes) {
    if (!token.scopes.has(scope)) return { reason: 'scope-missing', scopes: rule.scopes }
  }
  if (rule.claims.length > 0) {
    const claims = token.claims()
    if (!rule.claims.every((holds) => holds(claims))) return { reason: 'claim-missing' }
  }
  if (rule.boundTo !== undefined && !isBound(token, rule.boundTo)) return { reason: 'binding-missing' }
  if (rule.audience !== undefined && !token.audience.includes(rule.audience)) return { reason: 'audience-mismatch' }
  return undefined
}

/** That the key was proved, `identified` has seen to. */
function isBound({ binding }: KnownToken, boundTo: NonNullable<Rule['boundTo']>): boolean {
  return binding !== undefined && (boundTo === 'any' || binding.to === boundTo)
}

function judgePayment(hearing: Hearing, rule: Rule, token: KnownToken, host: HostPolicies): MaybePromise<Verdict> {
  const { plan } = rule
  return plan === undefined ? judgeUnpaid(hearing, rule, token, host) : judgePaid(hearing, rule, plan, token, host)
}

/** Of a rule that wants no payment. */
function judgeUnpaid(
  { verdict, stages, request, world, nowMs }: Hearing,
  rule: Rule,
  token: KnownToken | undefined,
  host: HostPolicies | undefined,
): Verdict {
  const over = rule.limits.length > 0 ? overLimits('take', rule, token, request, world, nowMs) : undefined
  stages.end('limits')
  return over ? refuse(verdict, over, host) : admit(verdict)
}

function judgePaid(
  hearing: Hearing,
  rule: Rule,
  plan: string,
  token: KnownToken,
  host: HostPolicies,
): MaybePromise<Verdict> {
  const { verdict, stages, request, world, nowMs } = hearing
  const failed = (thrown: unknown) => refuse(verdict, world.failed(thrown), host)
  // Policies that observe neither redeem nor spend: trying them out must cost nobody anything.
  const txid = host.observes ? undefined : verdict.fields?.txid
  const call = { clientId: token.clientId, plan, txid }
  const settle = (standing: PaymentStanding): MaybePromise<Verdict> => {
    if (!standing.paid) return priced(hearing, standing.refusal, host, () => world.quote(call, nowMs))
    verdict.passId = standing.passId
    return admit(verdict)
  }
  const spend = () =>
    ask(
      () => world.spend(call, nowMs),
      (standing, isAsked) => {
        stages.end('payment', isAsked)
        if (!standing.paid) giveBackLimits(rule, token, request, world, nowMs)
        return settle(standing)
      },
      (thrown) => {
        giveBackLimits(rule, token, request, world, nowMs)
        return failed(thrown)
      },
    )
  return ask(
    () => world.standing(call, nowMs),
    (standing, isAsked) => {
      stages.end('payment', isAsked)
      if (!standing.paid && standing.refusal.reason === 'nothing-to-redeem') return settle(standing)
      // Who has not paid is told of the limit first, but is not counted under it.
      const how = standing.paid ? 'take' : 'check'
      const over = rule.limits.length > 0 ? overLimits(how, rule, token, request, world, nowMs) : undefined
      stages.end('limits')
      if (over) return refuse(verdict, over, host)
      return standing.paid && !host.observes ? spend() : settle(standing)
    },
    failed,
  )
}

/** Refuses, and where paying would help, with the price. */
function priced(
  { verdict, stages }: Hearing,
  refusal: Refusal,
  host: HostPolicies,
  quote: () => MaybePromise<Quote | undefined>,
): MaybePromise<Verdict> {
  // Of a policy that only observes nobody reads the refusal.
  if (host.observes || REASONS[refusal.reason].status !== 402) return refuse(verdict, refusal, host)
  return ask(
    quote,
    (known, isAsked) => {
      stages.end('quote', isAsked)
      return refuse(verdict, known ? { ...refusal, quote: known } : refusal, host)
    },
    () => refuse(verdict, refusal, host),
  )
}

function overSourceLimit(host: HostPolicies, address: Uint8Array, world: World, nowMs: number): Refusal | undefined {
  const charges: Charge[] = []
  for (const { name, sourceLimit } of host.policies) {
    if (sourceLimit) charges.push({ key: `${name} ${sourceKey(address)}`, limit: sourceLimit })
  }
  const rate = charges.length === 0 ? CONFORMS : world.sourceRates.takeAll(charges, nowMs)
  return rate.conforms
    ? undefined
    : limited('source-limit', 'source', 'source', rate.charge.limit, rate.retryAfterSeconds)
}

/**
 * Counts a request under all limits of its rule, or under none, or only looks. Sources that nobody knows are counted apart, so that
 * a flood of them pushes out nobody else's count.
 */
function overLimits(
  how: 'take' | 'check',
  rule: Rule,
  token: KnownToken | undefined,
  request: RequestFacts,
  world: World,
  nowMs: number,
): Refusal | undefined {
  const [sources, callers] = chargesOf(rule, token, request)
  let rate = sources.length === 0 ? CONFORMS : world.sourceRates.check(sources, nowMs)
  if (rate.conforms && callers.length > 0) {
    rate = how === 'take' ? world.callerRates.takeAll(callers, nowMs) : world.callerRates.check(callers, nowMs)
  }
  if (rate.conforms) {
    if (how === 'take' && sources.length > 0) world.sourceRates.takeAll(sources, nowMs)
    return undefined
  }
  const { limit } = rate.charge as LimitCharge
  const reason = !token && limit.by === 'source' ? 'source-limit' : 'client-limit'
  return limited(reason, limit.name, limit.by, limit, rate.retryAfterSeconds)
}

/** Undoes what overLimits took, for a request that was not admitted after all. */
function giveBackLimits(
  rule: Rule,
  token: KnownToken | undefined,
  request: RequestFacts,
  world: World,
  nowMs: number,
): void {
  const [sources, callers] = chargesOf(rule, token, request)
  world.sourceRates.giveBack(sources, nowMs)
  world.callerRates.giveBack(callers, nowMs)
}

interface LimitCharge extends Charge {
  readonly limit: RuleLimit
}

/** Those of the table of sources, and those of the table of callers. */
function chargesOf(
  { limits }: Rule,
  token: KnownToken | undefined,
  request: RequestFacts,
): readonly [sources: LimitCharge[], callers: LimitCharge[]] {
  const sources: LimitCharge[] = []
  const callers: LimitCharge[] = []
  for (const limit of limits) {
    const charge = { key: limit.keyPrefix + countedAs(limit.by, token, request), limit }
    if (limit.by === 'source' && !token) sources.push(charge)
    else callers.push(charge)
  }
  return [sources, callers]
}

/** Empty for what counts everybody together. */
function countedAs(by: LimitedBy, token: KnownToken | undefined, { address }: RequestFacts): string {
  switch (by) {
    case 'client':
      return token?.clientId ?? ''
    case 'subject':
      return token?.subject ?? ''
    case 'token':
      return token?.hash ?? ''
    case 'source':
      return sourceKey(address)
    case 'route':
      return ''
  }
}

function limited(reason: Reason, name: string, by: LimitedBy, limit: Limit, retryAfterSeconds: number): Refusal {
  return { reason, retryAfterSeconds, limited: { name, by, limit } }
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
  next: (answer: A, isAsked: boolean) => MaybePromise<Verdict>,
  failed: (thrown: unknown) => Verdict,
): MaybePromise<Verdict> {
  let answer: MaybePromise<A>
  try {
    answer = question()
  } catch (thrown) {
    return failed(thrown)
  }
  return answer instanceof Promise ? answer.then((given) => next(given, true), failed) : next(answer, false)
}
