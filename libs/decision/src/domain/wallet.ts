import { DRY_FOR_MS, LEASE_IDLE_MS, LEASE_LOW_WATER, LEASE_REQUESTS_MAX, LEASE_SHARE } from '../edges.ts'

/** A pass as a decision point needs it. */
export interface HeldPass {
  readonly passId: string
  readonly clientId: string
  readonly plan: string
  /** 0: as many as come before it expires. */
  readonly quotaRequests: bigint
  readonly activatedAtMs: number
  readonly expiresAtMs: number | undefined
  /** exhausted: all of it is leased, so what we hold may be spent. suspended: its payment is not in the chain, nothing may. */
  readonly state: 'active' | 'exhausted' | 'suspended'
}

/**
 * Part of a pass's quota that we may serve by ourselves. Requests are those since it was leased; times are of a clock that never goes
 * back.
 */
interface Chunk {
  readonly leaseId: string
  granted: number
  served: number
  /** Served, and acknowledged as such. */
  recorded: number
  /** Served and not recorded are never more. */
  readonly unrecordedMax: number
  lastsMs: number
  /** Afterwards nothing of it may be served. */
  endsAtMs: number
  /** Nothing of it is served any more, and the verifier does not know that yet. */
  isOver: boolean
  /** What was served when that was looked at, and since when it has not changed. */
  idle: { served: number; sinceMs: number }
}

/** What the verifier answered to a lease. */
export interface LeaseAnswer {
  readonly leaseId: string
  /** Of the lease in all. */
  readonly grantedRequests: number
  readonly unrecordedRequestsMax: number
  readonly lastsMs: number
}

/** What has to be asked before more of a pass can be served, or should be asked by now: a chunk, a record, an end. */
export type Need = 'lease' | 'record' | 'end'

/** Of a chunk, what the verifier is told. */
export interface ChunkUse {
  /** Empty: whichever we have. */
  readonly leaseId: string
  readonly served: number
  /** Requests that count as served though they were not, if this is not heard in time. */
  readonly atStake: number
}

/** Which passes there are, by client and plan, and what is left of the chunks leased from them. */
export class Wallet {
  readonly #passes = new Map<string, HeldPass>()
  readonly #byOwner = new Map<string, HeldPass[]>()
  readonly #chunks = new Map<string, Chunk>()
  /** When nothing more could be leased. */
  readonly #dryAtMs = new Map<string, number>()

  get size(): number {
    return this.#passes.size
  }

  /** Takes the complete state in the place of all that was known. Chunks stay: they were leased. */
  replace(passes: Iterable<HeldPass>): void {
    this.#passes.clear()
    this.#byOwner.clear()
    for (const pass of passes) this.set(pass)
  }

