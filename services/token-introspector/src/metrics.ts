import { Counter, Gauge, type Registry } from 'prom-client'

/** Metrics of token-introspector. */
export function introspectorMetrics(registry: Registry) {
  const registers = [registry]
  return {
    lookups: tally(registry, {
      name: 'tollward_token_introspector_lookups_total',
      help: 'Tokens asked about, by where the answer came from.',
      label: 'from',
    }),
    authentications: tally(registry, {
      name: 'tollward_token_introspector_authentications_total',
      help: 'Clients that authenticated themselves over HTTP, by who knew of them.',
      label: 'from',
    }),
    outdatedFills: new Counter({
      name: 'tollward_token_introspector_outdated_fills_total',
      help: 'Answers of the issuer thrown away because a revocation or change arrived while they were under way.',
      registers,
    }),
    revocations: new Counter({
      name: 'tollward_token_introspector_revocations_total',
      help: 'Revocations and changes heard from the issuer.',
      labelNames: ['of'],
      registers,
    }),
    evictions: new Counter({
      name: 'tollward_token_introspector_evictions_total',
      help: 'Entries that had to go because a cache was full.',
      registers,
    }),
    answers: tally(registry, {
      name: 'tollward_token_introspector_http_answers_total',
      help: 'Answers to introspection requests over HTTP, by status.',
      label: 'status',
    }),
  }
}

/** A counter that is on the way of every request: added up in a map, since the library takes a microsecond for each addition. */
function tally(
  registry: Registry,
  { name, help, label }: { readonly name: string; readonly help: string; readonly label: string },
): (value: string) => void {
  const added = new Map<string, number>()
  new Counter({
    name,
    help,
    labelNames: [label],
    registers: [registry],
    collect() {
      for (const [value, times] of added) this.inc({ [label]: value }, times)
      added.clear()
    },
  })
  return (value) => void added.set(value, (added.get(value) ?? 0) + 1)
}

/** What is read when metrics are. */
export function gaugeState(
  registry: Registry,
  state: { readonly entries: () => number; readonly feedSilentForMs: () => number },
): void {
  const registers = [registry]
  new Gauge({
    name: 'tollward_token_introspector_cache_entries',
    help: 'Tokens in the cache.',
    registers,
    collect() {
      this.set(state.entries())
    },
  })
  new Gauge({
    name: 'tollward_token_introspector_feed_silence_seconds',
    help: 'Since when a revocation may have been missed; beyond 3 the cache is not used.',
    registers,
    collect() {
      this.set(state.feedSilentForMs() / 1000)
    },
  })
}

export type IntrospectorMetrics = ReturnType<typeof introspectorMetrics>
