import { hash, randomUUID } from 'node:crypto'
import { timestampFromMs } from '@bufbuild/protobuf/wkt'
import type { Bus } from '@tollward/bus'
import { parseAddress } from '@tollward/contracts'
import { Outcome } from '@tollward/contracts/sensor'
import { toAppError } from '@tollward/errors'
import type { Logger } from 'pino'
import type { Registry } from 'prom-client'
import { followBlocks } from './adapters/blocks.ts'
import { newDecisionId } from './adapters/decision-id.ts'
import { Documents } from './adapters/documents.ts'
import { Passes } from './adapters/passes.ts'
import { openPossession } from './adapters/proofs.ts'
import { Quotes } from './adapters/quotes.ts'
import { Rates } from './adapters/rates.ts'
import { Recorder } from './adapters/recorder.ts'
import { Tokens } from './adapters/tokens.ts'
import { type Watched, Watches } from './adapters/watches.ts'
import { admission, type Decision, type Rejection, rejection } from './domain/answer.ts'
import { BlockList, GUARDED_ADDRESSES } from './domain/block-list.ts'
import { CallerBlocks } from './domain/caller-blocks.ts'
import type { RateLimitIndex } from './domain/descriptors.ts'
import { judge, type Refusal, type RequestFacts, sourceKey, type Verdict, type World } from './domain/judge.ts'
import { mayReadBody, policiesFor } from './domain/policy.ts'
import type { RateTable } from './domain/rate.ts'
import { REASONS, type Reason } from './domain/reasons.ts'
import { canonicalTarget } from './domain/target.ts'
import { ADMISSION_SAMPLE, EDGES, FEED_STALE_AFTER_MS } from './edges.ts'
import { type DecisionMetrics, type DecisionOutcome, decisionMetrics, gaugeSizes } from './metrics.ts'

export interface DeciderConfig {
  /** The service that decides; names it in records of calls. */
  readonly source: 'authorizer' | 'gateway'
  /** Where clients ask payment-verifier for invoices. */
  readonly paymentUrl: string
  /** Addresses of this node, beside the loopback's, that no block touches. */
  readonly guardedAddresses: readonly string[]
}

export interface DeciderOptions {
  readonly bus: Bus
  readonly log: Logger
  readonly registry: Registry
  readonly config: DeciderConfig
  /** Told in words how far it is until it can decide. */
  readonly onProgress?: (how: string) => void
}

/** Whether requests may pass. */
export interface Decider extends AsyncDisposable {
  /** Decides; at once where memory suffices, else as a promise. Never throws or rejects: what fails is a refusal. */
  decide(facts: RequestFacts): Decision | Promise<Decision>
  /** A refusal that is not the decision's, such as a body that is too large; with an id, and counted. */
  refuse(reason: Reason): Rejection
  /** Whether the decision needs the request's body: a rule for its host, path and method asks what it says. */
  needsBody(facts: RequestFacts): boolean
  /**
   * Watches over an admitted request that goes on for long, such as a WebSocket: `ended` is called once, within WATCH_EVERY_MS, when
   * its source or caller is blocked, its token is revoked or over, or revocations can't be heard any more. Dispose of it at its end.
   */
  watch(admitted: Watched, ended: (reason: Reason) => void): Disposable
  /** For those who want limits alone: the ones in force now, and where they are counted, together with all other replicas. */
  readonly rateLimits: { readonly index: RateLimitIndex; readonly rates: RateTable }
  /** Why decisions can't be relied on; undefined: they can. */
  notReady(): string | undefined
}

