import type { Bus, Following } from '@tollward/bus'
import { bucketContract } from '@tollward/contracts'
import { StoredDocumentSchema } from '@tollward/contracts/document'
import { afterChange, afterSnapshot, type DocumentSet, documentsOfKind } from '@tollward/documents'
import type { Logger } from 'pino'
import { compileRateLimits, type RateLimitIndex } from '../domain/descriptors.ts'
import { compilePolicies, type PolicyIndex } from '../domain/policy.ts'
import type { DecisionMetrics } from '../metrics.ts'

/** The policies in force. A document that cannot be read leaves the one before it in force. */
export class Documents {
  readonly #log: Logger
  readonly #metrics: DecisionMetrics
  #inForce: DocumentSet = new Map()
  #policies: PolicyIndex = compilePolicies([])
  #rateLimits: RateLimitIndex = compileRateLimits([])

  constructor(log: Logger, metrics: DecisionMetrics) {
    this.#log = log
    this.#metrics = metrics
  }

  get size(): number {
    return this.#inForce.size
  }

  get policies(): PolicyIndex {
    return this.#policies
  }

  get rateLimits(): RateLimitIndex {
    return this.#rateLimits
  }

  /** Begins to watch the documents. Resolves when all are known. */
  follow(bus: Bus): Promise<Following> {
    return bus.bucket(bucketContract(StoredDocumentSchema)).follow({
      snapshot: (entries) => {
        const stored = new Map(entries.values().map(({ key, value }) => [key, value]))
        const { inForce, faults } = afterSnapshot(this.#inForce, stored)
        this.#apply(inForce, faults)
      },
      change: (key, entry) => {
        const { inForce, fault } = afterChange(this.#inForce, key, entry?.value)
        this.#apply(inForce, fault === undefined ? [] : [fault])
      },
    })
  }

  #apply(inForce: DocumentSet, faults: readonly string[]): void {
    for (const fault of faults) {
      this.#metrics.documentFaults.inc()
      this.#log.error({ fault }, 'stored document cannot be read; the one before it stays in force')
    }
    // Compiled beside what is in force and put in its place at once: a request sees one state or the other.
    const policies = compilePolicies(documentsOfKind(inForce, 'ApiPolicy').values())
    const rateLimits = compileRateLimits(documentsOfKind(inForce, 'RateLimit').values())
    this.#inForce = inForce
    this.#policies = policies
    this.#rateLimits = rateLimits
  }
}
