import { DRY_FOR_MS, LEASE_LOW_WATER, LEASE_REQUESTS_MAX, LEASE_SHARE } from '../edges.ts'

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

interface Chunk {
  left: number
  /** Nothing was left to lease at that time. */
  dryAtMs: number | undefined
}

/** Which passes there are, by client and plan, and what is left of the chunks leased from them. */
export class Wallet {
  readonly #passes = new Map<string, HeldPass>()
  readonly #byOwner = new Map<string, HeldPass[]>()
  readonly #chunks = new Map<string, Chunk>()

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

  /** Takes one request from the pass. False: more has to be leased first. */
  take(pass: HeldPass): boolean {
    if (pass.quotaRequests === 0n) return true
    const chunk = this.#chunks.get(pass.passId)
    if (!chunk || chunk.left === 0) return false
    chunk.left -= 1
    return true
  }

  /** Whether the next chunk should be asked for by now. */
  isLow(pass: HeldPass): boolean {
    const left = this.#chunks.get(pass.passId)?.left ?? 0
    return pass.state === 'active' && pass.quotaRequests > 0n && left < chunkRequests(pass) * LEASE_LOW_WATER
  }

  /** Adds what was leased; nothing makes the pass dry for a while. */
  leased(passId: string, requests: number, nowMs: number): void {
    const chunk = this.#chunks.get(passId) ?? { left: 0, dryAtMs: undefined }
    chunk.left += requests
    chunk.dryAtMs = requests === 0 ? nowMs : undefined
    this.#chunks.set(passId, chunk)
  }

  /** Whatever was leased and not spent, to be given back; nothing of it is left here. */
  giveBack(): { readonly passId: string; readonly unused: number }[] {
    const unused = [...this.#chunks].map(([passId, { left }]) => ({ passId, unused: left }))
    this.#chunks.clear()
    return unused.filter((chunk) => chunk.unused > 0)
  }

  #admits({ passId, quotaRequests, state, expiresAtMs }: HeldPass, nowMs: number): boolean {
    if (state === 'suspended' || (expiresAtMs !== undefined && expiresAtMs <= nowMs)) return false
    const chunk = this.#chunks.get(passId)
    if (chunk && chunk.left > 0) return true
    const isDry = chunk?.dryAtMs !== undefined && nowMs - chunk.dryAtMs < DRY_FOR_MS
    return state === 'active' && (quotaRequests === 0n || !isDry)
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
