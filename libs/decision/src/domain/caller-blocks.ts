import type { KnownToken } from './judge.ts'

/** Which of the things that a token says is blocked. */
export type CallerKind = 'token' | 'grant' | 'client' | 'subject'

/** One blocked caller. */
export interface CallerBlock {
  readonly kind: CallerKind
  /** A hash for token and grant, an id for client and subject. */
  readonly value: string
  readonly expiresAtMs: number
}

/** Which callers are blocked. Expiry is checked at look-up, so a block ends in time even if nobody says so. */
export class CallerBlocks {
  #expiries = new Map<string, number>()

  get size(): number {
    return this.#expiries.size
  }

  /** Takes the complete state in the place of all that was known. */
  replace(blocks: Iterable<CallerBlock>): void {
    const expiries = new Map<string, number>()
    for (const { kind, value, expiresAtMs } of blocks) expiries.set(`${kind} ${value}`, expiresAtMs)
    this.#expiries = expiries
  }

  set({ kind, value, expiresAtMs }: CallerBlock): void {
    this.#expiries.set(`${kind} ${value}`, expiresAtMs)
  }

  remove(kind: CallerKind, value: string): void {
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
}
