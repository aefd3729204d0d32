import { Counter, Gauge, type Registry } from 'prom-client'

/** Metrics of token-introspector. */
export function introspectorMetrics(registry: Registry) {
  const registers = [registry]
  return {
    lookups: new Counter({
      name: 'tollward_token_introspector_lookups_total',
      help: 'Tokens asked about, by where the answer came from.',
      labelNames: ['from'],
      registers,
    }),
    outdatedFills: new Counter({
      name: 'tollward_token_introspector_outdated_fills_total',
      help: 'Answers of the issuer thrown away because a revocation arrived while they were under way.',
      registers,
    }),
    revocations: new Counter({
      name: 'tollward_token_introspector_revocations_total',
      help: 'Revocations heard from the issuer.',
      labelNames: ['of'],
      registers,
    }),
    evictions: new Counter({
      name: 'tollward_token_introspector_evictions_total',
      help: 'Entries that had to go because the cache was full.',
      registers,
    }),
    entries: new Gauge({
      name: 'tollward_token_introspector_cache_entries',
      help: 'Tokens in the cache.',
      registers,
    }),
    feedSilence: new Gauge({
      name: 'tollward_token_introspector_feed_silence_seconds',
      help: 'Time since the bus was last heard on the revocation feed; beyond 3 the cache is not used.',
      registers,
    }),
    answers: new Counter({
      name: 'tollward_token_introspector_http_answers_total',
      help: 'Answers to introspection requests over HTTP, by status.',
      labelNames: ['status'],
      registers,
    }),
  }
}

export type IntrospectorMetrics = ReturnType<typeof introspectorMetrics>
