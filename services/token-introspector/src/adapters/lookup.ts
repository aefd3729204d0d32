import { hash } from 'node:crypto'
import { create } from '@bufbuild/protobuf'
import { timestampMs } from '@bufbuild/protobuf/wkt'
import type { Client } from '@tollward/bus'
import { type IssuerService, type TokenInfo, TokenInfoSchema } from '@tollward/contracts/token'
import { AppError } from '@tollward/errors'
import { isTokenShaped } from '../domain/introspection.ts'
import { type CachedToken, TokenCache } from '../domain/token-cache.ts'
import type { IntrospectorMetrics } from '../metrics.ts'

/** About 2 KB each with its internal token: 40 MB. */
const CACHE_ENTRIES_MAX = 20_000

/**
 * A revocation feed on which the bus was not heard for this long (it speaks every second) may have missed a revocation. Then
 * the cache is not used: the issuer is asked, and if it does not answer there is no answer. This edge fails closed.
 */
export const FEED_SILENCE_MAX_MS = 3000

/** Questions to the issuer for one answer that no revocation overtook. More than one overtaking is very rare. */
const FILL_ATTEMPTS_MAX = 4

interface Entry extends CachedToken {
  readonly info: TokenInfo
}

/** What tokens are worth, from a cache that revocations keep honest. */
export interface Lookup {
  /** Never answers `active` from an answer that is older than a revocation heard since. AppError where the issuer is not reached. */
  introspect(token: string): Promise<TokenInfo>
  tokenRevoked(tokenHash: string): void
  clientRevoked(clientId: string): void
  /** Empties the cache if the feed is silent: what it missed comes late, and until then no entry can be trusted. */
  checkFeed(): void
}

/** Opens the lookup. `feedSilentForMs` is how long ago the bus was heard on the revocation feed. */
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
  const cache = new TokenCache<Entry>(capacity, () => metrics.evictions.inc())
  const running = new Map<string, Promise<TokenInfo>>()
  const silent = () => feedSilentForMs() > FEED_SILENCE_MAX_MS
  const gauge = () => metrics.entries.set(cache.size)

  const ask = async (token: string): Promise<TokenInfo> => {
    const { info } = await issuer.exchange({ token })
    return info ?? create(TokenInfoSchema)
  }

  const fill = async (token: string, tokenHash: string): Promise<TokenInfo> => {
    for (let attempt = 0; attempt < FILL_ATTEMPTS_MAX; attempt++) {
      const begun = cache.begin(tokenHash)
      let info: TokenInfo
      try {
        info = await ask(token)
      } catch (error) {
        cache.abandon(begun)
        throw error
      }
      if (silent()) {
        cache.abandon(begun)
        return info
      }
      if (cache.finish(begun, entryOf(info), Date.now())) {
        gauge()
        return info
      }
      metrics.outdatedFills.inc()
    }
    throw new AppError('unavailable', 'The token was revoked again and again while it was looked up; try again.')
  }

  return {
    introspect: (token) => {
      if (!isTokenShaped(token)) {
        metrics.lookups.inc({ from: 'shape' })
        return Promise.resolve(create(TokenInfoSchema))
      }
      if (silent()) {
        metrics.lookups.inc({ from: 'issuer, past the cache' })
        return ask(token)
      }
      const tokenHash = hash('sha256', token, 'hex')
      const known = cache.get(tokenHash, Date.now())
      if (known) {
        metrics.lookups.inc({ from: 'cache' })
        return Promise.resolve(known.info)
      }
      const shared = running.get(tokenHash)
      metrics.lookups.inc({ from: shared ? 'issuer, asked already' : 'issuer' })
      if (shared) return shared
      const asked = fill(token, tokenHash).finally(() => running.delete(tokenHash))
      running.set(tokenHash, asked)
      return asked
    },

    tokenRevoked: (tokenHash) => {
      metrics.revocations.inc({ of: 'token' })
      cache.revokeToken(tokenHash)
      gauge()
    },

    clientRevoked: (clientId) => {
      metrics.revocations.inc({ of: 'client' })
      cache.revokeClient(clientId)
      gauge()
    },

    checkFeed: () => {
      metrics.feedSilence.set(feedSilentForMs() / 1000)
      if (!silent()) return
      cache.clear()
      gauge()
    },
  }
}

function entryOf(info: TokenInfo): Entry | undefined {
  if (!info.active || !info.expiresAt || !info.internalTokenExpiresAt) return undefined
  return {
    info,
    clientId: info.clientId,
    expiresAtMs: timestampMs(info.expiresAt),
    internalTokenExpiresAtMs: timestampMs(info.internalTokenExpiresAt),
  }
}
