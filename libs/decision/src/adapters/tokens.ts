import { timestampMs } from '@bufbuild/protobuf/wkt'
import type { Bus, Client, Following } from '@tollward/bus'
import { contract } from '@tollward/contracts'
import { ClientRevokedSchema, IntrospectorService, type TokenInfo, TokenRevokedSchema } from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
import type { Logger } from 'pino'
import { identityHeaders } from '../domain/answer.ts'
import { BoundedMap } from '../domain/bounded-map.ts'
import type { KnownToken, MaybePromise } from '../domain/judge.ts'
import {
  CALL_TIMEOUT_MS,
  FEED_STALE_AFTER_MS,
  INTERNAL_TOKEN_LEFT_MIN_MS,
  INTROSPECTIONS_MAX,
  REFRESH_BEFORE_MS,
  REFRESH_EVERY_MS,
  REVOCATION_MEMORY_MS,
  REVOCATIONS_MAX,
  TOKENS_MAX,
  WORTHLESS_FOR_MS,
  WORTHLESS_TOKENS_MAX,
} from '../edges.ts'
import type { DecisionMetrics } from '../metrics.ts'

interface CachedToken extends KnownToken {
  readonly expiresAtMs: number
  readonly internalExpiresAtMs: number
  nextRefreshAtMs: number
}

/**
 * Tokens that were introspected, by the SHA-256 of the token; never the token itself. Revocations empty it, and outlast it:
 * an introspection that began before a revocation and ended after it counts for nothing.
 */
export class Tokens {
  readonly #introspector: Client<typeof IntrospectorService>
  readonly #metrics: DecisionMetrics
  readonly #log: Logger
  readonly #known: BoundedMap<string, CachedToken>
  readonly #worthlessUntilMs: BoundedMap<string, number>
  readonly #revoked: BoundedMap<string, true>
  readonly #clientRevokedAtMs: BoundedMap<string, number>
  readonly #asked = new Map<string, Promise<KnownToken | undefined>>()
  readonly #feeds: Following[] = []

  constructor(bus: Bus, log: Logger, metrics: DecisionMetrics) {
    this.#introspector = bus.client(IntrospectorService, { timeoutMs: CALL_TIMEOUT_MS })
    this.#metrics = metrics
    this.#log = log
    const evicted = (table: string) => () => metrics.evictions.inc({ table })
    this.#known = new BoundedMap(TOKENS_MAX, evicted('tokens'))
    this.#worthlessUntilMs = new BoundedMap(WORTHLESS_TOKENS_MAX, evicted('worthless tokens'))
    this.#revoked = new BoundedMap(REVOCATIONS_MAX, evicted('revocations'))
    this.#clientRevokedAtMs = new BoundedMap(REVOCATIONS_MAX, evicted('client revocations'))
  }

  get size(): number {
    return this.#known.size
  }

  /** Begins to hear revocations. Resolves when those of the recent past are known. */
  async follow(bus: Bus, nowMs: number): Promise<AsyncDisposable> {
    const since = { timeMs: nowMs - REVOCATION_MEMORY_MS }
    await using stack = new AsyncDisposableStack()
    const tokens = await bus.follow(contract(TokenRevokedSchema), since, ({ tokenHash }) =>
      this.#onTokenRevoked(tokenHash),
    )
    this.#feeds.push(stack.use(tokens))
    const clients = await bus.follow(
      contract(ClientRevokedSchema),
      since,
      ({ clientId, revokedAt }, { publishedAtMs }) =>
        this.#onClientRevoked(clientId, revokedAt ? timestampMs(revokedAt) : publishedAtMs),
    )
    this.#feeds.push(stack.use(clients))
    return stack.move()
  }

  /** How long revocations have been out of earshot. */
  get silentForMs(): number {
    return this.#feeds.reduce((longest, feed) => Math.max(longest, feed.silentForMs), 0)
  }

