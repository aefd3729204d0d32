import { hash } from 'node:crypto'
import { create } from '@bufbuild/protobuf'
import { timestampMs } from '@bufbuild/protobuf/wkt'
import type { Client } from '@tollward/bus'
import { type IssuerService, type TokenInfo, TokenInfoSchema } from '@tollward/contracts/token'
import { INTROSPECTOR_STALE_AFTER_MS, type Remembered, RevocableCache, tagsOf } from '@tollward/decision'
import { AppError } from '@tollward/errors'
import { isJwtShaped, isTokenShaped } from '../domain/introspection.ts'
import { type Life, usableUntilMs } from '../domain/usable.ts'
import type { IntrospectorMetrics } from '../metrics.ts'

/** About 2 KB each with its internal token: 40 MB. */
const CACHE_ENTRIES_MAX = 20_000

/** Revocations and changes remembered, so that an answer from before is known to be one: 10 MB. */
const FORGOTTEN_MAX = 50_000

/**
 * The issuer follows what clients are, and may not have heard yet what was heard here: for this long after an event, an answer about
 * what it concerns counts only if the issuer read it at its source. More than the 2.5 s for which the issuer trusts what it follows,
 * and an answer's way here.
 */
const ISSUER_LAG_MAX_MS = 5000

/** Questions to the issuer for one answer that no revocation overtook. More than one overtaking is very rare. */
const FILL_ATTEMPTS_MAX = 4

/** What a question is for: passing a request on, telling what an access token is worth, or what an internal one is. */
const PURPOSES = {
  pass: {},
  tell: { withoutInternalToken: true },
  'tell of internal': { withoutInternalToken: true, acceptInternal: true },
} as const
type Purpose = keyof typeof PURPOSES

/** What tokens are worth, from a cache that revocations keep honest. Inactive tokens are not kept: an attacker has as many as he likes. */
export interface Lookup {
  readonly size: number
  /**
   * What an access token is worth. Never answers `active` from an answer that is older than a revocation heard since; `pastCache`: nor
   * from one that was asked for before this question. AppError where the issuer is not reached.
   */
  introspect(token: string, options?: { readonly pastCache?: boolean }): TokenInfo | Promise<TokenInfo>
  /**
   * As introspect, but for telling only: without internal token, and also about internal tokens, which nobody may present to be let
   * in. Those are not remembered.
   */
  tell(token: string): TokenInfo | Promise<TokenInfo>
  /** Forgets what depends on the token with this hash, or on this tag. */
  forget(keyOrTag: string): void
}

/**
 * Opens the lookup. `feedSilentForMs` is since when a revocation may have been missed: past INTROSPECTOR_STALE_AFTER_MS the cache is
 * not used, the issuer is asked, and if it does not answer there is no answer. This edge fails closed.
 */
export function openLookup({
  issuer,
  feedSilentForMs,
  metrics,
  capacity = CACHE_ENTRIES_MAX,
}: {
  issuer: Pick<Client<typeof IssuerService>, 'exchange'>
  feedSilentForMs: () => number
  metrics: IntrospectorMetrics
  capacity?: number
}): Lookup {
  const evicted = () => metrics.evictions.inc()
  const cache = new RevocableCache<Remembered & { readonly info: TokenInfo }>({
    entriesMax: capacity,
    forgottenMax: FORGOTTEN_MAX,
    evicted,
  })
  const running = new Map<string, Promise<TokenInfo>>()

  /** Asks until there is an answer that no revocation overtook. */
  const ask = async (token: string, purpose: Purpose, atSource = false): Promise<TokenInfo> => {
    const tokenHash = hash('sha256', token, 'hex')
    let pastCache = atSource
    for (let attempt = 0; attempt < FILL_ATTEMPTS_MAX; attempt++) {
      const begun = cache.begin()
      const { info = create(TokenInfoSchema) } = await issuer.exchange({ token, pastCache, ...PURPOSES[purpose] })
      if (!info.active) return info
      const nowMs = Date.now()
      const tags = tagsOf(info)
      if (!pastCache && cache.wasForgottenSince(tags, nowMs - ISSUER_LAG_MAX_MS)) {
        pastCache = true
        continue
      }
      // An internal token depends on the one that it was made for, which its answer names.
      const isCurrent =
        purpose === 'tell of internal'
          ? !cache.isOutdated(begun, info.tokenHash, tags)
          : cache.finish(begun, tokenHash, { info, tags, usableUntilMs: usableUntilMs(lifeOf(info), nowMs) })
      if (isCurrent) return info
      metrics.outdatedFills.inc()
      pastCache = true
    }
    throw new AppError('unavailable', 'The token was revoked again and again while it was looked up; try again.')
  }

  const askOnce = (tokenHash: string, token: string, purpose: Purpose): Promise<TokenInfo> => {
    const key = `${purpose} ${tokenHash}`
    const shared = running.get(key)
    metrics.lookups(shared ? 'issuer, asked already' : 'issuer')
    if (shared) return shared
    const asked = ask(token, purpose).finally(() => running.delete(key))
    running.set(key, asked)
    return asked
  }

  const find = (token: string, purpose: 'pass' | 'tell', pastCache: boolean) => {
    if (!isTokenShaped(token)) return shapeless()
    if (pastCache || feedSilentForMs() > INTROSPECTOR_STALE_AFTER_MS) {
      metrics.lookups('issuer, past the cache')
      return ask(token, purpose, true)
    }
    const tokenHash = hash('sha256', token, 'hex')
    const known = cache.get(tokenHash, Date.now())?.info
    if (!known || (purpose === 'pass' && known.internalToken === '')) return askOnce(tokenHash, token, purpose)
    metrics.lookups('cache')
    return known
  }

  const shapeless = () => {
    metrics.lookups('shape')
    return create(TokenInfoSchema)
  }

  return {
    get size() {
      return cache.size
    },
    introspect: (token, { pastCache = false } = {}) => find(token, 'pass', pastCache),
    tell: (token) => {
      if (!isJwtShaped(token)) return find(token, 'tell', false)
      return isTokenShaped(token) ? askOnce(hash('sha256', token, 'hex'), token, 'tell of internal') : shapeless()
    },
    forget: (keyOrTag) => cache.forget(keyOrTag, Date.now()),
  }
}

function lifeOf({ expiresAt, internalTokenExpiresAt }: TokenInfo): Life {
  return {
    expiresAtMs: expiresAt ? timestampMs(expiresAt) : 0,
    internalTokenExpiresAtMs: internalTokenExpiresAt && timestampMs(internalTokenExpiresAt),
  }
}
