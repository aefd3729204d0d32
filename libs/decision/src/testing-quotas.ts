import { randomUUID } from 'node:crypto'
import type { Bucket } from '@tollward/bus'
import { type Pass, PassState } from '@tollward/contracts/payment'

const LEASE_LASTS_MS = 30_000
const LOSS_MAX = 1_000

/** A lease as the verifier of the tests keeps it. */
interface Lease {
  readonly leaseId: string
  granted: number
  recorded: number
}

/** What the verifier of the tests does with quotas: as the real one does, but its leases never lapse. */
export class TestQuotas {
  /** Requests given back, by pass. */
  readonly givenBack = new Map<string, number>()
  readonly #passes: Bucket<Pass>
  readonly #leases = new Map<string, Lease>()
  /** One change after the other. */
  #changing: Promise<unknown> = Promise.resolve()

  constructor(passes: Bucket<Pass>) {
    this.#passes = passes
  }

  lease(passId: string, holder: string, wanted: number) {
    return this.#inTurn(async () => {
      const entry = await this.#passes.get(passId)
      if (!entry) return { grantedRequests: 0 }
      const { quotaRequests, leasedRequests } = entry.value
      const key = `${passId} ${holder}`
      const held = this.#leases.get(key) ?? { leaseId: randomUUID(), granted: 0, recorded: 0 }
      const asked = Math.max(0, wanted - (held.granted - held.recorded))
      const more = Math.min(asked, Number(quotaRequests - leasedRequests))
      held.granted += more
      if (held.granted === 0) return { grantedRequests: 0 }
      this.#leases.set(key, held)
      const leased = leasedRequests + BigInt(more)
      await this.#passes.update(passId, { ...entry.value, leasedRequests: leased }, entry.revision)
      const unrecordedRequestsMax = Math.min(LOSS_MAX, Math.ceil(Number(quotaRequests) / 100))
      return { grantedRequests: held.granted, leaseId: held.leaseId, unrecordedRequestsMax, lastsMs: LEASE_LASTS_MS }
    })
  }

  record(passId: string, holder: string, served: number, ends: boolean) {
    return this.#inTurn(async () => {
      const key = `${passId} ${holder}`
      const [held, entry] = [this.#leases.get(key), await this.#passes.get(passId)]
      if (!held || !entry) return { inForce: false }
      held.recorded = Math.max(held.recorded, served)
      if (!ends) return { inForce: true, lastsMs: LEASE_LASTS_MS }
      const rest = held.granted - held.recorded
      this.#leases.delete(key)
      this.givenBack.set(passId, (this.givenBack.get(passId) ?? 0) + rest)
      const leasedRequests = entry.value.leasedRequests - BigInt(rest)
      const isUsedUp = leasedRequests === entry.value.quotaRequests
      const state = isUsedUp ? PassState.EXHAUSTED : entry.value.state
      await this.#passes.update(passId, { ...entry.value, leasedRequests, state }, entry.revision)
      return { inForce: false }
    })
  }

  #inTurn<T>(change: () => Promise<T>): Promise<T> {
    const changing = this.#changing.then(change)
    this.#changing = changing.catch(() => undefined)
    return changing
  }
}
