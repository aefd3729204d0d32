import { hash, randomBytes } from 'node:crypto'
import type { Client } from '@tollward/bus'
import type { IssuerService } from '@tollward/contracts/token'
import { clientTag, INTROSPECTOR_STALE_AFTER_MS, type Remembered, RevocableCache } from '@tollward/decision'
import { type Presented, parseBasic } from '../domain/credentials.ts'
import type { Caller } from '../domain/introspection.ts'
import type { IntrospectorMetrics } from '../metrics.ts'

/** Whoever introspects does so often; a replaced secret or a changed document is heard of long before this is over. */
const CALLER_LIFE_MS = 30_000

/** Resource servers are few; replaced secrets go with their clients. */
const CALLERS_MAX = 10_000

const FORGOTTEN_MAX = 10_000

/** A whole block of SHA-256, so that the hash of key and credentials is keyed; it never leaves this process. */
const KEY_BYTES = 64

/** Clients that authenticated themselves a moment ago. */
export interface Callers {
  /** Undefined: these are no client's credentials. AppError where the issuer is not reached. */
  authenticate(presented: Presented): Caller | undefined | Promise<Caller | undefined>
  /** Forgets what depends on this tag. */
  forget(tag: string): void
}

/**
 * Opens them. Right credentials are remembered by a keyed hash whose key this process alone has; wrong ones are asked about each time.
 * As with tokens, nothing is remembered while revocations may be missed.
 */
export function openCallers({
  issuer,
  feedSilentForMs,
  metrics,
}: {
  issuer: Pick<Client<typeof IssuerService>, 'authenticateClient'>
  feedSilentForMs: () => number
  metrics: IntrospectorMetrics
}): Callers {
  const hashKey = randomBytes(KEY_BYTES).toString('latin1')
  const evicted = () => metrics.evictions.inc()
  const cache = new RevocableCache<Remembered & { readonly caller: Caller }>({
    entriesMax: CALLERS_MAX,
    forgottenMax: FORGOTTEN_MAX,
    evicted,
  })

  const ask = async (presented: Presented, key: string): Promise<Caller | undefined> => {
    const credentials = 'authorization' in presented ? parseBasic(presented.authorization) : presented
    if (!credentials) return undefined
    metrics.authentications('issuer')
    const { clientId } = credentials
    const begun = cache.begin()
    const { authenticated, introspects } = await issuer.authenticateClient(credentials)
    if (!authenticated) return undefined
    const caller = { clientId, introspects }
    // Where the client was revoked or changed meanwhile this answer is as good as one a moment ago, but the next question asks again.
    cache.finish(begun, key, { caller, tags: [clientTag(clientId)], usableUntilMs: Date.now() + CALLER_LIFE_MS })
    return caller
  }

  return {
    authenticate: (presented) => {
      const key = hash('sha256', hashKey + textOf(presented), 'base64')
      const known = feedSilentForMs() > INTROSPECTOR_STALE_AFTER_MS ? undefined : cache.get(key, Date.now())?.caller
      if (!known) return ask(presented, key)
      metrics.authentications('cache')
      return known
    },
    forget: (tag) => cache.forget(tag, Date.now()),
  }
}

/** Different for any two credentials. */
function textOf(presented: Presented): string {
  if ('authorization' in presented) return `header ${presented.authorization}`
  return `body ${presented.clientId.length}:${presented.clientId}${presented.clientSecret}`
}
