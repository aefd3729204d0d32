import { create, type MessageInitShape } from '@bufbuild/protobuf'
import type { Bus } from '@tollward/bus'
import { broadcastContract } from '@tollward/contracts'
import { type RateUsed, RateUsedSchema, Table, type Use, type UseSchema } from '@tollward/contracts/decision'
import { BoundedMap } from '../domain/bounded-map.ts'
import { type Charge, type Limit, RateTable } from '../domain/rate.ts'
import { RatesUntold } from '../domain/rates-untold.ts'
import {
  RATE_DECIDERS_MAX,
  RATE_KEY_LENGTH_MAX,
  RATE_KEYS_MAX,
  RATES_PER_MESSAGE_MAX,
  RATES_TOLD_EVERY_MS,
  RATES_TOLD_LIMIT,
  RATES_UNTOLD_MAX,
} from '../edges.ts'
import type { DecisionMetrics } from '../metrics.ts'

const RATES = broadcastContract(RateUsedSchema)
const BUDGET: Charge = { key: 'told', limit: RATES_TOLD_LIMIT }
/** As documents have them; what is beyond was not told by one of us. */
const LIMIT_MAX: Limit = { requests: 1_000_000, perSeconds: 86_400 }

/** What waited longer counts as if it had not. */
const AGE_MICROS_MAX = 1_000_000

interface Shared {
  readonly id: Table
  readonly rates: RateTable
  readonly untold: RatesUntold
}

/**
 * The limits that all replicas keep together. Each counts at once by itself and tells the others what it admitted, every
 * RATES_TOLD_EVERY_MS, or in the next turn of the event loop once a key has used a twentieth of its limit. Nobody is asked, and no
 * request waits.
 *
 * Over N replicas, in any time no longer than a limit's own, at most (N−1) × (max(1, requests / 20) + what one of them decides while
 * a message travels) more is admitted than one replica alone would; never less than that, but for what becomes free again while a
 * message travels. A replica that starts knows nothing of before. While the bus is gone, or when more
 * keys are in use than may be told, each replica limits by what it knows: EDGES says why, metrics count it.
 */
export class Rates implements AsyncDisposable {
  readonly #bus: Bus
  readonly #decider: string
  readonly #metrics: DecisionMetrics
  readonly #sources: Shared
  readonly #callers: Shared
  readonly #descriptors: Shared
  readonly #tables: readonly Shared[]
  readonly #budget = new RateTable(1, () => {})
  readonly #heard = new BoundedMap<string, bigint>(RATE_DECIDERS_MAX, () => {})
  #listening: AsyncDisposable | undefined
  #sequence = 0n
  #soon: NodeJS.Timeout | undefined
  #atOnce: NodeJS.Immediate | undefined

  /** `decider`: a name of its own for each start. */
  constructor(bus: Bus, decider: string, metrics: DecisionMetrics) {
    this.#bus = bus
    this.#decider = decider
    this.#metrics = metrics
    this.#sources = this.#open(Table.SOURCES, 'source rates')
    this.#callers = this.#open(Table.CALLERS, 'caller rates')
    this.#descriptors = this.#open(Table.DESCRIPTORS, 'descriptor rates')
    this.#tables = [this.#sources, this.#callers, this.#descriptors]
  }

  get sources(): RateTable {
    return this.#sources.rates
  }

  get callers(): RateTable {
    return this.#callers.rates
  }

  /** Of Envoy's rate limit service. */
  get descriptors(): RateTable {
    return this.#descriptors.rates
  }

