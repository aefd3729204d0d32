/** What is remembered of an active token. Times are milliseconds since the epoch. */
export interface CachedToken {
  readonly clientId: string
  readonly expiresAtMs: number
  readonly internalTokenExpiresAtMs: number
}

/** A question to the issuer that is under way, and what was revoked since it was asked. */
export interface Fill {
  readonly tokenHash: string
  tokenRevoked: boolean
  readonly clientsRevoked: Set<string>
}

/** An internal token with less life left than this is not handed out again: upstream has to be able to use it. */
const INTERNAL_TOKEN_LEFT_MIN_MS = 15_000

/**
 * Active tokens by their hash: bounded, the longest unused goes first; indexed by client, so that the revocation of a client
 * finds its tokens. Inactive ones are not kept: an attacker has as many of them as he likes.
 */
export class TokenCache<T extends CachedToken> {
  readonly #capacity: number
  readonly #entries = new Map<string, { value: T; usableUntilMs: number }>()
  readonly #byClient = new Map<string, Set<string>>()
  readonly #fills = new Set<Fill>()
  readonly #evicted: () => void

  /** `evicted` is called for each entry that has to go because the cache is full. */
  constructor(capacity: number, evicted: () => void) {
    this.#capacity = capacity
    this.#evicted = evicted
  }

  get size(): number {
    return this.#entries.size
  }

  /** The token, if it is known and still usable. */
  get(tokenHash: string, nowMs: number): T | undefined {
    const entry = this.#entries.get(tokenHash)
    if (!entry) return undefined
    this.#forget(tokenHash)
    if (entry.usableUntilMs <= nowMs) return undefined
    this.#remember(tokenHash, entry)
    return entry.value
  }

  /** Notes that the issuer is being asked. Every fill that began has to be ended by `finish` or `abandon`. */
  begin(tokenHash: string): Fill {
    const fill = { tokenHash, tokenRevoked: false, clientsRevoked: new Set<string>() }
    this.#fills.add(fill)
    return fill
  }

  /**
   * Takes the issuer's answer, undefined where the token is inactive. False: something that it depends on was revoked after
   * it was asked for, so it may be older than the revocation and must not be used.
   */
  finish(fill: Fill, value: T | undefined, nowMs: number): boolean {
    this.#fills.delete(fill)
    if (!value) return true
    if (fill.tokenRevoked || fill.clientsRevoked.has(value.clientId)) return false
    const usableUntilMs = usableUntil(value)
    if (usableUntilMs > nowMs) this.#remember(fill.tokenHash, { value, usableUntilMs })
    return true
  }

  /** The issuer did not answer. */
  abandon(fill: Fill): void {
    this.#fills.delete(fill)
  }

  revokeToken(tokenHash: string): void {
    this.#forget(tokenHash)
    for (const fill of this.#fills) if (fill.tokenHash === tokenHash) fill.tokenRevoked = true
  }

  revokeClient(clientId: string): void {
    for (const tokenHash of this.#byClient.get(clientId) ?? []) this.#entries.delete(tokenHash)
    this.#byClient.delete(clientId)
    for (const fill of this.#fills) fill.clientsRevoked.add(clientId)
  }

  clear(): void {
    this.#entries.clear()
    this.#byClient.clear()
  }

  #remember(tokenHash: string, entry: { value: T; usableUntilMs: number }): void {
    this.#forget(tokenHash)
    this.#entries.set(tokenHash, entry)
    const ofClient = this.#byClient.get(entry.value.clientId)
    if (ofClient) ofClient.add(tokenHash)
    else this.#byClient.set(entry.value.clientId, new Set([tokenHash]))
    if (this.#entries.size <= this.#capacity) return
    // A Map keeps the order of insertion, and a use inserts again.
    const [oldest] = this.#entries.keys()
    if (oldest !== undefined) this.#forget(oldest)
    this.#evicted()
  }

  #forget(tokenHash: string): void {
    const entry = this.#entries.get(tokenHash)
    if (!entry) return
    this.#entries.delete(tokenHash)
    const ofClient = this.#byClient.get(entry.value.clientId)
    ofClient?.delete(tokenHash)
    if (ofClient?.size === 0) this.#byClient.delete(entry.value.clientId)
  }
}

function usableUntil({ expiresAtMs, internalTokenExpiresAtMs }: CachedToken): number {
  // Close to the end of the access token there is no longer internal token to be had.
  if (internalTokenExpiresAtMs >= expiresAtMs) return expiresAtMs
  return internalTokenExpiresAtMs - INTERNAL_TOKEN_LEFT_MIN_MS
}
