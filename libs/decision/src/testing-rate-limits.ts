import { parseDocuments, type RateLimit } from '@tollward/documents'
import { compileRateLimits, type RateLimitIndex } from './domain/descriptors.ts'

/** The index of rate limits that these documents make. */
export function rateLimitIndex(yaml: string): RateLimitIndex {
  return compileRateLimits(parseDocuments(yaml, 'test') as RateLimit[])
}