  /** From now on the others are heard. */
  listen(): void {
    this.#listening = this.#bus.listen(RATES, (message) => this.#hear(message, Date.now()))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#tell('all')
    clearTimeout(this.#soon)
    clearImmediate(this.#atOnce)
    await this.#listening?.[Symbol.asyncDispose]()
  }

  #open(id: Table, name: string): Shared {
    const untold = new RatesUntold(RATES_UNTOLD_MAX)
    const evicted = () => this.#metrics.evictions.inc({ table: name })
    return {
      id,
      untold,
      rates: new RateTable(RATE_KEYS_MAX, evicted, (charge, nowMs) => this.#counted(untold, charge, nowMs)),
    }
  }

  #counted(untold: RatesUntold, charge: Charge, nowMs: number): void {
    if (charge.hits === 0) return
    const when = charge.key.length > RATE_KEY_LENGTH_MAX ? 'lost' : untold.add(charge, nowMs)
    if (when === 'lost') this.#metrics.rateUses.inc({ result: 'lost' })
    if (when === 'urgent') this.#atOnce ??= setImmediate(() => this.#tell('urgent'))
    this.#soon ??= setTimeout(() => this.#tell('all'), RATES_TOLD_EVERY_MS).unref()
  }

  #tell(which: 'urgent' | 'all'): void {
    this.#atOnce = undefined
    if (which === 'all') this.#soon = undefined
    for (;;) {
      const nowMs = Date.now()
      const uses = this.#take(which, nowMs, Math.min(RATES_PER_MESSAGE_MAX, this.#budget.left(BUDGET, nowMs).requests))
      if (uses.length === 0) break
      this.#budget.takeAll([{ ...BUDGET, hits: uses.length }], nowMs)
      const message = create(RateUsedSchema, { decider: this.#decider, sequence: ++this.#sequence, uses })
      // What could not be told now would be old when it could.
      this.#metrics.rateUses.inc({ result: this.#bus.broadcast(RATES, message) ? 'told' : 'lost' }, uses.length)
    }
    const late = this.#tables.reduce((sum, { untold }) => sum + untold.urgent, 0)
    if (late > 0) this.#metrics.rateUses.inc({ result: 'late' }, late)
    if (this.#tables.some(({ untold }) => untold.size > 0)) {
      this.#soon ??= setTimeout(() => this.#tell('all'), RATES_TOLD_EVERY_MS).unref()
    }
  }

  #take(which: 'urgent' | 'all', nowMs: number, max: number) {
    const uses: MessageInitShape<typeof UseSchema>[] = []
    // What is urgent in any table comes before what is not in another.
    for (const ripe of which === 'urgent' ? (['urgent'] as const) : (['urgent', 'all'] as const)) {
      for (const { id: table, untold } of this.#tables) {
        for (const { key, limit, requests, sinceMs } of untold.take(max - uses.length, ripe)) {
          const ageMicros = Math.max(0, Math.round((nowMs - sinceMs) * 1000))
          const told = { table, key, requests, limitRequests: limit.requests, limitPerSeconds: limit.perSeconds }
          uses.push({ ...told, ageMicros: Math.min(ageMicros, AGE_MICROS_MAX) })
        }
      }
    }
    return uses
  }

  #hear({ decider, sequence, uses }: RateUsed, nowMs: number): void {
    if (decider === this.#decider) return
    const last = this.#heard.get(decider)
    if (last !== undefined && sequence <= last) return
    if (last !== undefined) this.#metrics.rateMessagesMissed.inc(Number(sequence - last - 1n))
    this.#heard.set(decider, sequence)
    let heard = 0
    for (const use of uses.slice(0, RATES_PER_MESSAGE_MAX)) {
      const table = this.#tables.find(({ id }) => id === use.table)
      if (!table || !isUsable(use)) continue
      heard++
      const limit = { requests: use.limitRequests, perSeconds: use.limitPerSeconds }
      table.rates.addOthers({ key: use.key, limit, hits: use.requests }, nowMs, use.ageMicros / 1000)
    }
    this.#metrics.rateUses.inc({ result: 'heard' }, heard)
    this.#metrics.rateUses.inc({ result: 'unusable' }, uses.length - heard)
  }
}

function isUsable({ key, requests, limitRequests, limitPerSeconds }: Use): boolean {
  const isWithin = (value: number, max: number) => value >= 1 && value <= max
  return (
    requests > 0 &&
    key.length <= RATE_KEY_LENGTH_MAX &&
    isWithin(limitRequests, LIMIT_MAX.requests) &&
    isWithin(limitPerSeconds, LIMIT_MAX.perSeconds)
  )
}
