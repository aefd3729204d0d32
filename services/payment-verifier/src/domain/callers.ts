import type { Conduct } from '@tollward/contracts/payment'
import { addressKey, LATELY_MS, timeOf } from './conduct.ts'

/** After this part of the time for which a call says whose an address is, the next one is worth writing down. */
const RENEWED_AFTER_MS = LATELY_MS / 4

/** Who called from where lately, as far as conducts say. As many addresses as those hold. */
export class Callers {
  /** By address: when each client last called from there. */
  readonly #byAddress = new Map<string, Map<string, number>>()
  readonly #byClient = new Map<string, readonly string[]>()

  get addresses(): number {
    return this.#byAddress.size
  }

  /** Takes what is known of a client now in the place of what was. */
  set({ clientId, calledFrom }: Conduct): void {
    this.delete(clientId)
    if (calledFrom.length === 0) return
    this.#byClient.set(
      clientId,
      calledFrom.map(({ address }) => addressKey(address)),
    )
    for (const { address, calledAt } of calledFrom) {
      const key = addressKey(address)
      const clients = this.#byAddress.get(key) ?? new Map<string, number>()
      this.#byAddress.set(key, clients.set(clientId, timeOf(calledAt)))
    }
  }

  delete(clientId: string): void {
    for (const key of this.#byClient.get(clientId) ?? []) {
      const clients = this.#byAddress.get(key)
      clients?.delete(clientId)
      if (clients?.size === 0) this.#byAddress.delete(key)
    }
    this.#byClient.delete(clientId)
  }

  /**
   * The client that alone called from an address lately. Where several do, nothing that happens there says anything about any of
   * them: rather one that should pay more pays less than that one lowers another's score.
   */
  soleAt(address: Uint8Array, nowMs: number): string | undefined {
    const lately = [...(this.#byAddress.get(addressKey(address)) ?? [])].filter(([, atMs]) => atMs > nowMs - LATELY_MS)
    return lately.length === 1 ? lately[0]?.[0] : undefined
  }

  /** Whether a call of the client from the address has to be written down. */
  isNews(clientId: string, address: Uint8Array, nowMs: number): boolean {
    const atMs = this.#byAddress.get(addressKey(address))?.get(clientId)
    return atMs === undefined || atMs <= nowMs - RENEWED_AFTER_MS
  }
}
