import type { BlockList } from '../domain/block-list.ts'
import type { CallerBlocks } from '../domain/caller-blocks.ts'
import { readFields } from '../domain/fields.ts'
import type { KnownToken, RequestFacts } from '../domain/judge.ts'
import type { Reason } from '../domain/reasons.ts'
import { FEED_STALE_AFTER_MS, WATCH_EVERY_MS } from '../edges.ts'
import type { Tokens } from './tokens.ts'

/** An admitted request that goes on. */
export interface Watched {
  readonly facts: Pick<RequestFacts, 'address' | 'headers'>
  /** When it was decided about, in milliseconds since the epoch. */
  readonly sinceMs: number
  /** It was admitted because its token is known, and not whoever sent it. */
  readonly byToken: boolean
}

interface Enforced {
  readonly blocks: Pick<BlockList, 'isBlocked'>
  readonly callerBlocks: Pick<CallerBlocks, 'covering'>
  readonly tokens: Pick<Tokens, 'peek' | 'endedSince' | 'silentForMs'>
  readonly hashToken: (token: string) => string
}

interface Watch {
  readonly address: Uint8Array
  readonly sinceMs: number
  readonly token: (KnownToken & { readonly expiresAtMs: number }) | undefined
  readonly ended: (reason: Reason) => void
}

/**
 * Requests under way whose callers may lose their right to be served. They are looked at every WATCH_EVERY_MS, a microsecond each:
 * so whatever ends a caller counts, also what happens without an event, such as the end of a token.
 */
export class Watches implements Disposable {
  readonly #enforced: Enforced
  readonly #watches = new Set<Watch>()
  #timer: NodeJS.Timeout | undefined

  constructor(enforced: Enforced) {
    this.#enforced = enforced
  }

  get size(): number {
    return this.#watches.size
  }

  /** See Decider.watch. */
  add({ facts, sinceMs, byToken }: Watched, ended: (reason: Reason) => void): Disposable {
    const token = byToken ? this.#tokenOf(facts) : undefined
    if (byToken && !token) {
      queueMicrotask(() => ended('token-invalid'))
      return { [Symbol.dispose]: () => {} }
    }
    const watch: Watch = { address: facts.address, sinceMs, token, ended }
    this.#watches.add(watch)
    this.#timer ??= setInterval(() => this.#look(Date.now()), WATCH_EVERY_MS).unref()
    return { [Symbol.dispose]: () => this.#forget(watch) }
  }

  [Symbol.dispose](): void {
    this.#watches.clear()
    clearInterval(this.#timer)
    this.#timer = undefined
  }

  #tokenOf({ headers }: Watched['facts']): Watch['token'] {
    const fields = readFields(headers)
    if (typeof fields === 'string' || fields.token === undefined) return undefined
    return this.#enforced.tokens.peek(this.#enforced.hashToken(fields.token), Date.now())
  }

  #look(nowMs: number): void {
    for (const watch of this.#watches) {
      const reason = this.#reasonToEnd(watch, nowMs)
      if (reason === undefined) continue
      this.#forget(watch)
      watch.ended(reason)
    }
  }

  #reasonToEnd({ address, token, sinceMs }: Watch, nowMs: number): Reason | undefined {
    const { blocks, callerBlocks, tokens } = this.#enforced
    if (blocks.isBlocked(address, nowMs)) return 'blocked'
    if (!token) return undefined
    if (tokens.silentForMs > FEED_STALE_AFTER_MS) return 'unavailable'
    if (callerBlocks.covering(token, nowMs)) return 'caller-blocked'
    return token.expiresAtMs <= nowMs || tokens.endedSince(token, sinceMs) ? 'token-invalid' : undefined
  }

  #forget(watch: Watch): void {
    this.#watches.delete(watch)
    if (this.#watches.size > 0) return
    clearInterval(this.#timer)
    this.#timer = undefined
  }
}
