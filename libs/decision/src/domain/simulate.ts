import { hash } from 'node:crypto'
import { parseAddress } from '@tollward/contracts'
import type { ApiPolicy, PolicyExample } from '@tollward/documents'
import { AppError } from '@tollward/errors'
import { admission, type Decision, identityHeaders, rejection } from './answer.ts'
import { BlockList } from './block-list.ts'
import { CallerBlocks } from './caller-blocks.ts'
import { PROOF_HEADER } from './fields.ts'
import { judge, type KnownToken, type RequestFacts, sourceKey, type Verdict, type World } from './judge.ts'
import { compilePolicies, type PolicyIndex, policiesFor } from './policy.ts'
import { provePossession } from './possession.ts'
import { type Charge, type Limit, type Rate, RateTable } from './rate.ts'
import { REASONS, type Reason } from './reasons.ts'
import { FAULTS } from './target.ts'

export type SimulatedRequest = PolicyExample['request']
export type SimulatedCaller = NonNullable<PolicyExample['caller']>

/** A rule of the host that did not decide, although its path is that of the request. */
export interface Candidate {
  /** policy/rule */
  readonly rule: string
  /** The first of its conditions that fails, such as "methods"; undefined: all hold, and another rule comes first. */
  readonly failed: string | undefined
  /** What it wants there, as its document has it. */
  readonly wanted: unknown
}

/** What would happen to a request, and why. */
export interface Simulation {
  readonly outcome: 'admitted' | 'refused' | 'would-refuse'
  /** What the client would get, and the API. */
  readonly decision: Decision
  /** Of a refusal, or of what would be one if the policies enforced. */
  readonly reason: Reason | undefined
  readonly detail: string | undefined
  /** policy/rule that decides; undefined: none matches, or the decision fell before. */
  readonly rule: string | undefined
  /** Policies that count for this host, by name. */
  readonly policies: readonly string[]
  readonly observes: boolean
  readonly candidates: readonly Candidate[]
  /** Rules of the host whose path is another. */
  readonly otherPaths: number
  /** Limits that the request is counted under, and as whom. */
  readonly charges: readonly (Limit & { readonly name: string })[]
  /** What the simulation could not know. */
  readonly notes: readonly string[]
}

/** Stands for what only a real request gets. */
const PLACEHOLDER = {
  token: 'simulated',
  proof: 'simulated',
  authorization: 'Bearer <internal token>',
  id: '<decision id>',
}
const PAYMENT_URL = '<payment-verifier>'
const CERTIFICATE = new Uint8Array(1)
/** One simulation needs a handful. */
const RATE_KEYS_MAX = 1000
const NOW_MS = 0

/**
 * Says what the policies would decide about a request of this caller, by the code that decides about real ones. Asks nobody and
 * spends nothing: limits are as if this were the first request, a bound token's key is proved, and a pass is there where the caller
 * has one of its plan. AppError `invalid_argument` for a request that cannot be sent.
 */
export function simulate(
  policies: readonly ApiPolicy[],
  request: SimulatedRequest,
  caller: SimulatedCaller | undefined,
): Simulation {
  const facts = factsOf(request, caller)
  const index = compilePolicies(policies)
  const world = new SimulatedWorld(index, caller, request.isBlocked ? facts.address : undefined)
  const verdict = judged(facts, world)
  const { refusal, observed, target, fields, rule } = verdict
  const host = target && policiesFor(index, target.host)
  const isRefused = refusal && !observed
  const names = host?.policies.map(({ name }) => name) ?? []
  return {
    outcome: isRefused ? 'refused' : refusal ? 'would-refuse' : 'admitted',
    decision:
      isRefused || !target
        ? rejection(PLACEHOLDER.id, refusal ?? { reason: 'unavailable' }, PAYMENT_URL)
        : admission(PLACEHOLDER.id, verdict, target, facts.headers),
    reason: refusal?.reason,
    detail: refusal && (refusal.detail ?? REASONS[refusal.reason].detail),
    rule: rule?.id,
    policies: names,
    observes: host?.observes === true,
    ...(fields ? otherRules(policies, new Set(names), facts, caller, rule?.id) : { candidates: [], otherPaths: 0 }),
    charges: chargesOf(world.charged, facts.address, request.from),
    notes: notesOn(verdict, caller),
  }
}