  set(pass: HeldPass): void {
    this.remove(pass.passId)
    this.#passes.set(pass.passId, pass)
    const owner = ownerKey(pass.clientId, pass.plan)
    const owned = [...(this.#byOwner.get(owner) ?? []), pass]
    // The oldest is used up first; ids break ties, so that every decision point spends from the same one.
    owned.sort((a, b) => a.activatedAtMs - b.activatedAtMs || (a.passId < b.passId ? -1 : 1))
    this.#byOwner.set(owner, owned)
  }

  has(passId: string): boolean {
    return this.#passes.has(passId)
  }

  remove(passId: string): void {
    const pass = this.#passes.get(passId)
    if (!pass) return
    this.#passes.delete(passId)
    const owner = ownerKey(pass.clientId, pass.plan)
    const rest = (this.#byOwner.get(owner) ?? []).filter((other) => other.passId !== passId)
    if (rest.length === 0) this.#byOwner.delete(owner)
    else this.#byOwner.set(owner, rest)
  }

  /** The client's pass for the plan that may still admit something: the oldest that is in force and not used up. */
  current(clientId: string, plan: string, nowMs: number): HeldPass | undefined {
    return this.#byOwner.get(ownerKey(clientId, plan))?.find((pass) => this.#admits(pass, nowMs))
  }

  /** Whether a pass of the client for the plan is not used up, and yet has nothing left for us: others hold the rest. */
  isWithOthers(clientId: string, plan: string, nowMs: number): boolean {
    const owned = this.#byOwner.get(ownerKey(clientId, plan)) ?? []
    return owned.some(({ passId, state, expiresAtMs = Number.POSITIVE_INFINITY }) => {
      return state === 'active' && expiresAtMs > nowMs && this.#isDry(passId, nowMs)
    })
  }

  /** Takes one request from the pass. False: `need` says what has to be asked first. */
  take(pass: HeldPass, clockMs: number): boolean {
    if (pass.quotaRequests === 0n) return true
    const chunk = this.#chunks.get(pass.passId)
    if (!chunk || chunk.isOver || chunk.served >= chunk.granted || clockMs >= chunk.endsAtMs) return false
    if (chunk.served - chunk.recorded >= chunk.unrecordedMax) return false
    chunk.served += 1
    return true
  }

  /** What has to be asked before the next request can be taken, or is better asked by now; undefined: nothing. */
  need(pass: HeldPass, nowMs: number, clockMs: number): Need | undefined {
    if (pass.quotaRequests === 0n) return undefined
    const chunk = this.#chunks.get(pass.passId)
    const isDry = this.#isDry(pass.passId, nowMs)
    if (!chunk) return isDry ? undefined : 'lease'
    if (chunk.isOver || clockMs >= chunk.endsAtMs) return 'end'
    const unrecorded = chunk.served - chunk.recorded
    if (unrecorded >= chunk.unrecordedMax) return 'record'
    const left = chunk.granted - chunk.served
    if (left === 0) return isDry ? 'end' : 'lease'
    if (unrecorded * 2 >= chunk.unrecordedMax) return 'record'
    return !isDry && pass.state === 'active' && left < chunkRequests(pass) * LEASE_LOW_WATER ? 'lease' : undefined
  }

  /** Unserved requests to ask for: a chunk beyond what may already be served without being recorded. */
  wanted(passId: string): number {
    const pass = this.#passes.get(passId)
    const chunk = this.#chunks.get(passId)
    return (pass ? chunkRequests(pass) : 0) + (chunk ? chunk.served - chunk.recorded : 0)
  }

  /** Whether all of the pass's chunk is served, and nothing more could be leased. */
  isSpent(passId: string, nowMs: number): boolean {
    const chunk = this.#chunks.get(passId)
    return chunk !== undefined && chunk.served >= chunk.granted && this.#isDry(passId, nowMs)
  }

  /** Takes in what was leased; nothing more than before makes the pass dry for a while. `sentAtMs`: when it was asked. */
  leased(passId: string, answer: LeaseAnswer, nowMs: number, sentAtMs: number): void {
    const { leaseId, grantedRequests: granted, unrecordedRequestsMax: unrecordedMax, lastsMs } = answer
    const known = this.#chunks.get(passId)
    const before = known?.leaseId === leaseId ? known : undefined
    if (granted > (before?.granted ?? 0)) this.#dryAtMs.delete(passId)
    else this.#dryAtMs.set(passId, nowMs)
    if (granted === 0) return void this.#chunks.delete(passId)
    const endsAtMs = sentAtMs + lastsMs
    if (before) Object.assign(before, { granted: Math.max(before.granted, granted), lastsMs, endsAtMs })
    else {
      const idle = { served: 0, sinceMs: sentAtMs }
      const counts = { granted, served: 0, recorded: 0, unrecordedMax }
      this.#chunks.set(passId, { leaseId, ...counts, lastsMs, endsAtMs, isOver: false, idle })
    }
  }

  /** Nobody knows whether a lease was granted: nothing is served of it, and it has to be ended. */
  doubt(passId: string): void {
    if (this.#chunks.has(passId)) return
    const counts = { granted: 0, served: 0, recorded: 0, unrecordedMax: 0 }
    const idle = { served: 0, sinceMs: 0 }
    this.#chunks.set(passId, { leaseId: '', ...counts, lastsMs: 0, endsAtMs: 0, isOver: true, idle })
  }

  /** What was served of the pass's chunk. With `ends`, no more of it is. Undefined: there is none. */
  use(passId: string, ends: boolean): ChunkUse | undefined {
    const chunk = this.#chunks.get(passId)
    if (!chunk) return undefined
    if (ends) chunk.isOver = true
    const { leaseId, granted, served, recorded, unrecordedMax } = chunk
    return { leaseId, served, atStake: Math.min(granted - served, unrecordedMax - (served - recorded)) }
  }

  /** Takes in that a use is recorded, and for how long the lease lasts; undefined: it is over. `sentAtMs`: when the record was sent. */
  recorded(passId: string, { leaseId, served }: ChunkUse, lastsMs: number | undefined, sentAtMs: number): void {
    const chunk = this.#chunks.get(passId)
    if (chunk?.leaseId !== leaseId) return
    if (lastsMs === undefined) return void this.#chunks.delete(passId)
    Object.assign(chunk, { recorded: Math.max(chunk.recorded, served), lastsMs, endsAtMs: sentAtMs + lastsMs })
  }

  /** Chunks that have to be heard of though nobody may ask for them: those to renew, and idle ones to give back. */
  due(nowMs: number, clockMs: number): { readonly passId: string; readonly need: 'record' | 'end' }[] {
    for (const passId of this.#dryAtMs.keys()) if (!this.#isDry(passId, nowMs)) this.#dryAtMs.delete(passId)
    const due: { passId: string; need: 'record' | 'end' }[] = []
    for (const [passId, chunk] of this.#chunks) {
      if (chunk.idle.served !== chunk.served) chunk.idle = { served: chunk.served, sinceMs: clockMs }
      const isIdle = clockMs - chunk.idle.sinceMs >= LEASE_IDLE_MS
      if (chunk.isOver || isIdle || clockMs >= chunk.endsAtMs) due.push({ passId, need: 'end' })
      else if (chunk.endsAtMs - clockMs < chunk.lastsMs / 2) due.push({ passId, need: 'record' })
    }
    return due
  }

  /** The passes of which we hold a chunk. */
  held(): string[] {
    return [...this.#chunks.keys()]
  }

  #admits({ passId, quotaRequests, state, expiresAtMs }: HeldPass, nowMs: number): boolean {
    if (state === 'suspended' || (expiresAtMs !== undefined && expiresAtMs <= nowMs)) return false
    const chunk = this.#chunks.get(passId)
    if (chunk && chunk.served < chunk.granted) return true
    return state === 'active' && (quotaRequests === 0n || !this.#isDry(passId, nowMs))
  }

  /** Nothing was left to lease a moment ago. */
  #isDry(passId: string, nowMs: number): boolean {
    const dryAtMs = this.#dryAtMs.get(passId)
    return dryAtMs !== undefined && nowMs - dryAtMs < DRY_FOR_MS
  }
}

/** How many requests one lease asks for. */
export function chunkRequests({ quotaRequests }: HeldPass): number {
  return Math.min(LEASE_REQUESTS_MAX, Math.max(1, Math.ceil(Number(quotaRequests) * LEASE_SHARE)))
}

function ownerKey(clientId: string, plan: string): string {
  // Neither may hold a space: both are names of documents.
  return `${clientId} ${plan}`
}
