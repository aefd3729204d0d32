import type { Bus, Client, Following } from '@tollward/bus'
import { IntrospectorService, type TokenInfo } from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
import type { Logger } from 'pino'
import type { Counter } from 'prom-client'
import { BoundedMap } from '../domain/bounded-map.ts'
import { type CachedToken, CachedTokens } from '../domain/cached-token.ts'
import type { KnownToken, MaybePromise } from '../domain/judge.ts'
import { RevocableCache } from '../domain/revocable-cache.ts'
import { grantTag, tagsOf } from '../domain/revocation-tags.ts'
import {
  CALL_TIMEOUT_MS,
  ENDED_FOR_MS,
  FEED_STALE_AFTER_MS,
  INTROSPECTION_ATTEMPTS_MAX,
  INTROSPECTIONS_MAX,
  INTROSPECTOR_LAG_MAX_MS,
  REFRESH_BEFORE_MS,
  REFRESH_EVERY_MS,
  REVOCATION_MEMORY_MS,
  REVOCATIONS_MAX,
  TOKENS_MAX,
  WORTHLESS_FOR_MS,
  WORTHLESS_TOKENS_MAX,
} from '../edges.ts'
import type { DecisionMetrics } from '../metrics.ts'
import { followRevocations, type RevocationKind } from './revocations.ts'

/** What ends tokens once and for all; of a client or a person there can be tokens from afterwards. */
const ENDS_FOR_GOOD: ReadonlySet<RevocationKind> = new Set(['token', 'grant'])

/**
 * Tokens that were introspected, by the SHA-256 of the token; never the token itself. Revocations empty it, and outlast it:
 * an introspection that began before a revocation and ended after it counts for nothing.
 */
export class Tokens {
  readonly #introspector: Client<typeof IntrospectorService>
  readonly #metrics: DecisionMetrics
  /** Counting is on the way of every request, so its counter is looked up once. */
  readonly #knownLookups: Counter.Internal
  readonly #log: Logger
  readonly #known: RevocableCache<CachedToken>
  readonly #made = new CachedTokens()
  readonly #worthlessUntilMs: BoundedMap<string, number>
  /** Dropped by an event that the introspector may not have heard yet: there is no use in asking for what it remembers. */
  readonly #doubtedUntilMs: BoundedMap<string, number>
  readonly #asked = new Map<string, Promise<KnownToken | undefined>>()
  #feed: Following | undefined

