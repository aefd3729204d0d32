import { timestampMs } from '@bufbuild/protobuf/wkt'
import type { Bus, Client, Following } from '@tollward/bus'
import { bucketContract } from '@tollward/contracts'
import {
  type Pass,
  PassSchema,
  PassState,
  RedeemOutcome,
  type RedeemResponse,
  VerifierService,
} from '@tollward/contracts/payment'
import { AppError } from '@tollward/errors'
import type { Logger } from 'pino'
import { BoundedMap } from '../domain/bounded-map.ts'
import type { MaybePromise, PaymentCall, PaymentStanding, Refusal } from '../domain/judge.ts'
import { RateTable } from '../domain/rate.ts'
import { type HeldPass, type Need, Wallet } from '../domain/wallet.ts'
import {
  CALL_TIMEOUT_MS,
  LEASE_IDLE_MS,
  LEASE_TICK_MS,
  LEASE_WAITING_MAX,
  LEASES_AT_ONCE_MAX,
  RATE_KEYS_MAX,
  REDEMPTION_KEPT_MS,
  REDEMPTION_LIMIT,
  REDEMPTIONS_MAX,
} from '../edges.ts'
import type { DecisionMetrics } from '../metrics.ts'

/** The format of Pass that this library reads. */
const PASS_FORMAT = 1

/** A state that this version does not know admits nothing. */
const STATES: Partial<Record<PassState, HeldPass['state']>> = {
  [PassState.ACTIVE]: 'active',
  [PassState.EXHAUSTED]: 'exhausted',
}

const OUTCOMES: Partial<Record<RedeemOutcome, string>> = {
  [RedeemOutcome.REDEEMED]: 'redeemed',
  [RedeemOutcome.PENDING]: 'pending',
  [RedeemOutcome.NOT_SEEN]: 'not seen',
  [RedeemOutcome.NOTHING_OPEN]: 'nothing open',
  [RedeemOutcome.INSUFFICIENT]: 'insufficient',
  [RedeemOutcome.EXHAUSTED]: 'exhausted',
}

/** The one question about a pass that is under way, and how many requests wait for its answer. */
interface Turn {
  readonly done: Promise<void>
  waiting: number
}

interface Redemption {
  readonly standing: PaymentStanding
  readonly untilMs: number
}

/**
 * What callers have paid for. Passes come from the bucket; quota is spent from chunks leased by the verifier, so that a
 * request waits for nobody while a chunk lasts; a transaction of a caller without pass is presented to the verifier.
 */
export class Passes {
  readonly #verifier: Client<typeof VerifierService>
  readonly #holder: string
  readonly #log: Logger
  readonly #metrics: DecisionMetrics
  readonly #wallet = new Wallet()
  /** By the pass's key in the bucket. */
  readonly #passIds = new Map<string, string>()
  readonly #turns = new Map<string, Turn>()
  #ticking: NodeJS.Timeout | undefined
  readonly #redeeming = new Map<string, Promise<PaymentStanding>>()
  readonly #redeemed: BoundedMap<string, Redemption>
  readonly #redemptionRates: RateTable

  /** `holder` names this process to the verifier; no other may have it. */
  constructor(bus: Bus, holder: string, log: Logger, metrics: DecisionMetrics) {
    this.#verifier = bus.client(VerifierService, { timeoutMs: CALL_TIMEOUT_MS })
    this.#holder = holder
    this.#log = log
    this.#metrics = metrics
    this.#redeemed = new BoundedMap(REDEMPTIONS_MAX, () => metrics.evictions.inc({ table: 'redemptions' }))
    this.#redemptionRates = new RateTable(RATE_KEYS_MAX, () => metrics.evictions.inc({ table: 'redemption rates' }))
  }

  get size(): number {
    return this.#wallet.size
  }