  /**
   * What a token is worth; undefined: nothing. From memory where possible; one question at a time for each token. Throws
   * AppError `unavailable` while revocations can't be heard, rejects with it where the introspector can't be asked.
   */
  find(token: string, hash: string, nowMs: number): MaybePromise<KnownToken | undefined> {
    if (this.silentForMs > FEED_STALE_AFTER_MS) {
      throw new AppError('unavailable', 'Revocations of tokens cannot be heard; no token is trusted meanwhile.')
    }
    const known = this.#known.get(hash)
    if (known && usable(known, nowMs)) {
      if (known.internalExpiresAtMs - nowMs < REFRESH_BEFORE_MS && nowMs >= known.nextRefreshAtMs) {
        known.nextRefreshAtMs = nowMs + REFRESH_EVERY_MS
        this.#refresh(token, hash)
      }
      this.#metrics.tokenLookups.inc({ result: 'known' })
      return known
    }
    const worthlessUntilMs = this.#worthlessUntilMs.get(hash)
    if (this.#revoked.get(hash) || (worthlessUntilMs !== undefined && worthlessUntilMs > nowMs)) {
      this.#metrics.tokenLookups.inc({ result: 'worthless' })
      return undefined
    }
    this.#metrics.tokenLookups.inc({ result: 'asked' })
    return this.#ask(token, hash)
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
    const { info } = await this.#introspector.introspect({ token })
    const nowMs = Date.now()
    const known = info && cachedToken(info, hash)
    if (!known || known.expiresAtMs <= nowMs || this.#isRevoked(known, info)) {
      this.#known.delete(hash)
      this.#worthlessUntilMs.set(hash, nowMs + WORTHLESS_FOR_MS)
      return undefined
    }
    if (known.internalExpiresAtMs <= nowMs) throw new AppError('unavailable', 'The internal token came expired.')
    this.#known.set(hash, known)
    return known
  }

  #isRevoked({ hash, clientId }: KnownToken, { issuedAt }: TokenInfo): boolean {
    const clientRevokedAtMs = this.#clientRevokedAtMs.get(clientId)
    if (this.#revoked.get(hash)) return true
    return clientRevokedAtMs !== undefined && (!issuedAt || timestampMs(issuedAt) < clientRevokedAtMs)
  }

  #onTokenRevoked(hash: string): void {
    this.#revoked.set(hash, true)
    this.#known.delete(hash)
  }

  #onClientRevoked(clientId: string, revokedAtMs: number): void {
    this.#clientRevokedAtMs.set(clientId, Math.max(revokedAtMs, this.#clientRevokedAtMs.get(clientId) ?? 0))
    // Those issued since are asked about again, which costs one introspection each.
    for (const [hash, token] of this.#known.entries()) if (token.clientId === clientId) this.#known.delete(hash)
  }
}

function usable({ expiresAtMs, internalExpiresAtMs }: CachedToken, nowMs: number): boolean {
  return expiresAtMs > nowMs && internalExpiresAtMs - nowMs > INTERNAL_TOKEN_LEFT_MIN_MS
}

/** Undefined unless the token is active and everything that makes it usable is there. */
function cachedToken(info: TokenInfo, hash: string): CachedToken | undefined {
  const {
    active,
    clientId,
    subject,
    scopes,
    audience,
    selfRegistered,
    expiresAt,
    internalToken,
    internalTokenExpiresAt,
  } = info
  if (!active || clientId === '' || internalToken === '' || !expiresAt || !internalTokenExpiresAt) return undefined
  return {
    hash,
    clientId,
    scopes: new Set(scopes),
    audience,
    selfRegistered,
    identity: identityHeaders({ clientId, subject, scopes, internalToken }),
    expiresAtMs: timestampMs(expiresAt),
    internalExpiresAtMs: timestampMs(internalTokenExpiresAt),
    nextRefreshAtMs: 0,
  }
}
