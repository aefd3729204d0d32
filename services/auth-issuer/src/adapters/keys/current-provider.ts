import type { RequestListener } from 'node:http'
import type { Provider } from 'oidc-provider'
import type { ProviderPart } from '../compose.ts'
import type { KeyRing } from './key-ring.ts'

/**
 * Answers requests with a provider that has the keys of the moment: since its keys are given at its making, a new one is made
 * whenever they changed. Requests that are under way end with the one that they began with; all share their state on the bus, so
 * none notices.
 */
export function currentListener(ring: Pick<KeyRing, 'onChange'>, make: () => Provider): RequestListener {
  let listener = make().callback()
  ring.onChange(() => {
    listener = make().callback()
  })
  return (request, response) => void listener(request, response)
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