  /** Begins to watch the passes. Resolves when all are known. */
  follow(bus: Bus): Promise<Following> {
    this.#ticking = setInterval(() => this.#tick(), LEASE_TICK_MS)
    return bus.bucket(bucketContract(PassSchema)).follow({
      snapshot: (entries) => {
        this.#passIds.clear()
        this.#wallet.replace([])
        for (const [key, { value }] of entries) this.#set(key, value)
      },
      change: (key, entry) => (entry ? this.#set(key, entry.value) : this.#remove(key)),
    })
  }

  /** Whether the client has a pass for the plan, or its transaction opens one. Rejects with AppError. */
  standing(call: PaymentCall, nowMs: number): MaybePromise<PaymentStanding> {
    const pass = this.#wallet.current(call.clientId, call.plan, nowMs)
    if (pass) return { paid: true, passId: pass.passId }
    if (call.txid === undefined) {
      if (this.#wallet.isWithOthers(call.clientId, call.plan, nowMs)) return this.#usedUp(call, nowMs)
      return refused({ reason: 'payment-required', plan: call.plan })
    }
    return this.#redeem(call, call.txid, nowMs)
  }

  /**
   * Takes one request from the client's quota. It waits where the chunk is used up, or as much of it is served as may be unrecorded, but
   * not longer than proxies wait for us. Rejects with AppError.
   */
  spend(
    call: PaymentCall,
    nowMs: number,
    untilMs = performance.now() + CALL_TIMEOUT_MS,
  ): MaybePromise<PaymentStanding> {
    const pass = this.#wallet.current(call.clientId, call.plan, nowMs)
    if (!pass) return this.#usedUp(call, nowMs)
    const clockMs = performance.now()
    const isTaken = this.#wallet.take(pass, clockMs)
    const need = this.#wallet.need(pass, nowMs, clockMs)
    if (isTaken) {
      if (need !== undefined) this.#soon(pass.passId, need)
      return { paid: true, passId: pass.passId }
    }
    if (clockMs > untilMs) throw new AppError('unavailable', 'What was served of the pass is not recorded in time.')
    const turn = this.#turn(pass.passId, need ?? 'lease')
    if (turn.waiting >= LEASE_WAITING_MAX) throw new AppError('resource_exhausted', 'Too many wait for this pass.')
    turn.waiting += 1
    return turn.done.then(() => this.spend(call, Date.now(), untilMs))
  }

  /** Ends all leases, so that what was not served of them comes back; what cannot be given back counts as served. */
  async giveBack(): Promise<void> {
    clearInterval(this.#ticking)
    await Promise.allSettled([...this.#turns.values()].map(({ done }) => done))
    const ending = this.#wallet.held().map(async (passId) => {
      const { atStake = 0 } = this.#wallet.use(passId, true) ?? {}
      await this.#turn(passId, 'end').done.catch((error: unknown) => {
        this.#metrics.quotaLost.inc(atStake)
        this.#log.warn({ err: error, passId, atStake }, 'leased requests not given back')
      })
    })
    await Promise.all(ending)
  }

  #set(key: string, pass: Pass): void {
    const held = heldPass(pass)
    if (!held) return
    this.#passIds.set(key, held.passId)
    this.#wallet.set(held)
  }

