import type { Bus, Client } from '@tollward/bus'
import { VerifierService } from '@tollward/contracts/payment'
import type { Logger } from 'pino'
import { BoundedMap } from '../domain/bounded-map.ts'
import type { MaybePromise, Quote } from '../domain/judge.ts'
import { RateTable } from '../domain/rate.ts'
import {
  QUOTE_KEPT_MS,
  QUOTE_LIMIT,
  QUOTE_TIMEOUT_MS,
  QUOTES_AT_ONCE_MAX,
  QUOTES_MAX,
  RATE_KEYS_MAX,
} from '../edges.ts'
import type { DecisionMetrics } from '../metrics.ts'

interface Kept {
  readonly quote: Quote | undefined
  readonly untilMs: number
}

/** What plans cost clients, as payment-verifier says. Only told beside a refusal: where it cannot be known, nothing is said. */
export class Quotes {
  readonly #verifier: Client<typeof VerifierService>
  readonly #log: Logger
  readonly #metrics: DecisionMetrics
  readonly #kept: BoundedMap<string, Kept>
  readonly #asking = new Map<string, Promise<Quote | undefined>>()
  readonly #rates: RateTable

  constructor(bus: Bus, log: Logger, metrics: DecisionMetrics) {
    this.#verifier = bus.client(VerifierService, { timeoutMs: QUOTE_TIMEOUT_MS })
    this.#log = log
    this.#metrics = metrics
    this.#kept = new BoundedMap(QUOTES_MAX, () => metrics.evictions.inc({ table: 'quotes' }))
    this.#rates = new RateTable(RATE_KEYS_MAX, () => metrics.evictions.inc({ table: 'quote rates' }))
  }

  /** What the plan costs the client now; undefined: not known. Never rejects. */
  of({ clientId, plan }: { clientId: string; plan: string }, nowMs: number): MaybePromise<Quote | undefined> {
    const key = `${clientId} ${plan}`
    const kept = this.#kept.get(key)
    if (kept && kept.untilMs > nowMs) return kept.quote
    const asking = this.#asking.get(key)
    if (asking !== undefined) return asking
    if (this.#asking.size >= QUOTES_AT_ONCE_MAX || !this.#rates.take(clientId, QUOTE_LIMIT, nowMs).conforms) {
      this.#metrics.quotes.inc({ result: 'not asked' })
      return undefined
    }
    const answer = this.#ask(clientId, plan)
      .then((quote) => {
        this.#kept.set(key, { quote, untilMs: Date.now() + QUOTE_KEPT_MS })
        return quote
      })
      .finally(() => this.#asking.delete(key))
    this.#asking.set(key, answer)
    return answer
  }

  async #ask(clientId: string, plan: string): Promise<Quote | undefined> {
    try {
      const { isSold, ...quote } = await this.#verifier.quote({ clientId, plan })
      this.#metrics.quotes.inc({ result: isSold ? 'told' : 'not sold' })
      return isSold ? quote : undefined
    } catch (error) {
      this.#metrics.quotes.inc({ result: 'failed' })
      this.#log.debug({ err: error }, 'price not known')
      return undefined
    }
  }
}
