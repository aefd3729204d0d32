import { hash } from 'node:crypto'
import { RateLimitService } from '@tollward/contracts/envoy'
import type { Decider } from '@tollward/decision'
import { shouldRateLimit } from '../domain/rate-limit-service.ts'
import type { AuthorizerMetrics } from '../metrics.ts'
import type { UnaryMethod } from './grpc-calls.ts'

/** Answers proxies that want limits alone. */
export function rateLimitMethod(decider: Decider, metrics: AuthorizerMetrics): UnaryMethod {
  const sha256 = (text: string) => hash('sha256', text, 'hex')
  return {
    path: `/${RateLimitService.typeName}/${RateLimitService.method.shouldRateLimit.name}`,
    handle: (bytes) => {
      const { index, rates } = decider.rateLimits
      const { answer, outcome } = shouldRateLimit(bytes, { index, rates, hash: sha256 }, Date.now())
      metrics.rateLimits.inc({ outcome })
      return answer
    },
  }
}
