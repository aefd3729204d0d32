import type { RequestListener } from 'node:http'
import type { Provider } from 'oidc-provider'
import type { ProviderPart } from '../compose.ts'
import type { KeyRing } from './key-ring.ts'

/** The OAuth server with the keys of the moment. */
export interface CurrentProvider {
  provider(): Provider
  readonly listener: RequestListener
}

/**
 * Makes the provider, and a new one whenever the keys changed, since its keys are given at its making. Requests that are under
 * way end with the provider that they began with; all share their state on the bus, so none notices.
 */
export function currentProvider(ring: Pick<KeyRing, 'jwks' | 'onChange'>, make: () => Provider): CurrentProvider {
  let provider = make()
  let listener = provider.callback()
  ring.onChange(() => {
    provider = make()
    listener = provider.callback()
  })
  return { provider: () => provider, listener: (request, response) => void listener(request, response) }
}

/** What the keys are to the OAuth server: what it signs with, and what it publishes for how long. */
export function keysPart(ring: Pick<KeyRing, 'jwks' | 'maxAgeSeconds'>): ProviderPart {
  return {
    configuration: { jwks: ring.jwks() },
    install: (provider) => {
      provider.use(async (ctx, next) => {
        await next()
        if (ctx.path === '/jwks' && ctx.status === 200) {
          ctx.set('Cache-Control', `public, max-age=${ring.maxAgeSeconds()}, must-revalidate`)
        }
      })
    },
  }
}
