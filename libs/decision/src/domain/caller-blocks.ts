import { CALLER_BLOCKS_MAX, type CallerKind, type CallerName } from '@tollward/contracts'
import type { KnownToken } from './judge.ts'

/** One blocked caller. */
export interface CallerBlock extends CallerName {
  readonly expiresAtMs: number
}

/** Entries looked at for their end with each that is added. */
const SWEPT_AT_ONCE = 8

/** Which callers are blocked. Expiry is checked at look-up, so a block ends in time even if nobody says so. */
export class CallerBlocks {
  readonly #capacity: number
  #expiries = new Map<string, number>()
  #sweeping = this.#expiries.entries()

  constructor(capacity = CALLER_BLOCKS_MAX) {
    this.#capacity = capacity
  }

  get size(): number {
    return this.#expiries.size
  }

  /** An empty state, to be filled while the one in force goes on. */
  draft(): CallerBlocks {
    return new CallerBlocks(this.#capacity)
  }

  /** Takes a draft in the place of all that was known. */
  swap(draft: CallerBlocks): void {
    this.#expiries = draft.#expiries
    this.#sweeping = draft.#sweeping
  }

  /** False: not taken, because there is no room; the blocks in force stay in force. */
  set({ kind, value, expiresAtMs }: CallerBlock, nowMs = 0): boolean {
    const key = `${kind} ${value}`
    this.#sweep(nowMs)
    if (this.#expiries.size >= this.#capacity && !this.#expiries.has(key)) return false
    this.#expiries.set(key, expiresAtMs)
    return true
  }

  remove({ kind, value }: CallerName): void {
    this.#expiries.delete(`${kind} ${value}`)
  }

  /** By what a block that has not expired covers whoever presents this token; undefined: none does. */
  covering({ hash, grantHash, clientId, subject }: KnownToken, nowMs: number): CallerKind | undefined {
    if (this.#expiries.size === 0) return undefined
    if (this.#holds('token', hash, nowMs)) return 'token'
    if (this.#holds('grant', grantHash, nowMs)) return 'grant'
    if (this.#holds('client', clientId, nowMs)) return 'client'
    return this.#holds('subject', subject, nowMs) ? 'subject' : undefined
  }

  #holds(kind: CallerKind, value: string, nowMs: number): boolean {
    return (this.#expiries.get(`${kind} ${value}`) ?? 0) > nowMs
  }

  #sweep(nowMs: number): void {
    for (let looked = 0; looked < SWEPT_AT_ONCE; looked++) {
      const next = this.#sweeping.next()
      if (next.done) {
        this.#sweeping = this.#expiries.entries()
        return
      }
      const [key, expiresAtMs] = next.value
      if (expiresAtMs <= nowMs) this.#expiries.delete(key)
    }
  }
}