  constructor(bus: Bus, log: Logger, metrics: DecisionMetrics) {
    this.#introspector = bus.client(IntrospectorService, { timeoutMs: CALL_TIMEOUT_MS })
    this.#metrics = metrics
    this.#knownLookups = metrics.tokenLookups.labels({ result: 'known' })
    this.#log = log
    const evicted = (table: string) => () => metrics.evictions.inc({ table })
    this.#known = new RevocableCache({
      entriesMax: TOKENS_MAX,
      forgottenMax: REVOCATIONS_MAX,
      evicted: evicted('tokens'),
    })
    this.#worthlessUntilMs = new BoundedMap(WORTHLESS_TOKENS_MAX, evicted('worthless tokens'))
    this.#doubtedUntilMs = new BoundedMap(TOKENS_MAX, evicted('doubted tokens'))
  }

  get size(): number {
    return this.#known.size
  }

  /** Begins to hear revocations. Resolves when those of the recent past are known. */
  async follow(bus: Bus, nowMs: number): Promise<AsyncDisposable> {
    this.#feed = await followRevocations(bus, nowMs - REVOCATION_MEMORY_MS, (keyOrTag, kind) =>
      this.#forget(keyOrTag, kind, Date.now()),
    )
    return this.#feed
  }

  #forget(keyOrTag: string, kind: RevocationKind, nowMs: number): void {
    const dropped = this.#known.forget(keyOrTag, nowMs)
    for (const hash of dropped) {
      if (kind !== 'client change')
        this.#worthless(hash, nowMs, ENDS_FOR_GOOD.has(kind) ? WORTHLESS_FOR_MS : ENDED_FOR_MS)
      if (!ENDS_FOR_GOOD.has(kind)) this.#doubtedUntilMs.set(hash, nowMs + INTROSPECTOR_LAG_MAX_MS)
    }
  }

  /** How long revocations have been out of earshot. */
  get silentForMs(): number {
    return this.#feed?.silentForMs ?? Number.POSITIVE_INFINITY
  }

  /**
   * What a token is worth; undefined: nothing. From memory where possible; one question at a time for each token. Throws
   * AppError `unavailable` while revocations can't be heard, rejects with it where the introspector can't be asked.
   */
  find(token: string, hash: string, nowMs: number): MaybePromise<KnownToken | undefined> {
    if (this.silentForMs > FEED_STALE_AFTER_MS) {
      throw new AppError('unavailable', 'Revocations of tokens cannot be heard; no token is trusted meanwhile.')
    }
    const known = this.#known.get(hash, nowMs)
    if (known) {
      if (known.internalExpiresAtMs - nowMs < REFRESH_BEFORE_MS && nowMs >= known.nextRefreshAtMs) {
        known.nextRefreshAtMs = nowMs + REFRESH_EVERY_MS
        this.#refresh(token, hash)
      }
      this.#knownLookups.inc()
      return known
    }
    const worthlessUntilMs = this.#worthlessUntilMs.get(hash)
    if (this.#known.wasForgotten(hash) || (worthlessUntilMs !== undefined && worthlessUntilMs > nowMs)) {
      this.#metrics.tokenLookups.inc({ result: 'worthless' })
      return undefined
    }
    this.#metrics.tokenLookups.inc({ result: 'asked' })
    return this.#ask(token, hash)
  }

  /** What is known of a token now, without asking anybody. */
  peek(hash: string, nowMs: number): (KnownToken & { readonly expiresAtMs: number }) | undefined {
    return this.#known.get(hash, nowMs)
  }

  /** Whether a token was revoked or its client, grant or person was ended or changed since then, or that could not be heard. */
  endedSince(token: Pick<KnownToken, 'hash' | 'clientId' | 'subject' | 'grantHash'>, sinceMs: number): boolean {
    return this.#known.wasForgotten(token.hash) || this.#known.wasForgottenSince(tagsOf(token), sinceMs)
  }

  #ask(token: string, hash: string): Promise<KnownToken | undefined> {
    const asked = this.#asked.get(hash)
    if (asked !== undefined) return asked
    if (this.#asked.size >= INTROSPECTIONS_MAX) {
      return Promise.reject(new AppError('unavailable', 'Too many unknown tokens at once.'))
    }
    const asking = this.#introspect(token, hash).finally(() => this.#asked.delete(hash))
    this.#asked.set(hash, asking)
    return asking
  }

  /** Goes on with the old internal token if this fails; when that expires, requests wait for a new one. */
  #refresh(token: string, hash: string): void {
    this.#ask(token, hash).catch((error: unknown) => this.#log.warn({ err: error }, 'internal token not refreshed'))
  }

  async #introspect(token: string, hash: string): Promise<KnownToken | undefined> {
    let pastCache = (this.#doubtedUntilMs.get(hash) ?? 0) > Date.now()
    this.#doubtedUntilMs.delete(hash)
    for (let attempt = 0; attempt < INTROSPECTION_ATTEMPTS_MAX; attempt++) {
      const begun = this.#known.begin()
      const { info } = await this.#introspector.introspect({ token, pastCache })
      const nowMs = Date.now()
      if (!info) throw new AppError('unavailable', 'The introspector answered something else than it should.')
      const known = this.#made.of(info, hash)
      if (!known || known.expiresAtMs <= nowMs || this.#isRevoked(hash, info)) return this.#worthless(hash, nowMs)
      if (known.internalExpiresAtMs <= nowMs) throw new AppError('unavailable', 'The internal token came expired.')
      const mayBeOld = !pastCache && this.#known.wasForgottenSince(known.tags, nowMs - INTROSPECTOR_LAG_MAX_MS)
      if (!mayBeOld && this.#known.finish(begun, hash, known)) return known
      pastCache = true
    }
    throw new AppError('unavailable', 'The token was revoked or changed again and again while it was looked up.')
  }

  #worthless(hash: string, nowMs: number, forMs = WORTHLESS_FOR_MS): undefined {
    this.#known.delete(hash)
    this.#worthlessUntilMs.set(hash, nowMs + forMs)
  }

  /** By what ends tokens once and for all. */
  #isRevoked(hash: string, { grantHash }: TokenInfo): boolean {
    return this.#known.wasForgotten(hash) || (grantHash !== '' && this.#known.wasForgotten(grantTag(grantHash)))
  }
}