  #remove(key: string): void {
    const passId = this.#passIds.get(key)
    this.#passIds.delete(key)
    if (passId !== undefined) this.#wallet.remove(passId)
  }

  #usedUp({ clientId, plan }: PaymentCall, nowMs: number): PaymentStanding {
    if (!this.#wallet.isWithOthers(clientId, plan, nowMs)) return refused({ reason: 'pass-exhausted', plan })
    const detail =
      'The rest of the pass is with other decision points; repeat this request after Retry-After seconds, or buy another pass.'
    return refused({ reason: 'pass-exhausted', plan, detail, retryAfterSeconds: Math.ceil(LEASE_IDLE_MS / 1000) })
  }

  #tick(): void {
    const due = this.#wallet.due(Date.now(), performance.now())
    for (const { passId, need } of due.slice(0, LEASES_AT_ONCE_MAX)) this.#soon(passId, need)
  }

  /** Asks without anybody waiting for it. */
  #soon(passId: string, need: Need): void {
    if (this.#turns.has(passId)) return
    this.#turn(passId, need).done.catch((error: unknown) =>
      this.#log.warn({ err: error, need }, 'quota not settled yet'),
    )
  }

  /** One question about a pass at a time: the answer to one decides what the next one has to be. */
  #turn(passId: string, need: Need): Turn {
    const turning = this.#turns.get(passId)
    if (turning !== undefined) return turning
    const asking = need === 'lease' ? this.#lease(passId) : this.#record(passId, need === 'end')
    const turn = { done: asking.finally(() => this.#turns.delete(passId)), waiting: 0 }
    this.#turns.set(passId, turn)
    return turn
  }

  async #lease(passId: string): Promise<void> {
    const wantedRequests = this.#wallet.wanted(passId)
    const sentAtMs = performance.now()
    try {
      const answer = await this.#verifier.lease({ passId, holder: this.#holder, wantedRequests })
      this.#wallet.leased(passId, answer, Date.now(), sentAtMs)
      this.#metrics.leases.inc({ result: answer.grantedRequests === 0 ? 'nothing left' : 'granted' })
    } catch (error) {
      this.#wallet.doubt(passId)
      this.#metrics.leases.inc({ result: 'failed' })
      throw error
    }
    // Of an empty chunk nothing is left to serve here: somebody else may have to know.
    if (this.#wallet.isSpent(passId, Date.now())) await this.#record(passId, true)
  }

  async #record(passId: string, ends: boolean): Promise<void> {
    const use = this.#wallet.use(passId, ends)
    if (use === undefined) return
    const { leaseId, served: servedRequests } = use
    const sentAtMs = performance.now()
    try {
      const holder = this.#holder
      const { inForce, lastsMs } = await this.#verifier.record({ passId, holder, leaseId, servedRequests, ends })
      this.#wallet.recorded(passId, use, inForce && !ends ? lastsMs : undefined, sentAtMs)
      this.#metrics.quotaRecords.inc({ result: inForce || ends ? 'recorded' : 'over' })
    } catch (error) {
      this.#metrics.quotaRecords.inc({ result: 'failed' })
      throw error
    }
  }

  #redeem({ clientId, plan }: PaymentCall, txid: string, nowMs: number): MaybePromise<PaymentStanding> {
    const key = `${clientId} ${plan} ${txid}`
    const kept = this.#redeemed.get(key)
    if (kept && kept.untilMs > nowMs) return kept.standing
    const redeeming = this.#redeeming.get(key)
    if (redeeming !== undefined) return redeeming
    const rate = this.#redemptionRates.take(clientId, REDEMPTION_LIMIT, nowMs)
    if (!rate.conforms) {
      const limited = { name: 'transactions', limit: REDEMPTION_LIMIT }
      return refused({ reason: 'client-limit', retryAfterSeconds: rate.retryAfterSeconds, limited })
    }
    const asking = this.#verifier
      .redeem({ clientId, plan, txid })
      .then((response) => {
        const standing = this.#standingAfter(response, plan)
        if (!standing.paid) this.#redeemed.set(key, { standing, untilMs: Date.now() + REDEMPTION_KEPT_MS })
        return standing
      })
      .finally(() => this.#redeeming.delete(key))
    this.#redeeming.set(key, asking)
    return asking
  }

  #standingAfter(response: RedeemResponse, plan: string): PaymentStanding {
    const { outcome, pass, confirmationsMissing, retryAfterSeconds } = response
    this.#metrics.redemptions.inc({ outcome: OUTCOMES[outcome] ?? 'other' })
    const detail = response.detail === '' ? {} : { detail: response.detail }
    switch (outcome) {
      case RedeemOutcome.REDEEMED: {
        const held = pass && heldPass(pass)
        if (!held) return refused({ reason: 'unavailable' })
        // The bucket may tell of it later than the answer does; what it told already is newer.
        if (!this.#wallet.has(held.passId)) this.#wallet.set(held)
        return { paid: true, passId: held.passId }
      }
      case RedeemOutcome.PENDING:
        return refused({ reason: 'payment-pending', plan, confirmationsMissing, retryAfterSeconds, ...detail })
      case RedeemOutcome.NOT_SEEN:
        return refused({ reason: 'payment-not-seen', plan, retryAfterSeconds, ...detail })
      case RedeemOutcome.NOTHING_OPEN:
        return refused({ reason: 'nothing-to-redeem', ...detail })
      case RedeemOutcome.INSUFFICIENT:
        return refused({ reason: 'payment-insufficient', plan, ...detail })
      case RedeemOutcome.EXHAUSTED:
        return refused({ reason: 'pass-exhausted', plan, ...detail })
      default:
        return refused({ reason: 'unavailable' })
    }
  }
}

function refused(refusal: Refusal): PaymentStanding {
  return { paid: false, refusal }
}

/** Undefined for a format that a later version wrote. */
function heldPass(pass: Pass): HeldPass | undefined {
  if (pass.format !== PASS_FORMAT) return undefined
  return {
    passId: pass.passId,
    clientId: pass.clientId,
    plan: pass.plan,
    quotaRequests: pass.quotaRequests,
    activatedAtMs: pass.activatedAt ? timestampMs(pass.activatedAt) : 0,
    expiresAtMs: pass.expiresAt && timestampMs(pass.expiresAt),
    state: STATES[pass.state] ?? 'suspended',
  }
}
