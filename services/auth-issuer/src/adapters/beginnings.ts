import type { AddressRange } from '@tollward/contracts'
import { type Rate, sourceOf, takeAttempt } from '../domain/attempts.ts'
import type { IssuerMetrics } from '../metrics.ts'
import type { ProviderPart } from './compose.ts'
import { answerPage } from './people/layout.ts'
import { messagePage } from './people/pages.ts'
import { sourceAddress } from './people/source-address.ts'

/** Where anybody can begin something that is then kept for a while: a sign-in, a device's code. */
const PATHS: ReadonlySet<string> = new Set(['/auth', '/device/auth'])

/**
 * So many may be begun from one IPv4 address or /64 of IPv6 at once, then so many a second: for an office behind one address, and
 * few enough that one source cannot fill what is kept of them (a sign-in has 2 kB for 15 minutes, the bucket 64 MiB).
 */
const BEGINNING_RATE: Rate = { burst: 600, intervalMs: 200 }

/** Sources that are remembered, 100 bytes each; the one that was longest silent is forgotten first. */
const SOURCES_MAX = 100_000

export interface BeginningsOptions {
  readonly trustedProxies: readonly AddressRange[]
  readonly metrics: Pick<IssuerMetrics, 'refused' | 'sourcesForgotten'>
}

/**
 * Limits what strangers can make us keep. Each replica counts for itself: a count that all share would be a compare-and-set for which
 * the many honest people of one office get into each other's way.
 */
export function beginningsPart({ trustedProxies, metrics }: BeginningsOptions): ProviderPart {
  const arrivals = new Map<string, number>()

  /** 0: it may go on; otherwise after how many milliseconds to come again. */
  const take = (address: Uint8Array): number => {
    const source = Buffer.from(sourceOf(address)).toString('base64')
    const taken = takeAttempt(arrivals.get(source) ?? 0, BEGINNING_RATE, Date.now())
    if ('retryAfterMs' in taken) return taken.retryAfterMs
    arrivals.delete(source)
    arrivals.set(source, taken.theoreticalArrivalMs)
    for (const longestSilent of arrivals.keys()) {
      if (arrivals.size <= SOURCES_MAX) break
      arrivals.delete(longestSilent)
      metrics.sourcesForgotten.inc()
    }
    return 0
  }

  return {
    install: (provider) => {
      provider.use(async (ctx, next) => {
        if (!PATHS.has(ctx.path) || ctx.method === 'OPTIONS') return next()
        const retryAfterMs = take(sourceAddress(ctx.req, trustedProxies))
        if (retryAfterMs === 0) return next()
        metrics.refused.inc({ error: 'slow_down' })
        ctx.set('Retry-After', String(Math.ceil(retryAfterMs / 1000)))
        const explanation = 'Too much was begun from your network. Wait a few seconds and try again.'
        if (ctx.accepts('json', 'html') === 'html') return answerPage(ctx, messagePage('Too many', explanation), 429)
        ctx.status = 429
        ctx.body = { error: 'slow_down', error_description: explanation }
      })
    },
  }
}
