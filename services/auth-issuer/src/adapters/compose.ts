import type { Configuration, Provider } from 'oidc-provider'

/** A part of the OAuth server: what it configures, and what it does with the provider once that is there. */
export interface ProviderPart {
  readonly configuration?: Configuration
  /** Middleware, grant types, overridden methods. Called for each provider that is made, before it answers anything. */
  readonly install?: (provider: Provider) => void
}

/** Members whose own members are merged; of any other member the last part that has it wins. */
const MERGED = ['features', 'ttl', 'discovery', 'enabledJWA', 'clientDefaults', 'routes', 'cookies', 'claims'] as const

/** One configuration out of those of all parts, later ones over earlier ones. */
export function composedConfiguration(parts: readonly ProviderPart[]): Configuration {
  const configurations = parts.flatMap(({ configuration }) => configuration ?? [])
  const merged = MERGED.flatMap((member) => {
    const values = configurations.flatMap((configuration) => configuration[member] ?? [])
    return values.length === 0 ? [] : [[member, Object.assign({}, ...values)]]
  })
  return Object.assign({}, ...configurations, Object.fromEntries(merged))
}