function factsOf(request: SimulatedRequest, caller: SimulatedCaller | undefined): RequestFacts {
  const [, scheme, host = '', rest = ''] = /^(https?):\/\/([^/?#]*)(.*)$/s.exec(request.url) ?? []
  const address = parseAddress(request.from)
  if (scheme === undefined || !address) {
    throw new AppError('invalid_argument', 'A request has a whole URL of http or https, and comes from an address.')
  }
  const headers = Object.entries(request.headers).flatMap(([name, values]) =>
    [values].flat().flatMap((value) => [name, value]),
  )
  const has = (wanted: string) => headers.some((name, at) => at % 2 === 0 && name.toLowerCase() === wanted)
  const isDpop = caller?.boundTo === 'dpop'
  if (caller && !has('authorization')) {
    headers.push('authorization', `${isDpop ? 'DPoP' : 'Bearer'} ${PLACEHOLDER.token}`)
    if (isDpop && !has(PROOF_HEADER)) headers.push(PROOF_HEADER, PLACEHOLDER.proof)
  }
  return {
    ...{ method: request.method, scheme: scheme === 'https' ? 'https' : 'http', host, address, headers },
    target: rest.startsWith('/') ? rest : `/${rest}`,
    ...(caller?.boundTo === 'certificate' && { certificate: () => CERTIFICATE }),
    principal: request.principal,
    body: request.body === undefined ? undefined : { bytes: Buffer.from(request.body), isWhole: request.bodyIsWhole },
  }
}

/** Everything that a judgement asks, answered from what was given. */
class SimulatedWorld implements World {
  readonly policies: PolicyIndex
  readonly blocks = new BlockList([])
  readonly callerBlocks = new CallerBlocks()
  readonly charged: Charge[] = []
  readonly sourceRates = new ChargedRates(this.charged)
  readonly callerRates = new ChargedRates(this.charged)
  readonly findToken: World['findToken']
  readonly standing: World['standing']
  readonly spend: World['spend']

  constructor(policies: PolicyIndex, caller: SimulatedCaller | undefined, blocked?: Uint8Array) {
    this.policies = policies
    if (blocked) this.blocks.set({ range: { address: blocked, prefixLength: 128 }, expiresAtMs: NOW_MS + 1 })
    if (caller?.isBlocked) this.callerBlocks.set({ kind: 'client', value: caller.client, expiresAtMs: NOW_MS + 1 })
    const known = caller && tokenOf(caller)
    this.findToken = () => known
    this.standing = ({ plan }) =>
      caller?.passes.includes(plan)
        ? { paid: true, passId: `<pass for ${plan}>` }
        : { paid: false, refusal: { reason: 'payment-required', plan } }
    this.spend = this.standing
  }

  readonly hashToken = (token: string) => hash('sha256', token, 'hex')

  readonly prove: World['prove'] = (binding, presented) => {
    // Whatever proof came along is taken for a good one; that there is none, or of another kind, is still told.
    const proved = provePossession(binding, presented, async () => undefined)
    return proved instanceof Promise ? undefined : proved
  }

  readonly quote = () => undefined

  readonly failed: World['failed'] = (thrown) => {
    throw thrown
  }
}

/** Counts, and remembers what was counted. */
class ChargedRates extends RateTable {
  readonly #charged: Charge[]

  constructor(charged: Charge[]) {
    super(RATE_KEYS_MAX, () => {})
    this.#charged = charged
  }

  override takeAll(charges: readonly Charge[], nowMs: number): Rate {
    this.#charged.push(...charges)
    return super.takeAll(charges, nowMs)
  }
}

function tokenOf(caller: SimulatedCaller): KnownToken {
  const { client, subject = client, scopes, audience, claims, boundTo, selfRegistered } = caller
  const scope = scopes.join(' ')
  const own = { sub: subject, client_id: client, scope, aud: audience }
  return {
    ...{
      hash: hash('sha256', PLACEHOLDER.token, 'hex'),
      grantHash: '',
      clientId: client,
      subject,
      audience,
      selfRegistered,
    },
    claims: () => ({ ...own, ...claims }),
    scopes: new Set(scopes),
    scope,
    binding: boundTo && { to: boundTo, thumbprint: hash('sha256', CERTIFICATE, 'base64url') },
    identity: identityHeaders({ clientId: client, subject, scope, authorization: PLACEHOLDER.authorization }),
  }
}

function judged(facts: RequestFacts, world: World): Verdict {
  const verdict = judge(facts, world, NOW_MS)
  if (verdict instanceof Promise) throw new AppError('internal', 'A judgement waits although everything is known.')
  return verdict
}

/** Of the rules that count for the host and did not decide: those whose path matches, and why each did not. */
function otherRules(
  policies: readonly ApiPolicy[],
  counting: ReadonlySet<string>,
  facts: RequestFacts,
  caller: SimulatedCaller | undefined,
  decided: string | undefined,
): Pick<Simulation, 'candidates' | 'otherPaths'> {
  const candidates: Candidate[] = []
  let otherPaths = 0
  for (const policy of policies.filter(({ metadata }) => counting.has(metadata.name))) {
    for (const rule of policy.spec.rules) {
      const id = `${policy.metadata.name}/${rule.name}`
      if (id === decided) continue
      const failed = firstFailed(policy, rule, facts, caller)
      if (failed?.failed === 'path') otherPaths += 1
      else candidates.push({ rule: id, failed: failed?.failed, wanted: failed?.wanted })
    }
  }
  return { candidates, otherPaths }
}

type RuleDocument = ApiPolicy['spec']['rules'][number]

/** The first part of what a rule compares that fails, found by asking about a policy that has only that part. */
function firstFailed(
  policy: ApiPolicy,
  rule: RuleDocument,
  facts: RequestFacts,
  caller: SimulatedCaller | undefined,
): Pick<Candidate, 'failed' | 'wanted'> | undefined {
  const { path, prefix, glob, conditions = [], headers = {}, ...lists } = rule.match
  const place = { path, prefix, glob }
  const matches = (part: Partial<RuleDocument['match']>) => {
    const alone: ApiPolicy = {
      ...policy,
      spec: { hosts: ['*'], mode: 'enforce', rules: [{ ...rule, match: { ...place, ...part } }] },
    }
    const world = new SimulatedWorld(compilePolicies([alone]), caller && { ...caller, isBlocked: false })
    return judged(facts, world).rule !== undefined
  }
  if (!matches({})) return { failed: 'path', wanted: path ?? prefix ?? glob }
  for (const [name, wanted] of Object.entries(lists)) {
    if (wanted !== undefined && !matches({ [name]: wanted })) return { failed: name, wanted }
  }
  for (const [name, value] of Object.entries(headers)) {
    if (!matches({ headers: { [name]: value } })) return { failed: `header ${name}`, wanted: value }
  }
  for (const condition of conditions) {
    const { header, query, claim, ...wanted } = condition
    if (matches({ conditions: [condition] })) continue
    const subject =
      header === undefined ? (query === undefined ? `claim ${claim}` : `query ${query}`) : `header ${header}`
    return { failed: subject, wanted }
  }
  return undefined
}

/** Sources are counted by the bytes of their address, which nobody can read. */
function chargesOf(charged: readonly Charge[], address: Uint8Array, from: string): Simulation['charges'] {
  const source = sourceKey(address)
  return charged.map(({ key, limit: { requests, perSeconds } }) => {
    const name = key.endsWith(source) ? `${key.slice(0, -source.length)}${from}` : key
    return { name, requests, perSeconds }
  })
}

function notesOn({ refusal, fields }: Verdict, caller: SimulatedCaller | undefined): string[] {
  const notes: string[] = []
  if (!caller && refusal?.reason === 'token-invalid') {
    notes.push('Whose token that is cannot be known here; say who the caller is, and what its token says.')
  }
  if (refusal?.detail === FAULTS['body-missing']) {
    notes.push('A rule looks into the body, and none was given: so it goes where the proxy does not send it along.')
  }
  if (refusal?.reason === 'payment-required' && fields?.txid !== undefined) {
    notes.push(
      'Whether the transaction pays an open invoice is not looked up; say of which plan the caller has a pass.',
    )
  }
  return notes
}