/** Makes a decider. Resolves when it knows all policies, blocks, passes and recent revocations. */
export async function createDecider({ bus, log, registry, config, onProgress }: DeciderOptions): Promise<Decider> {
  const metrics = decisionMetrics(registry)
  const documents = new Documents(log, metrics)
  const blocks = new BlockList(guardedAddresses(config.guardedAddresses))
  const callerBlocks = new CallerBlocks()
  const tokens = new Tokens(bus, log, metrics)
  const possession = openPossession()
  const decider = `${config.source}-${randomUUID()}`
  const passes = new Passes(bus, decider, log, metrics)
  const quotes = new Quotes(bus, log, metrics)
  const rates = new Rates(bus, decider, metrics)

  await using resources = new AsyncDisposableStack()
  const recorder = resources.use(new Recorder(bus, config.source, log, metrics))
  resources.defer(() => passes.giveBack())
  resources.use(rates).listen()
  const documentsFeed = resources.use(await documents.follow(bus))
  const progress = (read: number, total: number) => onProgress?.(`${read} of ${total} blocks are read`)
  const blocksFeed = resources.use(await followBlocks(bus, { blocks, callerBlocks, log, metrics, progress }))
  const passesFeed = resources.use(await passes.follow(bus))
  resources.use(await tokens.follow(bus, Date.now()))

  gaugeSizes(registry, {
    documents: () => documents.size,
    blocks: () => blocks.size,
    'caller blocks': () => callerBlocks.size,
    tokens: () => tokens.size,
    passes: () => passes.size,
    proofs: () => possession.size,
    'source rates': () => rates.sources.size,
    'caller rates': () => rates.callers.size,
    'descriptor rates': () => rates.descriptors.size,
  })
  const world: World = {
    get policies() {
      return documents.policies
    },
    blocks,
    callerBlocks,
    sourceRates: rates.sources,
    callerRates: rates.callers,
    hashToken: sha256,
    findToken: (token, tokenHash, nowMs) => tokens.find(token, tokenHash, nowMs),
    prove: (binding, presented) => possession.prove(binding, presented),
    standing: (call, nowMs) => passes.standing(call, nowMs),
    spend: (call, nowMs) => passes.spend(call, nowMs),
    quote: (call, nowMs) => quotes.of(call, nowMs),
    failed: (thrown) => failure(thrown, log, metrics),
  }
  const watches = resources.use(new Watches({ blocks, callerBlocks, tokens, hashToken: sha256 }))
  const feeds = { documents: documentsFeed, blocks: blocksFeed, passes: passesFeed, revocations: tokens }
  const owned = resources.move()
  return {
    decide: deciding(world, config.paymentUrl, recorder, metrics),
    refuse: (reason) => {
      metrics.count('refused', reason)
      return rejection(newDecisionId(), { reason }, config.paymentUrl)
    },
    needsBody: ({ host, target, method }) => {
      const asked = canonicalTarget(host, target)
      if (typeof asked === 'string') return false
      const policies = policiesFor(documents.policies, asked.host)
      return policies !== undefined && mayReadBody(policies, asked.segments, method)
    },
    get rateLimits() {
      return { index: documents.rateLimits, rates: rates.descriptors }
    },
    watch: (admitted, ended) => watches.add(admitted, ended),
    notReady: () => {
      const silent = FEEDS.find((name) => feeds[name].silentForMs > FEED_STALE_AFTER_MS)
      return (
        silent && `${silent} not heard for ${Math.round(feeds[silent].silentForMs)} ms, fails ${EDGES[silent].fails}`
      )
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

function deciding(world: World, paymentUrl: string, recorder: Recorder, metrics: DecisionMetrics): Decider['decide'] {
  let admitted = 0
  const conclude = (facts: RequestFacts, verdict: Verdict, beganMs: number): Decision => {
    const { refusal, observed, target } = verdict
    const id = newDecisionId()
    const seconds = (performance.now() - beganMs) / 1000
    const outcome = outcomeOf(verdict)
    metrics.seconds.observe(seconds)
    metrics.count(outcome, refusal?.reason ?? 'none')
    if (refusal || admitted++ % ADMISSION_SAMPLE === 0) {
      recorder.record(sourceKey(facts.address), callRecord(id, facts, verdict, outcome, seconds))
    }
    if (target && (!refusal || observed)) return admission(id, verdict, target, facts.headers)
    return rejection(id, refusal ?? { reason: 'unavailable' }, paymentUrl)
  }
  return (facts) => {
    const beganMs = performance.now()
    const failed = (thrown: unknown) => {
      const verdict: Verdict = { ...NOT_JUDGED, refusal: world.failed(thrown) }
      return conclude(facts, verdict, beganMs)
    }
    try {
      const verdict = judge(facts, world, Date.now(), CLOCK)
      if (!(verdict instanceof Promise)) return conclude(facts, verdict, beganMs)
      return verdict.then((judged) => conclude(facts, judged, beganMs)).catch(failed)
    } catch (thrown) {
      return failed(thrown)
    }
  }
}

const CLOCK = () => performance.now()

const FEEDS = ['revocations', 'documents', 'passes', 'blocks'] as const

const NOT_JUDGED: Verdict = {
  refusal: undefined,
  observed: false,
  observes: false,
  target: undefined,
  fields: undefined,
  rule: undefined,
  token: undefined,
  unproven: false,
  tokenHash: undefined,
  passId: undefined,
  stages: [],
}

const OUTCOMES = {
  admitted: Outcome.ADMITTED,
  refused: Outcome.REFUSED,
  'would-refuse': Outcome.WOULD_REFUSE,
} as const satisfies Record<DecisionOutcome, Outcome>

function outcomeOf({ refusal, observed }: Verdict): DecisionOutcome {
  if (!refusal) return 'admitted'
  return observed ? 'would-refuse' : 'refused'
}

function callRecord(id: string, facts: RequestFacts, verdict: Verdict, outcome: DecisionOutcome, seconds: number) {
  const { refusal, target, rule, token, tokenHash, fields, passId, stages } = verdict
  return {
    decisionId: id,
    decidedAt: timestampFromMs(Date.now()),
    method: facts.method,
    host: target?.host ?? '',
    path: target?.path ?? '',
    status: outcome === 'refused' && refusal ? REASONS[refusal.reason].status : 0,
    outcome: OUTCOMES[outcome],
    reason: refusal?.reason ?? '',
    detail: refusal ? (refusal.detail ?? REASONS[refusal.reason].detail) : '',
    rule: rule?.id ?? '',
    clientId: token?.clientId ?? '',
    tokenHash: tokenHash ?? '',
    txidHash: fields?.txid === undefined ? '' : sha256(fields.txid),
    passId: passId ?? '',
    address: facts.address,
    durationMicros: Math.round(seconds * 1e6),
    count: 1,
    limitedByAddress: rule !== undefined && refusal?.limited?.by === 'source',
    stages: stages.map(({ name, ms, isAsked }) => ({ name, micros: Math.round(ms * 1000), asked: isAsked })),
    principal: facts.principal ?? '',
    limit: refusal?.limited?.name ?? '',
  }
}

/** Whatever could not be asked or went wrong is a refusal, and what went wrong stays with us. */
function failure(thrown: unknown, log: Logger, metrics: DecisionMetrics): Refusal {
  const error = toAppError(thrown)
  metrics.failures.inc()
  if (error.code === 'internal') log.error({ err: thrown }, 'decision failed')
  else log.debug({ err: thrown }, 'decision could not be made')
  return { reason: 'unavailable' }
}

function sha256(text: string): string {
  return hash('sha256', text, 'hex')
}

function guardedAddresses(configured: readonly string[]): Uint8Array[] {
  return [...GUARDED_ADDRESSES, ...configured].map((text) => {
    const address = parseAddress(text)
    if (!address) throw new RangeError(`not an address: ${text}`)
    return address
  })
}
